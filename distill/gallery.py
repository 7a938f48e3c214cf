"""What a run shows of its student: clips while it trains; the evaluation at its end.

Where a network is in pieces, all processes make the clips together, and one of them writes.
"""

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from . import assemble, sample, validation, video
from .batch import Batch, Condition
from .data.prompts import Embeddings
from .engine import Engine, Role
from .evaluate import fidelity, runs
from .evaluate.asked import of_section
from .method import Frozen, Method
from .networks import Net
from .sample import Source
from .samplers import Half
from .validation import Alone

HELD_OUT, EXAMPLES = "samples/held_out.png", 4


class Gallery:
    """The student beside its teacher, from the same noise."""

    def __init__(
        self,
        folder: Path,
        recipe,
        teacher,
        method: Method,
        roles: dict[str, Role],
        embeddings: Embeddings,
        device,
        half: Half | None = None,
    ):
        self.folder, self.recipe, self.teacher, self.method = folder, recipe, teacher, method
        self.roles, self.embeddings, self.device = roles, embeddings, device
        self.half = half
        self.asked = of_section(recipe.evaluation) if recipe.evaluation else None
        if self.asked:
            fidelity.check(self.asked, teacher)  # now, not after the training

    @property
    def together(self) -> bool:
        """Whether evaluating a network takes all processes."""
        return any(role.together for role in self.roles.values())

    def teacher_clips(self, alone: Alone) -> None:
        """Written once; the student's are measured against them."""
        if self.recipe.validation:
            net, shift = Net(self._teacher()), self.method.teacher_shift()
            made = self.teacher, net, self.embeddings, self.recipe, self.device, shift
            validation.teacher_clips(self.folder, *made, alone)

    def clips(self, update: int, alone: Alone) -> dict:
        """The student's after so many updates; returns a log line."""
        with self._evaluating():
            return validation.clips(
                self.folder,
                update,
                self.teacher,
                self.sample,
                self.embeddings,
                self.recipe,
                self.device,
                self.method.judge,
                alone,
            )

    @torch.no_grad()
    def measure(self, batches: Iterable[Batch], alone: Alone) -> dict[str, float]:
        """The method's own measures of videos that are kept from training: means over them. Its examples of the first
        ones go to a contact sheet."""
        found: list[dict[str, Tensor]] = []
        with self._evaluating():
            for batch in batches:
                if not found:
                    examples = self.method.examples(batch)
                    alone(partial(self._show, examples))
                found.append(self.method.measure(batch))
        return {name: torch.cat([each[name] for each in found]).mean().item() for name in found[0]}

    def _show(self, examples: dict[str, Tensor]) -> None:
        """A row for each name, clip by clip."""
        if examples:
            decoded = [self.teacher.decode(latents[:EXAMPLES]) for latents in examples.values()]
            (self.folder / HELD_OUT).parent.mkdir(exist_ok=True)
            video.sheet(self.folder / HELD_OUT, [clip for clips in zip(*decoded, strict=True) for clip in clips])
            (self.folder / HELD_OUT).with_suffix(".json").write_text(json.dumps(list(examples)))

    @contextlib.contextmanager
    def _evaluating(self) -> Iterator[None]:
        """With networks as they are used: batch normalization reads what it has seen."""
        training = [role.module for role in self.roles.values() if role.module.training]
        for module in training:
            module.eval()
        try:
            yield
        finally:
            for module in training:
                module.train()

    def evaluate(self, update: int, tell: Callable[[str], None], engine: Engine, look_up: Callable[[], None]) -> dict:
        """The student against its teacher, every process its share of the clips; returns a log line.

        Args:
            look_up: raises fidelity.Interrupted where the work is to end early; what is done is kept.
        """
        made, facts = runs.setting(
            self.recipe,
            self.asked,
            self.teacher,
            self._teacher(),
            self.embeddings,
            self._source(),
            self.half,
            update=update,
            updates=update,
            roles=list(self.roles.values()),
        )
        made.look_up = look_up
        result = fidelity.evaluate(
            made, engine, show=lambda done: tell(f"{done} of {self.asked.samples} samples"), facts=facts
        )
        engine.main_first(lambda: fidelity.write(result, self.folder))
        return fidelity.headline(result)

    def _source(self) -> Source:
        """The student as `distill sample` would find it."""
        found = sample.of_method(self.method, self.teacher, self.recipe)
        net = Net(self.roles[self._student_name()])
        return replace(found, net=net, own=self.sample, at_half_rate=self.sample_half_rate)

    @torch.no_grad()
    def sample(self, noise: Tensor, cond: Condition) -> Tensor:
        """The method's sampler, with the student's moving average if the recipe keeps one."""
        with self._student():
            return self.method.sample(noise, cond)

    @torch.no_grad()
    def sample_half_rate(self, noise: Tensor, cond: Condition, half: Half) -> Tensor:
        """The same, its first steps at half the frame rate."""
        with self._student():
            return self.method.sample_half_rate(noise, cond, half)

    @contextlib.contextmanager
    def _student(self) -> Iterator[None]:
        student = self.method.student
        self.method.student = Net(self.roles[self._student_name()])
        try:
            yield
        finally:
            self.method.student = student

    def _student_name(self) -> str:
        return assemble.EMA if assemble.EMA in self.roles else "student"

    def _teacher(self) -> Role:
        """The method's own, or one that is loaded for the purpose."""
        found = [name for name, kind in self.method.networks.items() if isinstance(kind, Frozen)]
        return self.roles[found[0]] if found else runs.teacher_role(self.recipe, self.teacher, self.device)
