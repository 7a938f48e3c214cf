"""Write the trained networks as a folder that `WanPipeline.from_pretrained` loads."""

import contextlib
import copy
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
import transformers.utils.logging
from diffusers import AutoencoderKLWan, FlowMapEulerDiscreteScheduler, WanTransformer3DModel
from torch import nn
from transformers import UMT5EncoderModel

from . import text

SHIFT = 5.0  # of the sampler's noise levels
TOKENIZER = "PreTrainedTokenizerFast"  # transformers 5 records TokenizersBackend, a name that no other version knows
INDEX = {
    "_class_name": "WanPipeline",
    "_diffusers_version": "0.39.0",
    "boundary_ratio": None,
    "expand_timesteps": False,
    "scheduler": ["diffusers", "FlowMapEulerDiscreteScheduler"],
    "text_encoder": ["transformers", "UMT5EncoderModel"],
    "tokenizer": ["transformers", TOKENIZER],
    "transformer": ["diffusers", "WanTransformer3DModel"],
    "transformer_2": [None, None],
    "vae": ["diffusers", "AutoencoderKLWan"],
}


def write(
    folder: Path, vae: AutoencoderKLWan, transformer: WanTransformer3DModel, text_encoder: UMT5EncoderModel
) -> Path:
    """Write the pipeline's folder, all or nothing; other files in it, such as its model card, stay."""
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    half(vae).save_pretrained(partial / "vae")
    half(transformer).save_pretrained(partial / "transformer")
    # Float32 on disk: transformers 5 computes in the stored precision unless told otherwise.
    with _quiet():
        half(text_encoder).float().save_pretrained(partial / "text_encoder")
    text.tokenizer().save_pretrained(partial / "tokenizer")
    _name_tokenizer(partial / "tokenizer" / "tokenizer_config.json")
    FlowMapEulerDiscreteScheduler(shift=SHIFT).save_pretrained(partial / "scheduler")
    (partial / "model_index.json").write_text(json.dumps(INDEX, indent=2) + "\n")
    folder.mkdir(parents=True, exist_ok=True)
    for file in partial.rglob("*.safetensors"):
        file.chmod(0o644)
    for part in partial.iterdir():
        if (folder / part.name).is_dir():
            shutil.rmtree(folder / part.name)
        os.replace(part, folder / part.name)
    partial.rmdir()
    return folder


def half(network: nn.Module) -> nn.Module:
    """A copy rounded to float16."""
    rounded = copy.deepcopy(network)
    for parameter in rounded.parameters():
        parameter.data = parameter.data.to(torch.float16)
    if not all(torch.isfinite(p).all() for p in rounded.parameters()):
        raise ValueError(f"the weights of {type(network).__name__} do not fit float16")
    return rounded


def _name_tokenizer(config: Path) -> None:
    said = json.loads(config.read_text()) | {"tokenizer_class": TOKENIZER}
    config.write_text(json.dumps(said, indent=2) + "\n")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the bar that transformers draws while it saves."""
    transformers.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers.utils.logging.enable_progress_bar()
