"""What a run shows of its student: clips while it trains, the evaluation at its end. Work of the main process."""

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from . import assemble, half_rate, validation, video
from .batch import Batch, Condition
from .data.prompts import Embeddings
from .engine import Role
from .evaluate import fidelity
from .method import Frozen, Method
from .networks import Net
from .samplers import Half

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

    def teacher_clips(self) -> None:
        """Written once; the student's are measured against them."""
        if self.recipe.validation:
            net, shift = Net(self._teacher()), self.method.teacher_shift()
            validation.teacher_clips(self.folder, self.teacher, net, self.embeddings, self.recipe, self.device, shift)

    def clips(self, update: int) -> dict:
        """The student's after so many updates; returns a log line."""
        return validation.clips(
            self.folder, update, self.teacher, self.sample, self.embeddings, self.recipe, self.device
        )

    @torch.no_grad()
    def measure(self, batches: Iterable[Batch]) -> dict[str, float]:
        """The method's own measures of videos that are kept from training: means over them. Its examples of the first
        ones go to a contact sheet."""
        found: list[dict[str, Tensor]] = []
        with self._evaluating():
            for batch in batches:
                if not found:
                    self._show(self.method.examples(batch))
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

    def evaluate(self, update: int, tell: Callable[[str], None]) -> dict:
        """The student against its teacher; returns a log line."""
        net = Net(self._teacher())
        halved = {"half_rate": self.sample_half_rate, "interpolator": half_rate.key(self.half)} if self.half else {}
        return fidelity.evaluate(
            self.folder,
            self.teacher,
            net,
            self.sample,
            self.embeddings,
            self.recipe,
            self.method.teacher_shift(),
            update=update,
            roles={id(role): role for role in [*self.roles.values(), net.role]}.values(),
            tell=tell,
            **halved,
        )

    @torch.no_grad()
    def sample(self, noise: Tensor, cond: Condition) -> Tensor:
        """The method's sampler, with the student's moving average if the recipe keeps one."""
        with self._student():
            return self.method.sample(noise, cond)

    @torch.no_grad()
    def sample_half_rate(self, noise: Tensor, cond: Condition) -> Tensor:
        """The same, its first steps at half the frame rate."""
        with self._student():
            return self.method.sample_half_rate(noise, cond, self.half)

    @contextlib.contextmanager
    def _student(self) -> Iterator[None]:
        student, name = self.method.student, assemble.EMA if assemble.EMA in self.roles else "student"
        self.method.student = Net(self.roles[name])
        try:
            yield
        finally:
            self.method.student = student

    def _teacher(self) -> Role:
        """The method's own, or one that is loaded for the purpose."""
        found = [name for name, kind in self.method.networks.items() if isinstance(kind, Frozen)]
        return self.roles[found[0]] if found else Role("teacher", self.teacher.network().eval(), device=self.device)
