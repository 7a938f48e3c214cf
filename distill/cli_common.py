"""What the files of commands share: recipes as they are named, and how a process ends."""

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from . import launch, yaml_source
from . import recipe as recipes
from .embedded.spec import TeacherRecipe
from .errors import UserError

Processes = Annotated[int, typer.Option(min=1, help="On this machine, one per GPU.")]


def end(message: str) -> None:
    """Say it once; of several processes, each ends here."""
    if launch.is_main():
        typer.echo(message)
    go(0)


def leave(message: str, code: int) -> None:
    if launch.is_main():
        typer.echo(message, err=True)
    go(code)
    sys.exit(code)


def go(code: int) -> None:
    """Of several processes, each goes without Python's own end, which gloo's threads have aborted (docs/log.md)."""
    if os.environ.get("WORLD_SIZE", "1") != "1":
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def checked_recipe(path: Path, overrides: list[str]) -> recipes.Recipe:
    """A recipe from its file, or from the folder of its run."""
    if path.is_dir():
        if not (path / "recipe.yaml").is_file():
            raise UserError(f"{path} holds no recipe.yaml: it is not the folder of a run")
        path, overrides = path / "recipe.yaml", [f"output={json.dumps(str(path))}", *overrides]
    if trains_a_teacher(path):
        raise UserError(f"{path} trains a teacher: distill teachers train {path}")
    checked = recipes.load(path, overrides)
    recipes.check_output(checked.output)
    return checked


def trains_a_teacher(path: Path) -> bool:
    """Whether a file's sections are rather those of a teacher's training."""
    sections = yaml_source.read(path).data if path.is_file() else {}
    teacher, distilled = (len(sections.keys() & model.model_fields.keys()) for model in (TeacherRecipe, recipes.Recipe))
    return teacher > distilled
