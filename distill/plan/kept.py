"""What a run keeps of each network: on a GPU, on hosts, in checkpoints. In bytes.

Of a parameter, in bytes, over N processes (distill/engine.py, zero.py, zero_trained.py):

    trained    weights                gradients   masters and moments
    ddp        4                      4           8
    zero1      2 in bf16, else 4      4           12 / N
    zero2      2 in bf16, else 4      4 / N       12 / N
    zero3      2 / N in bf16, or 4/N  4 / N       12 / N

A frozen network has weights alone, in the run's precision, whole or under zero3 1 / N of them; an average in float32.
Gradients of ddp, zero1 and zero2 are there during an update of their network, those of zero3 always.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from .. import places
from ..places import Place
from ..recipe import Recipe
from ..signature import Signature
from . import activations
from .activations import SIZE
from .costs import Costs
from .teacher import Sizes

BUCKET_ELEMENTS = 25_000_000  # of zero_config.py: gradients on their way, weights gathered ahead
LIVE_ELEMENTS = 1_000_000_000  # of zero_config.py: gathered weights at a time
PERSISTENT_SHARE = 10  # of zero_config.py: at most this part of a small network is gathered at a time
MOMENTS, MASTERS, SUMS = 8, 4, 4
OFFLOADED_SUMS = 8  # bytes of gradients on the host: DeepSpeed's sums, and what its optimizer steps
STUDENT_EMA = "student_ema"


@dataclass(frozen=True)
class Setting:
    """What all formulas need.

    Attributes:
        world: processes, one per GPU.
    """

    recipe: Recipe
    sizes: Sizes
    costs: Costs | None
    world: int
    method: Signature

    @property
    def precision(self) -> activations.Precision:
        return self.recipe.train.precision

    @property
    def kinds(self) -> dict[str, str]:
        """Network -> kind, with the student's average if the recipe asks for one."""
        return self.method.networks | ({STUDENT_EMA: "Average"} if self.recipe.train.ema is not None else {})

    def place(self, name: str) -> Place:
        kind, engine = self.kinds[name], self.recipe.engine
        source = self.place(self.source(name)) if kind == "Average" else None
        return places.settled(engine, name, kind, source)

    def source(self, name: str) -> str:
        """The network that an average or a copy follows."""
        return self.method.declared.get(name, {}).get("of", "student")

    def told_ends(self, name: str) -> bool:
        if self.kinds[name] in ("Copy", "Average"):
            return self.told_ends(self.source(name))
        return bool(self.method.declared.get(name, {}).get("ends"))


@dataclass(frozen=True)
class Kept:
    """Of one network, on one GPU and, for all processes of the run together, on hosts.

    Attributes:
        lasting: its gradients stay between updates.
        passes: it sees gradients of its weights, of adapters, or none of its own.
        gathered: weights that are there while it is evaluated, and only then.
        on_disk: in a checkpoint.
    """

    name: str
    kind: str
    place: Place
    parameters: int
    weights: float = 0.0
    gradients: float = 0.0
    optimizer: float = 0.0
    lasting: bool = False
    passes: activations.Passes = "frozen"
    gathered: float = 0.0
    host: float = 0.0
    on_disk: float = 0.0


def networks(setting: Setting) -> Iterator[Kept]:
    """All of a run; under lora the base first."""
    if setting.recipe.lora:
        yield _base(setting)
    make = _adapters if setting.recipe.lora else _network
    for name, kind in setting.kinds.items():
        yield make(name, kind, setting)


def _network(name: str, kind: str, setting: Setting) -> Kept:
    net, place = setting.sizes.network, setting.place(name)
    if kind == "Built":
        return _trained(name, kind, place, _built(name, setting), setting)
    parameters = net.parameters + (net.ends if setting.told_ends(name) else 0)
    if kind == "Trained":
        return _trained(name, kind, place, parameters, setting)
    if kind == "Average":
        return _frozen(name, kind, place, parameters, 4.0 * parameters, setting)
    return _frozen(name, kind, place, parameters, _low(parameters, setting), setting)


def _low(parameters: int, setting: Setting) -> float:
    """Bytes of weights that are stored in the run's precision; some of the network's stay in float32."""
    spared = setting.sizes.network.kept_in_float32 if setting.precision == "bf16" else 0
    return SIZE[setting.precision] * parameters + (4 - SIZE[setting.precision]) * spared


def _built(name: str, setting: Setting) -> int:
    return setting.costs.built(name, setting.sizes.network.width) if setting.costs else 0


def _trained(name: str, kind: str, place: Place, parameters: int, setting: Setting) -> Kept:
    n, stage = setting.world, place.sharding
    low = 4 if stage == "ddp" else SIZE[setting.precision]
    spread = {"ddp": (1, 1, 1), "zero1": (1, 1, n), "zero2": (1, n, n), "zero3": (n, n, n)}[stage]
    state = MOMENTS + (0 if stage == "ddp" else MASTERS)
    found = {
        "weights": low * parameters / spread[0],
        "gradients": SUMS * parameters / spread[1],
        "optimizer": state * parameters / spread[2],
    }
    host = 0.0
    if "optimizer" in place.offload:
        host += (state + OFFLOADED_SUMS) * parameters
        found["optimizer"] = 0.0
        found["gradients"] = found["gradients"] if stage == "zero1" else 0.0
    if "parameters" in place.offload:
        host += low * parameters
        found["weights"] = 0.0
    return Kept(
        name,
        kind,
        place,
        parameters,
        **found,
        lasting=stage == "zero3",
        passes="trained",
        gathered=_gathered(parameters, low, place, setting),
        host=host,
        on_disk=(4 + MOMENTS) * parameters,
    )


def _frozen(name: str, kind: str, place: Place, parameters: int, weights: float, setting: Setting) -> Kept:
    """Of the teacher nothing is saved."""
    pieces = place.sharding == "zero3"
    offloaded = "parameters" in place.offload
    return Kept(
        name,
        kind,
        place,
        parameters,
        weights=0.0 if offloaded else weights / (setting.world if pieces else 1),
        gathered=_gathered(parameters, SIZE[setting.precision], place, setting),
        host=weights if offloaded else 0.0,
        on_disk=0.0 if kind == "Frozen" else weights,
    )


def _gathered(parameters: int, size: int, place: Place, setting: Setting) -> float:
    """Weights that zero3 has put together at a time: what is ahead, and the blocks in work."""
    if place.sharding != "zero3":
        return 0.0
    ahead = min(LIVE_ELEMENTS, parameters // PERSISTENT_SHARE)
    live = max(ahead, 2 * setting.sizes.network.largest_block) + min(BUCKET_ELEMENTS, parameters // PERSISTENT_SHARE)
    return size * min(parameters, live)


def _base(setting: Setting) -> Kept:
    """The one frozen network that all are views of, where the teacher's place is."""
    net, frozen = setting.sizes.network, [name for name, kind in setting.kinds.items() if kind == "Frozen"]
    place = setting.place(frozen[0]) if frozen else Place()
    parameters = net.parameters
    return _frozen("base", "Frozen", place, parameters, _low(parameters, setting), setting)


def _adapters(name: str, kind: str, setting: Setting) -> Kept:
    """Whole on every process, in float32."""
    if kind == "Built":
        return _trained(name, kind, setting.place(name), _built(name, setting), setting)
    net = setting.sizes.network
    own = net.adapters(setting.recipe.lora) + (net.ends if setting.told_ends(name) else 0)
    if kind == "Trained":
        found = _trained(name, kind, Place(), own, setting)
        return Kept(**vars(found) | {"passes": "adapted"})
    own = 0 if kind == "Frozen" else own
    return _frozen(name, kind, Place(), own, 4.0 * own, setting)
