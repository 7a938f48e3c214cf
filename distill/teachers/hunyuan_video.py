"""HunyuanVideo text to video, in diffusers' layout (HunyuanVideoPipeline). arXiv:2412.03603.

What HunyuanVideo does differently from distill/flow.py ends here: its network is told 1000 sigma instead of sigma.
Guidance was distilled into it: it is told the scale (times 1000) and evaluated once, without a negative prompt.
"""

from collections.abc import Sequence
from functools import cached_property
from math import lcm
from pathlib import Path

import torch
from diffusers import AutoencoderKLHunyuanVideo, HunyuanVideoPipeline, HunyuanVideoTransformer3DModel
from diffusers.models.embeddings import TimestepEmbedding
from torch import Tensor, nn

from ..batch import Condition
from ..errors import UserError
from . import loading
from .base import Teacher, check_layers
from .ends import ToldEnds
from .files import PipelineFiles
from .parts import keep_float32, latent_size, load_pipeline, pixels, quiet, save_pipeline, signal
from .stock import Stock

TEXT = ("tokenizer", "tokenizer_2", "text_encoder", "text_encoder_2")
COMPONENTS = (*TEXT, "transformer", "vae", "scheduler")
VAE_DEFAULTS = {"temporal_compression_ratio": 4, "spatial_compression_ratio": 8, "scaling_factor": 0.476986}
LONGEST_TEXT = 256  # tokens of the prompt, behind those of the template; HunyuanVideoPipeline's default
GUIDANCE = 6.0  # of an evaluation that is not told a scale; HunyuanVideoPipeline's default


class HunyuanVideoVelocity(Stock, ToldEnds):
    """A VelocityNet: the stock transformer, asked in noise levels. In bf16 it needs autocast, as roles have it.

    The condition is `text` (B, L, D) of LLaMA, its `mask` (B, L), `pooled` (B, P) of CLIP, and, where the guidance
    scale is not GUIDANCE, `guidance` (B,).
    """

    guidance_embedded = True
    masked = True

    def __init__(self, transformer: HunyuanVideoTransformer3DModel):
        super().__init__()
        self.transformer = transformer
        for module in transformer.modules():
            if isinstance(module, TimestepEmbedding):  # of the noise level, twice, and of the guidance scale
                keep_float32(module.float())

    def forward(
        self,
        x: Tensor,
        sigma: Tensor,
        cond: Condition,
        features: Sequence[int] | None = None,
        end: Tensor | None = None,
    ) -> Tensor | list[Tensor]:
        if sigma.ndim != 1:
            raise ValueError(f"sigma has shape {tuple(sigma.shape)}; HunyuanVideo has one noise level per clip, (B,)")
        self._tell(sigma, end)
        timestep = 1000 * sigma.float()
        guidance = 1000 * (cond["guidance"].float() if "guidance" in cond else torch.full_like(timestep, GUIDANCE))
        if features is not None:
            return self._features(x, timestep, guidance, cond, features)
        text, mask, pooled = cond["text"], cond["mask"], cond["pooled"]
        return self.transformer(x, timestep, text, mask, pooled, guidance, return_dict=False)[0]

    def _features(
        self, x: Tensor, timestep: Tensor, guidance: Tensor, cond: Condition, layers: Sequence[int]
    ) -> list[Tensor]:
        """The stock forward pass up to the deepest of these blocks, the single-stream ones counted after the dual."""
        net = self.transformer
        blocks = [*net.transformer_blocks, *net.single_transformer_blocks]
        check_layers(layers, len(blocks))
        patches = net.x_embedder.proj(x)
        hidden, found = patches.flatten(2).transpose(1, 2), {}
        text = net.context_embedder(cond["text"], timestep, cond["mask"])
        modulation, _ = net.time_text_embed(timestep, cond["pooled"], guidance)
        inputs = modulation, _attended(hidden, cond["mask"]), net.rope(x)
        for i, block in enumerate(blocks[: max(layers)], 1):
            if net.gradient_checkpointing and torch.is_grad_enabled():
                hidden, text = net._gradient_checkpointing_func(block, hidden, text, *inputs)
            else:
                hidden, text = block(hidden, text, *inputs)
            if i in layers:
                found[i] = hidden.transpose(1, 2).unflatten(2, patches.shape[2:])
        return [found[i] for i in layers]

    def _time_embedding(self) -> tuple[nn.Module, str, nn.Module]:
        embedder = self.transformer.time_text_embed
        return embedder, "timestep_embedder", embedder.time_proj


def _attended(video: Tensor, mask: Tensor) -> Tensor:
    """What every token attends to, (B, 1, 1, N + L): all of the video's (B, N, D), and the text's without padding."""
    words = torch.arange(mask.shape[1], device=mask.device) < mask.sum(1, keepdim=True)
    return torch.cat([words.new_ones(video.shape[:2]), words], dim=1)[:, None, None]


class HunyuanVideo(Teacher):
    """A HunyuanVideoPipeline, conditioned on text. Its text encoders run in the precision that they are stored in."""

    family, pipeline = "hunyuan_video", "HunyuanVideoPipeline"
    guidance_embedded = True
    own_guidance = GUIDANCE
    negative_prompt = ""

    def __init__(self, path: str | Path, *, revision: str | None = None, max_sequence_length: int | None = None):
        self.files = PipelineFiles(path, revision)
        self.path = self.files.path
        self._check_pipeline()
        self.fingerprint = self.files.fingerprint(*COMPONENTS)
        self.vae_config = VAE_DEFAULTS | self.files.json("vae/config.json")
        self.max_sequence_length = max_sequence_length or self._tokenizer_limit()
        self._text: HunyuanVideoPipeline | None = None
        self._vae: AutoencoderKLHunyuanVideo | None = None

    def _check_pipeline(self) -> None:
        name = self.files.json("model_index.json").get("_class_name")
        if name != self.pipeline:
            raise UserError(f"{self.path} is a {name}, expected a {self.pipeline} (text to video)")
        if not self.config["guidance_embeds"] or self.config.get("image_condition_type"):
            raise UserError(
                f"{self.path}: transformer/config.json has guidance_embeds {self.config['guidance_embeds']} and"
                f" image_condition_type {self.config.get('image_condition_type')}; expected True and None, as of"
                " HunyuanVideo's text-to-video model"
            )
        if self.files.is_local:
            for component in ("transformer", "text_encoder", "text_encoder_2", "vae"):  # of a hub id: when fetched
                self.files.weights(component)

    def _tokenizer_limit(self) -> int:
        said = self.files.json("tokenizer/tokenizer_config.json").get("model_max_length", LONGEST_TEXT)
        return int(min(LONGEST_TEXT, said))

    @cached_property
    def config(self) -> dict:
        return {"guidance_embeds": True} | self.files.json("transformer/config.json")

    @cached_property
    def shift(self) -> float:
        return float(self.files.json("scheduler/scheduler_config.json").get("shift", 1.0))

    @property
    def compression(self) -> tuple[int, int]:
        """Frames per latent frame, pixels per latent pixel (of a side)."""
        return self.vae_config["temporal_compression_ratio"], self.vae_config["spatial_compression_ratio"]

    @property
    def depth(self) -> int:
        return self.config["num_layers"] + self.config["num_single_layers"]

    @property
    def width(self) -> int:
        return self.config["num_attention_heads"] * self.config["attention_head_dim"]

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        time, space = self.compression
        grain = lcm(16, space * self.config["patch_size"])  # HunyuanVideoPipeline insists on 16
        size = latent_size(self.path, frames, height, width, time=time, space=space, grain=grain)
        return self.config["in_channels"], *size

    def network(
        self,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
        *,
        ends: bool = False,
        partition: loading.Partition | None = None,
    ) -> HunyuanVideoVelocity:
        module = HunyuanVideoVelocity(loading.build(HunyuanVideoTransformer3DModel, self.config, self.path, dtype))
        return loading.of_pipeline(module, self.files, device, ends=ends, partition=partition)

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> Condition:
        """As the pipeline does, but for zeros behind the text, which the network does not see."""
        if self._text is None:
            self._text = self._load_text_encoders()
        text, pooled, mask = self._text.encode_prompt(prompts, max_sequence_length=self.max_sequence_length)
        text = text.float() * mask.unsqueeze(-1)  # files of zeros are short
        return Condition(text=text, mask=mask.float(), pooled=pooled.float()).to("cpu")

    def _load_text_encoders(self) -> HunyuanVideoPipeline:
        for component in ("text_encoder", "text_encoder_2"):
            self.files.weights(component)
        folder = self.files.folder(*TEXT)
        with quiet():
            pipeline = HunyuanVideoPipeline.from_pretrained(
                folder, transformer=None, vae=None, scheduler=None, dtype=self._dtypes
            )
        return pipeline.to(self.device)

    @cached_property
    def _dtypes(self) -> dict[str, torch.dtype]:
        """Of the pipeline's parts: float32, and what the text encoders' configurations say."""
        found = {"default": torch.float32}
        for component in ("text_encoder", "text_encoder_2"):
            config = self.files.json(f"{component}/config.json")
            found[component] = getattr(torch, config.get("dtype") or config.get("torch_dtype") or "float32")
        return found

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        scaled = latents.to(self.device, torch.float32) / self.vae_config["scaling_factor"]
        return torch.cat([pixels(self.vae.decode(clip, return_dict=False)[0]) for clip in scaled.split(1)])

    @torch.no_grad()
    def encode_video(self, frames: Tensor) -> Tensor:
        found = [self.vae.encode(signal(clip.to(self.device))).latent_dist.mode().cpu() for clip in frames.split(1)]
        return torch.cat(found) * self.vae_config["scaling_factor"]

    @property
    def vae(self) -> AutoencoderKLHunyuanVideo:
        if self._vae is None:
            self._vae = self._load_vae()
        return self._vae

    def _load_vae(self) -> AutoencoderKLHunyuanVideo:
        self.files.weights("vae")
        folder = self.files.folder("vae")
        vae = AutoencoderKLHunyuanVideo.from_pretrained(folder, subfolder="vae", dtype=torch.float32)
        vae.enable_tiling()  # HunyuanVideo's own way: a whole clip of 93 x 544 x 960 would need a GPU to itself
        return vae.to(self.device)

    def unload(self) -> None:
        self._text = self._vae = None
        torch.cuda.empty_cache()

    def save(self, folder: Path, network: HunyuanVideoVelocity, shift: float) -> None:
        save_pipeline(self.files, folder, network.transformer, shift, others=(*TEXT, "vae"))

    def sample_saved(
        self,
        folder: Path,
        prompt: str,
        noise: Tensor,
        steps: int,
        pipeline: str | None = None,
        lora: Path | None = None,
    ) -> Tensor:
        pipeline = load_pipeline(HunyuanVideoPipeline, folder, self._dtypes, pipeline, lora).to(self.device)
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
            guidance_scale=GUIDANCE,
            max_sequence_length=self.max_sequence_length,
            output_type="latent",
        ).frames
