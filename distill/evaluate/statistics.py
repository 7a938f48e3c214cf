"""Means with 95 % intervals, for samples that share prompts.

nan is a sample that a measure says nothing about (a still scene has no share in `dynamic`): it is left out, and so are
bootstrap draws of nothing else; what is compared is left out together. Of no sample at all everything is nan.
"""

import math

import numpy as np

RESAMPLES = 10_000
Z = 1.959964  # of a 95 % interval
UNKNOWN = {"mean": math.nan, "low": math.nan, "high": math.nan}


def resample(group: np.ndarray) -> np.ndarray:
    """Bootstrap weights (RESAMPLES, N): how often each sample is drawn when whole groups (N,) are drawn."""
    groups = int(group.max()) + 1
    drawn = np.random.default_rng(0).multinomial(groups, np.full(groups, 1 / groups), RESAMPLES)
    return drawn[:, group].astype(float)


def mean(values: np.ndarray, weights: np.ndarray) -> dict[str, float]:
    weights, values = known(weights, values)
    if not values.size:
        return dict(UNKNOWN)
    return {"mean": float(values.mean()), **interval((weights @ values) / weights.sum(1))}


def known(weights: np.ndarray, *values: np.ndarray) -> tuple[np.ndarray, ...]:
    """Bootstrap weights and values, (N,) or (seeds, N), of the samples that none of the values lacks."""
    keep = ~np.isnan(np.vstack(values)).any(0)
    weights = weights[:, keep]
    return weights[weights.any(1)], *(v[..., keep] for v in values)


def gap_closed(student: np.ndarray, few: np.ndarray, weights: np.ndarray) -> dict[str, float]:
    """1 - d(student) / d(few), d the mean distance to the reference."""
    weights, student, few = known(weights, student, few)
    if not student.size:
        return dict(UNKNOWN)
    return {"mean": float(1 - student.mean() / few.mean()), **interval(1 - (weights @ student) / (weights @ few))}


def share(hits: np.ndarray) -> dict[str, float]:
    """The share of ones, with Wilson's interval."""
    hits = hits[~np.isnan(hits)]
    if not hits.size:
        return dict(UNKNOWN)
    n, p = len(hits), hits.mean()
    centre = (p + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * np.sqrt(p * (1 - p) / n + Z**2 / (4 * n**2))
    return {"mean": float(p), "low": float(centre - half), "high": float(centre + half)}


def interval(means: np.ndarray) -> dict[str, float]:
    low, high = np.percentile(means, [2.5, 97.5])
    return {"low": float(low), "high": float(high)}


T_95 = {
    2: 12.706,
    3: 4.303,
    4: 3.182,
    5: 2.776,
    6: 2.571,
    7: 2.447,
    8: 2.365,
    9: 2.306,
    10: 2.262,
}  # Student's, by seeds


def over_seeds(values: np.ndarray, weights: np.ndarray) -> dict:
    """What several training seeds say together.

    Args:
        values: (seeds, N), the same samples at every seed.

    Returns:
        mean, low and high as `mean` gives them for the average over seeds; `seeds`, the mean of each; `spread`, their
        half_interval.
    """
    weights, values = known(weights, values)
    each = values.mean(1) if values.size else np.full(len(values), math.nan)
    return mean(values.mean(0), weights) | {"seeds": each.tolist(), "spread": half_interval(each)}


def nearer(values: np.ndarray, than: np.ndarray, reference: np.ndarray, weights: np.ndarray) -> dict:
    """How much farther the mean of values is from the reference's mean than that of `than` is; below 0 it is nearer.

    Args:
        values, than: (seeds, N); reference: (N,); the same samples.

    Returns:
        As `over_seeds`.
    """
    weights, values, than, reference = known(weights, values, than, reference)
    if not reference.size:
        return UNKNOWN | {"seeds": [math.nan] * len(values), "spread": math.nan}
    each = np.abs((values - reference).mean(1)) - np.abs((than - reference).mean(1))
    a, b = (np.abs(weights @ (v.mean(0) - reference)) / weights.sum(1) for v in (values, than))
    mean = np.abs((values - reference).mean()) - np.abs((than - reference).mean())
    return {"mean": float(mean), **interval(a - b), "seeds": each.tolist(), "spread": half_interval(each)}


def half_interval(each: np.ndarray) -> float:
    """Half the 95 % interval of the mean of a few seeds, by Student's t; nan for one."""
    n = len(each)
    return float(T_95[n] * each.std(ddof=1) / np.sqrt(n)) if n > 1 else float("nan")


def is_beyond(difference: dict) -> bool:
    """Whether a difference from `over_seeds` is beyond both spreads, that over prompts and that over training seeds."""
    outside_prompts = difference["low"] > 0 or difference["high"] < 0
    return bool(outside_prompts and abs(difference["mean"]) > difference["spread"])
