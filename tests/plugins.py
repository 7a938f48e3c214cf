"""A method that uses everything the interface offers, for tests of the trainer: `tests.plugins:Pair`."""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from distill import flow, samplers
from distill.batch import Batch, Condition
from distill.method import Average, Built, Copy, Frozen, Method, Stage, Trained, Update
from distill.options import PositiveFloat, PositiveInt


@dataclass(frozen=True)
class Leg(Stage):
    name: str = "first"


class Head(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.mix = nn.Conv3d(channels, channels, 1)

    def forward(self, x: Tensor, sigma: Tensor, cond: Condition) -> Tensor:
        return self.mix(x)


class Pair(Method):
    """A student and a critic that take turns, a head, an average, a copy, and state that must survive."""

    networks = {
        "teacher": Frozen(),
        "student": Trained(init="teacher"),
        "critic": Trained(init="teacher"),
        "head": Built(),
        "slow": Average(of="student", decay=0.9),
        "before": Copy(of="student"),
    }

    def __init__(self, every: PositiveInt = 2, guidance: PositiveFloat = 3.0, first: PositiveInt = 3):
        """
        Args:
            every: the student moves in one step of so many.
            guidance: scale of the teacher.
            first: steps of the first stage; the second has two.
        """
        super().__init__()
        self.every, self.guidance, self.first = every, guidance, first
        self.register_buffer("seen", torch.zeros(()))
        self.sigmas = flow.grid(2, 5.0)

    def stages(self) -> list[Stage]:
        return [Leg(steps=self.first), Leg(steps=2, name="second", carry_optimizers=True)]

    def begin(self, stage: Leg) -> None:
        self.before.copy_from(self.student)

    def updates(self, step: int):
        if step % self.every == 0:
            yield Update("student", self.student_loss)
        yield Update("critic", self.critic_loss)
        yield Update("head", self.head_loss)

    def student_loss(self, batch: Batch):
        x, sigma = batch.noise(), batch.uniform()
        batch.state["x"] = x
        with torch.no_grad():
            target = self.teacher.guided(x, sigma, batch.cond, batch.negative, self.guidance)
            target = target + 0.1 * self.before(x, sigma, batch.cond)
        yield {"velocity": (self.student(x, sigma, batch.cond) - target).square().mean()}
        self.seen += len(batch)
        yield {"critic": (self.critic(self.student(x, sigma, batch.cond), sigma, batch.cond)).square().mean()}

    def critic_loss(self, batch: Batch) -> Tensor:
        x = batch.state.get("x", batch.noise())
        sigma = batch.uniform()
        with torch.no_grad():
            target = self.slow(x, sigma, batch.cond)
        return (self.critic(x, sigma, batch.cond) - target).square().mean()

    def head_loss(self, batch: Batch) -> Tensor:
        x = batch.noise() * (1 + batch.integers(0, 3).view(-1, 1, 1, 1, 1))
        batch.state["x"] = x
        return (self.head(x, batch.uniform(), batch.cond) - 0.01 * self.seen).square().mean()

    def build_head(self, teacher) -> nn.Module:
        return Head(teacher.latent_shape(5, 32, 48)[0])

    def sample(self, noise: Tensor, cond: Condition) -> Tensor:
        return samplers.euler(self.student, noise, self.sigmas, cond)

    def grid(self) -> Tensor:
        return self.sigmas


class Follow(Method):
    """A student that learns the steps of recorded trajectories, one after the other."""

    networks = {"student": Trained(init="teacher")}
    data = ("trajectories",)

    def __init__(self, steps: PositiveInt = 2, shift: PositiveFloat = 5.0):
        super().__init__()
        self.sigmas = flow.grid(steps, shift)

    def updates(self, step: int):
        yield Update("student", partial(self.loss, k=step % (len(self.sigmas) - 1)))

    def loss(self, batch: Batch, k: int) -> Tensor:
        x, x_next = batch.trajectory[:, k], batch.trajectory[:, k + 1]
        slope = (x_next - x) / (self.sigmas[k + 1] - self.sigmas[k]).item()
        sigma = torch.full((len(batch),), self.sigmas[k].item())
        return (self.student(x, sigma, batch.cond) - slope).square().mean()

    def sample(self, noise: Tensor, cond: Condition) -> Tensor:
        return samplers.euler(self.student, noise, self.sigmas, cond)

    def grid(self) -> Tensor:
        return self.sigmas
