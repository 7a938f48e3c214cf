"""A method with its networks in place: what training, sampling, export and checks all start from."""

from collections import Counter
from pathlib import Path

import torch

from . import checkpoint, registry
from .engine import Role
from .errors import UserError
from .method import Average, Built, Copy, Frozen, Method, Stage, Trained
from .networks import Net

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
    made: dict[str, Role] = {}
    for name in _in_order(method.networks):
        made[name] = _role(name, method.networks[name], method, teacher, recipe, device, made)
    if recipe.train.ema is not None:
        made[EMA] = made["student"].averaged(EMA)
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
        weights = roles[name].module.state_dict()
        bad = [key for key, value in weights.items() if not value.isfinite().all()]
        if bad:
            return name, f"{name} has weights that are not finite ({bad[0]}, {len(bad)} of {len(weights)} tensors)"
    return None


def averages(method: Method, recipe) -> dict[str, tuple[str, float]]:
    """Name of each moving average -> (network it follows, decay)."""
    found = {name: (kind.of, kind.decay) for name, kind in method.networks.items() if isinstance(kind, Average)}
    return found | ({EMA: ("student", recipe.train.ema)} if recipe.train.ema is not None else {})


def sampler(run: Path, teacher, recipe, update: int | None = None) -> Method:
    """A method whose student alone has weights: those of a run's checkpoint, averaged if the recipe says so."""
    built = method(recipe)
    if "student" not in built.networks:
        raise UserError(f"{run} is a run of {recipe.method.name}, which trains no student")
    name = EMA if recipe.train.ema is not None else "student"
    module = teacher.network()
    if told_ends(built.networks, "student"):
        module.tell_ends()
    module.load_state_dict(checkpoint.load_network(run, name, update))
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


def _role(name: str, kind, method: Method, teacher, recipe, device, made: dict[str, Role]) -> Role:
    low = torch.bfloat16 if recipe.train.precision == "bf16" else torch.float32
    options = {"precision": recipe.train.precision, "device": device}
    if isinstance(kind, Average):
        return made[kind.of].averaged(name)
    if isinstance(kind, Built):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.train.seed)
            return Role(name, getattr(method, f"build_{name}")(teacher), **options)
    weights = torch.float32 if isinstance(kind, Trained) else low
    module = teacher.network(dtype=weights).eval()
    if told_ends(method.networks, name):
        module.tell_ends()
    role = Role(name, module, **options)
    if recipe.train.activation_checkpointing != "none":  # frozen ones too: gradients may pass through them
        role.module.enable_checkpointing()
    if _source(kind) not in (None, "teacher"):
        role.copy_from(made[_source(kind)])
    return role
