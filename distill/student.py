"""The student of a run, taken from a checkpoint: what sampling and export start from."""

from dataclasses import dataclass
from pathlib import Path

from . import assemble, checkpoint, teachers
from . import recipe as recipes
from .method import Method
from .recipe import Recipe
from .teachers.base import Teacher


@dataclass(frozen=True)
class Student:
    """What a checkpoint holds of a student.

    Attributes:
        method: in the stage of the checkpoint; its student, and nothing else, has weights.
        update: how many updates the run had done.
    """

    recipe: Recipe
    teacher: Teacher
    method: Method
    update: int


def load(run: Path, update: int | None = None) -> Student:
    """The student after an update that has a checkpoint, or of the newest one that is whole."""
    recipe = recipes.load(run / "recipe.yaml")
    teacher = teachers.load(recipe.teacher, recipe.video)
    newest = checkpoint.newest(run, lambda message: None) if update is None else checkpoint.folder(run, update)
    method = assemble.sampler(run, teacher, recipe, update)
    position = checkpoint.manifest(newest)["position"]
    if stages := method.stages():
        method.stage = stages[min(position["stage"], len(stages) - 1)]
    method.student.role.module.to(teacher.device)
    return Student(recipe, teacher, method, position["done"])
