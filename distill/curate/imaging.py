"""What OpenCV measures of frames: the signals of section 6.2 of adaptive video distillation (docs/curation.md).

A frame is uint8 (H, W, 3), RGB. Nothing here knows a threshold.
"""

from collections.abc import Sequence

import cv2
import numpy as np
from scenedetect import ContentDetector, FrameTimecode

SIDE = 480  # pixels, the shorter side: "uniformly resized to 480p"
HUES = 180  # OpenCV's hue counts two degrees
COLOURED = 8  # of 255, saturation times value: below, hue is noise
PAIRS = 16  # of consecutive frames, for the optical flow
THUMBNAIL = 16  # pixels
CUT_SIDE = 144  # pixels, the shorter side where cuts are looked for
FARNEBACK = {"pyr_scale": 0.5, "levels": 3, "winsize": 15, "iterations": 3, "poly_n": 5, "poly_sigma": 1.2, "flags": 0}


def shrink(frame: np.ndarray, side: int = SIDE) -> np.ndarray:
    """A frame with so many pixels on its shorter side; smaller ones stay as they are."""
    height, width = frame.shape[:2]
    scale = side / min(height, width)
    if scale >= 1:
        return frame
    return cv2.resize(frame, (round(width * scale), round(height * scale)), interpolation=cv2.INTER_AREA)


def grey(frame: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)


def hue_entropy(frame: np.ndarray, achromatic: bool = False) -> float:
    """Entropy of the hue histogram in nats, 0 to ln 180.

    Args:
        achromatic: count pixels that are almost grey in one bin of their own.
    """
    hue, saturation, value = cv2.split(cv2.cvtColor(frame, cv2.COLOR_RGB2HSV))
    if achromatic:
        hue[saturation.astype(float) * value / 255 < COLOURED] = HUES
    shares = np.bincount(hue.ravel()) / hue.size
    shares = shares[shares > 0]
    return abs(float((shares * np.log(shares)).sum()))  # abs: -0.0 is no entropy


def sharpness(frame: np.ndarray) -> float:
    """Variance of the Laplacian of the luma."""
    return float(cv2.Laplacian(grey(frame), cv2.CV_64F).var())


def contrast(frame: np.ndarray) -> float:
    """Standard deviation of the luma, 0 to 127.5; nothing but black, white or one colour has next to none."""
    return float(grey(frame).std())


def saturation(frame: np.ndarray) -> float:
    """Mean, 0 to 1."""
    return float(cv2.cvtColor(frame, cv2.COLOR_RGB2HSV)[..., 1].mean() / 255)


def colourfulness(frame: np.ndarray) -> float:
    """Hasler and Suesstrunk's (2003), 0 for greys to about 110."""
    red, green, blue = np.moveaxis(frame.astype(float), -1, 0)
    first, second = red - green, (red + green) / 2 - blue
    return float(np.hypot(first.std(), second.std()) + 0.3 * np.hypot(first.mean(), second.mean()))


def motion(frames: Sequence[np.ndarray]) -> float:
    """Mean optical flow in pixels per frame, of PAIRS evenly spaced pairs of neighbours (Farneback's)."""
    if len(frames) < 2:
        return 0.0
    starts = np.unique(np.linspace(0, len(frames) - 2, PAIRS).round().astype(int))
    return float(np.mean([np.linalg.norm(flow(frames[i], frames[i + 1]), axis=-1).mean() for i in starts]))


def flow(frame: np.ndarray, following: np.ndarray) -> np.ndarray:
    """Farneback's optical flow, (H, W, 2), (x, y) in pixels."""
    return cv2.calcOpticalFlowFarneback(grey(frame), grey(following), None, **FARNEBACK)


def thumbnails(frames: Sequence[np.ndarray]) -> np.ndarray:
    """Frames as 16x16 pixels in Lab, (N, 768), zero for mid-grey: features that need no weights."""
    small = [cv2.resize(frame, (THUMBNAIL, THUMBNAIL), interpolation=cv2.INTER_AREA) for frame in frames]
    return np.stack([cv2.cvtColor(frame, cv2.COLOR_RGB2LAB).astype(float).ravel() for frame in small]) - 128


def consistency(features: np.ndarray) -> float:
    """VBench's: mean similarity of each frame to the one before and to the first, 0 to 1.

    Args:
        features: (N, D), one row per frame.
    """
    if len(features) < 2:
        return 1.0
    rows = features / np.linalg.norm(features, axis=1, keepdims=True).clip(1e-12)
    similar = [(rows[1:] * others).sum(1).clip(0) for others in (rows[:-1], rows[:1])]
    return float(np.mean(similar))


def finish(frame: np.ndarray) -> float:
    """Local contrast times colour times exposure, what exposure fusion prefers (Mertens et al. 2007): mean, in 1/1000.

    A formula, and no judge of beauty: it marks down the flat, the grey, the burnt and the murky.
    """
    image = frame / 255
    detail = np.abs(cv2.Laplacian(grey(frame), cv2.CV_64F)) / 255
    exposure = np.exp(-((image - 0.5) ** 2) / (2 * 0.2**2)).prod(-1)
    return float(1000 * (detail * frame.std(-1) / 255 * exposure).mean())


def cuts(frames: Sequence[np.ndarray]) -> int:
    """How often the scene changes at once (PySceneDetect's content detector, its own threshold)."""
    detector = ContentDetector(min_scene_len=0)
    small = [np.ascontiguousarray(shrink(frame, CUT_SIDE)[..., ::-1]) for frame in frames]
    return sum(len(detector.process_frame(FrameTimecode(i, 1.0), frame)) for i, frame in enumerate(small))
