"""DMD: distribution matching distillation in several steps. DMD2, arXiv:2405.14867, as the baseline of AVD.

The student's samples move along the difference of two scores: the teacher's, of real data, and that of a network which
keeps learning what the student makes. Inputs of the later steps are the student's own (backward simulation).
Guidance is `uncond + w (cond - uncond)`; AVD's and CausVid's code writes `cond + s (cond - uncond)`, w = s + 1.
Departures: no GAN term, and the rollout ends at the step that is drawn. docs/methods/avd.md has what is left open.
"""

from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from distill import flow, losses, samplers
from distill.batch import Batch, Condition, generator
from distill.memory import LatentQueue
from distill.method import Frozen, Method, Trained, Update
from distill.options import Fraction, PositiveFloat, PositiveInt

TABLE = flow.grid(1000, 3.0)[:-1]  # the official code's; it passes shift 8, which its scheduler overrides


class DMD(Method):
    """Distribution matching: move the student's samples from the score of its own to the teacher's."""

    networks = {"teacher": Frozen(), "student": Trained(init="teacher"), "fake_score": Trained(init="teacher")}
    renoises = True

    def __init__(
        self,
        levels: PositiveInt | tuple[PositiveFloat, ...] = (1.0, 0.9, 0.757, 0.522),
        guidance: PositiveFloat = 6.0,
        student_every: PositiveInt = 5,
        shift: PositiveFloat = 5.0,
        score_range: tuple[Fraction, Fraction] = (0.02, 0.98),
        score_draw: Literal["continuous", "thousandths"] = "continuous",
        sigmas: Literal["exact", "table"] = "exact",
        drawn: Literal["sample", "shared"] = "sample",
        reuse: bool = False,
    ):
        """
        Args:
            levels: the noise levels that the student is asked at, from 1 down, or how many of a shifted grid.
            guidance: w, the teacher's scale.
            student_every: the fake score moves in every step, the student before it in one step of so many.
            shift: of the scores' noise levels towards noise, and of a grid that `levels` counts.
            score_range: the scores' noise levels are clamped to it.
            score_draw: before the shift, uniform on [0, 1), or on 0, .001, ... .999 (official code).
            sigmas: latents are mixed at the level that networks are told, or at the nearest of the official table.
            drawn: each sample draws which of the student's steps it is taken at, or the global batch draws one for all.
            reuse: until the student moves again, the fake score learns from the same samples, with new noise.
        """
        super().__init__()
        self.levels_told = flow.grid(levels, shift)[:-1].tolist() if isinstance(levels, int) else list(levels)
        check_levels(self.levels_told)
        if score_range[0] >= score_range[1]:
            raise ValueError(f"score_range is {list(score_range)}; it must rise")
        if reuse and student_every == 1:
            raise ValueError("reuse has no effect where student_every is 1; leave it out")
        self.w, self.student_every, self.shift = guidance, student_every, shift
        self.score_range, self.score_draw = score_range, score_draw
        self.table, self.shared = sigmas == "table", drawn == "shared"
        self.generated = LatentQueue() if reuse else None

    def updates(self, step):
        if step % self.student_every == 0:
            yield Update("student", partial(self.student_loss, step=step))
        yield Update("fake_score", partial(self.fake_loss, step=step))

    def student_loss(self, batch: Batch, step: int) -> Iterator[dict[str, Tensor]]:
        yield self.terms(self.generate(batch, step), batch)

    def terms(self, x: Tensor, batch: Batch) -> dict[str, Tensor]:
        """What the student's samples descend: their gradient is the difference of scores, normalised (AVD, eq. 4)."""
        return {"matching": losses.matching(x, *self.predict(x.detach(), batch))}

    @torch.no_grad()
    def predict(self, x: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """The data that the guided teacher and the fake score see in a noisy x."""
        t = self.score_time(batch)
        x_t = flow.mix(x, batch.noise(), self.sigma(t))
        v_real = self.teacher.guided(x_t, t, batch.cond, batch.negative, self.w)
        v_fake = self.fake_score(x_t, t, batch.cond)
        return flow.x0(x_t, v_real, self.sigma(t)), flow.x0(x_t, v_fake, self.sigma(t))

    def fake_loss(self, batch: Batch, step: int) -> dict[str, Tensor]:
        with torch.no_grad():
            x, cond = self.samples(batch, step)
        return self.fake_terms(x, cond, batch)

    def fake_terms(self, x: Tensor, cond: Condition, batch: Batch) -> dict[str, Tensor]:
        """What the fake score descends: flow matching on what the student makes."""
        t, eps = self.score_time(batch), batch.noise()
        v = self.fake_score(flow.mix(x, eps, self.sigma(t)), t, cond)
        return {"velocity": (v - flow.velocity(x, eps)).square().mean()}

    def samples(self, batch: Batch, step: int) -> tuple[Tensor, Condition]:
        """The student's, and their conditions: new ones, or with `reuse` those of the last step that moved it."""
        if self.generated is None:
            return self.generate(batch, step), batch.cond
        turn = step % self.student_every
        x, cond = (self.generate(batch, step), batch.cond) if turn == 0 else self.generated.pop(batch.device)[::2]
        if turn < self.student_every - 1:
            self.generated.push(x, x[:, :0], cond)
        return x, cond

    def generate(self, batch: Batch, step: int) -> Tensor:
        """The student's prediction of the data at the drawn step of its own rollout."""
        index = self.draw(batch, step)
        with torch.no_grad():
            x = self.rollout(batch, index)
        return self.student_x0(x, index, batch.cond)

    def draw(self, batch: Batch, step: int) -> list[int]:
        n = len(self.levels_told)
        if not self.shared:
            return batch.integers(0, n).tolist()
        one = generator("dmd step", batch.seed, step, batch.update)
        return [int(torch.randint(n, (), generator=one))] * len(batch)

    def rollout(self, batch: Batch, index: list[int]) -> Tensor:
        """The student's own inputs at its steps `index`, one per sample; no sample is taken further than that."""
        x = batch.noise()
        more = [batch.noise() for _ in self.levels_told[1:]]  # of all steps: later draws must not depend on neighbours
        for n in range(max(index)):
            on = [b for b, last in enumerate(index) if n < last]
            x0 = self.student_x0(x[on], [n] * len(on), batch.cond.rows(on))
            x[on] = flow.mix(x0, more[n][on], self.sigma(self.told([n + 1] * len(on))))
        return x

    def student_x0(self, x: Tensor, index: list[int], cond: Condition) -> Tensor:
        """What the student says at its steps `index`."""
        t = self.told(index)
        return flow.x0(x, self.student(x, t, cond), self.sigma(t))

    def told(self, index: list[int]) -> Tensor:
        """The noise levels of the student's steps `index`, (B,), as networks are told them."""
        return torch.tensor([self.levels_told[i] for i in index])

    def sigma(self, t: Tensor) -> Tensor:
        """The noise levels of latents, (B,), where networks are told t."""
        return flow.nearest(t, TABLE) if self.table else t

    def score_time(self, batch: Batch) -> Tensor:
        """Noise levels for both scores, (B,)."""
        u = batch.uniform() if self.score_draw == "continuous" else batch.integers(0, 1000) / 1000
        return flow.shift(u, self.shift).clamp(*self.score_range)

    def judge(self, x: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Undecided where the fake score describes x no better than the teacher, as which it began."""
        t, eps = self.score_time(batch), batch.noise()
        x_t, v = flow.mix(x, eps, self.sigma(t)), flow.velocity(x, eps)
        real, fake = (losses.per_sample(net(x_t, t, batch.cond) - v) for net in (self.teacher, self.fake_score))
        return {"fake_score": real / (real + fake)}

    def sample(self, noise: Tensor, cond: Condition) -> Tensor:
        """The student's steps, unguided, with fresh noise between them."""
        return samplers.renoise(self.student, noise, self.grid(), cond, self.told_grid())

    def grid(self) -> Tensor:
        return torch.cat([self.sigma(torch.tensor(self.levels_told, dtype=torch.float64)), torch.zeros(1)])

    def told_grid(self) -> Tensor:
        return torch.tensor([*self.levels_told, 0.0])

    def teacher_shift(self) -> float:
        return self.shift  # the student's own levels may be no shifted grid


def check_levels(levels: list[float]) -> None:
    """ValueError unless these are noise levels from 1 down."""
    if not levels or levels[0] != 1 or levels[-1] <= 0 or any(a <= b for a, b in pairwise(levels)):
        raise ValueError(f"levels is {levels}; they must begin at 1 and fall, and stay above 0")
