"""Counts what the updates of a method evaluate, for plans (distill/plan/costs.py): real runs on tiny networks.

What waits for the same backward pass is counted as well, for that is what activations are kept for.
"""

import contextlib
import json
import unittest.mock
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from .. import recipe as recipes
from .. import registry
from ..descent import descend
from ..engine import Role
from ..errors import UserError
from ..method import Built, Method
from ..teachers.wan import Wan, WanVelocity
from .bench import BATCH, MICRO, Bench

STEPS = 12  # of a method without stages
STEPS_OF_DRAWS = 160  # of one that draws how often it evaluates, for a mean: 640 samples
WIDTHS = (64, 128, 192)  # of teachers, for the sizes of modules that a method builds


def count(name: str, options: Mapping[str, Any], guided: int = 2) -> dict:
    """An entry of costs.json.

    Args:
        name: of an installed method, or package.module:Class.
        options: defaults for those that are left out.
        guided: evaluations that a guided step takes: 2, or 1 where the network is told the scale.
    """
    staged = registry.describe(name).has_stages
    found, alike = _count(name, options, guided, {} if staged else {"train.steps": STEPS})
    if not staged and not alike:
        found, _ = _count(name, options, guided, {"train.steps": STEPS_OF_DRAWS})
    return found


def _count(name: str, options: Mapping[str, Any], guided: int, changes: dict) -> tuple[dict, bool]:
    """An entry, and whether all updates of a network cost the same."""
    bench = Bench(name, options, changes)
    try:
        with _guided(guided), Recorder() as recorder:
            trial = bench.run("counted", 10**9)
        stages = [_stage(i, trial, recorder) for i in range(len(trial.stages))]
        sizes = {n: size(bench.method, n) for n, kind in bench.method.networks.items() if isinstance(kind, Built)}
        entry = {"options": _plain(bench.arguments()), "guided": guided, "modules": sizes}
        seen = {(line["network"], json.dumps(line["evaluations"], sort_keys=True)) for line in trial.lines}
        return entry | {"stages": stages}, len(seen) == len({network for network, _ in seen})
    finally:
        bench.close()


def options(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """All options of a method as costs.json has them, defaults included."""
    return _plain(Bench(name, given).arguments())


def class_name(name: str) -> str:
    return registry.method(name).target[1]


def _plain(options: Mapping[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(options))


class Recorder:
    """Remembers of every update, by network, how many samples waited for one backward pass, and how many went through
    in one call without gradients, while nothing waited or beside what did."""

    def __init__(self):
        self.held: list[Counter[str]] = []
        self.alone: list[Counter[str]] = []
        self.beside: list[Counter[str]] = []
        self.waiting: Counter[str] = Counter()

    def __enter__(self) -> "Recorder":
        forward, backward = Role.forward, Role.backward

        def counted_forward(role: Role, *args, **extra):
            asked, before = role.evaluations, role.differentiated
            out = forward(role, *args, **extra)
            self.waiting[role.name] += role.differentiated - before
            if role.differentiated == before and self.held:
                where = (self.beside if any(self.waiting.values()) else self.alone)[-1]
                where[role.name] = max(where[role.name], role.evaluations - asked)
            return out

        def counted_backward(role: Role, loss: torch.Tensor) -> None:
            self.held[-1] |= self.waiting  # the larger of each
            self.waiting.clear()
            backward(role, loss)

        def counted_update(*args):
            for each in (self.held, self.alone, self.beside):
                each.append(Counter())
            self.waiting.clear()
            return descend(*args)

        self.patches = contextlib.ExitStack()
        for target, name, new in (
            ("distill.engine.Role", "forward", counted_forward),
            ("distill.engine.Role", "backward", counted_backward),
            ("distill.trainer", "descend", counted_update),
        ):
            self.patches.enter_context(unittest.mock.patch(f"{target}.{name}", new))
        return self

    def __exit__(self, *_) -> None:
        self.patches.close()


def _stage(number: int, trial, recorder: Recorder) -> dict:
    seen = zip(trial.lines, recorder.held, recorder.alone, recorder.beside, strict=True)
    mine = [(line, most) for line, *most in seen if line["stage"] == number]
    own = trial.method.stages() is not None
    steps = trial.stages[number].steps
    updates = Counter(line["network"] for line, _ in mine)
    return {
        "steps": steps if own else None,
        "updates": {name: n if own else n / steps for name, n in updates.items()},
        "passes": {name: _passes([pair for pair in mine if pair[0]["network"] == name]) for name in updates},
    }


def _passes(of: list[tuple[dict, list[Counter[str]]]]) -> dict[str, list[float]]:
    """Network -> the numbers of plan.costs.Pass: means of two, the most of the others."""
    samples = BATCH * len(of)
    found: dict[str, list[float]] = defaultdict(lambda: [0.0] * 5)
    for line, most in of:
        for name, n in line["evaluations"].items():
            found[name][0] += n / samples
            found[name][1] += line["differentiated"].get(name, 0) / samples
            found[name][2:] = [max(a, b[name] / MICRO) for a, b in zip(found[name][2:], most, strict=True)]
    return {name: [round(n, 4) for n in each] for name, each in found.items()}


def size(method: Method, name: str) -> tuple[float, float]:
    """(a, b): a module that the method builds has a + b x width parameters."""
    found = [_parameters(method, name, width) for width in WIDTHS]
    per_channel = (found[1] - found[0]) / (WIDTHS[1] - WIDTHS[0])
    constant = found[0] - per_channel * WIDTHS[0]
    if constant + per_channel * WIDTHS[2] != found[2]:
        raise UserError(f"{name}: {found} parameters for teachers of {WIDTHS} channels do not grow along a line")
    return constant, per_channel


def _parameters(method: Method, name: str, width: int) -> int:
    class Sized:
        depth = 30
        video = recipes.Video(frames=81, height=480, width=832, fps=16)

        def latent_shape(self, *size: int) -> tuple[int, int, int, int]:
            return 16, 21, 60, 104

    Sized.width = width
    with torch.device("meta"):
        return sum(p.numel() for p in getattr(method, f"build_{name}")(Sized()).parameters())


@contextlib.contextmanager
def _guided(evaluations: int) -> Iterator[None]:
    """Let the tiny Wan be told the scale where a guided step is to be one evaluation."""
    if evaluations == 2:
        yield
        return
    with (
        unittest.mock.patch.object(WanVelocity, "guidance_embedded", True, create=True),
        unittest.mock.patch.object(Wan, "guidance_embedded", True),
    ):
        yield
