"""The plugin interface: what a distillation method is. Read this file first.

A method is an algorithm box: the networks it needs, the losses, which loss moves which network when, and how the
student samples. The trainer does everything else (devices, precision, optimizers, accumulation, resume, logging) and
never knows a method's name. Methods see noise levels sigma (distill/flow.py), not timesteps.

    class Regression(Method):
        \"\"\"Follow the teacher's guided velocity, with one evaluation. (The first line describes the method.)\"\"\"

        networks = {"teacher": Frozen(), "student": Trained(init="teacher")}

        def __init__(self, guidance: PositiveFloat = 5.0, steps: PositiveInt = 8, shift: PositiveFloat = 5.0):
            super().__init__()
            self.guidance, self.sigmas = guidance, flow.grid(steps, shift)

        def updates(self, step):
            yield Update("student", self.loss)

        def loss(self, batch):
            x, sigma = batch.noise(), torch.ones(len(batch))
            with torch.no_grad():
                v = self.teacher.guided(x, sigma, batch.cond, batch.negative, self.guidance)
            return {"velocity": (self.student(x, sigma, batch.cond) - v).square().mean()}

        def sample(self, noise, cond):
            return samplers.euler(self.student, noise, self.sigmas, cond)

        def grid(self):
            return self.sigmas
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from . import INTERFACE, flow, samplers
from .batch import Batch, Condition

Terms = Tensor | dict[str, Tensor]
Loss = Callable[[Batch], Terms | Iterator[Terms]]


@dataclass(frozen=True)
class Frozen:
    """The teacher's weights; never updated, never saved."""


@dataclass(frozen=True)
class Trained:
    """A copy of the teacher that the optimizer of the same name moves; saved.

    Args:
        ends: it is told where a step ends, too: `net(x, sigma, cond, end=...)`; at first that makes no difference.
    """

    init: str = "teacher"
    ends: bool = False


@dataclass(frozen=True)
class Copy:
    """A frozen copy of another network, taken at the start and whenever the method calls `copy_from`; saved."""

    of: str


@dataclass(frozen=True)
class Average:
    """The exponential moving average of another network, in float32, advanced after each update of it; saved."""

    of: str
    decay: float


@dataclass(frozen=True)
class Built:
    """A trained module of the method's own, made by `self.build_<name>(teacher)`; saved."""


Network = Frozen | Trained | Copy | Average | Built


@dataclass(frozen=True)
class Update:
    """Descend loss(batch) in the weights of `network`, and of nothing else.

    `loss` returns a tensor, named terms (summed, each logged as `network/term`), or an iterator of either: its parts
    are back-propagated and freed one by one. Gradients are averaged over the samples of the global batch.
    """

    network: str
    loss: Loss


@dataclass(frozen=True)
class Stage:
    """A leg of the run, with fresh optimizers unless `carry_optimizers`. Subclass it to add fields.

    Args:
        steps: how often `updates` is asked.
    """

    steps: int
    carry_optimizers: bool = False


class Method(nn.Module):
    """Constructor keywords are the recipe's `method:` section; the networks become attributes, as handles (Net).

    State that must survive an interruption is buffers and submodules of the method, or, if it follows a micro-batch
    through the updates of one step, tensors in `batch.state`. `stage` is set by the trainer before every call.

    `data` names what batches hold: "prompts", or "trajectories" of the teacher, recorded once (`batch.trajectory`);
    "videos" are real ones (`batch.video`). `renoises` says that `sample` is not Euler steps on `grid` but adds noise
    anew between its steps (samplers.renoise); `ends`, that the student is told where each step ends. A method without
    a network named `student` has nothing to sample. `whole_micro_batches` says that a loss looks at a micro-batch as a
    whole (a variance, a contrast), so that its size makes a difference; any other loss is a mean over samples.

    A plugin says `interface = 1`, the version of this file's interface that it was written for, and is refused in one
    line where distill has another.
    """

    interface: ClassVar[int] = INTERFACE

    networks: ClassVar[dict[str, Network]]
    data: ClassVar[tuple[str, ...]] = ("prompts",)
    renoises: ClassVar[bool] = False
    ends: ClassVar[bool] = False
    whole_micro_batches: ClassVar[bool] = False
    stage: Stage

    def stages(self) -> list[Stage] | None:
        """The legs of the run; None is one leg, as long as the recipe's `train.steps`."""
        return None

    def begin(self, stage: Stage) -> None:
        """Called once on entering a stage (with its networks in place), not on resume."""

    def updates(self, step: int) -> Iterable[Update]:
        """The updates of one step, in order; `step` counts within the stage. Listing them must cost nothing."""
        raise NotImplementedError(f"{type(self).__name__} must define updates(step)")

    def sample(self, noise: Tensor, cond: Condition) -> Tensor:
        """The student's sampler: noise (B, C, F, H, W) to latents of the same shape."""
        raise NotImplementedError(f"{type(self).__name__} must define sample(noise, cond)")

    def grid(self) -> Tensor:
        """The noise levels of `sample`, (steps + 1,), from 1 to 0: what the exported scheduler must reproduce."""
        raise NotImplementedError(f"{type(self).__name__} must define grid()")

    def told_grid(self) -> Tensor:
        """The noise levels that the student is told instead of `grid`, (steps + 1,), where they are not the same."""
        return self.grid()

    def sample_half_rate(self, noise: Tensor, cond: Condition, half: samplers.Half) -> Tensor:
        """`sample` with its first steps at half the frame rate (distill/interpolation.py)."""
        if self.ends:
            raise ValueError("this student is told where its steps end; half rate is not made for it")
        levels = {"renoises": self.renoises, "told": self.told_grid()}
        return samplers.half_rate(self.student, noise, self.grid(), cond, half, **levels)

    def measure(self, batch: Batch) -> dict[str, Tensor]:
        """Named measures, (B,) each, of videos that are kept from training (the recipe's section `held_out`)."""
        raise NotImplementedError(f"{type(self).__name__} must define measure(batch)")

    def examples(self, batch: Batch) -> dict[str, Tensor]:
        """Named latents, (B, C, F, H, W) each, of such videos, for people to look at."""
        return {}

    def judge(self, x: Tensor, batch: Batch) -> dict[str, Tensor]:
        """What each critic (a discriminator, a fake score) thinks of latents x of the batch's prompts: how sure it is
        that the student made them, (B,), from 0 to 1, undecided at 1/2. For the guards of distill/health.py."""
        return {}

    def teacher_shift(self) -> float:
        """Shift of the noise levels at which the teacher is sampled beside the student, with as many steps as asked."""
        return flow.grid_shift(self.grid())

    def levels(self) -> Tensor:
        """The noise levels of the latents in `batch.trajectory`, (K + 1,), float64, from 1 to 0."""
        return self.grid()
