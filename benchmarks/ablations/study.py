"""Ablations: arms that differ in a few recipe keys, trained at several seeds, measured on the same clips.

A study names its recipe and its arms; `main` makes a command of several studies:

    python benchmarks/ablations/accvideo.py heads --seeds 0,1,2 --jobs 2

Every run is a `distill run` of its own in runs/ablations, named by what made it: a command that was interrupted goes
on, and studies share the arms they have in common. Differences are taken clip by clip, since all runs start from the
same noise, and are called beyond the spread if neither the interval over prompts nor that over training seeds holds 0.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from distill import environment, recipe
from distill.evaluate import statistics
from distill.evaluate.summarize import finite

RUNS = ROOT / "runs" / "ablations"
RESULTS = ROOT / "benchmarks" / "results" / "ablations"
WORLD = ("colour", "shape", "texture", "direction", "speed", "all", "preserved", "dynamic")
MEASURES = ("rmse", "cosine", "psnr", "saturation", "motion", *WORLD)
Arm = tuple[str, ...]  # overrides of the recipe


@dataclass(frozen=True)
class Study:
    """One question.

    Attributes:
        recipe: file name in recipes/.
        arms: name -> what it changes in the recipe.
        against: the arm that the others are compared with; the teacher of few steps is always compared with.
        samplers: which sampler of its run's evaluation an arm is; "student" where it is not named.
        looks: measures in which to be near the teacher of most steps is good, whatever the sign.
        shown: the measures of the printed table.
        needs: (recipe, run's folder, overrides) of runs that the arms use.
    """

    question: str
    recipe: str
    arms: dict[str, Arm]
    against: str
    measures: tuple[str, ...] = MEASURES
    common: Arm = field(default=())
    samplers: dict[str, str] = field(default_factory=dict)
    looks: tuple[str, ...] = ("saturation", "motion")
    shown: tuple[str, ...] = ("rmse", "all")
    needs: tuple[tuple[str, Path, Arm], ...] = ()

    def overrides(self, arm: str, seed: int, more: list[str]) -> list[str]:
        alone = [f"train.seed={seed}", "validation=null", "evaluation.metrics=null"]
        return [*self.common, *self.arms[arm], *alone, *more]

    def folder(self, arm: str, seed: int, more: list[str]) -> Path:
        """Where that run is, by its resolved recipe."""
        loaded = recipe.load(ROOT / "recipes" / self.recipe, self.overrides(arm, seed, more))
        key = json.dumps(loaded.model_dump(mode="json", exclude={"output"}), sort_keys=True).replace(str(ROOT), "")
        return RUNS / Path(self.recipe).stem / f"seed_{seed}_{hashlib.sha256(key.encode()).hexdigest()[:10]}"


def main(about: str, studies: dict[str, Study]) -> None:
    parser = argparse.ArgumentParser(description=about.partition("\n")[0])
    parser.add_argument("study", choices=studies, nargs="+")
    parser.add_argument("--seeds", default="0,1,2", help="training seeds, comma separated")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, one CPU thread each")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="changes of every arm")
    parser.add_argument("--write", action="store_true", help="keep the result in benchmarks/results/ablations/")
    options = parser.parse_args()
    seeds = [int(seed) for seed in options.seeds.split(",")]
    for name in options.study:
        record(studies[name], options)
        train(studies[name], seeds, options)
        result = compare(studies[name], seeds, options.set) | {"command": command(name, options)}
        print(table(result), flush=True)
        if options.write:
            text = json.dumps(finite(result), indent=1, allow_nan=False) + "\n"
            RESULTS.mkdir(parents=True, exist_ok=True)
            (RESULTS / f"{Path(sys.argv[0]).stem}_{name}.json").write_text(text)


def command(name: str, options) -> str:
    changes = f" --set {' '.join(options.set)}" if options.set else ""
    return f"python benchmarks/ablations/{Path(sys.argv[0]).name} {name} --seeds {options.seeds}{changes}"


def record(study: Study, options) -> None:
    """The trajectories or videos that all arms share, and the runs that they use."""
    path, overrides = ROOT / "recipes" / study.recipe, study.overrides(study.against, 0, options.set)
    data, jobs = recipe.load(path, overrides).data, ["--processes", str(options.jobs)]
    if data.trajectories:
        distill("synthesize", path, *overrides, *jobs)
    if data.videos:
        distill("prepare", path, *overrides, *jobs)
    for name, folder, changes in study.needs:
        distill("run", ROOT / "recipes" / name, *changes, f"output={folder}")


def distill(*command: str | Path) -> None:
    """Run a command of the toolkit; the study ends where it fails."""
    line = [sys.executable, "-m", "distill", *map(str, command)]
    if code := subprocess.call(line, cwd=ROOT, env=alone()):
        sys.exit(code)


def train(study: Study, seeds: list[int], options) -> None:
    """Every arm at every seed that is not done."""
    path = str(ROOT / "recipes" / study.recipe)
    runs = {study.folder(arm, seed, options.set): (arm, seed) for seed in seeds for arm in study.arms}

    def one(folder: Path) -> int:
        if (folder / "evaluation.json").exists():
            return 0
        arm, seed = runs[folder]
        print(f"{arm}, seed {seed}: {folder.relative_to(ROOT)}", flush=True)
        line = [sys.executable, "-m", "distill", "run", path, *study.overrides(arm, seed, options.set)]
        folder.parent.mkdir(parents=True, exist_ok=True)
        with open(folder.with_suffix(".log"), "a") as log:
            return subprocess.call([*line, f"output={folder}"], stdout=log, stderr=log, cwd=ROOT, env=alone())

    with ThreadPoolExecutor(options.jobs) as pool:
        codes = dict(zip(runs, pool.map(one, runs), strict=True))
    failed = [f"{runs[folder]}: see {folder.with_suffix('.log')}" for folder, code in codes.items() if code]
    if failed:
        sys.exit("\n".join(failed))


def alone() -> dict[str, str]:
    """Runs side by side, one thread each, are faster than one after the other."""
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def compare(study: Study, seeds: list[int], more: list[str]) -> dict:
    """Every arm's measures, and differences to the arm `against` and to the teacher of few steps."""
    found = {arm: [load(study.folder(arm, seed, more)) for seed in seeds] for arm in study.arms}
    first = found[study.against][0]
    prompt = np.array(first["per_sample"]["prompt"])
    weights = statistics.resample(prompt)
    values = {arm: stacked(each, study.samplers.get(arm, "student"), study.measures) for arm, each in found.items()}
    few, many = teachers(first)[0], teachers(first)[-1]
    teacher, reference = (stacked([first], name, study.measures) for name in (few, many))

    def differences(arm: str, other: dict[str, np.ndarray]) -> dict:
        return {m: statistics.over_seeds(values[arm][m] - other[m], weights) for m in study.measures}

    def nearer(arm: str) -> dict:
        a, b = values[arm], values[study.against]
        return {m: statistics.nearer(a[m], b[m], reference[m][0], weights) for m in study.looks if m in study.measures}

    return {
        "question": study.question,
        "recipe": study.recipe,
        "seeds": seeds,
        "clips": len(prompt),
        "changed": list(more),
        "teacher": {name: described(stacked([first], name, study.measures), weights) for name in teachers(first)},
        "arms": {arm: described(values[arm], weights) | {"overrides": study.arms[arm]} for arm in study.arms},
        "gap_closed": {arm: gap_closed(values[arm]["rmse"], teacher["rmse"][0], weights) for arm in study.arms},
        "against": study.against,
        "difference": {arm: differences(arm, values[study.against]) for arm in study.arms if arm != study.against},
        "against_teacher": few,
        "difference_to_teacher": {arm: differences(arm, teacher) for arm in study.arms},
        "reference": many,
        "difference_to_reference": {arm: differences(arm, reference) for arm in study.arms},
        "nearer_to_reference": {arm: nearer(arm) for arm in study.arms if arm != study.against},
        "shown": [m for m in study.shown if m in study.measures],
        "machine": environment.machine(),
        "versions": environment.versions(),
    }


def load(folder: Path) -> dict:
    return json.loads((folder / "evaluation.json").read_text())


def teachers(result: dict) -> list[str]:
    """From the fewest steps to the most."""
    found = [name for name in result["samplers"] if name.startswith("teacher_")]
    return sorted(found, key=lambda name: int(name.split("_")[1]))


def stacked(results: list[dict], sampler: str, measures: tuple[str, ...]) -> dict[str, np.ndarray]:
    """measure -> (seeds, clips); nan where the file has null: not asked of that clip, or failed."""
    return {m: np.array([result["per_sample"][sampler][m] for result in results], float) for m in measures}


def described(values: dict[str, np.ndarray], weights: np.ndarray) -> dict:
    return {name: statistics.over_seeds(value, weights) for name, value in values.items()}


def gap_closed(student: np.ndarray, few: np.ndarray, weights: np.ndarray) -> dict:
    """The part of the teacher's gap from few steps to many that is closed: of the seeds' mean, and of each seed."""
    each = [statistics.gap_closed(one, few, weights)["mean"] for one in student]
    return statistics.gap_closed(student.mean(0), few, weights) | {"seeds": each}


def table(result: dict) -> str:
    """Markdown: a row per arm; bold differences are beyond both spreads."""
    shown = result["shown"]
    head = ["", *shown, "gap closed", *(f"{m}, difference to {result['against']}" for m in shown)]
    rows = [
        [name, *(number(values[m]) for m in shown), "", *("" for _ in shown)]
        for name, values in result["teacher"].items()
    ]
    for arm, values in result["arms"].items():
        apart = [difference(result["difference"][arm][m]) if arm in result["difference"] else "" for m in shown]
        rows.append([arm, *(number(values[m]) for m in shown), number(result["gap_closed"][arm]), *apart])
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(["| " + " | ".join(line) + " |" for line in lines])


def number(value: dict) -> str:
    seeds = f" ({', '.join(f'{x:.3f}' for x in value['seeds'])})" if len(value["seeds"]) > 1 else ""
    return f"{value['mean']:.3f} [{value['low']:.3f}, {value['high']:.3f}]{seeds}"


def difference(value: dict) -> str:
    said = f"{value['mean']:+.3f} [{value['low']:+.3f}, {value['high']:+.3f}] +- {value['spread']:.3f}"
    return f"**{said}**" if statistics.is_beyond(value) else said
