"""How a clip moves, uint8 (F, H, W, 3). A single picture stands still; what needs more frames says so.

flicker is VBench's own formula. dynamic_flow and smoothness are its dynamic degree and motion smoothness with classical
optical flow in place of the networks: not VBench's numbers.
"""

from collections.abc import Callable
from functools import partial
from itertools import pairwise

import cv2
import numpy as np

from ..curate import imaging

DYNAMIC_FPS = 8  # frames per second that VBench looks at
FASTEST = 0.05  # share of the pixels, the fastest, whose mean speed is that of a pair of frames
MOVING = 6 / 256  # of the shorter side, per frame
MOVING_PAIRS = 4 / 16  # of the frames


def measures(fps: float) -> dict[str, Callable[[np.ndarray], float]]:
    return {
        "flicker": flicker,
        "flow": imaging.motion,
        "dynamic_flow": partial(dynamic_flow, fps=fps),
        "smoothness": smoothness,
    }


def flicker(video: np.ndarray) -> float:
    """1 - the mean change of a pixel from frame to frame over its range, in float32 as VBench computes it."""
    _needs("flicker", video, 2)
    frames = (frame.astype(np.float32) for frame in video)
    before, changes = next(frames), []
    for frame in frames:
        changes.append(np.abs(frame - before).mean())
        before = frame
    return (255.0 - np.mean(changes).item()) / 255.0


def dynamic_flow(video: np.ndarray, fps: float) -> float:
    """1 for a clip that moves, 0 for one that does not: VBench's rule.

    Enough pairs of frames, at DYNAMIC_FPS, must be faster than MOVING; one at least.
    """
    video = video[:: max(1, round(fps / DYNAMIC_FPS))]
    height, width = video.shape[1:3]
    speeds = [_fastest(imaging.flow(a, b)) for a, b in pairwise(video)]
    moving = sum(speed > MOVING * min(height, width) for speed in speeds)
    return float(moving >= max(1, round(MOVING_PAIRS * len(video))))


def _fastest(flow: np.ndarray) -> float:
    speeds = np.sort(np.linalg.norm(flow, axis=-1).ravel())[::-1]
    return float(speeds[: max(1, int(FASTEST * speeds.size))].mean())


def smoothness(video: np.ndarray) -> float:
    """1 - the mean difference over a pixel's range of every second frame to the midpoint of its neighbours."""
    _needs("smoothness", video, 3)
    triples = zip(video[:-2:2], video[1:-1:2], video[2::2], strict=True)
    return float(np.mean([1 - np.abs(midpoint(a, c) - b).mean() / 255 for a, b, c in triples]))


def midpoint(first: np.ndarray, last: np.ndarray) -> np.ndarray:
    """The frame between two, float (H, W, 3): each moved halfway along the optical flow to the other, averaged.

    Flow is DIS's: Farneback's reads too little beyond some ten pixels, which two frames' distance often is.
    """
    try:
        dis = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
        there, back = (dis.calc(*map(imaging.grey, pair), None) for pair in ((first, last), (last, first)))
    except cv2.error as error:
        raise ValueError(f"smoothness: no optical flow for frames of {first.shape[1]}x{first.shape[0]}") from error
    return (_moved(first, there / 2) + _moved(last, back / 2)) / 2


def _moved(frame: np.ndarray, flow: np.ndarray) -> np.ndarray:
    """A frame moved along a flow so smooth that it is the same where it starts and where it ends."""
    y, x = np.mgrid[: frame.shape[0], : frame.shape[1]].astype(np.float32)
    moved = cv2.remap(frame, x - flow[..., 0], y - flow[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return moved.astype(float)


def _needs(name: str, video: np.ndarray, frames: int) -> None:
    if len(video) < frames:
        raise ValueError(f"{name} needs {frames} frames or more; the clip has {len(video)}")
