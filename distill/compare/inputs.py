"""What a comparison is given: recipes and runs, and which of them are seeds of one student."""

import hashlib
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .. import recipe as recipes
from .. import registry
from ..errors import UserError
from ..evaluate.statistics import T_95
from ..folder import MAY_CHANGE
from ..recipe import Recipe

OWN = tuple(key for key in MAY_CHANGE if key != "data.prompts")  # what one run may have its own way
SEEDS = max(T_95)  # of one student, at most
NAMED = 2  # settings in a label, at most


@dataclass(frozen=True)
class Run:
    """One student with one seed.

    Attributes:
        source: its recipe's file, or its folder where that was given.
    """

    recipe: Recipe
    source: Path

    @property
    def folder(self) -> Path:
        return Path(self.recipe.output)

    @property
    def seed(self) -> int:
        return self.recipe.train.seed

    @property
    def name(self) -> str:
        return self.source.resolve().name

    def __str__(self) -> str:
        return f"{self.name}, seed {self.seed}"


@dataclass
class Column:
    """One student: runs that differ in nothing but their seeds.

    Attributes:
        key: names it in files.
        label: names it for people.
    """

    key: str
    label: str
    runs: list[Run]

    @property
    def recipe(self) -> Recipe:
        return self.runs[0].recipe

    @property
    def method(self) -> str:
        return self.recipe.method.name


def runs(given: Sequence[Path], load: Callable[[Path], Recipe], seeds: Sequence[int]) -> tuple[list[Run], list[str]]:
    """The runs that recipes and folders stand for, and notes on what is left out.

    Args:
        load: the checked recipe of a file or a run's folder.
        seeds: a recipe's own is replaced by each of them; a folder's stays. None: a recipe's own.
    """
    found: dict[Path, Run] = {}
    notes: list[str] = []
    for path in given:
        recipe = load(path)
        if "student" not in registry.describe(recipe.method.name).networks:
            notes.append(f"{path.resolve().name}: {recipe.method.name} trains no student; left out")
            continue
        for run in [Run(recipe, path)] if path.is_dir() else [of_seed(recipe, path, s) for s in seeds or [None]]:
            _refuse_another(run, found.setdefault(run.folder.resolve(), run))
    if seeds and all(path.is_dir() for path in given):
        raise UserError(f"--seeds {','.join(map(str, seeds))} is for recipes; a run has the seed that it was made with")
    if not found:
        raise UserError("; ".join(["nothing to compare", *notes]))
    return list(found.values()), notes


def of_seed(recipe: Recipe, source: Path, seed: int | None) -> Run:
    """A recipe's run with another seed goes to a folder beside its own."""
    if seed in (None, recipe.train.seed):
        return Run(recipe, source)
    output = recipe.output.with_name(f"{recipe.output.name}_seed_{seed}")
    changes = {"output": output, "train": recipe.train.model_copy(update={"seed": seed})}
    return Run(recipe.model_copy(update=changes), source)


def _refuse_another(run: Run, before: Run) -> None:
    """One folder holds one run."""
    if keys := differing([run.recipe, before.recipe], OWN):
        raise UserError(
            f"{run.source} and {before.source} both go to {run.folder}, and differ in {', '.join(sorted(keys))}; "
            "give one of them another output"
        )


def columns(found: Sequence[Run]) -> list[Column]:
    """Runs that differ in their seeds alone are one column; labels tell columns of one method apart."""
    groups: list[list[Run]] = []
    for run in found:
        alike = (g for g in groups if not differing([g[0].recipe, run.recipe], (*OWN, "train.seed")))
        group = next(alike, None)
        if group is None:
            groups.append([run])
        elif run.seed in [other.seed for other in group]:
            others = ", ".join(str(other.folder) for other in group)
            raise UserError(f"{run.folder} repeats seed {run.seed} of the same student ({others}); leave one out")
        elif len(group) == SEEDS:
            raise UserError(
                f"{run.folder} is the {SEEDS + 1}th seed of the same student; at most {SEEDS} can be compared"
            )
        else:
            group.append(run)
    groups = [sorted(group, key=lambda run: run.seed) for group in groups]
    return [Column(key, label, g) for key, label, g in zip(_keys(groups), _labels(groups), groups, strict=True)]


def differing(of: Sequence[Recipe], besides: tuple[str, ...] = ()) -> dict[str, list]:
    """Dotted key -> its value in each recipe, where they are not all alike; None where a recipe lacks it."""
    flat = [{k: v for k, v in facts(recipe).items() if not k.startswith(besides)} for recipe in of]
    keys = sorted(set().union(*flat))
    values = {key: [each.get(key) for each in flat] for key in keys}
    return {key: each for key, each in values.items() if any(value != each[0] for value in each)}


def facts(recipe: Recipe) -> dict:
    """Dotted key -> value; a file of prompts counts by its contents."""
    flat = recipes.flatten(recipe)
    if recipe.data.prompts:
        flat["data.prompts"] = _contents(Path(recipe.data.prompts))
    return flat


def plain(value: object) -> object:
    """A value as a page shows it: of a path only the name."""
    return Path(value).name if isinstance(value, str) and os.path.isabs(value) else value


def _contents(path: Path) -> str:
    content = path.read_bytes()
    lines = sum(bool(line.strip()) for line in content.splitlines())
    return f"{path.name}, {lines} prompts, sha256 {hashlib.sha256(content).hexdigest()[:8]}"


def _keys(groups: list[list[Run]]) -> list[str]:
    """The method's name; of several columns of a method, the names of what was given."""
    methods = [_slug(group[0].recipe.method.name) for group in groups]
    names = [m if methods.count(m) == 1 else _slug(_stem(g[0])) for m, g in zip(methods, groups, strict=True)]
    taken = ["teacher", *names]
    return [name if taken.count(name) == 1 else f"{name}_{i + 1}" for i, name in enumerate(names)]


def _labels(groups: list[list[Run]]) -> list[str]:
    """The name of the method's class; where several columns have it, with what they differ in, if that is little."""
    of = [registry.method(group[0].recipe.method.name).target[1] for group in groups]
    labels = []
    for name, group in zip(of, groups, strict=True):
        rivals = [g[0].recipe for n, g in zip(of, groups, strict=True) if n == name]
        if len(rivals) == 1:
            labels.append(name)
            continue
        mine = facts(group[0].recipe)
        keys = list(differing(rivals, (*OWN, "train.seed")))
        said = ", ".join(f"{key.split('.')[-1]} {plain(mine.get(key))}" for key in keys)
        labels.append(f"{name} ({said if len(keys) <= NAMED else _stem(group[0])})")
    return [x if labels.count(x) == 1 else f"{x} {labels[: i + 1].count(x)}" for i, x in enumerate(labels)]


def _stem(run: Run) -> str:
    return run.name.removesuffix(".yaml")


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_") or "student"
