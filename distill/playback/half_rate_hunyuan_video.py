"""A HunyuanVideoPipeline whose first steps are at half the frame rate; an interpolator restores the others."""

from diffusers import (
    AutoencoderKLHunyuanVideo,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideoPipeline,
    HunyuanVideoTransformer3DModel,
    ModelMixin,
)
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer, LlamaModel, LlamaTokenizerFast


class HalfRatePipeline(HunyuanVideoPipeline):
    """How many steps the scheduler's configuration says (`half_rate`).

    Named alike in all families: diffusers remembers the classes of files that it has read under this name.
    """

    def __init__(
        self,
        text_encoder: LlamaModel,
        tokenizer: LlamaTokenizerFast,
        transformer: HunyuanVideoTransformer3DModel,
        vae: AutoencoderKLHunyuanVideo,
        scheduler: FlowMatchEulerDiscreteScheduler,
        text_encoder_2: CLIPTextModel,
        tokenizer_2: CLIPTokenizer,
        interpolator: ModelMixin,
    ):
        super().__init__(text_encoder, tokenizer, transformer, vae, scheduler, text_encoder_2, tokenizer_2)
        self.register_modules(interpolator=interpolator)

    def prepare_latents(self, *args, **kwargs) -> Tensor:
        return self.scheduler.begin_half_rate(super().prepare_latents(*args, **kwargs), self.interpolator)
