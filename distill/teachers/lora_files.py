"""Adapters as files: for `load_lora_weights` of diffusers, and under the names of ComfyUI.

ComfyUI runs Wan and HunyuanVideo as they were published. Their layers have other names there, and HunyuanVideo's have
queries, keys and values (and, in its single-stream blocks, the first linear layer) in one matrix: the adapters of its
parts then stand one above the other, which makes one of as many times the rank.
"""

import re
from pathlib import Path

import diffusers
import torch
from peft import LoraConfig
from safetensors.torch import save_file
from torch import Tensor, nn

from ..places import Lora
from .adapters import A, B, alpha

PREFIX = "transformer."
DIFFUSERS, COMFYUI = "pytorch_lora_weights.safetensors", "comfyui_lora.safetensors"

WAN = (
    (r"(blocks\.\d+)\.attn1\.to_([qkv])", r"\1.self_attn.\2"),
    (r"(blocks\.\d+)\.attn1\.to_out\.0", r"\1.self_attn.o"),
    (r"(blocks\.\d+)\.attn2\.to_([qkv])", r"\1.cross_attn.\2"),
    (r"(blocks\.\d+)\.attn2\.to_out\.0", r"\1.cross_attn.o"),
    (r"(blocks\.\d+)\.attn2\.add_([kv])_proj", r"\1.cross_attn.\2_img"),
    (r"(blocks\.\d+)\.ffn\.net\.0\.proj", r"\1.ffn.0"),
    (r"(blocks\.\d+)\.ffn\.net\.2", r"\1.ffn.2"),
    (r"condition_embedder\.(time|text)_embedder\.linear_1", r"\1_embedding.0"),
    (r"condition_embedder\.(time|text)_embedder\.linear_2", r"\1_embedding.2"),
    (r"condition_embedder\.time_proj", "time_projection.1"),
    (r"condition_embedder\.image_embedder\.ff\.net\.0\.proj", "img_emb.proj.1"),
    (r"condition_embedder\.image_embedder\.ff\.net\.2", "img_emb.proj.3"),
    (r"proj_out", "head.head"),
)
DUAL, SINGLE = r"transformer_blocks\.(\d+)\.", r"single_transformer_blocks\.(\d+)\."
HUNYUAN_VIDEO = (
    (DUAL + r"norm1\.linear", r"double_blocks.\1.img_mod.linear"),
    (DUAL + r"norm1_context\.linear", r"double_blocks.\1.txt_mod.linear"),
    (DUAL + r"attn\.to_[qkv]", r"double_blocks.\1.img_attn_qkv"),
    (DUAL + r"attn\.add_[qkv]_proj", r"double_blocks.\1.txt_attn_qkv"),
    (DUAL + r"attn\.to_out\.0", r"double_blocks.\1.img_attn_proj"),
    (DUAL + r"attn\.to_add_out", r"double_blocks.\1.txt_attn_proj"),
    (DUAL + r"ff\.net\.0\.proj", r"double_blocks.\1.img_mlp.fc1"),
    (DUAL + r"ff\.net\.2", r"double_blocks.\1.img_mlp.fc2"),
    (DUAL + r"ff_context\.net\.0\.proj", r"double_blocks.\1.txt_mlp.fc1"),
    (DUAL + r"ff_context\.net\.2", r"double_blocks.\1.txt_mlp.fc2"),
    (SINGLE + r"norm\.linear", r"single_blocks.\1.modulation.linear"),
    (SINGLE + r"(?:attn\.to_[qkv]|proj_mlp)", r"single_blocks.\1.linear1"),
    (SINGLE + r"proj_out", r"single_blocks.\1.linear2"),
)
NAMES = {"WanPipeline": WAN, "WanImageToVideoPipeline": WAN, "HunyuanVideoPipeline": HUNYUAN_VIDEO}
PARTS = ("to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj", "proj_mlp")  # in the order of one matrix


def save_diffusers(pipeline: str, folder: Path, weights: dict[str, Tensor], lora: Lora) -> None:
    """Write what a role has saved (adapters.py) as diffusers does; rank and alpha are in the file's header.

    Args:
        pipeline: the name of its class in diffusers.
    """
    layers = {key.removeprefix(PREFIX): value.contiguous() for key, value in weights.items()}
    named = sorted(key.removesuffix(A) for key in layers if key.endswith(A))
    said = LoraConfig(r=lora.rank, lora_alpha=alpha(lora), target_modules=named).to_dict()
    header = {key: said[key] for key in ("r", "lora_alpha")} | {"target_modules": named}
    save = getattr(diffusers, pipeline).save_lora_weights
    save(folder, transformer_lora_layers=layers, transformer_lora_adapter_metadata=header)


def save_comfyui(pipeline: str, folder: Path, weights: dict[str, Tensor], lora: Lora, network: nn.Module) -> list[str]:
    """Write the same under ComfyUI's names; the layers for which it has none, and then there is no file.

    Args:
        network: without weights, for the sizes of its layers.
    """
    wholes, nameless = _wholes(pipeline, network)
    adapted = {key.removesuffix(A).removeprefix(PREFIX) for key in weights if key.endswith(A)}
    if unknown := sorted(adapted & nameless):
        return unknown
    found: dict[str, Tensor] = {}
    for theirs, parts in wholes.items():
        if mine := [name for name in parts if name in adapted]:
            down = torch.cat([weights[f"{PREFIX}{name}{A}"] for name in mine])
            up = torch.block_diag(*(_up(name, weights, parts[name]) for name in parts))
            found |= {
                f"diffusion_model.{theirs}.lora_down.weight": down,
                f"diffusion_model.{theirs}.lora_up.weight": up,
                f"diffusion_model.{theirs}.alpha": torch.tensor(float(alpha(lora) * len(mine))),
            }
    save_file(found, folder / COMFYUI)
    return []


def _up(name: str, weights: dict[str, Tensor], rows: int) -> Tensor:
    """B of a part, (rows, rank); of one without adapters (rows, 0)."""
    return weights.get(f"{PREFIX}{name}{B}", torch.zeros(rows, 0))


def _wholes(pipeline: str, network: nn.Module) -> tuple[dict[str, dict[str, int]], set[str]]:
    """ComfyUI's layers -> ours that they are made of and the rows of each, in order; and those that it has not."""
    wholes: dict[str, dict[str, int]] = {}
    nameless = set()
    layers = {name.removeprefix(PREFIX): each for name, each in network.named_modules() if isinstance(each, nn.Linear)}
    for name in sorted(layers, key=_order):
        theirs = _name(pipeline, name)
        if theirs is None:
            nameless.add(name)
        else:
            wholes.setdefault(theirs, {})[name] = layers[name].out_features
    return wholes, nameless


def _name(pipeline: str, name: str) -> str | None:
    for pattern, theirs in NAMES.get(pipeline, ()):
        if found := re.fullmatch(pattern, name):
            return found.expand(theirs)
    return None


def _order(name: str) -> int:
    last = name.rpartition(".")[2]
    return PARTS.index(last) if last in PARTS else 0
