"""What a run shows of its student: clips while it trains, the evaluation at its end. Work of the main process."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from . import assemble, validation
from .batch import Condition
from .data.prompts import Embeddings
from .engine import Role
from .evaluate import fidelity
from .method import Frozen, Method
from .networks import Net


class Gallery:
    """The student beside its teacher, from the same noise."""

    def __init__(
        self, folder: Path, recipe, teacher, method: Method, roles: dict[str, Role], embeddings: Embeddings, device
    ):
        self.folder, self.recipe, self.teacher, self.method = folder, recipe, teacher, method
        self.roles, self.embeddings, self.device = roles, embeddings, device

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

    def evaluate(self, update: int, tell: Callable[[str], None]) -> dict:
        """The student against its teacher; returns a log line."""
        net = Net(self._teacher())
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
        )

    @torch.no_grad()
    def sample(self, noise: Tensor, cond: Condition) -> Tensor:
        """The method's sampler, with the student's moving average if the recipe keeps one."""
        student, name = self.method.student, assemble.EMA if assemble.EMA in self.roles else "student"
        self.method.student = Net(self.roles[name])
        try:
            return self.method.sample(noise, cond)
        finally:
            self.method.student = student

    def _teacher(self) -> Role:
        """The method's own, or one that is loaded for the purpose."""
        found = [name for name, kind in self.method.networks.items() if isinstance(kind, Frozen)]
        return self.roles[found[0]] if found else Role("teacher", self.teacher.network().eval(), device=self.device)
