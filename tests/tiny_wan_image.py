"""A WanImageToVideoPipeline folder with Wan's own layer names and random weights, 0.2 MB, for tests; and images."""

from pathlib import Path

import numpy as np
import torch
from diffusers import FlowMapEulerDiscreteScheduler, WanImageToVideoPipeline, WanTransformer3DModel
from PIL import Image
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

from tests import tiny_wan

VIDEO = tiny_wan.VIDEO
MASK = 2  # channels: as many as frames in a latent frame
SIDE, PATCH = 32, 16  # pixels, of what CLIP sees
CLIP = 8  # channels
PUBLISHED = {  # transformer/config.json of the 14 B models
    "num_attention_heads": 40,
    "attention_head_dim": 128,
    "num_layers": 40,
    "ffn_dim": 13824,
    "text_dim": 4096,
    "freq_dim": 256,
    "image_dim": 1280,
    "added_kv_proj_dim": 5120,
    "in_channels": 36,
    "out_channels": 16,
    "rope_max_seq_len": 1024,
}


def build(folder: Path, shift: float = 3.0, layers: int = 2, seed: int = 0) -> Path:
    """Write the pipeline and return its folder."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipeline = WanImageToVideoPipeline(
            tokenizer=tiny_wan.tokenizer(),
            text_encoder=tiny_wan.text_encoder(),
            vae=tiny_wan.vae(),
            scheduler=FlowMapEulerDiscreteScheduler(shift=shift),
            image_processor=CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=SIDE),
            image_encoder=image_encoder(),
            transformer=transformer(layers),
        )
    pipeline.save_pretrained(folder)
    return folder


def image_encoder() -> CLIPVisionModel:
    """Two layers: the pipeline reads what the last but one returns."""
    size = {"hidden_size": CLIP, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    return CLIPVisionModel(CLIPVisionConfig(image_size=SIDE, patch_size=PATCH, **size)).eval()


def transformer(layers: int) -> WanTransformer3DModel:
    return WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4 + MASK + 4,
        out_channels=4,
        text_dim=16,
        freq_dim=32,
        ffn_dim=32,
        num_layers=layers,
        rope_max_seq_len=32,
        image_dim=CLIP,
        added_kv_proj_dim=24,
    )


def image(path: Path, seed: int = 0, width: int = 60, height: int = 44) -> Path:
    """Write a random picture of smooth colours, of another shape than the videos, and return its path."""
    colours = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(colours).resize((width, height), Image.Resampling.BICUBIC).save(path)
    return path
