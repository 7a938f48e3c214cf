"""compare.json: everything that a comparison found, and nothing of when or where it was made.

The same inputs give the same bytes. docs/compare.md describes the format.
"""

import dataclasses
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from .. import environment, image_prompt, plot, track
from ..evaluate import statistics
from ..evaluate.asked import Asked
from ..evaluate.columns import HALF_RATE
from ..evaluate.metrics import Metric
from . import cost, inputs, points
from .inputs import Column
from .points import Result
from .setting import Common

FORMAT = 1
TEACHER = "teacher"
DISTANCE = "distance to the teacher"
BETWEEN = (*inputs.OWN, "train.seed", "method.name", "teacher.path", "data.trajectories.path", "data.videos.path")


def halved(key: str) -> str:
    """The key of a column's sampler at half the frame rate; no other column has two underscores."""
    return f"{key}__half_rate"


def with_half_rate(
    columns: Sequence[Column], results: Mapping[str, list[Result]]
) -> tuple[list[Column], dict[str, list[Result]]]:
    """Every column, and after it the same students at half the frame rate where all of its runs were so measured."""
    made, found = [], dict(results)
    for column in columns:
        made.append(column)
        if all(HALF_RATE in result["samplers"] for result in results[column.key]):
            key, label = halved(column.key), f"{column.label}, half rate"
            made.append(dataclasses.replace(column, key=key, label=label, sampler=HALF_RATE))
            found[key] = results[column.key]
    return made, found


def table(
    common: Common,
    asked: Asked,
    columns: Sequence[Column],
    results: Mapping[str, list[Result]],
    clips: Mapping[tuple[str, int], list[str | None]],
) -> list[dict]:
    """The teacher and every student that was measured, with their numbers of steps.

    Args:
        columns: with the runs that were measured, and no others.
        results: of each column, one for each of these.
    """
    first = next(iter(results.values()))[:1]
    weights = statistics.resample(np.array(first[0]["per_sample"]["prompt"]))
    measured = asked.measures()
    reference = {m.name: points.values(first, f"teacher_{asked.many}", m.name)[0] for m in measured if m.kind != "set"}

    def point(found: list[Result], sampler: str, steps: int, own: bool, guidance: float) -> dict:
        return {
            "steps": steps,
            "own": own,
            "guidance": guidance,
            **_sampling(found, sampler),
            "metrics": points.metrics(measured, found, sampler, reference, weights),
        }

    steps = sorted(set(asked.teacher_steps), reverse=True)
    taught = [point(first, f"teacher_{n}", n, n == asked.many, asked.guidance) for n in steps]
    for said in taught[0]["metrics"].values():
        said["difference"] = None  # to itself
    unguided = common.teacher.own_guidance
    unit = _unit(first[0], asked, common)
    made = [_teacher(taught)]
    for column in columns:
        found = results[column.key]
        steps = sorted(counts(found[0], column.sampler).items())
        own = [point(found, name, n, name == column.sampler, unguided) for n, name in steps]
        made.append(_student(column, own, unit))
    for each in made:
        for said in each["points"]:
            said["clips"] = clips[each["key"], said["steps"]]
    own = {column.key: column.sampler for column in columns}
    mark(measured, made[1:], results, own, reference, weights)
    return made


def mark(
    measured: Sequence[Metric],
    students: list[dict],
    results: Mapping[str, list[Result]],
    samplers: Mapping[str, str],
    reference: dict,
    weights: np.ndarray,
) -> None:
    """Say of every student's measure, of its own sampler, whether it is the best."""
    own = {column["key"]: next(p for p in column["points"] if p["own"])["metrics"] for column in students}
    for metric in measured:
        having = [key for key, said in own.items() if metric.name in said]
        if metric.kind == "set":
            best = points.winner_of_sets(metric, {key: own[key][metric.name] for key in having})
        else:
            found = {key: points.values(results[key], samplers[key], metric.name) for key in having}
            best = points.winner(metric, found, reference[metric.name], weights)
        for key in having:
            own[key][metric.name]["best"] = key == best


def _teacher(taught: list[dict]) -> dict:
    nothing = {"method": None, "recipe": None, "seeds": [], "runs": [], "training": None, "curves": {}}
    return {"key": TEACHER, "label": TEACHER, "kind": "teacher", "points": taught} | nothing


def _student(column: Column, own: list[dict], unit: cost.Unit) -> dict:
    runs = column.runs
    return {
        "key": column.key,
        "label": column.label,
        "kind": "student",
        "method": column.method,
        "recipe": runs[0].name,
        "seeds": [run.seed for run in runs],
        "runs": [run.folder.name for run in runs],
        "points": own,
        "training": cost.of_export(runs[0], unit) if runs[0].is_export else cost.of_runs(runs, unit),
        "curves": {} if runs[0].is_export or column.sampler == HALF_RATE else dict(curves(runs[0].folder)),
    }


def _sampling(found: list[Result], sampler: str) -> dict:
    """What a clip takes; seconds are means over the seeds."""
    said = [result["samplers"][sampler] for result in found]
    seconds = math.fsum(each["seconds"] for each in said) / len(said)
    return {"evaluations": said[0]["evaluations"], "flop": said[0]["flop"], "seconds": seconds}


def counts(result: Result, own: str = "student") -> dict[int, str]:
    """Number of steps -> the student's sampler of so many; its own where two have as many. At half rate, that alone."""
    if own == HALF_RATE:
        return {said["steps"]: name for name, said in result["samplers"].items() if name == own}
    names = [name for name in result["samplers"] if name == "student" or name.removeprefix("student_").isdecimal()]
    return {result["samplers"][name]["steps"]: name for name in sorted(names, reverse=True)}


def _unit(result: Result, asked: Asked, common: Common) -> cost.Unit:
    said = result["samplers"][f"teacher_{asked.many}"]
    return cost.Unit(said["flop"] / said["evaluations"], common.guided)


def curves(run: Path) -> Iterator[tuple[str, list[list[float]]]]:
    """Loss terms over updates, thinned as on a run's page, and the distance of the clips while it trained."""
    log = track.read(run)
    terms: dict[str, list[tuple[int, float]]] = {}
    for line in log:
        for name, value in line["terms"].items() if line["kind"] == "update" else ():
            terms.setdefault(f"{line['network']}/{name}", []).append((line["update"], value))
    for name, found in terms.items():
        yield name, [[update, mean] for update, mean, *_ in plot.binned(found)]
    if seen := [[line["update"], line["rmse"]] for line in log if line["kind"] == "validation"]:
        yield DISTANCE, seen


def settings(columns: Sequence[Column]) -> dict[str, dict]:
    """Key -> column -> value, of the recipes' keys in which students differ; None where a recipe lacks it."""
    found = inputs.differing([column.recipe for column in columns], BETWEEN)
    keys = [column.key for column in columns]
    return {name: dict(zip(keys, map(inputs.plain, values), strict=True)) for name, values in found.items()}


def header(common: Common, asked: Asked, columns: Sequence[Column], command: str) -> dict:
    spec, path = common.recipe.teacher, common.recipe.teacher.path
    return {
        "format": FORMAT,
        "title": ", ".join(column.label for column in columns),
        "command": command,
        "teacher": {"family": spec.family, "path": inputs.plain(path), "fingerprint": common.teacher.fingerprint},
        "setting": {
            "samples": asked.samples,
            "seed": asked.seed,
            "guidance": asked.guidance,
            "shift": common.shift,
            "video": common.recipe.video.model_dump(),
            "prompts": min(asked.samples, len(asked.prompts)),
            "reference": TEACHER,
            "reference_steps": asked.many,
        },
        "metrics": [vars(metric) for metric in asked.measures()],
    }


def shown(asked: Asked, rows: Sequence[int], fps: float) -> dict:
    return {"prompts": [image_prompt.text(p) for p in asked.captions(rows)], "seed": asked.seed, "fps": fps}


def made_by() -> dict:
    return {"machine": environment.machine(), "versions": environment.versions()}


def nameless(text: str) -> str:
    """A line with no path of this machine: of those within the working directory the rest, of others the last name."""
    text = text.replace(f"{Path.cwd()}{os.sep}", "")
    return re.sub(r"(?<![\w./~-])(?:/[\w.+~-]+)+/([\w.+~-]+)", r"\1", text)
