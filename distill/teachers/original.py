"""Wan 2.1's original checkpoints as a folder in diffusers' layout. Names and shapes of files change, no number does.

The transformer's and the VAE's names are diffusers' own affair (its single-file loaders); the text encoder's are here.
"""

import json
import re
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan, ModelMixin, UniPCMultistepScheduler, WanTransformer3DModel
from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers, convert_wan_vae_to_diffusers
from torch import Tensor
from transformers import UMT5Config, UMT5EncoderModel

from .. import weights
from ..errors import UserError
from . import loading
from .loading import WEIGHTS
from .parts import quiet

TEXT, VAE, TOKENIZER = "models_t5_umt5-xxl-enc-bf16.pth", "Wan2.1_VAE.pth", "google/umt5-xxl"
SHIFT = 5.0  # of Wan's own sampler, for text to video
Z_DIM = 16  # of the VAE whose means and deviations diffusers knows
TRANSFORMER = {  # diffusers' name of a setting -> Wan's
    "num_attention_heads": "num_heads",
    "in_channels": "in_dim",
    "out_channels": "out_dim",
    "freq_dim": "freq_dim",
    "ffn_dim": "ffn_dim",
    "num_layers": "num_layers",
    "eps": "eps",
}
T5 = {"token_embedding.weight": "shared.weight", "norm.weight": "encoder.final_layer_norm.weight"}
T5_BLOCK = {
    "norm1": "layer.0.layer_norm",
    **{f"attn.{each}": f"layer.0.SelfAttention.{each}" for each in "qkvo"},
    "pos_embedding.embedding": "layer.0.SelfAttention.relative_attention_bias",
    "norm2": "layer.1.layer_norm",
    "ffn.gate.0": "layer.1.DenseReluDense.wi_0",
    "ffn.fc1": "layer.1.DenseReluDense.wi_1",
    "ffn.fc2": "layer.1.DenseReluDense.wo",
}


def convert(source: Path, folder: Path) -> Path:
    """Write a WanPipeline's folder of an original checkpoint's; no more than one of its files is held in memory.

    Raises:
        UserError: the folder exists, or the source is none of Wan 2.1's text-to-video checkpoints.
    """
    if folder.exists():
        raise UserError(f"{folder} exists; name another folder")
    config = _config(source)
    missing = [name for name in (TEXT, VAE, TOKENIZER) if not (source / name).exists()]
    if missing:
        raise UserError(f"{source}: {missing[0]} is missing; expected all files of a Wan 2.1 repository")
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    _transformer(source, config, partial / "transformer")
    _vae(source / VAE, partial / "vae")
    _text_encoder(source / TEXT, partial / "text_encoder")
    shutil.copytree(source / TOKENIZER, partial / "tokenizer")
    UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=SHIFT, num_train_timesteps=1000
    ).save_pretrained(partial / "scheduler")
    (partial / "model_index.json").write_text(json.dumps(_index(partial), indent=2) + "\n")
    return partial.rename(folder)


def _config(source: Path) -> dict:
    file = source / "config.json"
    if not file.is_file():
        raise UserError(f"{source} is no Wan checkpoint in its original layout: config.json is missing")
    try:
        config = json.loads(file.read_text("utf-8"))
    except ValueError as error:
        raise UserError(f"{file} is not valid JSON: {error}") from error
    if config.get("_class_name") != "WanModel" or config.get("model_type") != "t2v":
        raise UserError(
            f"{file} is of a {config.get('_class_name')} of type {config.get('model_type')}, expected a WanModel of"
            " type t2v; the hub has the others as Wan-AI/...-Diffusers"
        )
    lacking = [name for name in ("dim", *TRANSFORMER.values()) if name not in config]
    if lacking:
        raise UserError(f"{file} does not say {', '.join(lacking)}")
    return config


def _index(folder: Path) -> dict:
    tokenizer = json.loads((folder / "tokenizer" / "tokenizer_config.json").read_text("utf-8"))
    return {
        "_class_name": "WanPipeline",
        "scheduler": ["diffusers", "UniPCMultistepScheduler"],
        "text_encoder": ["transformers", "UMT5EncoderModel"],
        "tokenizer": ["transformers", tokenizer["tokenizer_class"]],
        "transformer": ["diffusers", "WanTransformer3DModel"],
        "vae": ["diffusers", "AutoencoderKLWan"],
    }


def _transformer(source: Path, config: dict, folder: Path) -> None:
    stored = weights.entries(source / WEIGHTS)
    shapes = {_transformer_name(name): entry.shape for name, entry in stored.items()}
    said = {ours: config[theirs] for ours, theirs in TRANSFORMER.items()}
    said["attention_head_dim"] = config["dim"] // config["num_heads"]
    said["text_dim"] = shapes.get("condition_embedder.text_embedder.linear_1.weight", (0, 0))[1]
    stock = loading.build(WanTransformer3DModel, said, str(source), torch.float32)
    _same(stock, shapes, source)
    renamed = ((_transformer_name(name), tensor) for name, tensor in weights.stream(source / WEIGHTS))
    weights.write(folder / WEIGHTS, renamed)
    stock.save_config(folder)


def _transformer_name(name: str) -> str:
    return next(iter(convert_wan_transformer_to_diffusers({name: torch.empty(0)})))


def _vae(file: Path, folder: Path) -> None:
    state = _pth(file)
    if not {"encoder.conv1.weight", "conv2.weight"} <= state.keys() or len(state["conv2.weight"]) != Z_DIM:
        raise UserError(f"{file} is no VAE of Wan 2.1: expected encoder.conv1 and conv2 of {Z_DIM} channels")
    with quiet():
        vae = AutoencoderKLWan(base_dim=len(state["encoder.conv1.weight"]), z_dim=Z_DIM)
    state = convert_wan_vae_to_diffusers(state)
    _same(vae, {name: tuple(tensor.shape) for name, tensor in state.items()}, file)
    vae.load_state_dict(state)
    vae.save_pretrained(folder)


def _text_encoder(file: Path, folder: Path) -> None:
    state = {_t5_name(name): tensor for name, tensor in _pth(file).items()}
    try:
        config = _t5_config(state)
    except KeyError as error:
        raise UserError(f"{file} is no UMT5 encoder of Wan's: it has no {error.args[0]}") from error
    with torch.device("meta"):
        stock = UMT5EncoderModel(config)
    _same(stock, {name: tuple(tensor.shape) for name, tensor in state.items()}, file, but="encoder.embed_tokens.weight")
    weights.write(folder / "model", state.items())
    config.save_pretrained(folder)


def _t5_config(state: Mapping[str, Tensor]) -> UMT5Config:
    """UMT5's, with the sizes of these weights."""
    first = "encoder.block.0.layer."
    buckets, heads = state[f"{first}0.SelfAttention.relative_attention_bias.weight"].shape
    vocabulary, width = state["shared.weight"].shape
    return UMT5Config(
        vocab_size=vocabulary,
        d_model=width,
        d_kv=len(state[f"{first}0.SelfAttention.q.weight"]) // heads,
        d_ff=len(state[f"{first}1.DenseReluDense.wi_0.weight"]),
        num_layers=len([name for name in state if name.endswith("SelfAttention.q.weight")]),
        num_heads=heads,
        relative_attention_num_buckets=buckets,
        architectures=["UMT5EncoderModel"],
        dtype=state["shared.weight"].dtype,
    )


def _t5_name(name: str) -> str:
    """transformers' name of a weight; one that has none stays as it is."""
    found = re.fullmatch(r"blocks\.(\d+)\.(.+)\.weight", name)
    if found and found[2] in T5_BLOCK:
        return f"encoder.block.{found[1]}.{T5_BLOCK[found[2]]}.weight"
    return T5.get(name, name)


def _pth(file: Path) -> dict[str, Tensor]:
    try:
        return torch.load(file, map_location="cpu", mmap=zipfile.is_zipfile(file), weights_only=True)
    except Exception as error:  # torch has no class for what is wrong with a file
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{file}: cannot be read as a file of weights ({reason})") from error


def _same(stock: ModelMixin, shapes: Mapping[str, tuple[int, ...]], source: Path, but: str = "") -> None:
    """UserError unless these are the weights of a network."""
    expected = {name: tuple(tensor.shape) for name, tensor in stock.state_dict().items() if name != but}
    wrong = [name for name in {**expected, **shapes} if expected.get(name) != shapes.get(name)]
    if wrong:
        name = wrong[0]
        raise UserError(
            f"{source}: {name} has shape {shapes.get(name)}, a {type(stock).__name__} of this size"
            f" {expected.get(name)} ({len(wrong)} of {len(expected)} tensors differ)"
        )
