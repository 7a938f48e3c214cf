"""What a comparison says of each sampler: means with intervals over prompts and seeds, and which student is best."""

from collections.abc import Mapping, Sequence

import numpy as np

from ..evaluate import statistics
from ..evaluate.metrics import Metric

Result = dict  # of one evaluation: evaluation.json


def values(results: Sequence[Result], sampler: str, metric: str) -> np.ndarray:
    """(seeds, N), nan where a clip has no value."""
    found = [result["per_sample"][sampler].get(metric) for result in results]
    n = len(results[0]["per_sample"]["prompt"])
    return np.array([each or [None] * n for each in found], float)


def metrics(
    measured: Sequence[Metric],
    results: Sequence[Result],
    sampler: str,
    reference: Mapping[str, np.ndarray],
    weights: np.ndarray,
) -> dict[str, dict]:
    """Metric -> its mean over clips and seeds, with intervals; metrics without a value are left out.

    Args:
        results: of runs that differ in their seeds; one for a teacher.
        reference: metric -> the reference's values, (N,).
        weights: of the bootstrap over prompts (statistics.resample).
    """
    found = {}
    for metric in measured:
        if metric.kind == "set":
            said = of_set([result["samplers"][sampler].get(metric.name) for result in results])
        else:
            said = of_clips(metric, values(results, sampler, metric.name), reference[metric.name], weights)
        if said is not None:
            found[metric.name] = said
    return found


def of_clips(metric: Metric, found: np.ndarray, reference: np.ndarray, weights: np.ndarray) -> dict | None:
    if np.isnan(found).all():
        return None
    said = statistics.over_seeds(found, weights)
    if metric.kind == "world" and len(found) == 1:
        said |= statistics.share(found[0])
    return said | {"difference": statistics.mean(found.mean(0) - reference, weights)}


def of_set(found: Sequence[dict | None]) -> dict | None:
    """Means over seeds, of the ends of the intervals too: an interval as wide as that of one seed."""
    if any(each is None or each["mean"] is None for each in found):
        return None
    means = [each["mean"] for each in found]
    ends = {end: float(np.mean([each[end] for each in found])) for end in ("low", "high")}
    spread = statistics.half_interval(np.array(means))
    return {"mean": float(np.mean(means)), **ends, "seeds": means, "spread": spread, "difference": None}


def winner(
    metric: Metric, students: Mapping[str, np.ndarray], reference: np.ndarray, weights: np.ndarray
) -> str | None:
    """The student that is better than every other by more than chance, if there is one.

    Args:
        students: key -> values, (seeds, N), of the same clips; seeds may be more or fewer.
        reference: (N,)
    """
    for key, mine in students.items():
        others = [theirs for other, theirs in students.items() if other != key]
        if others and all(is_ahead(lead(metric.better, mine, each, reference, weights)) for each in others):
            return key
    return None


def winner_of_sets(metric: Metric, students: Mapping[str, dict]) -> str | None:
    """The same by intervals that do not meet: sets are not compared clip by clip."""
    sign = 1 if metric.better == "higher" else -1
    worst = {key: min(sign * said["low"], sign * said["high"]) for key, said in students.items()}
    best = {key: max(sign * said["low"], sign * said["high"]) for key, said in students.items()}
    for key, said in students.items():
        others = [other for other in students if other != key]
        apart = [abs(said["mean"] - students[o]["mean"]) > both(said["spread"], students[o]["spread"]) for o in others]
        if others and all(apart) and all(worst[key] > best[other] for other in others):
            return key
    return None


def lead(better: str, mine: np.ndarray, theirs: np.ndarray, reference: np.ndarray, weights: np.ndarray) -> dict:
    """How far ahead `mine` is, clip by clip, with its interval over prompts and its spread over training seeds."""
    weights, mine, theirs, reference = statistics.known(weights, mine, theirs, reference)
    if not reference.size:
        return dict(statistics.UNKNOWN, spread=0.0)
    if better == "reference":
        return _nearness(mine - reference, theirs - reference, weights)
    sign = 1 if better == "higher" else -1
    said = statistics.mean(sign * (mine.mean(0) - theirs.mean(0)), weights)
    return said | {"spread": both(statistics.half_interval(mine.mean(1)), statistics.half_interval(theirs.mean(1)))}


def _nearness(mine: np.ndarray, theirs: np.ndarray, weights: np.ndarray) -> dict:
    """How much nearer to 0 the mean of `mine` is."""
    away = [np.abs(weights @ each.mean(0)) / weights.sum(1) for each in (theirs, mine)]
    seeds = [np.abs(each.mean(1)) for each in (theirs, mine)]
    mean = float(np.abs(theirs.mean()) - np.abs(mine.mean()))
    spread = both(*(statistics.half_interval(each) for each in seeds))
    return {"mean": mean, **statistics.interval(away[0] - away[1]), "spread": spread}


def both(*halves: float) -> float:
    """Half the interval of a difference of two means over seeds; a student of one seed has none to add."""
    return float(np.sqrt(np.nansum(np.square(halves))))


def is_ahead(said: dict) -> bool:
    return bool(said["low"] > 0 and said["mean"] > said["spread"])
