"""AccVideo: few steps learned from the teacher's recorded trajectories. arXiv:2503.19462 (the review text).

The student learns to walk m key steps of a trajectory that the teacher walked in n. Where it arrives is compared with
where the teacher arrived, at every key step, by a discriminator that sees the frozen teacher's features.
Departures: one student update on the sum of both losses where Algorithm 1 makes two, and a generator loss that does
not saturate. The paper's forms are options; docs/methods/accvideo.md has every point that the paper leaves open.
"""

from functools import partial
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor, nn

from distill import flow, losses, samplers
from distill.batch import Batch, Condition
from distill.memory import LatentQueue
from distill.method import Built, Frozen, Method, Trained, Update
from distill.options import Fraction, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt


class Head(nn.Module):
    """Logits of features, frame by frame: (B, D, F', h, w) -> (B, 1, F', h, w). Before training all are 0, D = 1/2."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.reduce = nn.Sequential(nn.Conv2d(width, hidden, 1), *activated(hidden))
        first, second = (nn.Conv2d(hidden, hidden, 3, padding=1) for _ in range(2))
        self.residual = nn.Sequential(first, *activated(hidden), second, *activated(hidden))
        self.logit = nn.Conv2d(hidden, 1, 1)
        nn.init.zeros_(self.logit.weight)
        nn.init.zeros_(self.logit.bias)

    def forward(self, features: Tensor) -> Tensor:
        h = self.reduce(rearrange(features, "b d f h w -> (b f) d h w"))
        return rearrange(self.logit(h + self.residual(h)), "(b f) d h w -> b d f h w", b=len(features))


class Heads(nn.Module):
    """H_0 to H_{m-1}, or one head for all key steps."""

    def __init__(self, count: int, width: int, hidden: int):
        super().__init__()
        self.H = nn.ModuleList(Head(width, hidden) for _ in range(count))

    def forward(self, features: Tensor, sigma: Tensor, cond: Condition, k: int) -> Tensor:
        return self.H[k % len(self.H)](features)


class AccVideo(Method):
    """AccVideo: few steps from the teacher's recorded trajectories, with a discriminator on its features."""

    networks = {"teacher": Frozen(), "student": Trained(init="teacher"), "heads": Built()}
    data = ("trajectories",)

    def __init__(
        self,
        steps: PositiveInt = 5,
        recorder_steps: PositiveInt = 50,
        shift: PositiveFloat = 5.0,
        key_indices: list[NonNegativeInt] | None = None,
        trajectory: bool = True,
        adversarial: NonNegativeFloat = 0.1,
        loss: Literal["non_saturating", "saturating", "hinge"] = "non_saturating",
        updates: Literal["summed", "two_step"] = "summed",
        heads: Literal["per_step", "single"] = "per_step",
        head_width: PositiveInt = 256,
        feature_depth: tuple[Fraction, Fraction] = (1.0, 0.667),
    ):
        """
        Args:
            steps: m, the student's steps.
            recorder_steps: n, the steps of the recorded trajectories.
            shift: of the recorded time grid towards noise.
            key_indices: entries of that grid, from 0 (noise) to n (data), m + 1 of them; null is every n/m-th.
            trajectory: whether the student learns L_traj; false leaves the discriminator alone.
            adversarial: lambda_adv; 0 is the trajectory loss alone.
            loss: the adversarial losses; saturating is the paper's text.
            updates: the student descends the sum of both losses, or each by itself (Algorithm 1).
            heads: one for each key step, or a single one for all (the ablation).
            head_width: channels of a head, a multiple of 8.
            feature_depth: which of the teacher's blocks gives the features, as shares of its depth: at t' > 0, at 0.
        """
        super().__init__()
        self.indices = every(recorder_steps, steps) if key_indices is None else key_indices
        check_indices(self.indices, steps, recorder_steps)
        check_losses(trajectory, adversarial, loss, updates, heads)
        if head_width % 8:
            raise ValueError(f"head_width is {head_width}; it needs a multiple of 8")
        if min(feature_depth) == 0:
            raise ValueError(f"feature_depth is {feature_depth}; there are no features before the first block")
        self.m, self.shift = steps, shift
        self.sigmas = flow.grid(recorder_steps, shift)[self.indices]
        self.t = self.sigmas.flip(0).tolist()  # t'_0 = 0 to t'_m = 1, Python floats
        self.trajectory, self.adversarial, self.loss = trajectory, adversarial, loss
        self.two_step, self.single, self.head_width = updates == "two_step", heads == "single", head_width
        self.feature_depth = feature_depth
        self.Q = nn.ModuleList(LatentQueue() for _ in range(steps + 1))

    def build_heads(self, teacher) -> nn.Module:
        self.layers = [max(1, round(share * teacher.depth)) for share in self.feature_depth]
        return Heads(1 if self.single else self.m, teacher.width, self.head_width)

    def updates(self, step):
        """One inner iteration of Algorithm 1, of k = m - 1, ..., 0 in turn."""
        k = self.m - 1 - step % self.m
        if self.two_step:
            yield Update("student", partial(self.trajectory_loss, k=k))
            yield Update("student", partial(self.adversarial_loss, k=k))
        else:
            yield Update("student", partial(self.student_loss, k=k))
        if self.adversarial > 0:
            yield Update("heads", partial(self.heads_loss, k=k))

    def student_loss(self, batch: Batch, k: int):
        """L_traj + lambda_adv L_adv, in parts."""
        if self.trajectory:
            yield self.trajectory_loss(batch, k)
        if self.adversarial > 0:
            yield self.adversarial_loss(batch, k)

    def trajectory_loss(self, batch: Batch, k: int) -> dict[str, Tensor]:
        """The teacher's average velocity from t'_{k+1} to t'_k, on its own trajectory (eq. 6)."""
        latents = batch.trajectory.unbind(1)[::-1]  # l_0 to l_m
        v_target = (latents[k] - latents[k + 1]) / (self.t[k] - self.t[k + 1])
        v = self.student(latents[k + 1], self.level(k + 1, batch), batch.cond)
        return {"trajectory": (v - v_target).square().mean()}

    def adversarial_loss(self, batch: Batch, k: int) -> dict[str, Tensor]:
        """What the student descends of eq. 7; keeps the features for the heads' own update."""
        l_gen, l_real, cond = self.advance(batch, k)
        fake = self.features(l_gen, k, batch, cond)
        with torch.no_grad():
            batch.state["real"] = self.features(l_real, k, batch, cond)
        batch.state["fake"] = fake.detach()
        return {"adversarial": self.adversarial * losses.generator(self.logits(fake, k, batch), self.loss)}

    def heads_loss(self, batch: Batch, k: int) -> dict[str, Tensor]:
        """What H_k descends of eq. 7."""
        real, fake = (self.logits(batch.state[name], k, batch) for name in ("real", "fake"))
        real, fake = losses.discriminator(real, fake, self.loss)
        return {"real": self.adversarial * real, "fake": self.adversarial * fake}

    def advance(self, batch: Batch, k: int) -> tuple[Tensor, Tensor, Condition]:
        """l_k^gen, one differentiated step after l_{k+1}^gen; the real l_k of its prompts, and their conditions."""
        assert not any(len(Q) for j, Q in enumerate(self.Q) if j not in (k, k + 1)), "a rollout was left behind"
        if k == self.m - 1:
            self.Q[self.m].push(batch.noise(), batch.trajectory[:, 1:], batch.cond)
        l_gen, reals, cond = self.Q[k + 1].pop(batch.device)
        l_gen = l_gen + (self.t[k] - self.t[k + 1]) * self.student(l_gen, self.level(k + 1, batch), cond)  # eq. 5
        if k > 0:  # nothing ever leaves Q_0
            self.Q[k].push(l_gen, reals[:, 1:], cond)
        return l_gen, reals[:, 0], cond

    def features(self, latents: Tensor, k: int, batch: Batch, cond: Condition) -> Tensor:
        """The frozen teacher's hidden states (B, D, F', h, w), of clean latents from an earlier block (eq. 8)."""
        noisy, clean = self.layers
        return self.teacher.features(latents, self.level(k, batch), cond, [noisy if k > 0 else clean])[0]

    def logits(self, features: Tensor, k: int, batch: Batch) -> Tensor:
        return self.heads(features, self.level(k, batch), batch.cond, k=k)

    def judge(self, x: Tensor, batch: Batch) -> dict[str, Tensor]:
        """By the head of the last key step, which sees clean latents."""
        if self.adversarial == 0:
            return {}
        return {"heads": losses.suspicion(self.logits(self.features(x, 0, batch, batch.cond), 0, batch))}

    def level(self, k: int, batch: Batch) -> Tensor:
        return torch.full((len(batch),), self.t[k])

    def sample(self, noise: Tensor, cond: Condition) -> Tensor:
        """m Euler steps, unguided: the student has learned the guided velocity."""
        return samplers.euler(self.student, noise, self.grid(), cond)

    def grid(self) -> Tensor:
        return self.sigmas

    def teacher_shift(self) -> float:
        return self.shift  # of the recorder's grid; key_indices may leave no shifted one


def activated(width: int) -> tuple[nn.Module, nn.Module]:
    """Groups of 8 channels: a channel by itself would lose its mean, which tells real from fake."""
    return nn.GroupNorm(width // 8, width), nn.LeakyReLU(0.2)


def every(n: int, m: int) -> list[int]:
    """Every n/m-th of 0..n."""
    if n % m:
        fitting = ", ".join(str(d) for d in range(1, n + 1) if n % d == 0)
        raise ValueError(f"steps is {m}; recorder_steps {n} needs one of {fitting}, or key_indices")
    return list(range(0, n + 1, n // m))


def check_indices(indices: list[int], m: int, n: int) -> None:
    """ValueError unless these are m steps from 0 to n."""
    if len(indices) != m + 1 or indices != sorted(set(indices)) or indices[0] != 0 or indices[-1] != n:
        raise ValueError(f"key_indices is {indices}; steps {m} needs {m + 1} ascending ones, the first 0, the last {n}")


def check_losses(trajectory: bool, adversarial: float, loss: str, updates: str, heads: str) -> None:
    """ValueError for a method without a loss, and for options that would have no effect."""
    if adversarial == 0 and not trajectory:
        raise ValueError("trajectory is false and adversarial is 0: no loss is left; set one of them")
    if updates == "two_step" and (adversarial == 0 or not trajectory):
        raise ValueError("updates is two_step, but there is one loss; leave it out")
    if adversarial == 0 and (loss, heads) != ("non_saturating", "per_step"):
        raise ValueError("adversarial is 0: loss and heads have no effect; leave them out")
