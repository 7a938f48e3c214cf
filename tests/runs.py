"""Small runs for tests: a recipe on a random Wan, trained in this process or by the real command."""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch

from distill import recipe, trainer
from distill.testing.trial import flat, numbers  # noqa: F401, tests ask for both here

GPD = "{name: gpd, teacher_steps: 6, steps: 2, iterations: [5, 4], guidance: [3.0, 3.0]}"
PAIR = "{name: 'tests.plugins:Pair'}"
OPTIM = "{lr: 1e-3, schedule: cosine}"
RECIPE = """
teacher: {{family: wan, path: {teacher}}}
video: {{frames: 5, height: 32, width: 48, fps: 8}}
data: {{prompts: {prompts}}}
method: {method}
optim: {optim}
train: {{seed: 3, batch_size: 4, micro_batch_size: 2}}
checkpoint: {{every: 1, keep: 3}}
output: {output}
"""


def write(folder: Path, teacher: Path, method: str = GPD, networks: tuple[str, ...] = ("student",), **more) -> Path:
    """A recipe file whose run goes to folder/run."""
    folder.mkdir(parents=True, exist_ok=True)
    prompts = teacher.parent / "prompts.txt"
    prompts.write_text("a red circle\na blue square moves left\nred square\nblue circle moves right\na\n")
    optim = "{" + ", ".join(f"{name}: {OPTIM}" for name in networks) + "}"
    text = RECIPE.format(teacher=teacher, prompts=prompts, method=method, optim=optim, output=folder / "run")
    (folder / "recipe.yaml").write_text(text + "".join(f"{k}: {json.dumps(v)}\n" for k, v in more.items()))
    return folder / "recipe.yaml"


def train(path: Path, *overrides: str) -> Path:
    return trainer.run(recipe.load(path, overrides))


def command(*arguments: str | Path, **options) -> subprocess.Popen:
    """`distill ARGUMENTS` in a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    line = [sys.executable, "-m", "distill", *map(str, arguments)]
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(line, env=environment, start_new_session=True, **output, **options)


def final(run: Path) -> dict[str, torch.Tensor]:
    """Every number of a run's newest checkpoint, flat."""
    return numbers(run)


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    """Bit for bit."""
    assert one.keys() == other.keys() and len(one) > 20
    different = [name for name in one if not torch.equal(one[name], other[name])]
    assert not different, f"{len(different)} of {len(one)} differ, first {different[:3]}"
