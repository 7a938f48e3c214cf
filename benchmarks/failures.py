"""Runs made to fail on the embedded teacher: which guard says so, and when. Healthy ones, which must be quiet.

    python benchmarks/failures.py --jobs 2 --write

Every run is a `distill run` of its own in runs/failures; one that is done is not run again. The limits are the recipes'
defaults (docs/health.md), chosen on other seeds.
"""

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from distill import environment, track

RUNS = ROOT / "runs" / "failures"
RESULT = ROOT / "benchmarks" / "results" / "failures.json"
TRAJECTORIES = (f"data.trajectories.path={RUNS / 'trajectories'}", "data.trajectories.records=128")
VIDEOS = (f"data.videos.path={RUNS / 'videos'}", "data.videos.clips=512")
STORES = {"tiny_accvideo.yaml": TRAJECTORIES, "tiny_avd.yaml": VIDEOS, "tiny_dmd2.yaml": VIDEOS}
EVERY_STEP = ("method.student_every=1", "optim.student.lr=2e-4")  # the student moves as often as it can, to fail sooner


@dataclass(frozen=True)
class Case:
    """A recipe with changes; `healthy` ones are the recipe as it is, cut short."""

    recipe: str
    changes: tuple[str, ...]
    every: int  # updates between two validations
    healthy: bool = False


CASES = {
    "learning rates x 100": Case(
        "tiny_dmd.yaml", ("optim.student.lr=1e-2", "optim.fake_score.lr=1e-2", "train.steps=60"), 24
    ),
    "adversarial loss only": Case("tiny_accvideo.yaml", ("method.trajectory=false", "train.steps=150"), 60),
    "DMD without critic updates": Case(
        "tiny_dmd.yaml", (*EVERY_STEP, "optim.fake_score.lr=1e-9", "train.steps=60"), 20
    ),
    "fake score at 100 times its rate": Case("tiny_dmd.yaml", ("optim.fake_score.lr=1e-2", "train.steps=50"), 20),
    "temporal loss without its gate": Case(
        "tiny_avd.yaml", (*EVERY_STEP, "method.temporal=5", "method.threshold=-100", "train.steps=50"), 20
    ),
    "GPD": Case("tiny_gpd.yaml", ("method.iterations=12",), 42, healthy=True),
    "AccVideo": Case("tiny_accvideo.yaml", ("train.steps=90",), 60, healthy=True),
    "DMD": Case("tiny_dmd.yaml", ("train.steps=75",), 60, healthy=True),
    "DMD2": Case("tiny_dmd2.yaml", ("train.steps=60",), 60, healthy=True),
    "AVD": Case("tiny_avd.yaml", ("train.steps=75",), 60, healthy=True),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", default="0,1", help="training seeds, comma separated")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, one CPU thread each")
    parser.add_argument("--only", choices=CASES, nargs="+", default=list(CASES))
    parser.add_argument("--write", action="store_true", help=f"keep the result in {RESULT.relative_to(ROOT)}")
    options = parser.parse_args()
    seeds = [int(seed) for seed in options.seeds.split(",")]
    record(options.only)
    runs = [(name, seed) for seed in seeds for name in options.only]
    with ThreadPoolExecutor(options.jobs) as pool:
        failed = [fault for fault in pool.map(lambda run: train(*run), runs) if fault]
    if failed:
        sys.exit("\n".join(failed))
    cases = {name: described(name, seeds) for name in options.only}
    print(table(cases))
    if options.write:
        only = "" if options.only == list(CASES) else " --only " + " ".join(map(repr, options.only))
        command = f"python benchmarks/failures.py --seeds {options.seeds}{only}"
        said = {"command": command, "seeds": seeds, "cases": cases}
        said |= {"machine": environment.machine(), "versions": environment.versions()}
        RESULT.write_text(json.dumps(said, indent=1) + "\n")


def record(names: list[str]) -> None:
    """The trajectories and videos that the runs share."""
    recipes = {CASES[name].recipe for name in names}
    for kind, verb in ((TRAJECTORIES, "synthesize"), (VIDEOS, "prepare")):
        users = sorted(recipe for recipe in recipes if STORES.get(recipe) is kind)
        if users and distill(verb, ROOT / "recipes" / users[0], *kind):
            sys.exit(f"distill {verb} failed")


def train(name: str, seed: int) -> str | None:
    """One run, if it is not done; a line if it fails."""
    case, run = CASES[name], folder(name, seed)
    if run.exists() and any(line["kind"] == "done" for line in track.read(run)):
        return None
    changes = [*STORES.get(case.recipe, ()), *case.changes, f"validation.every={case.every}", "evaluation=null"]
    changes += ["checkpoint.every=100000", f"train.seed={seed}", f"output={run}"]
    run.parent.mkdir(parents=True, exist_ok=True)
    with open(run.with_suffix(".log"), "a") as log:
        code = distill("run", ROOT / "recipes" / case.recipe, *changes, stdout=log, stderr=log)
    return f"{name}, seed {seed}: see {run.with_suffix('.log')}" if code else None


def folder(name: str, seed: int) -> Path:
    return RUNS / f"{name.lower().replace(' ', '_')}_{seed}"


def distill(*command: str | Path, **options) -> int:
    line = [sys.executable, "-m", "distill", *map(str, command)]
    return subprocess.call(line, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, **options)


def described(name: str, seeds: list[int]) -> dict:
    """What was changed, and for each seed every alarm and what was measured."""
    case = CASES[name]
    return {
        "recipe": case.recipe,
        "changes": list(case.changes),
        "validation_every": case.every,
        "healthy": case.healthy,
        "seeds": {seed: said(folder(name, seed)) for seed in seeds},
    }


def said(run: Path) -> dict:
    log = track.read(run)
    kept = ("update", "rmse", "health", "critics")
    return {
        "updates": max(line["update"] for line in log if line["kind"] == "update"),
        "validations": [{k: line[k] for k in kept} for line in log if line["kind"] == "validation"],
        "alarms": [alarm(line) for line in log if line["kind"] == "health"],
    }


def alarm(line: dict) -> dict:
    """When, where and what, without the figures and the advice."""
    return {"what": line["message"].partition(":")[0]} | {key: line[key] for key in ("update", "guard", "curve")}


def table(cases: dict) -> str:
    """Markdown: for each guard of a run, the first update at which it fired."""
    lines = ["| run | seed | updates | alarms: first update |", "|---|---|---|---|"]
    for name, case in cases.items():
        for seed, run in case["seeds"].items():
            first: dict[str, int] = {}
            for each in run["alarms"]:
                first.setdefault(each["what"], each["update"])
            told = "; ".join(f"{what}: {update}" for what, update in first.items()) or "none"
            lines.append(f"| {name} | {seed} | {run['updates']} | {told} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
