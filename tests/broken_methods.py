"""A sound method, and one for each way to break what the conformance kit asks for: `tests.broken_methods:Sound`."""

import torch
from torch import Tensor

from distill import flow, samplers
from distill.batch import Batch, Condition
from distill.method import Frozen, Method, Trained, Update
from distill.options import PositiveFloat, PositiveInt


class Sound(Method):
    """Two steps of the guided teacher, and a critic that follows the student."""

    interface = 1
    networks = {"teacher": Frozen(), "student": Trained(init="teacher"), "critic": Trained(init="teacher")}

    def __init__(self, steps: PositiveInt = 2, guidance: PositiveFloat = 3.0):
        """
        Args:
            steps: of the student.
            guidance: the teacher's scale.
        """
        super().__init__()
        self.sigmas, self.guidance = flow.grid(steps, 5.0), guidance

    def updates(self, step):
        yield Update("student", self.loss)
        yield Update("critic", self.critic_loss)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        x, sigma = batch.noise(), batch.uniform()
        with torch.no_grad():
            v = self.teacher.guided(x, sigma, batch.cond, batch.negative, self.guidance)
        return {"velocity": (self.student(x, sigma, batch.cond) - v).square().mean()}

    def critic_loss(self, batch: Batch) -> dict[str, Tensor]:
        x, sigma = batch.noise(), batch.uniform()
        with torch.no_grad():
            v = self.student(x, sigma, batch.cond)
        return {"velocity": (self.critic(x, sigma, batch.cond) - v).square().mean()}

    def sample(self, noise: Tensor, cond: Condition) -> Tensor:
        return samplers.euler(self.student, noise, self.grid(), cond)

    def grid(self) -> Tensor:
        return self.sigmas


class OfAnotherInterface(Sound):
    interface = 2


class ChangesItsNetworks(Sound):
    def __init__(self):
        super().__init__()
        self.networks = {name: kind for name, kind in self.networks.items() if name != "critic"}


class Undocumented(Sound):
    def __init__(self, steps: PositiveInt = 2, secret: PositiveFloat = 1.0):
        """
        Args:
            steps: of the student.
        """
        super().__init__(steps)


class WithoutDefault(Sound):
    def __init__(self, strength: PositiveFloat):
        """
        Args:
            strength: of nothing.
        """
        super().__init__()


class RefusesItsDefault(Sound):
    def __init__(self, strength: PositiveFloat = -1.0):
        """
        Args:
            strength: of nothing.
        """
        super().__init__()


class NotFinite(Sound):
    def loss(self, batch):
        return {name: term / (batch.index[0] < 4) for name, term in super().loss(batch).items()}  # from step 1 on


class RaisesAnything(Sound):
    def loss(self, batch):
        return {"velocity": self.student(batch.noise()[:, :1], batch.uniform(), batch.cond).mean()}


class WithAnIdleNetwork(Sound):
    def updates(self, step):
        yield Update("student", self.loss)


class UpdatesTheTeacher(Sound):
    def updates(self, step):
        yield Update("student", self.loss)
        yield Update("critic", self.critic_loss)
        yield Update("teacher", self.loss)


class MovesAnother(Sound):
    def loss(self, batch):
        self.critic.copy_from(self.student)
        return super().loss(batch)


class StandsStill(Sound):
    def loss(self, batch):
        return {"velocity": 0.0 * super().loss(batch)["velocity"]}


class MovesTheTeacher(Sound):
    def critic_loss(self, batch):
        self.teacher.copy_from(self.student)
        return super().critic_loss(batch)


class DrawsForItself(Sound):
    def loss(self, batch):
        x = torch.randn(len(batch), *batch.shape)
        return {"velocity": self.student(x, batch.uniform(), batch.cond).square().mean()}


class Forgets(Sound):
    """Counts its steps in an attribute that no checkpoint has."""

    def __init__(self):
        super().__init__()
        self.done = 0

    def begin(self, stage):
        self.done = 1

    def updates(self, step):
        self.done += 1
        yield from super().updates(step)

    def critic_loss(self, batch):
        return {"velocity": super().critic_loss(batch)["velocity"] / self.done}


class LooksAtTheBatch(Sound):
    def loss(self, batch):
        x = batch.noise() - batch.noise().mean(0)
        return {"velocity": self.student(x, batch.uniform(), batch.cond).square().mean()}


class KeepsItsOwnSamples(Sound):
    """Weighs by losses that each process has seen, not the global batch."""

    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def loss(self, batch):
        terms = super().loss(batch)
        self.seen += terms["velocity"].detach() * len(batch)
        return terms

    def critic_loss(self, batch):
        return {"velocity": self.seen * super().critic_loss(batch)["velocity"]}


class ChangesTheShape(Sound):
    def sample(self, noise, cond):
        return super().sample(noise, cond)[:, :, :-1]


class ChangesItsNoise(Sound):
    def sample(self, noise, cond):
        x = super().sample(noise, cond)
        noise *= 0
        return x


class SamplesAtRandom(Sound):
    def sample(self, noise, cond):
        return super().sample(noise + 0.1 * torch.randn_like(noise), cond)


class LooksAtNeighbours(Sound):
    def sample(self, noise, cond):
        return super().sample(noise - noise.mean(0), cond)


class OnAnotherGrid(Sound):
    def grid(self):
        return flow.grid(len(self.sigmas) - 1, 2.0)

    def sample(self, noise, cond):
        return samplers.euler(self.student, noise, self.sigmas, cond)


class EndsEarly(Sound):
    def grid(self):
        return self.sigmas[:-1]


class RenoisesUnsaid(Sound):
    def sample(self, noise, cond):
        return samplers.renoise(self.student, noise, self.grid(), cond)


class LearnsItsGrid(Sound):
    """What a student needs besides its weights is not in what is exported."""

    def __init__(self):
        super().__init__()
        self.register_buffer("shift", torch.ones(()))

    def loss(self, batch):
        self.shift += 1
        return super().loss(batch)

    def grid(self):
        return flow.grid(2, self.shift.item())
