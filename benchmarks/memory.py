"""What runs keep in memory beside what the plan said: weights, gradients, moments, activations, the peak of an update.

    python benchmarks/memory.py                    # tiny runs on the CPU -> benchmarks/results/memory.json
    python benchmarks/memory.py --gpu RECIPE       # one update on a GPU, with random weights in the teacher's folder

On the CPU norms are cast as CUDA's autocast does (distill/testing/footprint.py). The part for a GPU has not been run.
"""

import argparse
import itertools
import json
import shutil
import sys
import tempfile
from pathlib import Path

import torch
from diffusers import WanTransformer3DModel

from distill import recipe as recipes
from distill.engine import Engine
from distill.folder import RunFolder
from distill.places import Hardware
from distill.plan import planning
from distill.plan.memory import GIB
from distill.testing import footprint, tiny_wan
from distill.testing.bench import Bench
from distill.testing.trial import Trial, quiet, saved

RESULTS = Path(__file__).parent / "results" / "memory.json"
METHODS = {"gpd": {"teacher_steps": 6, "steps": 2, "iterations": 3}, "dmd": {"student_every": 1}, "lcm": {}, "ladd": {}}
WIDE = {"num_attention_heads": 4, "attention_head_dim": 24, "ffn_dim": 288, "num_layers": 4, "rope_max_seq_len": 64}
CLIP = {"video.frames": 9, "video.height": 96, "video.width": 96}


def on_cpu() -> list[dict]:
    folder = Path(tempfile.mkdtemp(prefix="memory_"))
    try:
        teacher = wider(folder / "teacher")
        settings = itertools.product(METHODS, ("fp32", "bf16"), ("none", "full"))
        return [row for setting in settings for row in compared(teacher, *setting)]
    finally:
        shutil.rmtree(folder)


def wider(folder: Path) -> Path:
    """A tiny Wan whose activations are more than what a loss keeps."""
    with quiet():
        config = dict(tiny_wan.build(folder) and tiny_wan.transformer(2).config)
        given = {name: value for name, value in config.items() if not name.startswith("_")}
        WanTransformer3DModel(**given | WIDE).save_pretrained(folder / "transformer")
    return folder


def compared(teacher: Path, method: str, precision: str, checkpointing: str) -> list[dict]:
    """One row per network and kind: what was planned, what was measured, in bytes."""
    train = {"train.batch_size": 2, "train.micro_batch_size": 2}
    train |= {"train.precision": precision, "train.activation_checkpointing": checkpointing}
    bench = Bench(method, METHODS[method], {"teacher.path": str(teacher), **CLIP, **train})
    try:
        recipe = recipes.load(bench.recipe, bench._overrides("run"))
        with quiet(), footprint.casts_of_cuda():
            measured = footprint.of_run(recipe, updates=4, peaks=True)
    finally:
        bench.close()
    planned = planning.make(recipe, Hardware(memory_gib=1)).memory
    at = {"method": method, "precision": precision, "checkpointing": checkpointing}
    rows = [
        at | {"network": net.name, "kind": kind, "planned": getattr(net, kind), "measured": getattr(kept, kind)}
        for net in planned.networks
        for kind in ("weights", "gradients", "optimizer")
        if getattr(kept := measured.networks[net.name], kind) or getattr(net, kind)
    ]
    for update in planned.updates:
        held, peak = measured.held[update.network], measured.peaks[update.network]
        rows.append(at | {"network": update.network, "kind": "held", "planned": update.held, "measured": held})
        rows.append(at | {"network": update.network, "kind": "peak", "planned": update.total, "measured": peak})
    for row in rows:
        row["ratio"] = round(row["planned"] / max(row["measured"], 1), 3)
        print(" ".join(f"{value}" for value in row.values()), flush=True)
    return rows


def on_gpu(path: Path) -> dict:
    """The plan's figure for one GPU, and what one update allocates there at most."""
    recipe = recipes.load(path)
    planned = planning.make(recipe, Hardware(memory_gib=torch.cuda.get_device_properties(0).total_memory / GIB))
    engine = Engine()
    with RunFolder(recipe, engine) as folder, saved():
        Trial(recipe, engine, folder.path, end=1).train()
    most, reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
    known = planned.memory.per_gpu - planned.memory.overhead
    return {"recipe": path.name, "planned": known, "overhead": planned.memory.overhead, "measured": most} | {
        "reserved": reserved,
        "gpu": torch.cuda.get_device_name(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gpu", type=Path, metavar="RECIPE", help="one update of it, on this machine's GPU")
    asked = parser.parse_args()
    if asked.gpu and not torch.cuda.is_available():
        sys.exit("--gpu: no GPU is here")
    found = json.loads(RESULTS.read_text("utf-8")) if RESULTS.is_file() else {}
    found |= {f"gpu {asked.gpu.stem}": on_gpu(asked.gpu)} if asked.gpu else {"cpu": on_cpu()}
    RESULTS.write_text(json.dumps(found, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
