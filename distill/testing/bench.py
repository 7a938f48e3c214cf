"""Where the conformance kit tries a method: a tiny random teacher, a recipe around it, runs made when needed."""

import functools
import json
import os
import shutil
import tempfile
import unittest.mock
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import pydantic

from .. import flow, recipe, registry, yaml_source
from ..errors import UserError
from ..method import Method
from ..signature import Signature
from . import places, tiny_wan, trial
from .trial import Trial

UPDATES, BREAK = 7, 5  # seven updates equal five, a resume, and two more
SHORT = 4  # updates of the runs that are laid out otherwise
BATCH, MICRO = 4, 2
# AdamW would make a step of lr out of a gradient of 1e-9, which is rounding; and decay moves what has no gradient.
OPTIMIZER = {"lr": 1e-3, "eps": 1e-3, "weight_decay": 0.0}
PROMPTS = ("a red circle", "a blue square moves left", "red square", "blue circle moves right", "a")
RECORDS = 4


class Bench:
    """A method with the options and the recipe that it is tried with.

    Args:
        name: of an installed method, or package.module:Class.
        options: the method's; defaults for the others.
        changes: of the recipe, dotted key -> value.
    """

    def __init__(self, name: str, options: Mapping[str, Any] | None = None, changes: Mapping[str, Any] | None = None):
        self.name, self.options, self.changes = name, dict(options or {}), dict(changes or {})
        self.folder = Path(tempfile.mkdtemp(prefix="bench_", dir=home()))

    def close(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    @cached_property
    def entry(self) -> registry.Entry:
        return registry.method(self.name)

    @cached_property
    def signature(self) -> Signature:
        return registry.describe(self.name)

    @cached_property
    def method(self) -> Method:
        """Without networks."""
        with trial.quiet():
            return registry.method_class(self.name)(**self.arguments())

    def arguments(self) -> dict[str, Any]:
        """The options as the constructor gets them from a recipe; UserError if it would not."""
        model = self.signature.options
        if unknown := next((key for key in self.options if key not in model.model_fields), None):
            hint = yaml_source.did_you_mean(unknown, model.model_fields) or f": it has {', '.join(model.model_fields)}"
            raise UserError(f"{self.name} has no option {unknown!r}{hint}")
        try:
            made = model.model_validate_json(json.dumps(self.options))  # as in a recipe, lists may become tuples
        except pydantic.ValidationError as error:
            said = error.errors()[0]
            key = ".".join(map(str, said["loc"]))
            raise UserError(f"option {key} of {self.name}: {said['msg']}, is {said['input']!r}") from error
        return {key: getattr(made, key) for key in model.model_fields}

    @cached_property
    def recipe(self) -> Path:
        """The file that all runs are made from."""
        path = self.folder / "recipe.yaml"
        path.write_text(yaml_source.dump(self._sections()))
        return path

    @cached_property
    def whole(self) -> Trial:
        """The run that the others are compared with."""
        return self.run("whole", UPDATES)

    @cached_property
    def resumed(self) -> Trial:
        """The same, with a break."""
        self.run("resumed", BREAK)
        return self.run("resumed", UPDATES)

    @cached_property
    def in_one_piece(self) -> Trial:
        """Its first updates with one micro-batch of four, not two of two."""
        return self.run("in_one_piece", SHORT, f"train.micro_batch_size={BATCH}")

    def run(self, name: str, end: int, *overrides: str) -> Trial:
        with own_cache():
            return trial.run(self.recipe, end, self._overrides(name, *overrides))

    def laid_out(self, place: places.Place) -> list[dict]:
        """The log of the first updates in another layout of processes."""
        output = self._overrides(place.key, *place.overrides)
        return places.run(self.recipe, SHORT, output, place.processes, home() / "cache")

    def _overrides(self, name: str, *overrides: str) -> list[str]:
        changes = [f"{key}={json.dumps(value)}" for key, value in self.changes.items()]
        return [*changes, *overrides, f"output={self.folder / name}"]

    def _sections(self) -> dict[str, Any]:
        steps = {} if self.signature.has_stages else {"steps": UPDATES + 2}
        trained = [name for name, kind in self.signature.networks.items() if kind in ("Trained", "Built")]
        return {
            "teacher": {"family": "wan", "path": str(teacher())},
            "video": {**tiny_wan.VIDEO, "fps": 8},
            "data": self._data(),
            "method": {"name": self.name, **self.options},
            "optim": dict.fromkeys(trained, OPTIMIZER),
            "train": {"seed": 3, "batch_size": BATCH, "micro_batch_size": MICRO, **steps},
            "checkpoint": {"every": 1000},
        }

    def _data(self) -> dict[str, Any]:
        streams = self.signature.data
        found: dict[str, Any] = {} if streams == ("videos",) else {"prompts": str(prompts())}
        if "videos" in streams:
            found["videos"] = {"path": str(home() / "videos"), "source": "embedded", "clips": RECORDS}
        if "trajectories" in streams:
            found["trajectories"] = self._trajectories()
        return found

    def _trajectories(self) -> dict[str, Any]:
        """Records at exactly the method's levels, where those are a shifted grid."""
        levels = self.method.levels()
        try:
            steps, shift = len(levels) - 1, flow.grid_shift(levels)
        except ValueError:
            steps, shift = 50, 5.0  # the recipe's defaults; bench.changes may say otherwise
        path = home() / f"trajectories_{steps}_{shift:g}"
        grid = {"steps": steps, "shift": shift, "keep": "all"}
        return {"path": str(path), "records": RECORDS, "guidance": 3.0, **grid}


def load(bench: Bench) -> recipe.Recipe:
    """The bench's recipe; UserError with its faults, without the place in a file that nobody wrote."""
    try:
        return recipe.load(bench.recipe, bench._overrides("checked"))
    except UserError as error:
        lines = str(error).splitlines()
        raise UserError("; ".join(line.partition(": ")[2] or line for line in lines)) from error


@functools.cache
def home() -> Path:
    """The kit's folder, which goes when the process ends."""
    home.keep = tempfile.TemporaryDirectory(prefix="distill_testing_")
    return Path(home.keep.name)


@functools.cache
def teacher() -> Path:
    """A random Wan of three blocks."""
    with trial.quiet():
        return tiny_wan.build(home() / "teacher", layers=3)


@functools.cache
def prompts() -> Path:
    path = home() / "prompts.txt"
    path.write_text("\n".join(PROMPTS) + "\n")
    return path


def own_cache():
    """Encoded prompts of a random teacher stay out of the user's cache."""
    return unittest.mock.patch.dict(os.environ, DISTILL_CACHE=str(home() / "cache"))
