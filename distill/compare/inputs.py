"""What a comparison is given: recipes and runs, and which of them are seeds of one student."""

import hashlib
import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .. import exported, registry
from .. import recipe as recipes
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
        is_export: the folder is that of an exported student, which is whole as it is.
    """

    recipe: Recipe
    source: Path
    is_export: bool = False

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
        sampler: its own in an evaluation.
    """

    key: str
    label: str
    runs: list[Run]
    sampler: str = "student"

    @property
    def recipe(self) -> Recipe:
        return self.runs[0].recipe

    @property
    def method(self) -> str:
        return self.recipe.method.name


def runs(given: Sequence[Path], load: Callable[[Path], Recipe], seeds: Sequence[int]) -> tuple[list[Run], list[str]]:
    """The runs that recipes and folders stand for, and notes on what is left out.

    Args:
        load: the checked recipe of a file or a run's folder; an exported student brings its own.
        seeds: a recipe's own is replaced by each of them; a folder's stays. None: a recipe's own.
    """
    found: dict[Path, Run] = {}
    notes: list[str] = []
    for path in given:
        one = _given(path, load)
        method = one.recipe.method.name
        if not one.is_export and "student" not in registry.describe(method).networks:
            notes.append(f"{one.name}: {method} trains no student; left out")
            continue
        for run in [one] if path.is_dir() else [of_seed(one.recipe, path, seed) for seed in seeds or [None]]:
            _refuse_another(run, found.setdefault(run.folder.resolve(), run))
    if seeds and all(path.is_dir() for path in given):
        raise UserError(f"--seeds {','.join(map(str, seeds))} is for recipes; a run has the seed that it was made with")
    if not found:
        raise UserError("; ".join(["nothing to compare", *notes]))
    return list(found.values()), notes


def _given(path: Path, load: Callable[[Path], Recipe]) -> Run:
    if exported.is_student(path):
        return Run(exported.recipe(path), path, is_export=True)
    if (path / exported.INDEX).is_file():
        what = "and not of a student that `distill export` wrote"
        raise UserError(f"{path} is the folder of a pipeline, {what}; name a recipe, a run, or such an export")
    return Run(load(path), path)


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
    """Runs that differ in their seeds alone are one column, an exported student is one by itself; labels tell columns
    of one method apart."""
    groups: list[list[Run]] = []
    for run in found:
        alike = (g for g in groups if not differing([g[0].recipe, run.recipe], (*OWN, "train.seed")))
        group = next((g for g in alike if not (run.is_export or g[0].is_export)), None)
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
    """The name of the method's class; where several columns have it, with what differs in their recipes, or with the
    name of what was given where nothing does."""
    of = [_named(group[0].recipe.method.name) for group in groups]
    labels = []
    for name, group in zip(of, groups, strict=True):
        rivals = [g[0].recipe for n, g in zip(of, groups, strict=True) if n == name]
        labels.append(name if len(rivals) == 1 else f"{name} ({_apart(group[0], rivals)})")
    twice = [f"{x} ({_stem(g[0])})" if labels.count(x) > 1 else x for x, g in zip(labels, groups, strict=True)]
    return [x if twice.count(x) == 1 else f"{x} {twice[: i + 1].count(x)}" for i, x in enumerate(twice)]


def _named(method: str) -> str:
    """An export may be of a method that is not installed here."""
    try:
        return registry.method(method).target[1]
    except UserError:
        return method


def _apart(run: Run, rivals: Sequence[Recipe]) -> str:
    """The settings, at most NAMED, that tell a recipe from its rivals; the method's own come first."""
    values = differing(rivals, (*OWN, "train.seed"))
    keys = sorted(values, key=lambda key: (not key.startswith("method."), key))
    if not keys:
        return _stem(run)
    told = next((keys[:n] for n in range(1, NAMED) if _all_differ(values, keys[:n])), keys[:NAMED])
    mine = facts(run.recipe)
    said = [f"{key} {plain(mine[key])}" if mine.get(key) is not None else f"no {key}" for key in told]
    return ", ".join(said)


def _all_differ(values: dict[str, list], keys: Sequence[str]) -> bool:
    rows = [json.dumps(row) for row in zip(*(values[key] for key in keys), strict=True)]
    return len(set(rows)) == len(rows)


def _stem(run: Run) -> str:
    return run.name.removesuffix(".yaml")


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_") or "student"
