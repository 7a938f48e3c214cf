"""DMD2's GAN term on top of DMD. arXiv:2405.14867, section 4.3.

A head on the fake score's hidden states tells noisy real videos from the student's noisy samples. The student learns to
be taken for real; the fake score, whose features they are, learns to tell, as the head does.
Departures: the head judges patches of each frame, and its noise levels are the scores'. docs/methods/avd.md.
"""

from collections.abc import Iterator
from typing import Literal

from torch import Tensor, nn

from distill import flow, losses
from distill.batch import Batch, Condition
from distill.method import Built, Frozen, Trained, Update
from distill.options import Fraction, PositiveFloat, PositiveInt
from distill_methods.accvideo import Head
from distill_methods.dmd import DMD


class Judge(nn.Module):
    """Logits of features at any noise level."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.head = Head(width, hidden)

    def forward(self, features: Tensor, sigma: Tensor, cond: Condition) -> Tensor:
        return self.head(features)


class DMD2(DMD):
    """Distribution matching with a GAN term: real videos against the student's, on the fake score's features."""

    networks = {
        "teacher": Frozen(),
        "student": Trained(init="teacher"),
        "fake_score": Trained(init="teacher"),
        "heads": Built(),
    }
    data = ("prompts", "videos")

    def __init__(
        self,
        adversarial: PositiveFloat = 5e-3,
        discriminator: PositiveFloat = 1e-2,
        loss: Literal["non_saturating", "saturating", "hinge"] = "non_saturating",
        head_width: PositiveInt = 256,
        feature_depth: Fraction = 0.667,
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
            adversarial: weight of the student's adversarial loss.
            discriminator: weight of the fake score's and the head's.
            loss: the adversarial losses.
            head_width: channels of the head, a multiple of 8.
            feature_depth: which of the fake score's blocks gives the features, as a share of its depth.
        """
        super().__init__(levels, guidance, student_every, shift, score_range, score_draw, sigmas, drawn, reuse)
        if head_width % 8:
            raise ValueError(f"head_width is {head_width}; it needs a multiple of 8")
        self.adversarial, self.discriminator, self.loss = adversarial, discriminator, loss
        self.head_width, self.feature_depth = head_width, feature_depth

    def build_heads(self, teacher) -> nn.Module:
        self.layer = max(1, round(self.feature_depth * teacher.depth))
        return Judge(teacher.width, self.head_width)

    def updates(self, step) -> Iterator[Update]:
        yield from super().updates(step)
        yield Update("heads", self.heads_loss)

    def terms(self, x: Tensor, batch: Batch) -> dict[str, Tensor]:
        t, eps = self.score_time(batch), batch.noise()
        logits = self.heads(self.features(x, eps, t, batch.cond), t, batch.cond)
        return super().terms(x, batch) | {"adversarial": self.adversarial * losses.generator(logits, self.loss)}

    def fake_terms(self, x: Tensor, cond: Condition, batch: Batch) -> dict[str, Tensor]:
        t, video = self.score_time(batch), batch.video
        fake = self.features(x, batch.noise(), t, cond)
        real = self.features(video.latents, batch.noise(), t, video.cond)
        batch.state |= {"real": real.detach(), "fake": fake.detach(), "t": t}
        return super().fake_terms(x, cond, batch) | self.judged(real, fake, t, cond)

    def heads_loss(self, batch: Batch) -> dict[str, Tensor]:
        """On the features that the fake score's update has left."""
        real, fake, t = (batch.state[name] for name in ("real", "fake", "t"))
        return self.judged(real, fake, t, batch.cond)

    def judged(self, real: Tensor, fake: Tensor, t: Tensor, cond: Condition) -> dict[str, Tensor]:
        real, fake = losses.discriminator(self.heads(real, t, cond), self.heads(fake, t, cond), self.loss)
        return {"real": self.discriminator * real, "fake": self.discriminator * fake}

    def judge(self, x: Tensor, batch: Batch) -> dict[str, Tensor]:
        t, eps = self.score_time(batch), batch.noise()
        logits = self.heads(self.features(x, eps, t, batch.cond), t, batch.cond)
        return super().judge(x, batch) | {"heads": losses.suspicion(logits)}

    def features(self, x: Tensor, eps: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """The fake score's hidden states (B, D, F', h, w) of noisy latents."""
        return self.fake_score.features(flow.mix(x, eps, self.sigma(t)), t, cond, [self.layer])[0]
