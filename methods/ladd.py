"""LADD: latent adversarial diffusion distillation. arXiv:2403.12015.

The student learns from a discriminator alone. It is asked for the data at one of its noise levels; its answer, and
what the teacher made of the same prompt, are noised again, and heads on the frozen teacher's features tell them apart.
Departures: heads are AccVideo's, without text or level of their own, which the features know. docs/methods/ladd.md.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from distill import flow, losses, samplers
from distill.batch import Batch, Condition
from distill.method import Built, Frozen, Method, Trained, Update
from distill.options import Fraction, PositiveFloat, PositiveInt
from distill_methods.accvideo import Heads


class LADD(Method):
    """Latent adversarial distillation: only a discriminator on the frozen teacher's features of noised latents."""

    networks = {"teacher": Frozen(), "student": Trained(init="teacher"), "heads": Built()}
    data = ("trajectories",)
    renoises = True

    def __init__(
        self,
        steps: PositiveInt = 4,
        shift: PositiveFloat = 5.0,
        from_noise: Fraction = 0.7,
        noised: tuple[float, PositiveFloat] = (1.0, 1.0),
        loss: Literal["non_saturating", "saturating", "hinge"] = "hinge",
        feature_depths: tuple[PositiveFloat, ...] = (0.25, 0.5, 0.75, 1.0),
        head_width: PositiveInt = 256,
    ):
        """
        Args:
            steps: the student's.
            shift: of its noise levels towards noise.
            from_noise: share of the samples that are made from pure noise; the others start at one of its later levels.
            noised: mean and deviation of the normal law whose logistic function gives the discriminator's noise levels.
            loss: the adversarial losses.
            feature_depths: the teacher's blocks that have a head, as shares of its depth.
            head_width: channels of a head, a multiple of 8.
        """
        super().__init__()
        if head_width % 8:
            raise ValueError(f"head_width is {head_width}; it needs a multiple of 8")
        if not feature_depths or max(feature_depths) > 1:
            raise ValueError(f"feature_depths is {list(feature_depths)}; they are shares of the depth, at most 1")
        self.t, self.shift = flow.grid(steps, shift), shift
        self.from_noise, (self.mean, self.deviation) = from_noise, noised
        self.loss, self.depths, self.head_width = loss, feature_depths, head_width

    def build_heads(self, teacher) -> nn.Module:
        self.layers = sorted({max(1, round(share * teacher.depth)) for share in self.depths})
        return Heads(len(self.layers), teacher.width, self.head_width)

    def updates(self, step):
        yield Update("student", self.student_loss)
        yield Update("heads", self.heads_loss)

    def student_loss(self, batch: Batch) -> dict[str, Tensor]:
        """What the student descends; keeps the features for the heads' own update."""
        t, sigma = self.student_level(batch), self.noised_level(batch)
        x0 = self.student.x0(flow.mix(batch.trajectory[:, -1], batch.noise(), t), t, batch.cond)
        fake = self.features(x0, sigma, batch)
        batch.state |= {"sigma": sigma} | {f"fake {k}": f.detach() for k, f in enumerate(fake)}
        terms = [losses.generator(logits, self.loss) for logits in self.logits(fake, sigma, batch)]
        return {"adversarial": torch.stack(terms).mean()}

    def heads_loss(self, batch: Batch) -> dict[str, Tensor]:
        """What the heads descend: the teacher's latents, noised alike, are real."""
        sigma = batch.state["sigma"]
        with torch.no_grad():
            real = self.features(batch.trajectory[:, -1], sigma, batch)
        fake = [batch.state[f"fake {k}"] for k in range(len(real))]
        judged = zip(self.logits(real, sigma, batch), self.logits(fake, sigma, batch), strict=True)
        parts = [torch.stack(losses.discriminator(*pair, self.loss)) for pair in judged]
        return dict(zip(("real", "fake"), torch.stack(parts).mean(0), strict=True))

    def student_level(self, batch: Batch) -> Tensor:
        """The noise levels that the student is asked at, (B,)."""
        later = batch.integers(1, len(self.t) - 1) if len(self.t) > 2 else batch.integers(0, 1)
        index = torch.where(batch.uniform() < self.from_noise, 0, later)
        return self.t[index.cpu()].float()

    def noised_level(self, batch: Batch) -> Tensor:
        """Logit-normal noise levels for the discriminator, (B,)."""
        normal = torch.special.ndtri(batch.uniform())
        return torch.sigmoid(self.mean + self.deviation * normal)

    def features(self, x0: Tensor, sigma: Tensor, batch: Batch) -> list[Tensor]:
        """The frozen teacher's hidden states (B, D, F', h, w) of latents at noise levels sigma."""
        return self.teacher.features(flow.mix(x0, batch.noise(), sigma), sigma, batch.cond, self.layers)

    def logits(self, features: list[Tensor], sigma: Tensor, batch: Batch) -> list[Tensor]:
        return [self.heads(f, sigma, batch.cond, k=k) for k, f in enumerate(features)]

    def judge(self, x: Tensor, batch: Batch) -> dict[str, Tensor]:
        """By all heads, of latents noised as in training."""
        sigma = self.noised_level(batch)
        found = [losses.suspicion(logits) for logits in self.logits(self.features(x, sigma, batch), sigma, batch)]
        return {"heads": torch.stack(found).mean(0)}

    def sample(self, noise: Tensor, cond: Condition) -> Tensor:
        """Predict the data, noise it again, unguided."""
        return samplers.renoise(self.student, noise, self.grid(), cond)

    def grid(self) -> Tensor:
        return self.t

    def levels(self) -> Tensor:
        return torch.tensor([1.0, 0.0], dtype=torch.float64)  # of a trajectory only the data is read
