"""Encoded clips on disk: the transformer sees each several times, the autoencoder once."""

import json
import os
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from torch import Tensor

from ..batch import generator
from . import world
from .loop import Workers
from .vae import encode

CHUNK = 32  # clips encoded at a time, drawn from one generator


def video_tensor(clips: list[np.ndarray]) -> Tensor:
    """(B, 3, F, H, W) in [-1, 1] of clips, uint8 (F, H, W, 3)."""
    return torch.from_numpy(np.stack(clips)).permute(0, 4, 1, 2, 3).float() / 127.5 - 1


def draw(key: tuple[int | str, ...], n: int) -> tuple[list[str], Tensor]:
    """n captions to train on and their videos (n, 3, F, H, W), the same for the same key."""
    rng = np.random.default_rng(generator(*key).initial_seed())
    scenes = [world.sample(rng) for _ in range(n)]
    return [world.caption(scene) for scene in scenes], video_tensor([world.render(scene, rng) for scene in scenes])


def fill(vae: AutoencoderKLWan, folder: Path, clips: int, seed: int, workers: Workers) -> tuple[np.ndarray, list[str]]:
    """This process's latents (clips, C, F, H, W), float16, mapped from disk and not normalised, and captions."""
    part = folder / f"clips_{workers.rank}"
    if not part.with_suffix(".json").exists():
        latents, captions = [], []
        for chunk in range(clips // CHUNK):
            said, video = draw(("clips", seed, chunk, workers.rank), CHUNK)
            with torch.no_grad():
                latents.append(encode(vae, video)[0].half().numpy())
            captions += said
        _store(part, np.concatenate(latents), captions)
    return np.load(part.with_suffix(".npy"), mmap_mode="r"), json.loads(part.with_suffix(".json").read_text())


def _store(part: Path, latents: np.ndarray, captions: list[str]) -> None:
    """The captions come last, and whole: where they are, the latents are."""
    np.save(part.with_suffix(".npy"), latents)
    partial = part.with_suffix(".partial")
    partial.write_text(json.dumps(captions))
    os.replace(partial, part.with_suffix(".json"))
