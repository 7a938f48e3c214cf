"""PeRFlow: piecewise rectified flow. arXiv:2405.07510.

The path from noise to data is cut into K windows. In each, the student learns the straight line from a noised real
video to where the guided teacher takes it by the window's end; one step then crosses the window.
Departures: windows end at every n-th level of the teacher's own shifted grid. docs/methods/perflow.md.
"""

import torch
from torch import Tensor

from distill import flow, samplers
from distill.batch import Batch, Condition
from distill.method import Frozen, Method, Trained, Update
from distill.options import PositiveFloat, PositiveInt


class PeRFlow(Method):
    """Piecewise rectified flow: in each window of noise levels, learn the straight line to where the teacher goes."""

    networks = {"teacher": Frozen(), "student": Trained(init="teacher")}
    data = ("videos",)

    def __init__(
        self,
        windows: PositiveInt = 4,
        teacher_steps: PositiveInt = 8,
        shift: PositiveFloat = 5.0,
        guidance: PositiveFloat = 5.0,
    ):
        """
        Args:
            windows: K, which is also the student's number of steps.
            teacher_steps: Euler steps of the teacher in each window.
            shift: of the noise levels of windows and steps towards noise.
            guidance: the teacher's scale.
        """
        super().__init__()
        self.K, self.n, self.shift, self.guidance = windows, teacher_steps, shift, guidance
        self.t = flow.grid(windows * teacher_steps, shift)

    def updates(self, step):
        yield Update("student", self.loss)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """The velocity of the line from x_s to x_e, at a point of it."""
        window = batch.integers(0, self.K)
        s, e = self.level(window, 0), self.level(window, self.n)
        x_s = flow.mix(batch.video.latents, batch.noise(), s)
        with torch.no_grad():
            x_e = self.walk(x_s, window, batch)
        v_target = (x_s - x_e) / flow.like(s - e, x_s)
        t = e + (s - e) * batch.uniform().to(s)
        x_t = flow.step(x_s, v_target, s, t)
        return {"velocity": (self.student(x_t, t, batch.video.cond) - v_target).square().mean()}

    def walk(self, x: Tensor, window: Tensor, batch: Batch) -> Tensor:
        """The teacher's steps from the start of each sample's window to its end."""
        for j in range(self.n):
            t, t_next = self.level(window, j), self.level(window, j + 1)
            v = self.teacher.guided(x, t, batch.video.cond, batch.negative, self.guidance)
            x = flow.step(x, v, t, t_next)
        return x

    def level(self, window: Tensor, j: int) -> Tensor:
        """The noise level after j of the teacher's steps in each sample's window, (B,)."""
        return self.t[window.cpu() * self.n + j].float()

    def sample(self, noise: Tensor, cond: Condition) -> Tensor:
        """One unguided step in each window."""
        return samplers.euler(self.student, noise, self.grid(), cond)

    def grid(self) -> Tensor:
        return self.t[:: self.n]
