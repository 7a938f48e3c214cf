"""What training a student took, as its run's log says: network evaluations, FLOPs, seconds, device-days.

A forward pass of one sample takes f FLOPs, as counted when the teacher was sampled. Going back takes 2 f in the network
that an update moves (gradients of inputs and of weights), f through any other (of inputs alone), and one more f under
activation checkpointing, all of it also where selective checkpointing leaves attention out. Evaluations of only the
first blocks count as whole ones; the small networks that a method builds itself, as if they took nothing.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path

from .. import exported, fill, registry, track
from ..data.shards import samples_of
from ..recipe import Recipe
from .inputs import Run

DAY = 86400  # seconds


@dataclass(frozen=True)
class Unit:
    """One evaluation of the teacher's network, and of every copy.

    Attributes:
        flop: of a forward pass of one sample.
        guided: evaluations of a guided step.
    """

    flop: float
    guided: int


def of_runs(runs: list[Run], unit: Unit) -> dict:
    """Of one run; seconds and what follows from them are means over the seeds."""
    found = [of_run(run, unit) for run in runs]
    mean = {name: math.fsum(each[name] for each in found) / len(found) for name in ("seconds", "days")}
    return found[0] | mean


def of_run(run: Run, unit: Unit) -> dict:
    updates = sessions(track.read(run.folder))
    last = max(line["update"] for line, _ in updates)
    scale = last / len(updates)  # log.every leaves some out
    data = of_data(run.recipe, unit)
    spent = math.fsum(line["seconds"] * devices for line, devices in updates) * scale
    return {
        "updates": last,
        "evaluations": {name: round(n * scale) for name, n in evaluations(updates).items()},
        "flop": math.fsum(flop(line, run.recipe, unit) for line, _ in updates) * scale,
        "seconds": math.fsum(line["seconds"] for line, _ in updates) * scale,
        "device": device(run.folder),
        "data": data,
        "days": (spent + ((data or {}).get("seconds") or 0)) / DAY,
    }


def of_export(run: Run, unit: Unit) -> dict | None:
    """As much as its distill.json says, None where it says nothing: not what went back through networks, nor where."""
    said = exported.settings(run.folder)
    if not said.get("cost"):
        return None
    unknown = dict.fromkeys(("flop", "device", "days"))
    return {"updates": said["update"], **said["cost"], "data": of_data(run.recipe, unit)} | unknown


def sessions(log: list[dict]) -> list[tuple[dict, int]]:
    """Every update, and how many processes worked on it: each start of the run says so."""
    found, world = [], 1
    for line in log:
        world = line.get("world_size", world)
        if line["kind"] == "update":
            found.append((line, world))
    return found


def evaluations(updates: list[tuple[dict, int]]) -> dict[str, int]:
    """Samples that went through each network."""
    names = sorted({name for line, _ in updates for name in line["evaluations"]})
    return {name: sum(line["evaluations"].get(name, 0) for line, _ in updates) for name in names}


def flop(line: dict, recipe: Recipe, unit: Unit) -> float:
    """Of one update. In older logs, without `differentiated`, all passes of the moved network count."""
    moved, forward = line["network"], line["evaluations"]
    back = line.get("differentiated", {moved: forward.get(moved, 0)})
    built = [name for name, kind in registry.describe(recipe.method.name).networks.items() if kind == "Built"]
    again = recipe.train.activation_checkpointing != "none"
    passes = sum(n for name, n in forward.items() if name not in built)
    passes += sum(n * ((2 if name == moved else 1) + again) for name, n in back.items() if name not in built)
    return passes * unit.flop


def device(folder: Path) -> str:
    """The kind that a run's time was taken on."""
    if not (folder / "environment.json").is_file():
        return "unknown"
    machine = json.loads((folder / "environment.json").read_text("utf-8"))["machine"]
    return machine["gpus"][0] if machine["gpus"] else "cpu"


def of_data(recipe: Recipe, unit: Unit) -> dict | None:
    """What was made before training, for it: the teacher's trajectories, or encoded videos."""
    recorded, videos = recipe.data.trajectories, recipe.data.videos
    if recorded:
        per_step = 1 if recorded.guidance == 1 else unit.guided
        n = recorded.records * recorded.steps * per_step
        spent = seconds(Path(recorded.path), recorded.records)
        return {"what": "trajectories", "evaluations": n, "flop": n * unit.flop, "seconds": spent}
    if videos:
        return {"what": "videos", "evaluations": 0, "flop": 0, "seconds": seconds(Path(videos.path), None)}
    return None


def seconds(store: Path, records: int | None) -> float | None:
    """Of all processes that filled a store; None if its log does not cover what it holds, up to so many records."""
    entries = {samples_of(path) for path in (store / "shards").glob("*.json")}
    wanted = {each for each in entries if len(each) and (records is None or each.start < records)}
    log = store / fill.LOG
    lines = map(track.parsed, log.read_text("utf-8").splitlines()) if log.is_file() else ()
    spent = [(range(line["first"], line["last"] + 1), line["seconds"]) for line in lines if line]
    if not wanted or not wanted <= {shard for shard, _ in spent}:
        return None
    return math.fsum(each for shard, each in spent if shard in wanted)
