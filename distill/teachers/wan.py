"""Wan 2.1 text to video, in diffusers' layout (WanPipeline). arXiv:2503.20314.

What Wan does differently from distill/flow.py ends here: its network is told 1000 sigma instead of sigma.
"""

import contextlib
import json
import shutil
from collections.abc import Iterator
from functools import cached_property
from math import lcm
from pathlib import Path

import diffusers.utils.logging
import torch
import transformers.utils.logging
from diffusers import AutoencoderKLWan, FlowMapEulerDiscreteScheduler, WanPipeline, WanTransformer3DModel
from diffusers.models.embeddings import TimestepEmbedding
from torch import Tensor, nn

from ..batch import Condition
from ..errors import UserError
from .base import Teacher
from .files import PipelineFiles

COMPONENTS = ("tokenizer", "text_encoder", "transformer", "vae", "scheduler")
VAE_DEFAULTS = {"scale_factor_temporal": 4, "scale_factor_spatial": 8}  # of folders that do not say, as Wan's own
LONGEST_TEXT = 512  # tokens, WanPipeline's default
UMT5_XXL_VOCABULARY = 256384
PIXELS_PER_DECODE = 1 << 24  # bounds the decoder's memory: a clip of 81 x 480 x 832 goes alone
# Wan's own default ("gaudy colours, overexposed, static, blurred details, subtitles, ..."), in Chinese as trained.
NEGATIVE_PROMPT = (
    "\u8272\u8c03\u8273\u4e3d\uff0c\u8fc7\u66dd\uff0c\u9759\u6001\uff0c\u7ec6\u8282\u6a21\u7cca\u4e0d\u6e05\uff0c"
    "\u5b57\u5e55\uff0c\u98ce\u683c\uff0c\u4f5c\u54c1\uff0c\u753b\u4f5c\uff0c\u753b\u9762\uff0c\u9759\u6b62\uff0c"
    "\u6574\u4f53\u53d1\u7070\uff0c\u6700\u5dee\u8d28\u91cf\uff0c\u4f4e\u8d28\u91cf\uff0cJPEG\u538b\u7f29\u6b8b"
    "\u7559\uff0c\u4e11\u964b\u7684\uff0c\u6b8b\u7f3a\u7684\uff0c\u591a\u4f59\u7684\u624b\u6307\uff0c\u753b\u5f97"
    "\u4e0d\u597d\u7684\u624b\u90e8\uff0c\u753b\u5f97\u4e0d\u597d\u7684\u8138\u90e8\uff0c\u7578\u5f62\u7684\uff0c"
    "\u6bc1\u5bb9\u7684\uff0c\u5f62\u6001\u7578\u5f62\u7684\u80a2\u4f53\uff0c\u624b\u6307\u878d\u5408\uff0c\u9759"
    "\u6b62\u4e0d\u52a8\u7684\u753b\u9762\uff0c\u6742\u4e71\u7684\u80cc\u666f\uff0c\u4e09\u6761\u817f\uff0c\u80cc"
    "\u666f\u4eba\u5f88\u591a\uff0c\u5012\u7740\u8d70"
)


class Float32TimestepEmbedding(TimestepEmbedding):
    """Stays in float32 under autocast: near 1000 bf16 has a spacing of 4."""

    def forward(self, sample: Tensor, condition: Tensor | None = None) -> Tensor:
        with torch.autocast(sample.device.type, enabled=False):
            return super().forward(sample.float(), condition)


class WanVelocity(nn.Module):
    """A VelocityNet: the stock transformer, asked in noise levels."""

    def __init__(self, transformer: WanTransformer3DModel):
        super().__init__()
        self.transformer = transformer
        transformer.condition_embedder.time_embedder.__class__ = Float32TimestepEmbedding  # unlike a hook, deep-copies

    def forward(self, x: Tensor, sigma: Tensor, cond: Condition) -> Tensor:
        dtype = self.transformer.patch_embedding.weight.dtype
        timestep = 1000 * sigma.float()
        if sigma.ndim == 2:
            _, height, width = self.transformer.config.patch_size
            timestep = timestep.repeat_interleave(x.shape[3] // height * (x.shape[4] // width), dim=1)
        return self.transformer(x.to(dtype), timestep, cond["text"].to(dtype), return_dict=False)[0]

    def enable_checkpointing(self) -> None:
        self.transformer.enable_gradient_checkpointing()


class Wan(Teacher):
    """A WanPipeline with one transformer, conditioned on text alone.

    The negative prompt is Wan's own if the text encoder is UMT5-XXL, which understands it, and empty otherwise.
    """

    family = "wan"

    def __init__(self, path: str | Path, *, revision: str | None = None, max_sequence_length: int | None = None):
        self.files = PipelineFiles(path, revision)
        self.path = self.files.path
        self._check_pipeline()
        self.fingerprint = self.files.fingerprint(*COMPONENTS)
        self.config = self.files.json("transformer/config.json")
        self.vae_config = VAE_DEFAULTS | self.files.json("vae/config.json")
        self.max_sequence_length = max_sequence_length or self._tokenizer_limit()
        self._text: WanPipeline | None = None
        self._vae: AutoencoderKLWan | None = None

    @property
    def compression(self) -> tuple[int, int]:
        """Frames per latent frame, pixels per latent pixel (of a side)."""
        return self.vae_config["scale_factor_temporal"], self.vae_config["scale_factor_spatial"]

    @cached_property
    def has_umt5_xxl(self) -> bool:
        return self.files.json("text_encoder/config.json")["vocab_size"] == UMT5_XXL_VOCABULARY

    @property
    def negative_prompt(self) -> str:
        return NEGATIVE_PROMPT if self.has_umt5_xxl else ""

    @cached_property
    def shift(self) -> float:
        scheduler = self.files.json("scheduler/scheduler_config.json")
        return float(scheduler.get("flow_shift", scheduler.get("shift", 1.0)))

    @property
    def _text_dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.has_umt5_xxl else torch.float32  # Wan runs UMT5-XXL, 11 GB, in bf16

    def _tokenizer_limit(self) -> int:
        said = self.files.json("tokenizer/tokenizer_config.json").get("model_max_length", LONGEST_TEXT)
        return int(min(LONGEST_TEXT, said))

    def _check_pipeline(self) -> None:
        index = self.files.json("model_index.json")
        if index.get("_class_name") != "WanPipeline":
            raise UserError(f"{self.path} is a {index.get('_class_name')}, expected a WanPipeline (text to video)")
        if index.get("boundary_ratio") is not None or index.get("expand_timesteps"):
            raise UserError(
                f"{self.path} is a Wan 2.2 pipeline, expected Wan 2.1: one transformer, one timestep a clip"
            )
        if self.files.is_local:
            for component in ("transformer", "text_encoder", "vae"):  # of a hub id: when fetched
                self.files.weights(component)

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        time, space = self.compression
        grain = lcm(16, *(space * patch for patch in self.config["patch_size"][1:]))  # WanPipeline insists on 16
        near = (
            round((frames - 1) / time) * time + 1,
            *(max(1, round(side / grain)) * grain for side in (height, width)),
        )
        if near != (frames, height, width):
            raise UserError(
                f"video of {frames} frames, {height} x {width}: {self.path} makes {time} n + 1 frames with sides"
                f" divisible by {grain}; nearest is {near[0]} frames, {near[1]} x {near[2]}"
            )
        return self.config["in_channels"], (frames - 1) // time + 1, height // space, width // space

    def network(self, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu") -> WanVelocity:
        if torch.device(device).type == "meta":
            with torch.device("meta"):
                transformer = WanTransformer3DModel.from_config(self.config)
            keep = transformer._keep_in_fp32_modules
            for name, weight in transformer.named_parameters():
                weight.data = weight.data.to(torch.float32 if any(k in name.split(".") for k in keep) else dtype)
            return WanVelocity(transformer)
        self.files.weights("transformer")
        folder = self.files.folder("transformer")
        with _quiet():
            transformer = WanTransformer3DModel.from_pretrained(folder, subfolder="transformer", dtype=dtype)
        return WanVelocity(transformer.to(device))

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> Condition:
        if self._text is None:
            self._text = self._load_text_encoder()
        text, _ = self._text.encode_prompt(
            prompts, do_classifier_free_guidance=False, max_sequence_length=self.max_sequence_length
        )
        return Condition(text=text.float().cpu())

    def _load_text_encoder(self) -> WanPipeline:
        self.files.weights("text_encoder")
        folder = self.files.folder("text_encoder")
        with _quiet():
            pipeline = WanPipeline.from_pretrained(folder, transformer=None, vae=None, dtype=self._text_dtype)
        return pipeline.to(self.device)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        if self._vae is None:
            self._vae = self._load_vae()
        time, space = self.compression
        pixels = latents.shape[2] * time * latents.shape[3] * latents.shape[4] * space**2
        clips = latents.to(self.device).split(max(1, PIXELS_PER_DECODE // pixels))
        return torch.cat([self._decode(clip) for clip in clips])

    def _load_vae(self) -> AutoencoderKLWan:
        self.files.weights("vae")
        vae = AutoencoderKLWan.from_pretrained(self.files.folder("vae"), subfolder="vae", dtype=torch.float32)
        return vae.to(self.device)

    def _decode(self, latents: Tensor) -> Tensor:
        mean, std = (torch.tensor(self.vae_config[f"latents_{m}"]).view(1, -1, 1, 1, 1) for m in ("mean", "std"))
        video = self._vae.decode(latents.float() * std.to(latents) + mean.to(latents), return_dict=False)[0]
        return ((video.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).movedim(1, -1).cpu()

    def unload(self) -> None:
        self._text = self._vae = None
        torch.cuda.empty_cache()

    def save(self, folder: Path, network: WanVelocity, shift: float) -> None:
        others = ("tokenizer", "text_encoder", "vae")
        source = self.files.folder(*others)
        for component in others:
            shutil.copytree(source / component, folder / component)
        network.transformer.save_pretrained(folder / "transformer")
        FlowMapEulerDiscreteScheduler(shift=shift).save_pretrained(folder / "scheduler")
        index = self.files.json("model_index.json") | {"scheduler": ["diffusers", "FlowMapEulerDiscreteScheduler"]}
        (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")

    def sample_saved(self, folder: Path, prompt: str, noise: Tensor, steps: int) -> Tensor:
        dtype = {"default": torch.float32, "text_encoder": self._text_dtype}
        with _quiet():
            pipeline = WanPipeline.from_pretrained(folder, dtype=dtype).to(self.device)
        pipeline.set_progress_bar_config(disable=True)
        time, space = self.compression
        frames, height, width = noise.shape[2:]
        return pipeline(
            prompt,
            num_frames=(frames - 1) * time + 1,
            height=height * space,
            width=width * space,
            latents=noise,
            num_inference_steps=steps,
            guidance_scale=1.0,
            max_sequence_length=self.max_sequence_length,
            output_type="latent",
        ).frames


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the bars that the libraries draw while they load."""
    libraries = (diffusers.utils.logging, transformers.utils.logging)
    for library in libraries:
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library in libraries:
            library.enable_progress_bar()
