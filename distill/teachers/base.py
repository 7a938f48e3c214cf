"""What a teacher is to the rest of the toolkit: a pretrained pipeline, opened part by part."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor, nn

from ..batch import Condition
from ..recipe import Video
from .files import PipelineFiles


class VelocityNet(Protocol):
    """An `nn.Module` that computes in its weights' precision."""

    def __call__(
        self,
        x: Tensor,
        sigma: Tensor,
        cond: Condition,
        features: Sequence[int] | None = None,
        end: Tensor | None = None,
    ) -> Tensor | list[Tensor]:
        """The velocity (B, C, F, H, W) at noise levels sigma, (B,) or (B, F), float32.

        Args:
            features: return the hidden states after these blocks instead (Net.features), and run no later block.
            end: of each step, (B,), of a network that is told (distill/teachers/ends.py).
        """

    def enable_checkpointing(self, mode: Literal["full", "selective"]) -> None:
        """Compute activations again in the backward pass; what a recipe asks for besides is in stock.py."""


def check_layers(layers: Sequence[int], depth: int) -> None:
    """ValueError unless these are blocks of a network of that depth, counted from 1."""
    if not layers or not all(1 <= layer <= depth for layer in layers):
        raise ValueError(f"features of blocks {list(layers)}; this network has blocks 1 to {depth}")


class Teacher(ABC):
    """A pretrained pipeline: a local folder or a hub id.

    Args:
        revision: of the hub repository.
        max_sequence_length: text tokens per prompt; None is the tokenizer's limit, at most the pipeline's default.

    Raises:
        UserError: the folder is not a pipeline of this family, or has no weights.

    Attributes:
        pipeline: the name of the pipeline's class in diffusers.
        fingerprint: 16 hex digits that change with the teacher's files.
        negative_prompt: what guidance points away from, unless the recipe says otherwise.
        guidance_embedded: the network is told the guidance scale, as `guidance` (B,) of its condition, and evaluated
            once; it knows no negative prompt.
        own_guidance: the scale of an evaluation that is not told one.
        takes_images: prompts name an image that the video starts from (distill/image_prompt.py).
        video: the size of the videos that images are encoded for.
        shift: of the teacher's own noise levels (distill/flow.py).
        depth: transformer blocks of the network.
        width: channels of what a block returns.
    """

    family: ClassVar[str]
    pipeline: ClassVar[str]
    guidance_embedded: ClassVar[bool] = False
    own_guidance: ClassVar[float] = 1.0
    takes_images: ClassVar[bool] = False
    video: Video | None = None
    path: str
    files: PipelineFiles
    fingerprint: str
    max_sequence_length: int
    negative_prompt: str
    shift: float
    depth: int
    width: int

    @property
    def device(self) -> torch.device:
        """Where prompts are encoded and videos decoded."""
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    @property
    def vae_fingerprint(self) -> str:
        """16 hex digits that change with the VAE's files: teachers of the same have the same latents."""
        return PipelineFiles(self.files.folder("vae")).fingerprint("vae")

    @abstractmethod
    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """(C, F, H, W) of the latents of a video; UserError names the nearest size that has some."""

    @abstractmethod
    def network(
        self,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
        *,
        ends: bool = False,
        partition: Callable[[nn.Module], object] | None = None,
    ) -> nn.Module:
        """A new VelocityNet with the teacher's weights; on device "meta", with none yet (loading.fill).

        Args:
            ends: it is told where steps end (ends.py).
            partition: leaves a piece of every parameter of a module on this process, as deepspeed.zero.Init(module=...)
                does; the pieces alone are then read (loading.py).
        """

    @abstractmethod
    def encode(self, prompts: list[str]) -> Condition:
        """What the network is conditioned on, one row per prompt, float32 on the CPU."""

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Videos (B, frames, height, width, 3), uint8 on the CPU, of latents (B, C, F, H, W)."""

    @abstractmethod
    def encode_video(self, frames: Tensor) -> Tensor:
        """The likeliest latents (B, C, F, H, W), float32 on the CPU, of videos (B, frames, height, width, 3), uint8."""

    @abstractmethod
    def unload(self) -> None:
        """Let the text encoder and the VAE leave memory; they return when needed."""

    @abstractmethod
    def save(self, folder: Path, network: nn.Module, shift: float) -> None:
        """Write this pipeline with another network and Euler steps on the grid of `shift`."""

    @abstractmethod
    def sample_saved(
        self,
        folder: Path,
        prompt: str,
        noise: Tensor,
        steps: int,
        pipeline: str | None = None,
        lora: Path | None = None,
    ) -> Tensor:
        """Latents (1, C, F, H, W) that the family's stock pipeline makes of noise, without guidance.

        Args:
            folder: one that `save` wrote, or its like; everything is loaded from it anew, in float32.
            pipeline: a file of the folder that has another pipeline (`half_rate` for half_rate.py).
            lora: a folder with adapters for it.
        """
