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

    motion: mean change of a pixel from frame to frame; saturation: largest minus smallest channel; variety: root mean
    square difference between clips of different prompts (0 for a single clip).
    """
    videos = [np.asarray(clip, np.float32) / 255 for clip in clips]
    pairs = [np.sqrt(np.square(a - b).mean()) for a, b in combinations(videos, 2)]
    return {
        "motion": float(np.mean([np.abs(np.diff(v, axis=0)).mean() if len(v) > 1 else 0 for v in videos])),
        "saturation": float(np.mean([(v.max(-1) - v.min(-1)).mean() for v in videos])),
        "variety": float(np.mean(pairs)) if pairs else 0.0,
    }


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
