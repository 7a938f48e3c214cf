"""Statistics where a measure says nothing about some clips: as if those were not there."""

import warnings

import numpy as np
import pytest

from distill.evaluate import statistics

PROMPTS = np.arange(30)
KEEP = PROMPTS % 3 > 0  # a third of the clips is not measured


@pytest.fixture(autouse=True)
def no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.fixture(scope="module")
def weights():
    return statistics.resample(PROMPTS)


def values(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(1, 2, (*shape, len(PROMPTS)))


def holed(full: np.ndarray) -> np.ndarray:
    return np.where(KEEP, full, np.nan)


def test_a_mean_is_that_of_the_others(weights):
    full = values(0)
    assert statistics.mean(holed(full), weights) == statistics.mean(full[KEEP], weights[:, KEEP])


def test_a_gap_is_closed_on_the_clips_that_both_have(weights):
    a, b = values(0), values(1)
    expected = statistics.gap_closed(a[KEEP], b[KEEP], weights[:, KEEP])
    assert statistics.gap_closed(holed(a), b, weights) == expected == statistics.gap_closed(a, holed(b), weights)


def test_a_share_is_that_of_the_others():
    hits = (values(0) > 1.5).astype(float)
    assert statistics.share(holed(hits)) == statistics.share(hits[KEEP])


def test_a_clip_that_one_seed_lacks_counts_at_none(weights):
    full = values(0, 3)
    torn = full.copy()
    torn[1, ~KEEP] = np.nan
    assert statistics.over_seeds(torn, weights) == statistics.over_seeds(full[:, KEEP], weights[:, KEEP])


def test_nearer_asks_on_the_clips_that_all_have(weights):
    a, b, reference = values(0, 3), values(1, 3), values(2)
    expected = statistics.nearer(a[:, KEEP], b[:, KEEP], reference[KEEP], weights[:, KEEP])
    assert statistics.nearer(a, b, holed(reference), weights) == expected
    assert statistics.nearer(holed(a), b, reference, weights) == expected


def test_draws_without_any_measured_clip_are_left_out():
    alone = np.array([0.0, 7.0, np.nan, np.nan])
    found = statistics.mean(alone, statistics.resample(np.arange(4)))
    assert found == {"mean": 3.5, "low": 0.0, "high": 7.0}  # a twentieth of the draws have neither


def test_nothing_measured_is_unknown_and_no_difference(weights):
    nothing = np.full((2, len(PROMPTS)), np.nan)
    assert all(np.isnan(list(statistics.mean(nothing[0], weights).values())))
    assert all(np.isnan(list(statistics.share(nothing[0]).values())))
    assert all(np.isnan(list(statistics.gap_closed(nothing[0], values(0), weights).values())))
    for found in (statistics.over_seeds(nothing, weights), statistics.nearer(nothing, nothing, values(0), weights)):
        assert np.isnan([found["mean"], found["low"], found["spread"], *found["seeds"]]).all()
        assert not statistics.is_beyond(found)
