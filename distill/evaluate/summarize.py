"""From what was measured of every clip to means, intervals and comparisons: the contents of evaluation.json."""

import math
from collections.abc import Sequence
from dataclasses import asdict

import numpy as np

from . import statistics
from .asked import Asked
from .columns import is_student
from .metrics import Metric, of_set

COST = ("evaluations", "seconds")


def summary(parts: Sequence[dict], asked: Asked, flop: dict[str, int], steps: dict[str, int]) -> dict:
    """Means, intervals and comparisons of all batches (measuring.parts), and every value they come from.

    Args:
        flop, steps: of every sampler; their order is that of the result.
    """
    prompt, names, failures = np.array([p for part in parts for p in part["prompt"]]), list(steps), []
    values = {name: joined([part["samplers"][name]["values"] for part in parts]) for name in names}
    weights, measures = statistics.resample(prompt), asked.measures()
    reference = f"teacher_{asked.many}"
    samplers = {n: {"steps": steps[n], "flop": flop[n]} | described(values[n], measures, weights) for n in names}
    for metric in (metric for metric in measures if metric.kind == "set"):
        features = {n: np.concatenate([part["samplers"][n]["features"] for part in parts]) for n in names}
        for n in names:
            if n != reference:
                samplers[n][metric.name] = of_sets(metric, n, features[n], features[reference], weights, failures)
    return finite(
        {
            "samples": len(prompt),
            "prompts": int(prompt.max()) + 1,
            "texts": asked.texts(),
            "seed": asked.seed,
            "guidance": asked.guidance,
            "batch_size": asked.batch_size,
            "reference": reference,
            "metrics": [asdict(metric) for metric in measures],
            "samplers": samplers,
            **compared(values, asked, measures, weights),
            "per_sample": {"prompt": prompt.tolist()}
            | {n: {k: v.tolist() for k, v in values[n].items()} for n in names},
            "failures": failures + failed(parts, names),
        }
    )


def joined(parts: list[dict[str, list[float | None]]]) -> dict[str, np.ndarray]:
    """(N,) per measure; nan where there is no value."""
    return {name: np.concatenate([np.array(part[name], float) for part in parts]) for name in parts[0]}


def described(values: dict[str, np.ndarray], measures: list[Metric], weights: np.ndarray) -> dict:
    """Costs, then means with intervals; the world's shares apart."""
    found = {name: float(values[name].mean()) for name in COST}
    found |= {m.name: statistics.mean(values[m.name], weights) for m in measures if m.kind in ("clip", "pair")}
    shares = {m.name: statistics.share(values[m.name]) for m in measures if m.kind == "world"}
    return found | ({"world": shares} if shares else {})


def of_sets(metric: Metric, name: str, features, reference, weights: np.ndarray, failures: list[str]) -> dict:
    """A sampler's clips as a set beside the reference's; a line for `failures` if they are too few."""
    try:
        return of_set(metric.name, features.astype(np.float64), reference.astype(np.float64), weights)
    except ValueError as error:
        failures.append(f"{metric.name} of {name}: {error}")
        return dict(statistics.UNKNOWN)


def compared(values: dict[str, dict], asked: Asked, measures: list[Metric], weights: np.ndarray) -> dict:
    """The part of the teacher's gap that the student closes, and how it differs from the other samplers."""
    if "student" not in values:
        return {"gap_closed": {}, "difference": {}}
    student, few = values["student"], [f"teacher_{n}" for n in asked.few]
    others = [name for name in values if is_student(name) and name != "student"]
    names = [metric.name for metric in measures if metric.name in student]
    gap = {n: statistics.gap_closed(student["rmse"], values[n]["rmse"], weights) for n in few if "rmse" in student}
    difference = {
        n: {name: statistics.mean(student[name] - values[n][name], weights) for name in names} for n in [*few, *others]
    }
    return {"gap_closed": gap, "difference": difference}


def failed(parts: Sequence[dict], names: list[str]) -> list[str]:
    """A line for every clip that a metric could not measure."""
    return [
        f"{metric} of {name}, sample {j}: {why}"
        for name in names
        for part in parts
        for metric, j, why in part["samplers"][name]["failures"]
    ]


def finite(value):
    """JSON has no nan: null says that there is no value."""
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def headline(result: dict) -> dict:
    """What the log and the console say."""
    numbers = {name: result[name] for name in ("update", "samples") if result.get(name) is not None}
    others = {name: values for name, values in result["samplers"].items() if name != result["reference"]}
    numbers |= {f"rmse_{name}": values["rmse"]["mean"] for name, values in others.items() if "rmse" in values}
    for name, gap in result["gap_closed"].items():
        numbers |= {f"gap_{name}": gap["mean"], f"gap_{name}_low": gap["low"], f"gap_{name}_high": gap["high"]}
    return numbers
