"""Wan 2.1 text to video, in diffusers' layout (WanPipeline). arXiv:2503.20314.

What Wan does differently from distill/flow.py ends here: its network is told 1000 sigma instead of sigma.
"""

from collections.abc import Sequence
from functools import cached_property
from math import lcm
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan, WanPipeline, WanTransformer3DModel
from torch import Tensor, nn

from ..batch import Condition
from ..errors import UserError
from . import loading
from .base import Teacher, check_layers
from .ends import ToldEnds
from .files import PipelineFiles
from .parts import keep_float32, latent_size, load_pipeline, pixels, quiet, save_pipeline, signal
from .stock import Stock

COMPONENTS = ("transformer", "text_encoder", "vae", "tokenizer", "scheduler")
WITHOUT_WEIGHTS = ("tokenizer", "image_processor", "scheduler")
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


class WanVelocity(Stock, ToldEnds):
    """A VelocityNet: the stock transformer, asked in noise levels."""

    def __init__(self, transformer: WanTransformer3DModel):
        super().__init__()
        self.transformer = transformer
        keep_float32(transformer.condition_embedder.time_embedder)

    def forward(
        self,
        x: Tensor,
        sigma: Tensor,
        cond: Condition,
        features: Sequence[int] | None = None,
        end: Tensor | None = None,
    ) -> Tensor | list[Tensor]:
        inputs = self._inputs(x, sigma, cond)
        self._tell(sigma, end)
        if features is not None:
            return self._features(*inputs, features)
        return self.transformer(*inputs, return_dict=False)[0]

    def _inputs(self, x: Tensor, sigma: Tensor, cond: Condition) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """What the stock transformer takes: latents, 1000 sigma, tokens of the text and of an image."""
        dtype = self.transformer.patch_embedding.weight.dtype
        return x.to(dtype), self._timestep(x, sigma), cond["text"].to(dtype), None

    def _timestep(self, x: Tensor, sigma: Tensor) -> Tensor:
        """1000 sigma, (B,); of frames with levels of their own, one for each token: (B, tokens)."""
        timestep = 1000 * sigma.float()
        if sigma.ndim == 2:
            _, height, width = self.transformer.config.patch_size
            timestep = timestep.repeat_interleave(x.shape[3] // height * (x.shape[4] // width), dim=1)
        return timestep

    def _features(
        self, x: Tensor, timestep: Tensor, text: Tensor, image: Tensor | None, layers: Sequence[int]
    ) -> list[Tensor]:
        """The stock forward pass up to the deepest of these blocks, counted from 1."""
        net = self.transformer
        check_layers(layers, len(net.blocks))
        patches = net.patch_embedding(x)
        tokens = timestep.shape[1] if timestep.ndim == 2 else None
        embedded = net.condition_embedder(timestep.flatten(), text, image, timestep_seq_len=tokens)
        _, modulation, text, image = embedded
        text = text if image is None else torch.cat([image, text], dim=1)
        inputs = text, modulation.unflatten(-1, (6, -1)), net.rope(x)
        hidden, found = patches.flatten(2).transpose(1, 2).contiguous(), {}
        for i, block in enumerate(net.blocks[: max(layers)], 1):
            if net.gradient_checkpointing and torch.is_grad_enabled():
                hidden = net._gradient_checkpointing_func(block, hidden, *inputs)
            else:
                hidden = block(hidden, *inputs)
            if i in layers:
                found[i] = hidden.transpose(1, 2).unflatten(2, patches.shape[2:])
        return [found[i] for i in layers]

    def _time_embedding(self) -> tuple[nn.Module, str, nn.Module]:
        embedder = self.transformer.condition_embedder
        return embedder, "time_embedder", embedder.timesteps_proj


class Wan(Teacher):
    """A WanPipeline with one transformer, conditioned on text alone.

    The negative prompt is Wan's own if the text encoder is UMT5-XXL, which understands it, and empty otherwise.
    """

    family, pipeline, task = "wan", "WanPipeline", "text to video"
    components = COMPONENTS
    stock, velocity = WanPipeline, WanVelocity

    def __init__(self, path: str | Path, *, revision: str | None = None, max_sequence_length: int | None = None):
        self.files = PipelineFiles(path, revision)
        self.path = self.files.path
        self._check_pipeline()
        self.fingerprint = self.files.fingerprint(*self.components)
        self.config = self.files.json("transformer/config.json")
        self.vae_config = VAE_DEFAULTS | self.files.json("vae/config.json")
        self.max_sequence_length = max_sequence_length or self._tokenizer_limit()
        self._text: WanPipeline | None = None
        self._vae: AutoencoderKLWan | None = None

    @property
    def compression(self) -> tuple[int, int]:
        """Frames per latent frame, pixels per latent pixel (of a side)."""
        return self.vae_config["scale_factor_temporal"], self.vae_config["scale_factor_spatial"]

    @property
    def depth(self) -> int:
        return self.config["num_layers"]

    @property
    def width(self) -> int:
        return self.config["num_attention_heads"] * self.config["attention_head_dim"]

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
    def _dtypes(self) -> dict[str, torch.dtype]:
        """Of the pipeline's parts."""
        text = torch.bfloat16 if self.has_umt5_xxl else torch.float32  # Wan runs UMT5-XXL, 11 GB, in bf16
        return {"default": torch.float32, "text_encoder": text}

    def _tokenizer_limit(self) -> int:
        said = self.files.json("tokenizer/tokenizer_config.json").get("model_max_length", LONGEST_TEXT)
        return int(min(LONGEST_TEXT, said))

    def _check_pipeline(self) -> None:
        index = self.files.json("model_index.json")
        if index.get("_class_name") != self.pipeline:
            raise UserError(f"{self.path} is a {index.get('_class_name')}, expected a {self.pipeline} ({self.task})")
        if index.get("boundary_ratio") is not None or index.get("expand_timesteps"):
            raise UserError(
                f"{self.path} is a Wan 2.2 pipeline, expected Wan 2.1: one transformer, one timestep a clip"
            )
        if self.files.is_local:
            for component in self.components:  # of a hub id: when fetched
                if component not in WITHOUT_WEIGHTS:
                    self.files.weights(component)

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        time, space = self.compression
        grain = lcm(16, *(space * patch for patch in self.config["patch_size"][1:]))  # WanPipeline insists on 16
        size = latent_size(self.path, frames, height, width, time=time, space=space, grain=grain)
        return self.config["in_channels"], *size

    def network(
        self,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
        *,
        ends: bool = False,
        partition: loading.Partition | None = None,
    ) -> WanVelocity:
        module = self.velocity(loading.build(WanTransformer3DModel, self.config, self.path, dtype))
        return loading.of_pipeline(module, self.files, device, ends=ends, partition=partition)

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
        with quiet():
            pipeline = WanPipeline.from_pretrained(
                folder, transformer=None, vae=None, scheduler=None, dtype=self._dtypes
            )
        return pipeline.to(self.device)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        time, space = self.compression
        size = latents.shape[2] * time * latents.shape[3] * latents.shape[4] * space**2
        clips = latents.to(self.device).split(max(1, PIXELS_PER_DECODE // size))
        return torch.cat([self._decode(clip) for clip in clips])

    def _decode(self, latents: Tensor) -> Tensor:
        mean, std = self._scale
        video = self.vae.decode(latents.float() * std.to(latents) + mean.to(latents), return_dict=False)[0]
        return pixels(video)

    @torch.no_grad()
    def encode_video(self, frames: Tensor) -> Tensor:
        mean, std = self._scale
        found = [self.vae.encode(signal(clip.to(self.device))).latent_dist.mode().cpu() for clip in frames.split(1)]
        return (torch.cat(found) - mean) / std

    @property
    def _scale(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of what the VAE makes, of each channel; the network's latents have 0 and 1."""
        mean, std = (torch.tensor(self.vae_config[f"latents_{m}"]).view(1, -1, 1, 1, 1) for m in ("mean", "std"))
        return mean, std

    @property
    def vae(self) -> AutoencoderKLWan:
        if self._vae is None:
            self._vae = self._load_vae()
        return self._vae

    def _load_vae(self) -> AutoencoderKLWan:
        self.files.weights("vae")
        vae = AutoencoderKLWan.from_pretrained(self.files.folder("vae"), subfolder="vae", dtype=torch.float32)
        return vae.to(self.device)

    def unload(self) -> None:
        self._text = self._vae = None
        torch.cuda.empty_cache()

    def save(self, folder: Path, network: WanVelocity, shift: float) -> None:
        others = [component for component in self.components if component not in ("transformer", "scheduler")]
        save_pipeline(self.files, folder, network.transformer, shift, others=others)

    def sample_saved(
        self,
        folder: Path,
        prompt: str,
        noise: Tensor,
        steps: int,
        pipeline: str | None = None,
        lora: Path | None = None,
    ) -> Tensor:
        return self._sample_saved(folder, noise, steps, pipeline, lora, prompt=prompt)

    def _sample_saved(
        self, folder: Path, noise: Tensor, steps: int, custom: str | None, lora: Path | None, **prompt
    ) -> Tensor:
        pipeline = load_pipeline(self.stock, folder, self._dtypes, custom, lora).to(self.device)
        pipeline.set_progress_bar_config(disable=True)
        time, space = self.compression
        frames, height, width = noise.shape[2:]
        return pipeline(
            **prompt,
            num_frames=(frames - 1) * time + 1,
            height=height * space,
            width=width * space,
            latents=noise,
            num_inference_steps=steps,
            guidance_scale=1.0,
            max_sequence_length=self.max_sequence_length,
            output_type="latent",
        ).frames
