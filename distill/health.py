"""What a student's clips look like beside its teacher's: still, too colourful, or all alike.

Measured on the validation clips, from the same prompts and noise, as ratios to the teacher's of most steps; 1 is
healthy. The distance to the teacher does not tell these apart, and losses may look well while they happen.
"""

from collections.abc import Sequence
from itertools import combinations

import numpy as np

ADVICE = {
    "motion": ("the clips stand still", "the clips flicker or jump"),
    "saturation": ("the colours fade", "the colours saturate"),
    "variety": ("clips of different prompts look alike", "the clips fall apart"),
}
SMALL = 1e-3  # of the range of a pixel: below it a teacher has nothing to lose


def vitals(clips: Sequence[np.ndarray]) -> dict[str, float]:
    """Measures of clips, uint8 (F, H, W, 3) each, in shares of the range of a pixel.

    Besides MEASURES the variety: root mean square difference between clips of different prompts (0 for a single clip).
    """
    videos = [np.asarray(clip, np.float32) / 255 for clip in clips]
    pairs = [np.sqrt(np.square(a - b).mean()) for a, b in combinations(videos, 2)]
    means = {name: float(np.mean([measure(clip) for clip in clips])) for name, measure in MEASURES.items()}
    return means | {"variety": float(np.mean(pairs)) if pairs else 0.0}


def motion(clip: np.ndarray) -> float:
    """Mean change of a pixel from frame to frame, as a share of its range."""
    return float(np.abs(np.diff(np.asarray(clip, np.float32), axis=0)).mean() / 255) if len(clip) > 1 else 0.0


def saturation(clip: np.ndarray) -> float:
    """Mean of the largest minus the smallest channel, as a share of their range."""
    frames = np.asarray(clip, np.float32)
    return float((frames.max(-1) - frames.min(-1)).mean() / 255)


MEASURES = {"motion": motion, "saturation": saturation}  # of a clip by itself, uint8 (F, H, W, 3)


def ratios(student: dict[str, float], teacher: dict[str, float]) -> dict[str, float]:
    """The student's measures over the teacher's; those that the teacher lacks (no motion asked for) are left out."""
    return {name: student[name] / teacher[name] for name in ADVICE if teacher[name] > SMALL}


def faults(found: dict[str, float], limits: dict[str, tuple[float, float]]) -> list[str]:
    """One line for every ratio that is out of its limits."""
    lines = []
    for name, ratio in found.items():
        low, high = limits[name]
        if not low <= ratio <= high:
            what = ADVICE[name][ratio > high]
            lines.append(
                f"{what}: {name} is {ratio:.2f} of the teacher's, expected {low:g} to {high:g} (health.{name}); "
                "look at the clips, lower the learning rate or go back to a checkpoint before this"
            )
    return lines
