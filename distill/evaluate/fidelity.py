"""How near the student comes to the teacher: both start from the same noise, sample by sample.

The reference is the teacher's own result of most steps. The headline is the part of the teacher's gap from few steps
to many that the student closes, 1 - d(student) / d(teacher at few steps), d the RMSE in latents over all samples.
Intervals are 95 %: percentile bootstrap over prompts, paired by prompt and seed; Wilson's for shares of clips.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from torch import Tensor

from .. import health, image_prompt
from ..data.prompts import Embeddings
from ..embedded.world import parse
from ..engine import Engine, Role
from ..errors import UserError, user_line
from ..networks import Net
from ..recipe import Video
from ..sample import Source
from ..samplers import Half
from ..teachers.base import Teacher
from . import columns, kept, metrics
from .asked import Asked
from .measuring import Setting, parts, sample
from .summarize import headline, summary

__all__ = ["RESULT", "Judge", "compared", "evaluate", "headline", "setting", "write"]

RESULT = "evaluation.json"


class Interrupted(Exception):
    """A signal asks this process to leave its batch."""


@dataclass(frozen=True)
class Judge:
    """What students are measured against: a teacher, its network in place, and its encodings of all prompts.

    Attributes:
        video: the size of the clips.
        shift: of the teacher's noise levels, unless the evaluation is asked for another.
    """

    teacher: Teacher
    net: Net
    embeddings: Embeddings
    video: Video
    negative_prompt: str
    shift: float


def check(asked: Asked, teacher: Teacher) -> None:
    """UserError if prompts are not the world's where they should be, or not the teacher's kind; before any sampling."""
    if asked.world:
        for text in asked.prompts:
            parse(text)
    image_prompt.check(asked.prompts, teacher)


def setting(
    judge: Judge,
    asked: Asked,
    student: Source | None = None,
    *,
    made_by: dict | None = None,
    half: Half | None = None,
    roles: Sequence[Role] = (),
) -> tuple[Setting, list[str]]:
    """The samplers of an evaluation, and a line for every one that is asked for and cannot be.

    Args:
        student: None: the teacher alone is measured.
        made_by: what the student's sampler depends on besides its network and noise levels.
        half: the student's first steps at half the frame rate, measured as `student_half_rate`.
        roles: networks whose evaluations are counted, besides those of student and teacher.
    """
    shift = judge.shift if asked.shift is None else asked.shift
    uncond = judge.embeddings.get([judge.negative_prompt]).to(judge.net.role.device)
    found = columns.of_teacher(judge.teacher, judge.net, asked, shift, judge.negative_prompt, uncond)
    notes, counted = [], [judge.net.role, *roles]
    if student is not None:
        students, notes = columns.of_student(student, made_by or {}, asked.steps, half)
        found, counted = found + students, [*counted, student.net.role]
    counted = list({id(role): role for role in counted}.values())
    made = Setting(judge.teacher, judge.net, judge.embeddings, asked, judge.video, shift, found, counted)
    return made, notes


def evaluate(found: Setting, engine: Engine, *, show: Callable[[float], None], facts: dict | None = None) -> dict:
    """Measure every sampler, each process its share of the batches; the contents of evaluation.json, on all of them.

    Args:
        show: takes in how many samples are done, after each batch.
        facts: more for the result.
    """
    if any(role.together for role in found.roles):
        sample(found, engine, partial(together, engine))
    batches = found.asked.batches()
    mine = range(engine.rank, len(batches), engine.world)
    together(engine, partial(_share, found, [batches[k] for k in mine], engine.world, show))
    counted = found.columns[engine.rank :: engine.world]
    together(engine, lambda: [found.flop(column) for column in counted])
    return engine.main_first(partial(_result, found, facts or {}))


def _share(found: Setting, batches: list[range], world: int, show: Callable[[float], None]) -> None:
    done = 0
    for part in parts(found, batches):
        done += len(part["prompt"])
        show(min(done * world, found.asked.samples))


def _result(found: Setting, facts: dict) -> dict:
    measured = list(parts(found, found.asked.batches()))  # all of it is kept by now
    flop = {column.name: found.flop(column) for column in found.columns}
    steps = {column.name: column.steps for column in found.columns}
    result = facts | {"shift": found.shift, "clock": found.clock} | summary(measured, found.asked, flop, steps)
    result["failures"] = found.asked.absent() + result["failures"]
    return result


def together(engine: Engine, work: Callable[[], object]) -> None:
    """Each process does its work; a user's mistake, or a signal, that ends it in one ends it in all."""
    fault = left = None
    try:
        work()
    except Interrupted:
        left = True
    except Exception as error:
        fault = user_line(error)
        if fault is None:
            raise
    fault, left = engine.first(fault), engine.first(left)
    if fault:
        raise UserError(fault)
    if left:
        raise Interrupted


def write(result: dict, folder: Path) -> Path:
    kept.replace(folder / RESULT, lambda file: kept.write(result, file))
    return folder / RESULT


def compared(x: Tensor, y: Tensor, video: np.ndarray, video_reference: np.ndarray) -> dict[str, list[float]]:
    """Latents (B, C, F, H, W) and videos uint8 (B, F, H, W, 3) against the reference's; one value per sample."""
    pairs = [
        metrics.of_pair(("rmse", "cosine", "psnr"), *clips) for clips in zip(x, y, video, video_reference, strict=True)
    ]
    clips = [metrics.of_clip(tuple(health.MEASURES), clip, 1.0) for clip in video]
    found = [pair | clip for pair, clip in zip(pairs, clips, strict=True)]
    return {name: [values[name] for values in found] for name in found[0]}
