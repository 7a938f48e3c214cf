"""Means of dimensions -> scores, as the leaderboards have them. A total without all of its dimensions is None."""

import math
from collections.abc import Mapping

from ...errors import UserError
from .suites import CATEGORIES, QUALITY, QUALITY_WEIGHT, SEMANTIC, SEMANTIC_WEIGHT, VBENCH, VBENCH2, Range, Suite

LIMIT = 1.0 + 1e-6  # of a mean; rounding in float32 goes a little beyond 1


def scores(means: Mapping[str, float]) -> dict:
    """Quality, semantic and total of VBench, from 0 to 1 on the whole; nothing is clipped.

    Args:
        means: dimension -> mean, from 0 to 1 as the official package writes them.

    Returns:
        `quality`, `semantic`, `total`, each None where a dimension is missing; `partial`, the missing ones.
    """
    _check(means, VBENCH)
    quality, semantic = (_weighted(means, ranges) for ranges in (QUALITY, SEMANTIC))
    total = None
    if quality is not None and semantic is not None:
        total = (QUALITY_WEIGHT * quality + SEMANTIC_WEIGHT * semantic) / (QUALITY_WEIGHT + SEMANTIC_WEIGHT)
    return {"quality": quality, "semantic": semantic, "total": total, "partial": _missing(means, VBENCH)}


def scores2(means: Mapping[str, float]) -> dict:
    """The five categories of VBench-2.0, plain means, and their mean as `total`; `partial` as in `scores`."""
    _check(means, VBENCH2)
    made = {name: _mean([means.get(each) for each in some]) for name, some in CATEGORIES.items()}
    return made | {"total": _mean(list(made.values())), "partial": _missing(means, VBENCH2)}


def of_suite(suite: Suite, means: Mapping[str, float]) -> dict:
    return scores(means) if suite is VBENCH else scores2(means)


def _check(means: Mapping[str, float], suite: Suite) -> None:
    for dimension, mean in means.items():
        suite.check(dimension)
        if not math.isfinite(mean):
            raise UserError(f"{dimension} is {mean}, no mean; leave out a dimension that was not measured")
        if abs(mean) > LIMIT:
            raise UserError(f"{dimension} is {mean:g}; means go from 0 to 1: divide percentages by 100")


def _missing(means: Mapping[str, float], suite: Suite) -> list[str]:
    return [dimension for dimension in suite.dimensions if dimension not in means]


def _weighted(means: Mapping[str, float], ranges: dict[str, Range]) -> float | None:
    if not ranges.keys() <= means.keys():
        return None
    normalised = {name: (means[name] - r.low) / (r.high - r.low) for name, r in ranges.items()}
    return sum(r.weight * normalised[name] for name, r in ranges.items()) / sum(r.weight for r in ranges.values())


def _mean(values: list[float | None]) -> float | None:
    return None if None in values else sum(values) / len(values)
