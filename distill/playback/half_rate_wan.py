"""A WanPipeline whose first steps are at half the frame rate; the folder's interpolator restores the other frames."""

from diffusers import (
    AutoencoderKLWan,
    FlowMatchEulerDiscreteScheduler,
    ModelMixin,
    WanPipeline,
    WanTransformer3DModel,
)
from torch import Tensor
from transformers import AutoTokenizer, UMT5EncoderModel


class HalfRatePipeline(WanPipeline):
    """How many steps the scheduler's configuration says (`half_rate`).

    Named alike in all families: diffusers remembers the classes of files that it has read under this name.
    """

    def __init__(
        self,
        tokenizer: AutoTokenizer,
        text_encoder: UMT5EncoderModel,
        vae: AutoencoderKLWan,
        scheduler: FlowMatchEulerDiscreteScheduler,
        transformer: WanTransformer3DModel,
        interpolator: ModelMixin,
        transformer_2: WanTransformer3DModel | None = None,
        boundary_ratio: float | None = None,
        expand_timesteps: bool = False,
    ):
        super().__init__(
            tokenizer, text_encoder, vae, scheduler, transformer, transformer_2, boundary_ratio, expand_timesteps
        )
        self.register_modules(interpolator=interpolator)

    def prepare_latents(self, *args, **kwargs) -> Tensor:
        return self.scheduler.begin_half_rate(super().prepare_latents(*args, **kwargs), self.interpolator)
