"""What a GPU holds at the fullest moment of a run: all that networks keep (kept.py), and what an update needs."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from . import activations
from .activations import SIZE
from .costs import Pass
from .kept import BUCKET_ELEMENTS, Kept, Setting, networks

GIB = 1 << 30
OVERHEAD_GIB = 7.0  # assumed: CUDA's context, NCCL, what the allocator cannot use; no measurement of ours
# A module that a method builds on hidden states, in bytes per token, as counted of heads of 256 channels:
FEATURES = {"fp32": 4, "bf16": 6}  # and channel of its input: in float32, and a copy in bf16
HEAD = {"fp32": 12_400, "bf16": 5_800}  # inside
HEAD_GOING_BACK = 8_000


@dataclass(frozen=True)
class Update:
    """What is there while one network is updated, besides what is always there.

    Attributes:
        held: activations that wait for the backward pass.
        beside: what is in work while they wait: a block that goes back, or an evaluation without gradients.
        before: what is in work while none wait.
        again_and_again: gradients of one backward pass are there during the next; of a single one they take the place
            of what it has let go.
    """

    network: str
    gradients: float
    held: float
    beside: float
    before: float
    buffers: float
    again_and_again: bool

    @property
    def activations(self) -> float:
        """At the fullest moment; less than all of them where gradients have taken their place."""
        if self.again_and_again:
            return max(self.held + self.beside, self.before)
        return max(self.held + self.beside, self.gradients + self.beside, self.before) - self.gradients

    @property
    def total(self) -> float:
        return self.gradients + self.activations + self.buffers


@dataclass(frozen=True)
class Memory:
    """Of a run.

    Attributes:
        fixed: in weights, optimizers and gradients that stay, on one GPU.
        overhead: assumed.
        guessed: no counts are at hand of what the method evaluates, so each trained network is taken to see gradients
            once, through nothing else.
    """

    networks: tuple[Kept, ...]
    updates: tuple[Update, ...]
    overhead: float
    guessed: bool = False

    @cached_property
    def fixed(self) -> float:
        return sum(net.weights + net.optimizer + net.gradients * net.lasting for net in self.networks)

    @property
    def fullest(self) -> Update:
        return max(self.updates, key=lambda update: update.total)

    @property
    def per_gpu(self) -> float:
        return self.fixed + self.fullest.total + self.overhead

    @property
    def host(self) -> float:
        """Offloaded, of all machines together."""
        return sum(net.host for net in self.networks)

    @property
    def checkpoint(self) -> float:
        return sum(net.on_disk for net in self.networks)


def of(setting: Setting, overhead_gib: float = OVERHEAD_GIB) -> Memory:
    found = {net.name: net for net in networks(setting)}
    trained = [name for name, kind in setting.kinds.items() if kind in ("Trained", "Built")]
    updates = tuple(_update(name, found, setting) for name in trained)
    return Memory(tuple(found.values()), updates, overhead_gib * GIB, guessed=setting.costs is None)


def _update(name: str, kept: Mapping[str, Kept], setting: Setting) -> Update:
    passes = setting.costs.passes(name) if setting.costs else {name: Pass(1, 1, 1, 1, 1)}
    recipe, sizes = setting.recipe, setting.sizes
    held = heads = again = alone = beside = 0.0
    for other, each in passes.items():
        if kept[other].kind == "Built":
            inside = FEATURES[setting.precision] * sizes.network.width + HEAD[setting.precision]
            heads += each.forward * sizes.tokens.video * inside
            continue
        own = kept[other].passes if other == name else "frozen"
        mode = recipe.train.activation_checkpointing
        found = activations.of(sizes.network, sizes.tokens, setting.precision, own, mode)
        held += each.held * found.held
        again = max(again, found.again * (each.held > 0))
        alone, beside = max(alone, each.alone * found.passing), max(beside, each.beside * found.passing)
    if heads:
        beside = max(beside, sizes.tokens.video * HEAD_GOING_BACK)
    beside = max(beside, again - heads)  # heads go back first, and leave room for the blocks behind them
    held += heads
    micro, moved = recipe.train.micro_batch_size, kept[name]
    return Update(
        name,
        gradients=0.0 if moved.lasting else moved.gradients,
        held=micro * held,
        beside=micro * beside,
        before=micro * alone,
        buffers=_buffers(name, passes, kept, setting),
        again_and_again=_accumulates(name, setting),
    )


def _accumulates(name: str, setting: Setting) -> bool:
    """Whether gradients are there already while activations are: of micro-batches, or parts of a loss, before."""
    train = setting.recipe.train
    several = setting.costs is None or setting.costs.backward_passes.get(name, True)
    return several or train.batch_size > setting.world * train.micro_batch_size


def _buffers(name: str, passes: Mapping[str, Pass], kept: Mapping[str, Kept], setting: Setting) -> float:
    """Gathered weights, copies of weights that autocast makes, and gradients on their way."""
    gathered = [kept[other].gathered for other in passes]
    if setting.recipe.lora:
        gathered.append(kept["base"].gathered)
    moved = kept[name]
    casts = 0.0
    if setting.precision == "bf16" and moved.place.sharding == "ddp":
        casts = SIZE["bf16"] * moved.parameters  # kept while gradients are, until the evaluation ends
    bucket = 2 * 4 * min(BUCKET_ELEMENTS, moved.parameters) if setting.world > 1 else 0
    return max(gathered, default=0.0) + casts + bucket
