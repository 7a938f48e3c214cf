"""LCM: latent consistency distillation. arXiv:2310.04378.

Every point of a path of the guided teacher shall lead to the same data. The student's prediction at one level is drawn
to that of its own moving average one teacher step later; at level 0 a prediction is the latent itself, whatever the
network says, which is where the consistency begins.
Departures: the guidance scale is fixed, since video teachers have no input for it. docs/methods/lcm.md.
"""

import torch
from torch import Tensor

from distill import flow, samplers
from distill.batch import Batch, Condition
from distill.method import Average, Frozen, Method, Trained, Update
from distill.options import PositiveFloat, PositiveInt


class LCM(Method):
    """Latent consistency: predict the same data from every point of a path that the guided teacher walks."""

    networks = {
        "teacher": Frozen(),
        "student": Trained(init="teacher"),
        "target": Average(of="student", decay=0.95),
    }
    data = ("videos",)
    renoises = True

    def __init__(
        self,
        steps: PositiveInt = 4,
        teacher_steps: PositiveInt = 50,
        shift: PositiveFloat = 5.0,
        guidance: PositiveFloat = 5.0,
        huber: PositiveFloat = 1e-3,
    ):
        """
        Args:
            steps: of the student's sampler.
            teacher_steps: N, of the grid along which consistency is asked for, one teacher step at a time.
            shift: of all noise levels towards noise.
            guidance: w, the teacher's scale.
            huber: c, the difference below which the loss is square.
        """
        super().__init__()
        self.steps, self.N, self.shift, self.w, self.c = steps, teacher_steps, shift, guidance, huber
        self.t = flow.grid(teacher_steps, shift)

    def updates(self, step):
        yield Update("student", self.loss)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """d(f(x_{n+1}), f^-(x_n)), where the teacher steps from x_{n+1} to x_n."""
        i = batch.integers(0, self.N).cpu()
        t, t_next, cond = self.t[i].float(), self.t[i + 1].float(), batch.video.cond
        x = flow.mix(batch.video.latents, batch.noise(), t)
        with torch.no_grad():
            v = self.teacher.guided(x, t, cond, batch.negative, self.w)
            x0_target = self.target.x0(flow.step(x, v, t, t_next), t_next, cond)
        return {"consistency": pseudo_huber(self.student.x0(x, t, cond) - x0_target, self.c)}

    def sample(self, noise: Tensor, cond: Condition) -> Tensor:
        """Multistep consistency sampling: predict the data, noise it again, unguided."""
        return samplers.renoise(self.student, noise, self.grid(), cond)

    def grid(self) -> Tensor:
        return flow.grid(self.steps, self.shift)


def pseudo_huber(difference: Tensor, c: float) -> Tensor:
    """Mean of sqrt(d^2 + c^2) - c, without cancellation: d^2 / (sqrt(d^2 + c^2) + c)."""
    square = difference.square()
    return (square / ((square + c**2).sqrt() + c)).mean()
