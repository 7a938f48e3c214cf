"""Distances between two sets of clips by their features, (N, D) each: do they look alike as a whole.

Features are first scaled by the reference's standard deviations, since a few loud ones would decide alone; those that
are constant there are left out. Both sets come from the same prompts and noise, row by row.
"""

from collections.abc import Callable

import numpy as np

from .statistics import Z

FEWEST = 8  # clips
PER_AXIS = 4  # clips for each axis of a covariance
RESAMPLES = 200  # of the bootstrap; each takes the distance anew
Distance = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def measured(distance: Distance, features: np.ndarray, reference: np.ndarray, weights: np.ndarray) -> dict[str, float]:
    """A distance with a normal 95 % interval from the first RESAMPLES rows of the bootstrap weights, (R, N).

    Centred on the distance: percentiles would be off, since copies of a clip in a resample make sets look less alike.
    """
    known = ~(np.isnan(features).any(1) | np.isnan(reference).any(1))
    if known.sum() < FEWEST:
        raise ValueError(f"{distance.__name__} needs {FEWEST} clips or more; there are {known.sum()}")
    draws = weights[:RESAMPLES, known]
    draws = draws[np.count_nonzero(draws, axis=1) > 1]
    mean, *others = distance(*scaled(features[known], reference[known]), np.vstack([np.ones(known.sum()), draws]))
    half = Z * np.std(others, ddof=1) if len(others) > 1 else np.nan
    return {"mean": float(mean), "low": float(mean - half), "high": float(mean + half)}


def scaled(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both less y's mean, over y's standard deviation."""
    spread = y.std(0)
    kept = spread > 1e-6 * np.abs(y).max()
    return tuple((each[:, kept] - y[:, kept].mean(0)) / spread[kept] for each in (x, y))


def frechet(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Squared, between Gaussians fitted to x and y on the leading principal axes of y, one for every PER_AXIS clips.

    From PER_AXIS clips per feature on that is all of the space; with fewer a covariance of all features could not be
    told from noise. Few clips still raise it, as any Frechet distance: compare sets of one size.

    Args:
        weights: (R, N), how often each clip counts.

    Returns:
        (R,)
    """
    axes = principal_axes(y, len(y) // PER_AXIS)
    x, y = x @ axes, y @ axes
    return np.array([apart(*gaussian(x, row), *gaussian(y, row)) for row in weights])


def principal_axes(x: np.ndarray, count: int) -> np.ndarray:
    """(D, K), orthonormal, those of most variance first."""
    return np.linalg.svd(x - x.mean(0), full_matrices=False)[2][:count].T


def gaussian(x: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.average(x, axis=0, weights=weights), np.atleast_2d(np.cov(x.T, aweights=weights, ddof=0))


def apart(m: np.ndarray, s: np.ndarray, m_y: np.ndarray, s_y: np.ndarray) -> float:
    """|m - m_y|^2 + tr(s + s_y - 2 (s s_y)^(1/2)), the last from the symmetric s_y^(1/2) s s_y^(1/2)."""
    values, vectors = np.linalg.eigh(s_y)
    root = vectors * np.sqrt(values.clip(0)) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ s @ root).clip(0)).sum()
    return max(np.square(m - m_y).sum() + np.trace(s) + np.trace(s_y) - 2 * cross, 0.0)


def kernel(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Squared maximum mean discrepancy under the kernel (a b / D + 1)^3; 0 on average for equal distributions.

    Of x and y in pairs (Gretton et al. 2012, lemma 6): no clip meets itself, nor its own reference.

    Args:
        weights: (R, N), how often each clip counts.

    Returns:
        (R,)
    """
    d = x.shape[1]
    k_xx, k_yy, k_xy = ((a @ b.T / d + 1) ** 3 for a, b in ((x, x), (y, y), (x, y)))
    h = k_xx + k_yy - k_xy - k_xy.T
    np.fill_diagonal(h, 0)
    return (weights @ h * weights).sum(1) / (weights.sum(1) ** 2 - np.square(weights).sum(1))


DISTANCES: dict[str, Distance] = {"frechet": frechet, "kernel": kernel}
