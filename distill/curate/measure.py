"""One video, measured: its opening is decoded once, and every signal taken from it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from ..data import footage
from ..data.footage import BadVideo, Footage
from . import imaging, scorers
from .scorers import Scorer

SPAN = 81  # frames: five seconds at 16 fps, the paper's clip
SAMPLED = (0, 20, 40, 60)  # "the 1st, 21st, 41st, and 61st frames"
KEYFRAMES = 8  # for the aesthetic score
STILL = 160  # pixels, the shorter side

Values = dict[str, float]


@dataclass(frozen=True)
class Opening:
    """The frames that a video is judged by.

    Attributes:
        sampled: four, of the video's own size; a short video's last frame stands in for those it lacks.
        stored: the first SPAN at the video's own rate, small.
        moving: the first SPAN at the rate that motion is measured at, small.
    """

    sampled: list[np.ndarray]
    stored: list[np.ndarray]
    moving: list[np.ndarray]

    @property
    def keyframes(self) -> list[np.ndarray]:
        return [self.moving[i] for i in np.linspace(0, len(self.moving) - 1, KEYFRAMES).round().astype(int)]


def opening(video: Footage, fps: float | None) -> Opening:
    """Decode what is needed, and no more.

    Args:
        fps: that motion is measured at; a video of fewer keeps its own, and None keeps every video's.
    """
    step = max(1.0, video.fps / fps) if fps else 1.0
    picked = {round(k * step) for k in range(SPAN)}
    seen = Opening([], [], [])
    for i, frame in enumerate(footage.stream(video.path, count=max(picked) + 1)):
        if i < SPAN or i in picked:
            last, small = frame, imaging.shrink(frame)
        if i < SPAN:
            seen.stored.append(small)
        if i in picked:
            seen.moving.append(small)
        if i in SAMPLED:
            seen.sampled.append(frame)
    seen.sampled.extend([last] * (len(SAMPLED) - len(seen.sampled)))
    return seen


def signals(seen: Opening) -> Values:
    """All that needs no weights: the extremes of the four sampled frames, or means."""
    small = [imaging.shrink(frame) for frame in seen.sampled]
    return {
        "frames": len(seen.stored),
        "hue_entropy": min(map(imaging.hue_entropy, small)),
        "hue_entropy_achromatic": min(imaging.hue_entropy(frame, achromatic=True) for frame in small),
        "sharpness": min(map(imaging.sharpness, small)),
        "sharpness_native": min(map(imaging.sharpness, seen.sampled)),
        "contrast": min(map(imaging.contrast, seen.moving)),
        "motion": imaging.motion(seen.moving),
        "cuts": imaging.cuts(seen.moving),
        "consistency": imaging.consistency(imaging.thumbnails(seen.stored)),
        "aesthetics": float(np.mean([imaging.finish(frame) for frame in seen.keyframes])),
        "colourfulness": float(np.mean([imaging.colourfulness(frame) for frame in small])),
        "saturation": float(np.mean([imaging.saturation(frame) for frame in small])),
    }


def video(footage: Footage, fps: float | None, still: Path) -> Values:
    """Measure a video and write its still.

    Raises:
        BadVideo: it cannot be decoded, or measured.
    """
    cv2.setNumThreads(1)  # processes share the machine already
    try:
        seen = opening(footage, fps)
        found = signals(seen)
        strip(seen.sampled, still)
    except cv2.error as error:
        raise BadVideo(f"OpenCV cannot measure {footage.width}x{footage.height} pixels: {error.err}") from error
    return found


def strip(frames: Sequence[np.ndarray], path: Path) -> None:
    """Frames side by side as a JPEG, whole or not at all."""
    image = np.concatenate([imaging.shrink(frame, STILL) for frame in frames], 1)
    _, data = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 80])
    partial = path.with_suffix(".partial")
    partial.write_bytes(data.tobytes())
    partial.replace(path)


def scored(video: Footage, fps: float | None, key: str, scorer: Scorer) -> Values:
    """A signal that a scorer of the user's gives.

    Raises:
        BadVideo: it cannot be decoded.
        BadScore: the scorer cannot make anything of it.
    """
    seen = opening(video, fps)
    if key == "consistency":
        return {key: imaging.consistency(scorers.call(scorer, seen.stored, 2))}
    return {key: float(scorers.call(scorer, seen.keyframes, 1).mean())}
