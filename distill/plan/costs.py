"""What updates of a method evaluate, as counted on tiny networks and kept beside the method's own file.

`costs.json` stands in the folder of a method's module, ours or a plugin's; distill/testing/counts.py writes it. An
entry holds for one set of options, and says of every stage how many updates each network gets, and what one evaluates
per sample.
"""

import json
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from functools import cache
from pathlib import Path

from .. import registry, signature
from ..errors import UserError

FILE = "costs.json"


@dataclass(frozen=True)
class Pass:
    """Of one network in an update of one: evaluations per sample.

    Attributes:
        forward: all.
        differentiated: those among them that a gradient goes back through.
        held: of these, so many wait for the same backward pass.
        alone: evaluations in one call without gradients, at most (a guided one makes two), while nothing waits.
        beside: likewise, while something waits for a backward pass.
    """

    forward: float
    differentiated: float
    held: float
    alone: float
    beside: float


@dataclass(frozen=True)
class Stage:
    """Attributes:
    steps: None is the recipe's train.steps, and `updates` are then those of one step.
    """

    steps: int | None
    updates: Mapping[str, float]
    passes: Mapping[str, Mapping[str, Pass]]


@dataclass(frozen=True)
class Costs:
    """Attributes:
    stages: of a run.
    modules: what a method builds itself -> (a, b), of a + b x width parameters.
    differing: options of the recipe that the counts were not made with.
    """

    stages: tuple[Stage, ...]
    modules: Mapping[str, tuple[float, float]]
    differing: tuple[str, ...] = ()

    def passes(self, network: str) -> dict[str, Pass]:
        """The most that an update of a network evaluates in any stage."""
        found: dict[str, Pass] = {}
        for stage in self.stages:
            for name, each in stage.passes.get(network, {}).items():
                before = found.get(name, each)
                found[name] = Pass(*map(max, astuple(before), astuple(each)))
        return found

    def built(self, name: str, width: int) -> int:
        constant, per_channel = self.modules.get(name, (0, 0))
        return round(constant + per_channel * width)

    @property
    def backward_passes(self) -> dict[str, bool]:
        """Network -> whether an update of it goes back more than once on the same samples, as loss in parts does."""
        found: dict[str, bool] = {}
        for stage in self.stages:
            for moved, passes in stage.passes.items():
                several = any(each.differentiated > each.held for each in passes.values())
                found[moved] = found.get(moved, False) or several
        return found


def find(method: str, options: Mapping, guided: int) -> Costs | None:
    """The entry that was counted with the most of these options; None if there is none.

    Args:
        options: all of them, defaults included.
        guided: evaluations that a guided step takes, of the teacher's family.
    """
    entry = registry.method(method)
    module, name = entry.target
    found = [each for each in _table(signature.file_of(module).parent / FILE).get(name, []) if each["guided"] == guided]
    if not found:
        return None
    differing = [_differing(each["options"], options) for each in found]
    nearest = min(range(len(found)), key=lambda i: len(differing[i]))
    return parse(found[nearest], tuple(differing[nearest]))


def parse(entry: dict, differing: tuple[str, ...] = ()) -> Costs:
    stages = tuple(
        Stage(
            each["steps"],
            each["updates"],
            {moved: {name: Pass(*n) for name, n in of.items()} for moved, of in each["passes"].items()},
        )
        for each in entry["stages"]
    )
    return Costs(stages, {name: tuple(size) for name, size in entry["modules"].items()}, differing)


def _differing(counted: Mapping, asked: Mapping) -> list[str]:
    plain = json.loads(json.dumps(dict(asked)))  # tuples become lists, as in the file
    return [name for name in sorted(plain.keys() | counted.keys()) if plain.get(name) != counted.get(name)]


@cache
def _table(path: Path) -> dict[str, list[dict]]:
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON: {error}; remove it, and count again") from error
