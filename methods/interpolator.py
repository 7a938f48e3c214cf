"""The latent interpolator of adaptive video distillation (sections 3.4 and 8), trained on real videos.

Of a clip's latent frames every second one is kept, and the network restores the others. A student whose first steps
are at half the frame rate uses it (docs/interpolation.md); it is trained by itself, and needs no student.
Departures: none with the default options; the tiny recipe has the network correct the mean of the two neighbours.
"""

from typing import Literal

from torch import Tensor

from distill import samplers
from distill.batch import Batch
from distill.interpolation import Interpolator
from distill.method import Built, Method, Update
from distill.options import PositiveInt


class LatentInterpolator(Method):
    """Frame interpolation in latents: restore every second latent frame of real videos."""

    networks = {"interpolator": Built()}
    data = ("videos",)

    def __init__(
        self,
        width: PositiveInt = 32,
        statistics: Literal["position", "together"] = "position",
        residual: bool = False,
        loss: Literal["all", "between"] = "all",
    ):
        """
        Args:
            width: channels after the first of the network's three blocks; the next have twice and four times as many.
            statistics: batch normalization takes each position in the clips by itself, or all pairs together.
            residual: the network corrects the mean of the two neighbours, or makes the whole frame.
            loss: the mean square over all frames, those that are kept adding zeros, or over the restored ones alone.
        """
        super().__init__()
        self.options = {"width": width, "statistics": statistics, "residual": residual}
        self.over_all = loss == "all"

    def build_interpolator(self, teacher) -> Interpolator:
        channels, frames, *_ = teacher.latent_shape(teacher.video.frames, teacher.video.height, teacher.video.width)
        if frames < 3 or frames % 2 == 0:
            raise ValueError(
                f"{frames} latent frames have no second half to restore: an odd number is needed, 3 or more"
            )
        return Interpolator(channels, **self.options)

    def updates(self, step):
        yield Update("interpolator", self.loss)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        y = batch.video.latents
        error = self.restored(batch) - y
        return {"regression": (error if self.over_all else error[:, :, 1::2]).square().mean()}

    def measure(self, batch: Batch) -> dict[str, Tensor]:
        """Root mean square errors of the restored frames, (B,): ours, and of the mean of the two neighbours."""
        lost, mean = batch.video.latents[:, :, 1::2], mean_of_neighbours(batch.video.latents)
        return {"error": rms(self.restored(batch)[:, :, 1::2] - lost), "error_of_the_mean": rms(mean - lost)}

    def examples(self, batch: Batch) -> dict[str, Tensor]:
        y = batch.video.latents
        mean = samplers.between(y[:, :, ::2], mean_of_neighbours(y))
        return {"the video": y, "restored": self.restored(batch), "mean of neighbours": mean}

    def restored(self, batch: Batch) -> Tensor:
        """The clips from every second of their frames."""
        kept = batch.video.latents[:, :, ::2]
        return self.interpolator(kept, kept.new_zeros(len(kept)), batch.video.cond)


def mean_of_neighbours(y: Tensor) -> Tensor:
    """What a plain mean would put between every second frame: (B, C, (F - 1) / 2, H, W)."""
    return (y[:, :, :-1:2] + y[:, :, 2::2]) / 2


def rms(x: Tensor) -> Tensor:
    return x.square().flatten(1).mean(1).sqrt()
