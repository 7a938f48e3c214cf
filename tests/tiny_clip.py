"""A CLIP small enough for tests, and a machine without any weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
import transformers

from distill.evaluate import weights

SIDE = 16  # pixels, of what it sees
WIDTH = 8  # of its embeddings
TINY = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
OPENAI = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # mean and deviation of pixels


@contextmanager
def nothing_at_hand(monkeypatch, tmp_path: Path) -> Iterator[None]:
    """No folder was named, and the caches of the hub and of torch are empty."""
    monkeypatch.setattr(weights, "_folders", {})
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "torch"))
    forget()
    yield
    forget()


def forget() -> None:
    weights._tried.cache_clear()
    weights._identity.cache_clear()


def build(folder: Path, seed: int = 0) -> Path:
    """A CLIP of five words with weights drawn by chance, as `save_pretrained` writes it."""
    torch.manual_seed(seed)
    words = ["<|startoftext|>", "<|endoftext|>", "a</w>", "b</w>", "c</w>"]
    text = TINY | {"vocab_size": len(words), "max_position_embeddings": 8, "bos_token_id": 0, "eos_token_id": 1}
    seen = TINY | {"image_size": SIDE, "patch_size": 8}
    config = transformers.CLIPConfig(text_config=text, vision_config=seen, projection_dim=WIDTH)
    transformers.CLIPModel(config).save_pretrained(folder)
    transformers.CLIPProcessor(
        transformers.CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=SIDE),
        transformers.CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=8),
    ).save_pretrained(folder)
    return folder


def prepared(video: np.ndarray, mean: tuple = OPENAI[0], deviation: tuple = OPENAI[1]) -> torch.Tensor:
    """What a network wants to see of frames of the right size."""
    return torch.from_numpy(((video / 255 - mean) / deviation).astype(np.float32)).movedim(-1, 1)
