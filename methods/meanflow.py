"""MeanFlow: average velocities, arXiv:2505.13447, learned from a guided teacher.

The student is told where a step ends, and learns u(z, t, r), the mean velocity of the teacher's flow from t to r. It
follows from the velocity v and from u's own derivative along the flow, u = v - (t - r) du/dt, so no path is walked.
Departures: v is the guided teacher's, where the paper trains from data; times are shifted as the student's steps are;
the derivative may be a difference, where forward mode does not fit. docs/methods/meanflow.md.
"""

import torch
from torch import Tensor

from distill import flow, losses, samplers
from distill.batch import Batch, Condition
from distill.method import Frozen, Method, Trained, Update
from distill.options import Fraction, NonNegativeFloat, PositiveFloat, PositiveInt


class MeanFlow(Method):
    """Average velocities of the guided teacher's flow, from its velocity and a Jacobian-vector product."""

    networks = {"teacher": Frozen(), "student": Trained(init="teacher", ends=True)}
    data = ("videos",)
    ends = True

    def __init__(
        self,
        steps: PositiveInt = 4,
        shift: PositiveFloat = 5.0,
        guidance: PositiveFloat = 5.0,
        times: tuple[float, PositiveFloat] = (-0.4, 1.0),
        instant: Fraction = 0.75,
        power: NonNegativeFloat = 1.0,
        offset: PositiveFloat = 1e-3,
        difference: Fraction | None = None,
    ):
        """
        Args:
            steps: the student's.
            shift: of its noise levels, and of the times that are trained, towards noise.
            guidance: w, the teacher's scale.
            times: mean and deviation of the normal law whose logistic function gives t and r, before the shift.
            instant: share of the samples with r = t, which learn the velocity itself.
            power: p, of the weight 1 / (error + c)^p of each sample; 0 is none.
            offset: c.
            difference: the derivative by a difference quotient over so much of t to both sides; null is exact.
        """
        super().__init__()
        self.steps, self.shift, self.w = steps, shift, guidance
        self.mean, self.deviation = times
        self.instant, self.p, self.c, self.difference = instant, power, offset, difference

    def updates(self, step):
        yield Update("student", self.loss)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Algorithm 1 of the paper, with the teacher's velocity in the place of the data's."""
        t, r = self.times(batch)
        cond = batch.video.cond
        z = flow.mix(batch.video.latents, batch.noise(), t)
        with torch.no_grad():
            v = self.teacher.guided(z, t, cond, batch.negative, self.w)
        _, du_dt = self.student.jvp(z, t, cond, v, torch.ones_like(t), difference=self.difference, end=r)
        u_target = v - flow.like(t - r, z) * du_dt  # eq. 10
        error = losses.per_sample(self.student(z, t, cond, end=r) - u_target)
        return {"velocity": (error / (error.detach() + self.c) ** self.p).mean()}  # eq. 22

    def times(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """t and r <= t, (B,) each."""
        a, b = (self.time(batch.uniform()) for _ in range(2))
        t, r = torch.maximum(a, b), torch.minimum(a, b)
        return t, torch.where(batch.uniform() < self.instant, t, r)

    def time(self, u: Tensor) -> Tensor:
        """Shifted logit-normal times of uniform numbers."""
        return flow.shift(torch.sigmoid(self.mean + self.deviation * torch.special.ndtri(u)), self.shift)

    def sample(self, noise: Tensor, cond: Condition) -> Tensor:
        """Each step by its own average velocity, unguided."""
        return samplers.euler(self.student, noise, self.grid(), cond, ends=True)

    def grid(self) -> Tensor:
        return flow.grid(self.steps, self.shift)
