"""Distances between sets of clips: Gaussians of known distance, naive restatements, equal distributions."""

import numpy as np
import pytest

from distill.evaluate import sets, statistics
from distill.evaluate.metrics import of_set


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def gaussian(mean, covariance, n: int = 64, seed: int = 0) -> np.ndarray:
    """A sample whose own mean and covariance are exactly these."""
    d = len(mean)
    white = np.linalg.qr(np.c_[np.ones(n), rng(seed).normal(size=(n, d))])[0][:, 1:] * np.sqrt(n)
    return white @ np.linalg.cholesky(np.array(covariance, float)).T + mean


def once(distance, x: np.ndarray, y: np.ndarray, weights: np.ndarray | None = None) -> float:
    (found,) = distance(x, y, np.ones((1, len(x))) if weights is None else weights[None])
    return found


@pytest.mark.parametrize("m, s", [(0.0, 1.0), (2.0, 1.0), (-1.5, 3.0), (0.0, 0.25)])
def test_frechet_of_gaussians_on_a_line(m, s):
    x, y = gaussian([m], [[s**2]]), gaussian([0.0], [[1.0]], seed=1)
    assert once(sets.frechet, x, y) == pytest.approx(m**2 + (s - 1) ** 2, abs=1e-9)


def test_frechet_of_gaussians_whose_axes_differ():
    """d^2 = |m|^2 + tr(a) + tr(b) - 2 tr((a b)^(1/2)), the last from the eigenvalues of the product."""
    a, b = np.array([[4, 1.5], [1.5, 1]]), np.array([[1, -0.6], [-0.6, 2]])
    cross = np.sqrt(np.linalg.eigvals(a @ b)).sum()
    x, y = gaussian([1, -2], a), gaussian([0, 0], b, seed=1)
    assert once(sets.frechet, x, y) == pytest.approx(5 + 5 + 3 - 2 * cross)


def test_frechet_counts_a_clip_as_often_as_it_was_drawn():
    x, y = rng().normal(size=(24, 3)), rng(1).normal(size=(24, 3))
    times = rng(2).integers(1, 4, 24)
    copied = once(sets.frechet, np.repeat(x, times, 0), np.repeat(y, times, 0))
    assert once(sets.frechet, x, y, times) == pytest.approx(copied)


def test_with_few_clips_frechet_sees_the_leading_axes_of_the_reference():
    """Sixteen clips, eight features: four axes."""
    y = gaussian(np.zeros(8), np.diag([8.0, 7, 6, 5, 4, 3, 2, 1]), 16)
    leading, last = np.eye(8)[0], np.eye(8)[7]
    assert once(sets.frechet, y + 3 * leading, y) == pytest.approx(9)
    assert once(sets.frechet, y + 3 * last, y) == pytest.approx(0, abs=1e-9)
    whole = gaussian(np.zeros(8), np.diag([8.0, 7, 6, 5, 4, 3, 2, 1]), 32)
    assert once(sets.frechet, whole + 3 * last, whole) == pytest.approx(9)


def test_kernel_is_the_mean_over_pairs_of_different_clips():
    x, y, w = rng().normal(size=(9, 4)), rng(1).normal(size=(9, 4)), rng(2).integers(0, 3, 9)

    def k(a, b):
        return (a @ b / 4 + 1) ** 3

    pairs = [(i, j) for i in range(9) for j in range(9) if i != j]
    terms = [w[i] * w[j] * (k(x[i], x[j]) + k(y[i], y[j]) - k(x[i], y[j]) - k(x[j], y[i])) for i, j in pairs]
    assert once(sets.kernel, x, y, w) == pytest.approx(sum(terms) / sum(w[i] * w[j] for i, j in pairs))


def test_kernel_of_equal_distributions_is_zero_on_average():
    found = [once(sets.kernel, *rng(i).normal(size=(2, 16, 4))) for i in range(400)]
    assert abs(np.mean(found)) < 3 * np.std(found) / 20 and min(found) < 0


def test_kernel_of_clips_near_their_own_reference_is_not_biased_by_it():
    """With i = j in the cross term, sets that share their noise would seem nearer than equal."""
    found = []
    for i in range(400):
        y, more = rng(i).normal(size=(2, 16, 4))
        found.append(once(sets.kernel, 0.8 * y + 0.6 * more, y))  # N(0, 1) as well
    assert abs(np.mean(found)) < 3 * np.std(found) / 20


@pytest.mark.parametrize("name", sets.DISTANCES)
def test_a_set_beside_itself(name):
    x = rng().normal(size=(40, 6))
    found = of_set(name, x, x, statistics.resample(np.arange(40)))
    assert found == pytest.approx({"mean": 0, "low": 0, "high": 0}, abs=1e-9)


@pytest.mark.parametrize("name", sets.DISTANCES)
def test_a_set_that_is_farther_has_a_larger_distance_beyond_the_interval(name):
    y, weights = rng().normal(size=(64, 6)), statistics.resample(np.arange(64))
    near, far = (of_set(name, y + 0.3 * rng(1).normal(size=y.shape) + shift, y, weights) for shift in (0.1, 1.0))
    assert far["low"] > near["high"] and near["low"] <= near["mean"] <= near["high"]


def test_the_interval_is_as_wide_as_other_prompts_would_make_it():
    def pair(seed):
        y, more = rng(seed).normal(size=(2, 64, 3))
        return y + 0.5 * more + 0.7, y

    weights = statistics.resample(np.arange(64))
    widths = [found["high"] - found["low"] for found in (of_set("kernel", *pair(i), weights) for i in range(10))]
    others = [once(sets.kernel, *sets.scaled(*pair(100 + i))) for i in range(200)]
    assert np.mean(widths) == pytest.approx(2 * 1.96 * np.std(others), rel=0.25)


@pytest.mark.parametrize("name", sets.DISTANCES)
def test_neither_the_scale_of_a_feature_nor_a_constant_one_decides(name):
    x, y, weights = rng().normal(size=(40, 4)) + 0.5, rng(1).normal(size=(40, 4)), statistics.resample(np.arange(40))
    loud = np.array([1000, 1, 1, 0.01])
    five = np.full((40, 1), 5.0)
    expected = of_set(name, x, y, weights)["mean"]
    assert of_set(name, loud * x + 7, loud * y + 7, weights)["mean"] == pytest.approx(expected)
    assert of_set(name, np.c_[x, five], np.c_[y, five], weights)["mean"] == pytest.approx(expected)


def test_clips_without_features_are_left_out_on_both_sides():
    x, y = rng().normal(size=(12, 2)), rng(1).normal(size=(12, 2))
    weights = statistics.resample(np.arange(12))
    torn = x.copy()
    torn[3] = np.nan
    keep = np.arange(12) != 3
    assert of_set("kernel", torn, y, weights) == of_set("kernel", x[keep], y[keep], weights[:, keep])


def test_a_few_clips_are_refused():
    x = rng().normal(size=(7, 2))
    with pytest.raises(ValueError, match="frechet needs 8 clips or more; there are 7"):
        of_set("frechet", x, x, statistics.resample(np.arange(7)))
