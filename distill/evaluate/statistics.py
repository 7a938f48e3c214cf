"""Means with 95 % intervals, for samples that share prompts."""

import numpy as np

RESAMPLES = 10_000
Z = 1.959964  # of a 95 % interval


def resample(group: np.ndarray) -> np.ndarray:
    """Bootstrap weights (RESAMPLES, N): how often each sample is drawn when whole groups (N,) are drawn."""
    groups = int(group.max()) + 1
    drawn = np.random.default_rng(0).multinomial(groups, np.full(groups, 1 / groups), RESAMPLES)
    return drawn[:, group].astype(float)


def mean(values: np.ndarray, weights: np.ndarray) -> dict[str, float]:
    return {"mean": float(values.mean()), **interval((weights @ values) / weights.sum(1))}


def gap_closed(student: np.ndarray, few: np.ndarray, weights: np.ndarray) -> dict[str, float]:
    """1 - d(student) / d(few), d the mean distance to the reference."""
    return {"mean": float(1 - student.mean() / few.mean()), **interval(1 - (weights @ student) / (weights @ few))}


def share(hits: np.ndarray) -> dict[str, float]:
    """The share of ones, with Wilson's interval."""
    n, p = len(hits), hits.mean()
    centre = (p + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * np.sqrt(p * (1 - p) / n + Z**2 / (4 * n**2))
    return {"mean": float(p), "low": float(centre - half), "high": float(centre + half)}


def interval(means: np.ndarray) -> dict[str, float]:
    low, high = np.percentile(means, [2.5, 97.5])
    return {"low": float(low), "high": float(high)}
