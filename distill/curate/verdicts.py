"""Measurements -> verdicts: thresholds first, then the ranks of those that remain, as in the paper's order.

A reason to drop a video begins with its kind and a colon.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from ..data.footage import Footage
from ..data.spec import Curation
from .measure import SAMPLED, Values

NEEDED = SAMPLED[-1] + 1  # frames
RANKED = ("consistency", "aesthetics")


@dataclass(frozen=True)
class Measured:
    """A video with its signals.

    Attributes:
        bad: why there are none.
        still: a picture of its sampled frames.
        unscored: signal -> why the user's scorer gave none.
    """

    video: Footage
    values: Values = field(default_factory=dict)
    bad: str | None = None
    still: Path | None = None
    unscored: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Limit:
    """A threshold on one signal; what equals it passes."""

    kind: str
    key: str
    bound: float
    words: str
    most: bool = False

    def broken_by(self, value: float) -> bool:
        return value > self.bound if self.most else value < self.bound

    def rule(self) -> str:
        return f"{self.words} {'at most' if self.most else 'at least'} {self.bound:.4g}"

    def reason(self, value: float) -> str:
        return f"{self.kind}: {self.words} {value:.4g}, needs {'at most' if self.most else 'at least'} {self.bound:.4g}"


def limits(curation: Curation) -> list[Limit]:
    hue = "hue_entropy_achromatic" if curation.hue_mode == "achromatic" else "hue_entropy"
    sharpness = "sharpness_native" if curation.sharpness_at == "native" else "sharpness"
    asked = [
        ("short", "frames", NEEDED if curation.short == "reject" else None, "frames", False),
        ("monochrome", hue, curation.hue_entropy, "hue entropy in nats", False),
        ("blurred", sharpness, curation.sharpness, "variance of the Laplacian", False),
        ("flat", "contrast", curation.contrast, "contrast", False),
        ("still", "motion", curation.motion, "optical flow in pixels per frame", False),
        ("cuts", "cuts", curation.cuts, "cuts", True),
    ]
    return [Limit(kind, key, bound, words, most) for kind, key, bound, words, most in asked if bound is not None]


def judge(measured: Sequence[Measured], curation: Curation) -> list[str | None]:
    """Why each video is dropped, or None."""
    reasons = [fault(each, curation) for each in measured]
    for key, share, groups in ranks(curation):
        remaining = [i for i, reason in enumerate(reasons) if reason is None]
        for i in remaining:
            if key in measured[i].unscored:
                reasons[i] = f"unscored: {measured[i].unscored[key]}"
        remaining = [i for i in remaining if reasons[i] is None]
        for group in alike(remaining, measured, groups):
            for i, reason in losers(group, measured, key, share).items():
                reasons[i] = reason
    return reasons


def ranks(curation: Curation) -> list[tuple[str, float, int]]:
    """(signal, share that stays, groups of like motion) of each filter that ranks."""
    groups = {"consistency": curation.consistency_groups}
    return [(key, share, groups.get(key, 1)) for key in RANKED if (share := getattr(curation, key)) is not None]


def fault(measured: Measured, curation: Curation) -> str | None:
    """What a video is dropped for whatever the others are like."""
    if measured.bad:
        return f"unreadable: {measured.bad}"
    video, least = measured.video, curation.resolution and sorted(curation.resolution)
    if least and (min(video.width, video.height) < least[0] or max(video.width, video.height) < least[1]):
        return f"resolution: {video.width}x{video.height}, needs sides of at least {least[0]} and {least[1]} pixels"
    for limit in limits(curation):
        if limit.broken_by(measured.values[limit.key]):
            return limit.reason(measured.values[limit.key])
    return None


def alike(indices: list[int], measured: Sequence[Measured], groups: int) -> list[list[int]]:
    """Indices in groups of (almost) equal size, by motion."""
    order = sorted(indices, key=lambda i: (measured[i].values["motion"], str(measured[i].video.path), i))
    edges = [round(len(order) * g / groups) for g in range(groups + 1)]
    return [order[a:b] for a, b in pairwise(edges)]


def losers(group: list[int], measured: Sequence[Measured], key: str, share: float) -> dict[int, str]:
    """Those of a group that do not rank among the best, with the reason; of equals the first by path stay."""
    order = sorted(group, key=lambda i: (-measured[i].values[key], str(measured[i].video.path), i))
    stay = math.ceil(share * len(order) - 1e-9)
    return {
        i: f"{key}: rank {rank} of {len(order)}, the first {stay} stay" for rank, i in enumerate(order[stay:], stay + 1)
    }
