"""What the families have in common: sizes of latents, a time embedding that keeps its precision, folders, silence."""

import contextlib
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import diffusers.utils.logging
import torch
import transformers.utils.logging
from diffusers import DiffusionPipeline, FlowMapEulerDiscreteScheduler, ModelMixin
from diffusers.models.embeddings import TimestepEmbedding
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import UserError
from .files import PipelineFiles


class Float32Linear(nn.Linear):
    """Computes in float32 whatever its weights are stored in; where they are gathered for it, they are here."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.float(), self.weight.float(), self.bias.float())


class Float32TimestepEmbedding(TimestepEmbedding):
    """Stays in float32 under autocast: near 1000 bf16 has a spacing of 4."""

    def forward(self, sample: Tensor, condition: Tensor | None = None) -> Tensor:
        with torch.autocast(sample.device.type, enabled=False):
            return super().forward(sample.float(), condition)


def keep_float32(embedding: TimestepEmbedding) -> None:
    """By other classes for what is there: unlike hooks they deep-copy."""
    embedding.__class__ = Float32TimestepEmbedding
    embedding.linear_1.__class__ = embedding.linear_2.__class__ = Float32Linear


def latent_size(
    path: str, frames: int, height: int, width: int, *, time: int, space: int, grain: int
) -> tuple[int, int, int]:
    """(F, H, W) of the latents of a video; UserError names the nearest size that has some.

    Args:
        path: of the teacher, for the message.
        time: frames per latent frame.
        space: pixels per latent pixel (of a side).
        grain: pixels that divide every side.
    """
    near = (
        round((frames - 1) / time) * time + 1,
        *(max(1, round(side / grain)) * grain for side in (height, width)),
    )
    if near != (frames, height, width):
        raise UserError(
            f"video of {frames} frames, {height} x {width}: {path} makes {time} n + 1 frames with sides"
            f" divisible by {grain}; nearest is {near[0]} frames, {near[1]} x {near[2]}"
        )
    return (frames - 1) // time + 1, height // space, width // space


def pixels(video: Tensor) -> Tensor:
    """Decoded videos (B, 3, frames, height, width) in [-1, 1] as (B, frames, height, width, 3), uint8 on the CPU."""
    return ((video.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).movedim(1, -1).cpu()


def signal(frames: Tensor) -> Tensor:
    """The inverse of `pixels`: float32, (B, 3, frames, height, width) in [-1, 1], of uint8."""
    return (frames.float() / 127.5 - 1).movedim(-1, 1)


def save_pipeline(
    files: PipelineFiles, folder: Path, transformer: ModelMixin, shift: float, others: Sequence[str]
) -> None:
    """Write a pipeline with another transformer and Euler steps on the grid of `shift`.

    Args:
        others: the components that stay as they are.
    """
    source = files.folder(*others)
    for component in others:
        shutil.copytree(source / component, folder / component)
    transformer.save_pretrained(folder / "transformer")
    FlowMapEulerDiscreteScheduler(shift=shift).save_pretrained(folder / "scheduler")
    index = files.json("model_index.json") | {"scheduler": ["diffusers", "FlowMapEulerDiscreteScheduler"]}
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")


def load_pipeline(
    stock: type[DiffusionPipeline],
    folder: Path,
    dtypes: dict[str, torch.dtype],
    custom: str | None = None,
    lora: Path | None = None,
) -> DiffusionPipeline:
    """A whole pipeline, of which files of our own (distill/playback) may be a part.

    Args:
        custom: the name of a file in the folder that has the pipeline's class instead.
        lora: a folder with adapters for it.
    """
    with quiet():
        pipeline = stock.from_pretrained(folder, dtype=dtypes, custom_pipeline=custom, trust_remote_code=True)
        if lora is not None:
            pipeline.load_lora_weights(lora)
    return pipeline


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the bars that the libraries draw while they load, and remarks on files that a pipeline does not use."""
    libraries, level = (diffusers.utils.logging, transformers.utils.logging), diffusers.utils.logging.get_verbosity()
    for library in libraries:
        library.disable_progress_bar()
    diffusers.utils.logging.set_verbosity_error()
    try:
        yield
    finally:
        diffusers.utils.logging.set_verbosity(level)
        for library in libraries:
            library.enable_progress_bar()
