"""The nearest settings that fit: the fewest and mildest changes of a recipe, each tried by planning again."""

import dataclasses
import heapq
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass

from .. import places
from ..places import Lora, Place
from ..recipe import Recipe
from ..signature import Signature
from . import planning
from .planning import Plan

RANK = 128  # of adapters that are proposed
MODES = ("none", "selective", "full")


@dataclass(frozen=True)
class Fix:
    """Attributes:
    changes: overrides of the recipe.
    """

    changes: tuple[str, ...]
    plan: Plan

    @property
    def gpus(self) -> int:
        return self.plan.hardware.gpus


@dataclass(frozen=True)
class Change:
    """One thing to change: how far it is from the recipe, its overrides, and what the recipe becomes."""

    distance: float
    overrides: tuple[str, ...]
    recipe: dict


def nearest(plan: Plan) -> list[Fix]:
    """On the same GPUs, on more of them, and with adapters, as far as each of these is possible."""
    gpus, engines = plan.hardware.gpus, list(_engines(plan))
    found = [
        _first(plan, engines, [gpus]),
        _first(plan, engines, list(_more(plan))),
        _first(plan, list(_adapters(plan)), [gpus]),
    ]
    return [fix for fix in found if fix is not None]


def _first(plan: Plan, engines: list[Change], worlds: list[int]) -> Fix | None:
    """Of all combinations, in the order of their distance."""
    choices = itertools.product(engines, _modes(plan.recipe), _micro(plan.recipe), enumerate(worlds))
    order = [
        (sum(each.distance for each in three) + 3 * i, n, three, gpus) for n, (*three, (i, gpus)) in enumerate(choices)
    ]
    heapq.heapify(order)
    while order:
        _, _, changes, gpus = heapq.heappop(order)
        if fix := _tried(plan, changes, gpus):
            return fix
    return None


def _tried(plan: Plan, changes: list[Change], gpus: int) -> Fix | None:
    """The plan with these changes, if it can be run and fits."""
    recipe = plan.recipe.model_copy(update=_merged(changes, plan.recipe))
    train, spread = recipe.train, _in_pieces(recipe, plan.setting.method)
    if spread and train.activation_checkpointing == "none":  # gradients through them need it (docs/engines.md)
        return None
    if places.clashes(spread, recipe.lora is not None, train.activation_checkpointing, train.compile):
        return None
    hardware = plan.hardware.model_copy(update={"gpus": gpus})
    made = planning.on(dataclasses.replace(plan.setting, recipe=recipe), hardware, plan.assumptions)
    if not made.fits:
        return None
    more = (f"hardware.gpus={gpus}",) if gpus != plan.hardware.gpus else ()
    return Fix(tuple(line for each in changes for line in each.overrides) + more, made)


def _merged(changes: list[Change], recipe: Recipe) -> dict:
    sections = {k: v for each in changes for k, v in each.recipe.items() if k != "train"}
    train = {k: v for each in changes for k, v in each.recipe.get("train", {}).items()}
    return sections | {"train": recipe.train.model_copy(update=train)}


def _in_pieces(recipe: Recipe, method: Signature) -> bool:
    """Whether some network is under zero3."""
    kinds = {name: kind for name, kind in method.networks.items() if kind != "Average"}
    return any(places.settled(recipe.engine, name, kind).sharding == "zero3" for name, kind in kinds.items())


# What may be changed


def _modes(recipe: Recipe) -> list[Change]:
    key, now = "train.activation_checkpointing", MODES.index(recipe.train.activation_checkpointing)
    return [
        Change(i, (f"{key}={mode}",) if i else (), {"train": {"activation_checkpointing": mode}})
        for i, mode in enumerate(MODES[now:])
    ]


def _micro(recipe: Recipe) -> list[Change]:
    """As it is, or one sample at a time."""
    found = [Change(0, (), {})]
    if recipe.train.micro_batch_size > 1:
        found.append(Change(1, ("train.micro_batch_size=1",), {"train": {"micro_batch_size": 1}}))
    return found


def _engines(plan: Plan) -> Iterator[Change]:
    """As it is, then ever more in pieces, then on the host."""
    yield Change(0, (), {})
    recipe, kinds = plan.recipe, plan.setting.method.networks
    trained = [name for name, kind in kinds.items() if kind == "Trained"]
    if recipe.lora:
        yield _engine(2, "zero3")
        return
    for distance, word in ((1, "zero1"), (1.5, "zero2"), (2, "zero3")):
        yield _engine(distance, word)
    away = Place(sharding="zero3", offload=["optimizer"])
    further = Place(sharding="zero3", offload=["optimizer", "parameters"])
    frozen = {name: Place(sharding="zero3") for name, kind in kinds.items() if kind in ("Frozen", "Copy")}
    waiting = {name: Place(sharding="zero3", offload=["parameters"]) for name in frozen}
    yield _engine(5, dict.fromkeys(trained, away) | frozen)
    yield _engine(6, dict.fromkeys(trained, away) | waiting)
    yield _engine(7, dict.fromkeys(trained, further) | waiting)


def _adapters(plan: Plan) -> Iterator[Change]:
    """Of the same frozen network, whole or in pieces."""
    recipe, kinds = plan.recipe, plan.setting.method.networks
    if recipe.lora or "Trained" not in kinds.values():
        return
    for distance, word in ((6, "ddp"), (7, "zero3")):
        made = _engine(distance, word)
        lora = {"rank": RANK, "alpha": float(RANK)}
        yield Change(distance, (f"lora={_flow(lora)}", *made.overrides), made.recipe | {"lora": Lora(**lora)})


def _engine(distance: float, engine: places.Engine) -> Change:
    text = engine if isinstance(engine, str) else _flow({name: _said(place) for name, place in engine.items()})
    return Change(distance, (f"engine={text}",), {"engine": engine})


def _said(place: Place) -> str | dict:
    return place.model_dump() if place.offload else place.sharding


def _flow(value: object) -> str:
    return json.dumps(value)


def _more(plan: Plan) -> list[int]:
    """Larger numbers of GPUs that share a batch, in whole machines."""
    train, whole = plan.recipe.train, plan.hardware.gpus_per_machine
    most = train.batch_size // train.micro_batch_size
    found = [n for n in range(plan.hardware.gpus + 1, most + 1) if most % n == 0]
    return [n for n in found if n < whole or n % whole == 0]
