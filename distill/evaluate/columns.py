"""The samplers that an evaluation compares: the teacher's, and the student's with one number of steps or several."""

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import UserError
from ..sample import Source
from ..samplers import Half
from ..validation import Sampler, teacher_sampler
from . import kept
from .asked import Asked

HALF_RATE = "student_half_rate"


@dataclass(frozen=True)
class Column:
    """One sampler.

    Attributes:
        name: "teacher_<steps>", "student", "student_<steps>" or "student_half_rate".
        steps: of the sampler.
        identity: all that its latents depend on besides prompts, noise, size and device.
    """

    name: str
    sample: Sampler
    steps: int
    identity: dict

    @property
    def is_student(self) -> bool:
        return is_student(self.name)


def is_student(sampler: str) -> bool:
    return sampler.startswith("student")


def of_teacher(teacher, net, asked: Asked, shift: float, negative_prompt: str, negative) -> list[Column]:
    """Euler with guidance, for every number of steps, the fewest first.

    Args:
        negative: the encoded negative prompt, one row.
    """
    same = {
        "teacher": teacher.fingerprint,
        "precision": net.role.precision,
        "dtype": str(net.role.dtype),
        "shift": shift,
        "guidance": asked.guidance,
        "negative_prompt": negative_prompt,
    }
    return [
        Column(f"teacher_{n}", teacher_sampler(net, n, shift, asked.guidance, negative), n, same | {"steps": n})
        for n in [*asked.few, asked.many]
    ]


def of_student(
    source: Source, made_by: dict, steps: Sequence[int], half: Half | None
) -> tuple[list[Column], list[str]]:
    """The student's own sampler, the same with other numbers of steps, and at half rate; and what it cannot do.

    Args:
        made_by: what else its own sampler depends on, besides weights and noise levels.
        half: its first steps at half the frame rate.
    """
    same = made_by | {"weights": kept.contents(source.net.role.everything()), "precision": source.net.role.precision}
    levels = None if source.levels is None else source.levels.tolist()
    own = same | {"levels": levels, "renoises": source.renoises, "ends": source.ends, "steps": source.steps}
    own |= {"guidance": source.guidance, "shift": source.shift}
    columns, notes = [Column("student", source.sampler(None, None), source.steps, own)], []
    for n in sorted(set(steps) - {source.steps}):
        try:
            columns.append(Column(f"student_{n}", source.sampler(n, None), n, own | {"steps": n}))
        except UserError as error:
            notes.append(str(error).removeprefix("--steps "))
    if half is not None:
        halved = own | {"half_rate": half.steps, "interpolator": kept.weights(half.interpolate)}
        columns.append(Column(HALF_RATE, _at_half_rate(source, half), source.steps, halved))
    return columns, notes


def _at_half_rate(source: Source, half: Half) -> Sampler:
    return lambda noise, cond: source.at_half_rate(noise, cond, half)
