"""Metrics that distill does not bring: those that need weights, and the user's own.

`clip_score`, `dino_consistency`, `lpips` and `aesthetic` run where their weights are (weights.py).
`package.module:function` is any function that returns one number for a clip and takes, by these names, what it needs of

    video: uint8 (F, H, W, 3); reference: the same, of the teacher of most steps; fps; prompt.

One that takes `reference` is a metric of a pair. Its attributes `better` and `unit`, where it has them, and the first
line of its docstring go into the tables.
"""

import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..curate import imaging, scorers
from ..errors import UserError
from . import weights
from .metrics import Metric

GIVEN = ("video", "reference", "fps", "prompt")
BETTER = ("higher", "lower", "reference")
BATCH = 32  # frames


def measured(name: str, given: Mapping[str, Any]) -> float:
    """One metric of one clip.

    Raises:
        ValueError: it failed, or returned something else than a number.
    """
    if name in MEASURES:
        return _called(MEASURES[name], given)
    function = scorers.load("metrics", name)
    try:
        value = float(_called(function, given))
    except Exception as error:  # it is somebody else's code
        raise ValueError(f"{name} failed: {type(error).__name__}: {error}") from error
    if not math.isfinite(value):
        raise ValueError(f"{name} returned {value}; expected a finite number")
    return value


def _called(function: Callable, given: Mapping[str, Any]) -> Any:
    return function(**{key: given[key] for key in _parameters(function)})


def own(name: str) -> Metric:
    """The user's metric of that name, `package.module:function`.

    Raises:
        UserError: there is none, or it cannot be called.
    """
    function = scorers.load("metrics", name)
    takes, better = _parameters(function), getattr(function, "better", "reference")
    if unknown := [key for key in takes if key not in GIVEN]:
        raise UserError(f"metric {name} takes {unknown[0]!r}; expected {', '.join(GIVEN)}, or a default value")
    if better not in BETTER:
        raise UserError(f"metric {name} has better = {better!r}; expected {', '.join(BETTER)}")
    about = (inspect.getdoc(function) or "a metric of the user's").partition("\n")[0]
    kind = "pair" if "reference" in takes else "clip"
    return Metric(name, kind, better, str(getattr(function, "unit", "")), about)


def _parameters(function: Callable) -> list[str]:
    """What a function has to be given, and what of GIVEN it may be."""
    parameters = inspect.signature(function).parameters.values()
    named = [p for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    return [p.name for p in named if p.default is p.empty or p.name in GIVEN]


@torch.no_grad()
def clip_score(video: np.ndarray, prompt: str) -> float:
    """100 times the mean over frames of the cosine to the prompt in CLIP, none below 0."""
    model, processor = weights.loaded("clip_score")
    tokens = processor.tokenizer([prompt], return_tensors="pt", truncation=True).to(model.device)
    cosines = []
    for pixels in _prepared(video, processor.image_processor, model.device):
        seen = model(pixel_values=pixels, **tokens)
        cosines += torch.nn.functional.cosine_similarity(seen.image_embeds, seen.text_embeds).tolist()
    return 100 * float(np.clip(cosines, 0, None).mean())


@torch.no_grad()
def dino_consistency(video: np.ndarray) -> float:
    """VBench's form of subject consistency, in DINOv2: likeness of each frame to the one before and to the first."""
    model, processor = weights.loaded("dino_consistency")
    rows = [model(pixel_values=pixels).pooler_output for pixels in _prepared(video, processor, model.device)]
    return imaging.consistency(torch.cat(rows).double().cpu().numpy())


@torch.no_grad()
def aesthetic(video: np.ndarray) -> float:
    """LAION's predictor: mean over frames of a head on CLIP's image embedding of length 1, about 1 to 10."""
    model, processor, head = weights.loaded("aesthetic")
    seen = (model.get_image_features(pixels).pooler_output for pixels in _prepared(video, processor, model.device))
    rows = [head(torch.nn.functional.normalize(each)) for each in seen]
    return torch.cat(rows).mean().item()


@torch.no_grad()
def lpips(video: np.ndarray, reference: np.ndarray) -> float:
    """Mean over frames of the distance to the reference's frame in AlexNet (lpips.py)."""
    (network,) = weights.loaded("lpips")
    device = next(network.parameters()).device
    rows = []
    for start in range(0, len(video), BATCH):
        both = (_pixels(clip[start : start + BATCH]).to(device) for clip in (video, reference))
        rows.append(network(*both))
    return torch.cat(rows).mean().item()


MEASURES = {each.__name__: each for each in (clip_score, dino_consistency, aesthetic, lpips)}


def _pixels(frames: np.ndarray) -> Tensor:
    """uint8 (F, H, W, 3) -> (F, 3, H, W) from -1 to 1."""
    return torch.from_numpy(frames).movedim(-1, 1) / 127.5 - 1


def _prepared(video: np.ndarray, processor: Any, device: torch.device) -> Iterator[Tensor]:
    """Batches of frames as a network wants them."""
    for start in range(0, len(video), BATCH):
        frames = list(video[start : start + BATCH])
        yield processor(images=frames, return_tensors="pt")["pixel_values"].to(device)
