"""What an evaluation needs of a run: the trainer has it in place, the command line opens it from the folder."""

from collections.abc import Sequence
from pathlib import Path

import torch

from .. import environment, overlap
from ..data import agreement
from ..data.prompts import Embeddings
from ..engine import Role
from ..networks import Net
from ..sample import Source
from ..samplers import Half
from ..sections import is_embedded, is_hub_id
from ..teachers.base import Teacher
from . import fidelity, metrics
from .asked import Asked, digest
from .measuring import Setting


def teacher_role(recipe, teacher: Teacher, device: torch.device) -> Role:
    """The teacher's network in the run's precision, as methods hold it."""
    precision = recipe.train.precision
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    return Role("teacher", teacher.network(dtype=dtype).eval(), precision=precision, device=device)


def setting(
    recipe,
    asked: Asked,
    teacher: Teacher,
    role: Role,
    embeddings: Embeddings,
    source: Source,
    half: Half | None,
    *,
    update: int,
    updates: int,
    roles: Sequence[Role] = (),
) -> tuple[Setting, dict]:
    """The samplers of a run's evaluation, and facts for its result.

    Args:
        role: the teacher's network.
        source: the student after so many `update`s of `updates`.
        roles: more networks whose evaluations count.
    """
    fidelity.check(asked, teacher)
    negative = agreement.negative_prompt(recipe, teacher)
    judge = fidelity.Judge(teacher, Net(role), embeddings, recipe.video, negative, source.shift)
    made_by = {"method": recipe.method.model_dump(mode="json")}
    made, notes = fidelity.setting(judge, asked, source, made_by=made_by, half=half, roles=roles)
    if update < updates:
        notes = [f"the run is not finished: its student is that after update {update} of {updates}", *notes]
    if line := overlap.overlap(overlap.training(recipe), asked.prompts).line("evaluation"):
        notes = [line, *notes]
    known = {"update": update, "updates": updates, "method": recipe.method.name}
    return made, known | facts(made, negative, recipe.teacher.path, notes)


def facts(made: Setting, negative_prompt: str, path: str, notes: list[str]) -> dict:
    """What made a result, beside its numbers. `key` changes with any of it; no path of this machine is in it.

    Args:
        path: of the teacher, as a recipe has it.
    """
    teacher, samplers = made.pipeline, [[column.name, column.identity] for column in made.columns]
    size, weights = made.video.model_dump(), metrics.weights_of([metric.name for metric in made.asked.measures()])
    return {
        "teacher": {
            "family": teacher.family,
            "path": path if is_embedded(path) or is_hub_id(path) else Path(path).name,
            "fingerprint": teacher.fingerprint,
        },
        "video": size,
        "negative_prompt": negative_prompt,
        "weights": weights,
        "key": digest(made.asked.facts(), samplers, size, made.device.type, *weights.values()),
        "notes": notes,
        "versions": environment.versions(),
    }
