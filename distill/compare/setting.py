"""What every column of a comparison has in common: the teacher, and how all are measured."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .. import assemble, exported, teachers
from ..data import agreement
from ..errors import UserError
from ..evaluate import asked as asking
from ..evaluate.asked import Asked
from ..evaluate.opening import export_shift
from ..recipe import Recipe
from .inputs import Column, plain

FIELDS = ("samples", "seed", "guidance", "teacher_steps", "metrics", "world", "prompts")


@dataclass(frozen=True)
class Common:
    """The teacher of all columns, opened once."""

    teacher: teachers.Teacher
    recipe: Recipe
    shift: float

    @property
    def guided(self) -> int:
        """Evaluations of a guided step of the teacher."""
        return 1 if self.teacher.guidance_embedded else 2


def common(columns: Sequence[Column]) -> tuple[Common, list[str]]:
    """What the columns share, and notes on what they do not.

    Raises:
        UserError: teachers, sizes of videos or negative prompts differ.
    """
    opened: dict[str, teachers.Teacher] = {}
    first = next((column for column in columns if not column.runs[0].is_export), columns[0])
    teacher = _opened(first, opened)
    wanted = _shared(first.recipe, teacher)
    for column in columns:
        export = column.runs[0].is_export
        found = _as_exported(column, teacher) if export else _shared(column.recipe, _opened(column, opened))
        for name, value in found.items():
            if value != wanted[name]:
                raise UserError(
                    f"{first.runs[0].source} and {column.runs[0].source} cannot be compared: their {name} are "
                    f"{wanted[name]!r} and {value!r}; compare students of one teacher and one size"
                )
    shifts = {column.key: _shift(column, teacher) for column in columns}
    notes = [
        f"{column.label} learned from the teacher's levels of shift {shifts[column.key]:g}; the teacher beside it here "
        f"has {shifts[first.key]:g}"
        for column in columns
        if shifts[column.key] != shifts[first.key]
    ]
    return Common(teacher, first.recipe, shifts[first.key]), notes


def _opened(column: Column, opened: dict[str, teachers.Teacher]) -> teachers.Teacher:
    recipe = column.recipe
    spec = recipe.teacher.model_dump_json() + recipe.video.model_dump_json()
    if spec not in opened:
        opened[spec] = teachers.load(recipe.teacher, recipe.video)
    return opened[spec]


def _as_exported(column: Column, teacher: teachers.Teacher) -> dict:
    """What an export says of its teacher, which need not lie where its run had it."""
    said = exported.settings(column.runs[0].folder)
    own = {"teachers (fingerprints)": said["teacher"]["fingerprint"]}
    return _shared(column.recipe, teacher) | own | {"lengths of text (tokens)": said["max_sequence_length"]}


def _shared(recipe: Recipe, teacher: teachers.Teacher) -> dict:
    return {
        "teachers (fingerprints)": teacher.fingerprint,
        "videos": recipe.video.model_dump(),
        "precisions (train.precision)": recipe.train.precision,
        "negative prompts": agreement.negative_prompt(recipe, teacher),
        "lengths of text (tokens)": teacher.max_sequence_length,
    }


def _shift(column: Column, teacher: teachers.Teacher) -> float:
    """Of the teacher's levels, as the method of the last stage has it, or an export says."""
    if column.runs[0].is_export:
        return export_shift(exported.settings(column.runs[0].folder), teacher)
    method = assemble.method(column.recipe)
    if stages := method.stages():
        method.stage = stages[-1]
    return method.teacher_shift()


def asked(columns: Sequence[Column], shift: float, changes: Mapping) -> tuple[Asked, list[str]]:
    """The settings of every evaluation: given ones, else those of the first recipe's section `evaluation`.

    The teacher is sampled with the students' numbers of steps, too, where they are fewer than the reference's.

    Args:
        changes: fields of Asked; `prompts` may be a file.
    """
    made = asking.of_section(columns[0].recipe.evaluation, shift=shift, **changes)
    others: dict[str, list[str]] = {}
    for column in columns[1:]:
        if said := _overridden(column, made, set(changes)):
            others.setdefault(said, []).append(column.label)
    notes = [f"{', '.join(who)}: measured like the first column; the recipe has {said}" for said, who in others.items()]
    few = {n for n in made.steps if n < made.many}
    return dataclasses.replace(made, teacher_steps=tuple(sorted({*made.teacher_steps, *few}))), notes


def _overridden(column: Column, made: Asked, given: set[str]) -> str:
    """In what a column's own evaluation is another, where nothing was given for all."""
    if column.recipe.evaluation is None:
        return ""
    own = asking.of_section(column.recipe.evaluation)
    names = [name for name in FIELDS if name not in given and getattr(own, name) != getattr(made, name)]
    return ", ".join(f"{name} {_brief(getattr(own, name))}" for name in names)


def _brief(value: object) -> str:
    if isinstance(value, tuple):
        return ",".join(map(str, value)) if len(value) < 6 else f"of another list ({len(value)})"
    return str(plain(value))
