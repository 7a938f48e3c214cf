"""A method with its networks in place: what training, sampling, export and checks all start from."""

from collections import Counter
from pathlib import Path

import torch

from . import checkpoint, places, registry
from .engine import Role
from .errors import UserError
from .method import Average, Built, Copy, Frozen, Method, Stage, Trained
from .networks import Net
from .places import Place

EMA = "student_ema"


def method(recipe) -> Method:
    """The recipe's method, with its options; its own errors name the recipe's section."""
    options = recipe.method.options
    try:
        return registry.method_class(recipe.method.name)(**options)
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"method.{recipe.method.name}: {error}") from error


def roles(method: Method, teacher, recipe, device: torch.device | str = "cpu") -> dict[str, Role]:
    """Make every network that the method declares, plus the student's average if the recipe asks for one."""
    from .teachers import stock  # imports diffusers

    kinds, made = _kinds(method, recipe), {}
    base = _shared_base(kinds, teacher, recipe, device) if recipe.lora else None
    for name in _in_order(kinds):
        made[name] = _role(name, kinds, method, teacher, recipe, device, made, base)
        if not isinstance(kinds[name], Built):
            stock.set_up(made[name].module, recipe.train)  # frozen ones too: gradients may pass through them
    for name in method.networks:
        setattr(method, name, Net(made[name]))
    return made


def stages(method: Method, recipe) -> list[Stage]:
    """The method's own stages, or one as long as the recipe says."""
    own, steps = method.stages(), recipe.train.steps
    if own is not None and steps is not None:
        raise UserError(f"train.steps: {recipe.method.name} has stages of its own; leave it out")
    if own is None and steps is None:
        raise UserError(f"train.steps is missing: {recipe.method.name} runs as long as the recipe says")
    return own or [Stage(steps=steps)]


def updates(method: Method, stage: Stage) -> Counter[str]:
    """How many updates each network gets in a stage."""
    method.stage = stage
    return Counter(update.network for step in range(stage.steps) for update in method.updates(step))


def trained(method: Method) -> list[str]:
    return [name for name, kind in method.networks.items() if isinstance(kind, Trained | Built)]


def saved(method: Method, roles: dict[str, Role]) -> list[str]:
    return [name for name in roles if not isinstance(method.networks.get(name), Frozen)]


def not_finite(method: Method, roles: dict[str, Role]) -> tuple[str, str] | None:
    """The first saved network with weights that are not finite, and that in words."""
    for name in saved(method, roles):
        found = roles[name].finite()
        bad = [key for key, finite in found.items() if not finite]
        if bad:
            return name, f"{name} has weights that are not finite ({bad[0]}, {len(bad)} of {len(found)} tensors)"
    return None


def averages(method: Method, recipe) -> dict[str, tuple[str, float]]:
    """Name of each moving average -> (network it follows, decay)."""
    kinds = _kinds(method, recipe)
    return {name: (kind.of, kind.decay) for name, kind in kinds.items() if isinstance(kind, Average)}


def sampler(run: Path, teacher, recipe, update: int | None = None) -> Method:
    """A method whose student alone has weights: those of a run's checkpoint, averaged if the recipe says so."""
    built = method(recipe)
    if "student" not in built.networks:
        raise UserError(f"{run} is a run of {recipe.method.name}, which trains no student")
    name = EMA if recipe.train.ema is not None else "student"
    ends = told_ends(built.networks, "student")
    if recipe.lora:
        from .teachers import adapters  # imports peft

        module = teacher.network(ends=ends)
        adapters.merge(module, checkpoint.load_network(run, name, update), recipe.lora)
    else:
        from .teachers import loading  # imports diffusers

        module = teacher.network(device="meta", ends=ends)
        loading.fill(module, checkpoint.find_network(run, name, update))
    built.student = Net(Role("student", module.eval(), precision="fp32"))
    return built


def _in_order(networks: dict) -> list[str]:
    """Networks after those they are taken from."""
    order: list[str] = []
    waiting = dict(networks)
    while waiting:
        ready = [n for n, kind in waiting.items() if _source(kind) in (None, "teacher", *order)]
        if not ready:
            raise UserError(f"networks {', '.join(waiting)} are taken from networks that the method does not declare")
        for name in ready:
            order.append(name)
            del waiting[name]
    return order


def told_ends(networks: dict, name: str) -> bool:
    """Whether a network, or the one that it is taken from, is told where steps end."""
    kind = networks[name]
    if isinstance(kind, Trained):
        return kind.ends
    return isinstance(kind, Copy | Average) and told_ends(networks, kind.of)


def _source(kind) -> str | None:
    return kind.init if isinstance(kind, Trained) else kind.of if isinstance(kind, Copy | Average) else None


def _shared_base(kinds: dict, teacher, recipe, device):
    """What all networks of a run with `lora` are views of: in the run's precision, in the frozen network's place."""
    from .teachers.adapters import SharedBase  # imports peft

    low = torch.bfloat16 if recipe.train.precision == "bf16" else torch.float32
    frozen = next((name for name, kind in kinds.items() if isinstance(kind, Frozen)), "teacher")
    place = places.settled(recipe.engine, frozen, "Frozen")
    if place.sharding == "ddp":
        return SharedBase(teacher.network(dtype=low).eval().to(device), recipe.lora, recipe.train.seed)
    from . import zero, zero_lora

    network = teacher.network(dtype=low, partition=zero.partition(place)).eval()
    return zero_lora.SpreadBase(network, recipe.lora, recipe.train.seed, place)


def _role(name: str, kinds: dict, method: Method, teacher, recipe, device, made: dict[str, Role], base) -> Role:
    kind, options = kinds[name], {"precision": recipe.train.precision, "device": device}
    view = base is not None and not isinstance(kinds.get(_origin(name, kinds)), Built)
    place = _place(name, kinds, recipe.engine)
    if view:  # with lora it is the base that is spread, for all
        role = base.role(name, adapted=not isinstance(kind, Frozen), ends=told_ends(kinds, name), **options)
    elif isinstance(kind, Average) and place.sharding == "ddp":
        return made[kind.of].averaged(name)
    elif place.sharding == "ddp":
        role = Role(name, _module(name, kinds, method, teacher, recipe), **options)
    else:
        role = _in_pieces(name, kinds, method, teacher, recipe, place, options)
    if _source(kind) not in (None, "teacher"):
        role.copy_from(made[_source(kind)])
    return role


def _in_pieces(name: str, kinds: dict, method: Method, teacher, recipe, place: Place, options: dict) -> Role:
    from . import zero, zero_trained  # which import deepspeed

    trained = isinstance(kinds[name], Trained | Built)
    low = torch.bfloat16 if trained and recipe.train.precision == "bf16" else None  # in one precision, beside masters
    cut = zero.partition(place, low) if place.sharding == "zero3" else None
    module = _module(name, kinds, method, teacher, recipe, cut)
    if any(isinstance(each, torch.nn.modules.batchnorm._BatchNorm) for each in module.modules()):
        raise UserError(
            f"engine.{name}: batch normalization keeps statistics, which ZeRO does not spread; set it to ddp"
        )
    make = zero_trained.trained if trained else zero.FrozenRole
    return make(name, module, place, **options)


def _module(name: str, kinds: dict, method: Method, teacher, recipe, partition=None) -> torch.nn.Module:
    """A network of its own, with the weights that it starts from unless those are copied."""
    kind, origin = kinds[name], _origin(name, kinds)
    if isinstance(kinds.get(origin), Built):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.train.seed)
            return getattr(method, f"build_{origin}")(teacher)
    whole = recipe.train.precision == "fp32" or isinstance(kind, Trained | Average)
    dtype = torch.float32 if whole else torch.bfloat16
    return teacher.network(dtype=dtype, ends=told_ends(kinds, name), partition=partition).eval()


def _origin(name: str, kinds: dict) -> str:
    """The network, or the teacher, that one is taken from in the end."""
    while name in kinds and (source := _source(kinds[name])) is not None:
        name = source
    return name


def _place(name: str, kinds: dict, engine) -> Place:
    kind = type(kinds[name]).__name__
    source = _place(kinds[name].of, kinds, engine) if kind == "Average" else None
    return places.settled(engine, name, kind, source)


def _kinds(method: Method, recipe) -> dict:
    """Every network of a run, with the student's average if the recipe asks for one."""
    ema = recipe.train.ema
    return dict(method.networks) | ({EMA: Average("student", ema)} if ema is not None else {})
