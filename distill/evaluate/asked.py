"""What an evaluation is asked to do. Imports no torch."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from .. import image_prompt
from ..data.prompt_file import listed
from ..errors import UserError
from .metrics import Metric, absent, chosen

DEFAULTS = {"samples": 128, "seed": 2000, "batch_size": 16}  # of sources without a recipe, as a recipe has them


@dataclass(frozen=True)
class Asked:
    """Settings of an evaluation: sample j is prompt j, from the first again after the last, with noise j of the seed.

    Attributes:
        samples: clips of each sampler.
        guidance, teacher_steps: of the teacher's samplers; the one of most steps is the reference.
        steps: the student is sampled with these numbers of steps too.
        shift: of the teacher's noise levels; None: the student's method knows it.
        metrics: by name; None: those that need no weights.
        world: the prompts are captions of the embedded teacher's world, and clips are checked against them.
    """

    prompts: tuple[str, ...]
    samples: int
    seed: int
    guidance: float
    teacher_steps: tuple[int, ...]
    steps: tuple[int, ...] = ()
    batch_size: int = 16
    shift: float | None = None
    metrics: tuple[str, ...] | None = None
    world: bool = False

    def __post_init__(self):
        if not self.prompts or not self.teacher_steps:
            raise UserError("an evaluation needs prompts, and numbers of steps for the teacher")
        if not self.measures():  # which raises on a metric that is not known
            raise UserError("; ".join(self.absent()))

    def measures(self) -> list[Metric]:
        """Those that can be measured here."""
        found = chosen(self.metrics, self.world)
        gone = absent(found)
        return [metric for metric in found if metric.name not in gone]

    def absent(self) -> list[str]:
        """A line for each of the others: what it lacks."""
        return list(absent(chosen(self.metrics, self.world)).values())

    @property
    def few(self) -> list[int]:
        """The teacher's numbers of steps but for the reference's."""
        return sorted(set(self.teacher_steps))[:-1]

    @property
    def many(self) -> int:
        """The reference's."""
        return max(self.teacher_steps)

    def captions(self, rows: Sequence[int]) -> list[str]:
        return [self.prompts[j % len(self.prompts)] for j in rows]

    def texts(self) -> list[str]:
        """The prompts that are used, without what they start from."""
        return [image_prompt.text(prompt) for prompt in self.prompts[: self.samples]]

    def batches(self) -> list[range]:
        size = self.batch_size
        return [range(start, min(start + size, self.samples)) for start in range(0, self.samples, size)]

    def facts(self) -> dict:
        """All of it, for a file; images by their contents."""
        texts = [image_prompt.text(prompt) for prompt in self.prompts]
        return asdict(self) | {"prompts": texts, "images": image_prompt.contents(self.prompts)}


def of_section(section, **changes) -> Asked:
    """What a recipe's section `evaluation` asks for, with some of it changed.

    Args:
        section: None where there is no recipe, or it has no such section.
        changes: fields of Asked; `prompts` may be a file.
    """
    known = DEFAULTS if section is None else section.model_dump()
    known = {name: tuple(v) if isinstance(v, list) else v for name, v in known.items()} | changes
    missing = [name for name in ("prompts", "guidance", "teacher_steps") if name not in known]
    if missing:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in missing)
        raise UserError(f"there is no recipe with a section `evaluation` to take the settings from; give {options}")
    return Asked(**known | {"prompts": tuple(listed(known["prompts"]))})


def digest(*facts) -> str:
    """12 hex digits that change with any of these facts."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=_plain).encode()).hexdigest()[:12]


def _plain(value: object) -> str:
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} cannot be part of a digest")
