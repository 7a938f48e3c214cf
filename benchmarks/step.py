"""What training costs beyond its network evaluations: GPD's updates through the trainer, against the bare minimum.

    python benchmarks/step.py [--rounds 15] [--write]

Both run in one process, in turns: the trainer, with everything it does between updates (draws, targets, losses,
clipping, checks, logging), and the evaluations that Algorithm 1 needs plus a fused AdamW step. Quoted is the median
over rounds of the ratio of their CPU times, which is steady on a machine that is not (wall time is not). The network
is a small Wan with 320 tokens and 1 sample, so that nothing hides behind arithmetic; overhead shrinks with size.
Prints one JSON line and a table; --write keeps the line as results/step.json.
"""

import argparse
import contextlib
import copy
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import FlowMapEulerDiscreteScheduler, WanPipeline, WanTransformer3DModel
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from distill import recipe
from distill.engine import Engine
from distill.folder import RunFolder
from distill.signals import StopRequest
from distill.track import Tracker
from distill.trainer import Trainer
from tests import tiny_wan

UPDATES_PER_ROUND = 24  # of each contestant; a trajectory of the last stage has 6
RECIPE = """
teacher: {{family: wan, path: {folder}/teacher}}
video: {{frames: 9, height: 64, width: 64, fps: 8}}
data: {{prompts: prompts.txt}}
method: {{name: gpd, iterations: 20000}}
optim: {{student: {{lr: 1e-6}}}}
train: {{batch_size: 1}}
checkpoint: {{every: 1000000}}
log: {{every: 1000000}}
output: {folder}/run
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=15, help="per stage")
    parser.add_argument("--write", action="store_true", help="keep the result in benchmarks/results/step.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):  # the run's own lines
        result = measure(Path(folder), arguments.rounds)
    print(json.dumps(result))
    print(table(result))
    if arguments.write:
        path = ROOT / "benchmarks" / "results" / "step.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(result, indent=1) + "\n")


def measure(folder: Path, rounds: int) -> dict:
    write_teacher(folder / "teacher")
    (folder / "prompts.txt").write_text("a red circle\na blue square moves left\n")
    (folder / "recipe.yaml").write_text(RECIPE.format(folder=folder))
    loaded, engine = recipe.load(folder / "recipe.yaml"), Engine()
    with RunFolder(loaded, engine) as run, StopRequest() as stop:
        trainer = Trainer(loaded, engine, run.path, stop)
        with Tracker(run.path, loaded, engine.main, trainer.total) as trainer.tracker:
            stages = [stage_cost(trainer, index, rounds) for index in (0, len(trainer.stages) - 1)]
    engine.close()
    about = {"python": platform.python_version(), "torch": torch.__version__, "cpu": cpu(), "threads": 1}
    return {"benchmark": "step", "method": "gpd", "rounds": rounds, **about, "stages": stages}


def stage_cost(trainer: Trainer, index: int, rounds: int) -> dict:
    """Both contestants on trajectories of one stage."""
    trainer.position.stage = index
    trainer.method.stage = stage = trainer.stages[index]
    trainer._enter(stage)
    updates = len(stage.trajectories[0])
    trajectories = UPDATES_PER_ROUND // updates
    ours, bare = trainer._step, bare_step(trainer, stage, updates)
    for warm_up in (ours, bare):
        warm_up()
    flops = [flop(contestant) for contestant in (ours, bare)]
    pairs = [(cpu_seconds(ours, trajectories), cpu_seconds(bare, trajectories)) for _ in range(rounds)]
    ratios = [trained / minimum for trained, minimum in pairs]
    updates *= trajectories
    low, median, high = statistics.quantiles(ratios, n=4)
    return {
        "k": stage.k,
        "updates_per_round": updates,
        "cpu_ratio": round(median, 4),
        "quartiles": [round(low, 4), round(high, 4)],
        "flop_ratio": round(flops[0] / flops[1], 5),
        "trainer_ms": round(1000 * statistics.median(trained for trained, _ in pairs) / updates, 2),
        "bare_ms": round(1000 * statistics.median(minimum for _, minimum in pairs) / updates, 2),
    }


def bare_step(trainer: Trainer, stage, updates: int) -> Callable[[], None]:
    """As many updates of nothing but the evaluations, the backward pass and the optimizer."""
    nets = {name: copy.deepcopy(role.module.transformer) for name, role in trainer.roles.items()}
    student = nets["student"].requires_grad_(True)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-6, fused=True)
    x, text = torch.randn(1, *trainer.stream.shape), torch.randn(1, tiny_wan.TOKENS, student.config.text_dim)
    both, texts, t, ts = torch.cat([x, x]), torch.cat([text, text]), torch.tensor([500.0]), torch.tensor([500.0, 500.0])
    prior_inputs = (x, t, text) if stage.prior_guidance == 1 else (both, ts, texts)

    def step() -> None:
        for _ in range(updates):
            with torch.no_grad():
                nets["prior"](*prior_inputs, return_dict=False)
                nets["teacher"](both, ts, texts, return_dict=False)
            student(x, t, text, return_dict=False)[0].square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()

    return step


def cpu_seconds(work: Callable[[], None], times: int) -> float:
    started = time.process_time()
    for _ in range(times):
        work()
    return time.process_time() - started


def flop(work: Callable[[], None]) -> int:
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def cpu() -> str:
    found = [line.partition(":")[2].strip() for line in _cpuinfo() if line.startswith("model name")]
    return found[0] if found else platform.processor()


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def write_teacher(folder: Path) -> None:
    """4 layers of 4 x 32 heads, random weights."""
    torch.manual_seed(0)
    WanPipeline(
        tokenizer=tiny_wan.tokenizer(),
        text_encoder=tiny_wan.text_encoder(),
        vae=tiny_wan.vae(),
        scheduler=FlowMapEulerDiscreteScheduler(shift=5.0),
        transformer=WanTransformer3DModel(
            num_attention_heads=4,
            attention_head_dim=32,
            in_channels=4,
            out_channels=4,
            text_dim=16,
            freq_dim=128,
            ffn_dim=512,
            num_layers=4,
            rope_max_seq_len=64,
        ),
    ).save_pretrained(folder)


def table(result: dict) -> str:
    lines = ["stage k  CPU time, trainer / bare  quartiles        FLOP ratio  ms per update, trainer / bare"]
    for row in result["stages"]:
        quartiles = " - ".join(f"{q:.3f}" for q in row["quartiles"])
        times = f"{row['trainer_ms']:.1f} / {row['bare_ms']:.1f}"
        lines.append(f"{row['k']:7}  {row['cpu_ratio']:24.3f}  {quartiles:15}  {row['flop_ratio']:10.4f}  {times:>29}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
