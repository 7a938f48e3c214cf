"""How long a run takes: its FLOPs over those that its GPUs do in a second.

A forward pass takes f; going back 2 f in the network that an update moves (of inputs and weights), f through any other
(of inputs alone), as distill/compare/cost.py has it. Checkpointing adds f, less what it keeps. Left out: clips for
validation and evaluation, encoding of prompts and videos, modules that a method builds itself, loading, saving.
"""

from dataclasses import dataclass

from ..recipe import Recipe
from . import flops
from .costs import Costs, Stage
from .teacher import Sizes

DAY = 86400  # seconds
UTILIZATION = 0.4  # of the peak: assumed, no measurement of ours
TERA = 1e12


@dataclass(frozen=True)
class Device:
    """A GPU as its data sheet has it.

    Attributes:
        bf16, fp32: dense peaks, TFLOP/s.
        memory_gib: what of it a process can have.
    """

    bf16: float
    fp32: float
    memory_gib: float


DEVICES = {"a100": Device(312, 19.5, 79), "h100": Device(989, 67, 79), "h200": Device(989, 67, 139)}


@dataclass(frozen=True)
class Duration:
    """Attributes:
    updates: of the whole run, all networks.
    flop: of the training.
    recording: of the teacher's trajectories, before it.
    seconds: of the training, on all GPUs together.
    gpu_days: of both.
    """

    updates: float
    flop: float
    recording: float
    seconds: float
    gpu_days: float


def of(recipe: Recipe, sizes: Sizes, costs: Costs, gpus: int, device: Device, utilization: float) -> Duration:
    work = flops.of(sizes.network, sizes.tokens)
    built = set(costs.modules)
    flop = updates = 0.0
    for stage in costs.stages:
        times = 1 if stage.steps is not None else recipe.train.steps or 0
        updates += times * sum(stage.updates.values())
        flop += times * recipe.train.batch_size * _of_stage(stage, built, work, recipe.train.activation_checkpointing)
    recording = _recording(recipe, sizes, work)
    rate = getattr(device, recipe.train.precision) * TERA * utilization
    return Duration(updates, flop, recording, flop / rate / gpus, (flop + recording) / rate / DAY)


def _of_stage(stage: Stage, built: set[str], work: flops.Work, checkpointing: str) -> float:
    """Of one sample in all of a stage's updates, or in those of one step."""
    again = {"none": 0.0, "full": work.forward, "selective": work.forward - work.attention}[checkpointing]
    total = 0.0
    for moved, times in stage.updates.items():
        for name, each in stage.passes[moved].items():
            if name not in built:
                back = (2 if name == moved else 1) * work.forward + again
                total += times * (each.forward * work.forward + each.differentiated * back)
    return total


def _recording(recipe: Recipe, sizes: Sizes, work: flops.Work) -> float:
    asked = recipe.data.trajectories
    if asked is None:
        return 0.0
    return asked.records * asked.steps * (1 if asked.guidance == 1 else sizes.guided) * work.forward
