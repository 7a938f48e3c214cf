"""What a plan knows of a teacher without opening it: the sizes in its configuration files."""

import json
import math
from dataclasses import dataclass
from pathlib import Path

from .. import embedded
from ..errors import UserError
from ..recipe import TeacherSpec, Video
from ..sections import EMBEDDED, is_hub_id
from . import shapes
from .activations import Tokens
from .shapes import Network

WAN_TEXT = {"text_dim": 4096, "freq_dim": 256, "patch_size": (1, 2, 2), "attention_head_dim": 128}
WAN_14B = {"num_attention_heads": 40, "num_layers": 40, "ffn_dim": 13824, **WAN_TEXT}
WAN_IMAGE = {"in_channels": 36, "out_channels": 16, "image_dim": 1280, "added_kv_proj_dim": 5120}
PUBLISHED = {  # transformer/config.json of each, as far as sizes go
    "Wan-AI/Wan2.1-T2V-1.3B-Diffusers": {
        "num_attention_heads": 12,
        "num_layers": 30,
        "ffn_dim": 8960,
        "in_channels": 16,
        **WAN_TEXT,
    },
    "Wan-AI/Wan2.1-T2V-14B-Diffusers": {"in_channels": 16, **WAN_14B},
    "Wan-AI/Wan2.1-I2V-14B-480P-Diffusers": {**WAN_14B, **WAN_IMAGE},
    "Wan-AI/Wan2.1-I2V-14B-720P-Diffusers": {**WAN_14B, **WAN_IMAGE},
    "hunyuanvideo-community/HunyuanVideo": {
        "num_attention_heads": 24,
        "attention_head_dim": 128,
        "num_layers": 20,
        "num_single_layers": 40,
        "num_refiner_layers": 2,
        "mlp_ratio": 4.0,
        "patch_size": 2,
        "patch_size_t": 1,
        "text_embed_dim": 4096,
        "pooled_projection_dim": 768,
        "in_channels": 16,
    },
}
COMPRESSION = {  # keys of vae/config.json for frames per latent frame and pixels per latent pixel, of a side
    "wan": ("scale_factor_temporal", "scale_factor_spatial"),
    "wan_i2v": ("scale_factor_temporal", "scale_factor_spatial"),
    "hunyuan_video": ("temporal_compression_ratio", "spatial_compression_ratio"),
}
USUAL = (4, 8)  # of all published ones, and of folders that do not say
TEXT = {"wan": 512, "wan_i2v": 512 + 257, "hunyuan_video": 256}  # tokens, at most; an image has 257 of its own
EMBEDDED_GUIDANCE = ("hunyuan_video",)  # told the scale, so that a guided evaluation is one


@dataclass(frozen=True)
class Sizes:
    """A teacher's network and one clip in it.

    Attributes:
        latents: (frames, height, width).
        guided: evaluations that a guided step takes.
    """

    network: Network
    tokens: Tokens
    latents: tuple[int, int, int]
    guided: int


def sizes(spec: TeacherSpec, video: Video) -> Sizes:
    """UserError if the family or the teacher's sizes are not known."""
    config = _config(spec, "transformer")
    network = shapes.network(spec.family, config)
    latents = _latents(spec, video)
    tokens = math.prod(side // patch for side, patch in zip(latents, network.patch, strict=True))
    text = min(TEXT[spec.family], spec.max_sequence_length or _tokenizer_limit(spec))
    return Sizes(network, Tokens(tokens, text), latents, guided(spec.family))


def guided(family: str) -> int:
    """Evaluations that a guided step takes."""
    return 1 if family in EMBEDDED_GUIDANCE else 2


def _latents(spec: TeacherSpec, video: Video) -> tuple[int, int, int]:
    vae = {} if spec.path in PUBLISHED else _config(spec, "vae")
    time, space = (vae.get(key, usual) for key, usual in zip(COMPRESSION[spec.family], USUAL, strict=True))
    return (video.frames - 1) // time + 1, video.height // space, video.width // space


def _config(spec: TeacherSpec, component: str) -> dict:
    if component == "transformer" and spec.path in PUBLISHED:
        return PUBLISHED[spec.path]
    file = _file(spec, f"{component}/config.json")
    if file is None:
        raise UserError(
            f"teacher.path: the plan needs {component}/config.json of {spec.path}, and fetches nothing: give a local "
            f"folder in the diffusers layout, or one of {', '.join(PUBLISHED)}"
        )
    try:
        return json.loads(file.read_text("utf-8"))
    except ValueError as error:
        raise UserError(f"{file} is not valid JSON: {error}") from error


def _tokenizer_limit(spec: TeacherSpec) -> int:
    file = None if spec.path in PUBLISHED else _file(spec, "tokenizer/tokenizer_config.json")
    said = json.loads(file.read_text("utf-8")).get("model_max_length") if file else None
    return int(min(said or math.inf, TEXT[spec.family]))


def _file(spec: TeacherSpec, name: str) -> Path | None:
    """A file of the pipeline's, in its folder or in the hub's cache."""
    folder = embedded.PATH if spec.path == EMBEDDED else Path(spec.path).expanduser()
    if folder.is_dir():
        return folder / name if (folder / name).is_file() else None
    if not is_hub_id(spec.path):
        raise UserError(f"no teacher at {spec.path}: expected a folder in the diffusers layout or a hub id owner/name")
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(spec.path, name, revision=spec.revision)
    return Path(found) if isinstance(found, str) else None
