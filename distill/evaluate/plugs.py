"""Metrics that distill does not bring: those that need weights, and the user's own.

`clip_score` and `dino_consistency` run where their weights lie in the hub's cache, or in a folder that the user names
(`clip_score=FOLDER`); nothing is ever downloaded. `package.module:function` is any function that returns one number for
a clip and takes, by these names, what it needs of

    video: uint8 (F, H, W, 3); reference: the same, of the teacher of most steps; fps; prompt.

One that takes `reference` is a metric of a pair. Its attributes `better` and `unit`, where it has them, and the first
line of its docstring go into the tables.
"""

import inspect
import math
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import numpy as np
import torch
import transformers

from ..curate import imaging, scorers
from ..errors import UserError
from .metrics import Metric

GIVEN = ("video", "reference", "fps", "prompt")
BETTER = ("higher", "lower", "reference")
MODELS = {"clip_score": "openai/clip-vit-base-patch32", "dino_consistency": "facebook/dinov2-base"}
BATCH = 32  # frames

_folders: dict[str, str] = {}  # where the user said that weights are


def place(name: str, folder: str) -> None:
    """From now on the weights of a metric are in this folder."""
    _folders[name] = folder


def measured(name: str, given: Mapping[str, Any]) -> float:
    """One metric of one clip.

    Raises:
        ValueError: it failed, or returned something else than a number.
    """
    if name in MODELS:
        return {"clip_score": clip_score, "dino_consistency": dino_consistency}[name](given["video"], given["prompt"])
    function = scorers.load("metrics", name)
    try:
        value = float(function(**{key: given[key] for key in _parameters(function)}))
    except Exception as error:  # it is somebody else's code
        raise ValueError(f"{name} failed: {type(error).__name__}: {error}") from error
    if not math.isfinite(value):
        raise ValueError(f"{name} returned {value}; expected a finite number")
    return value


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
    model, processor = _loaded("clip_score")
    tokens = processor.tokenizer([prompt], return_tensors="pt", truncation=True).to(model.device)
    cosines = []
    for pixels in _prepared(video, processor.image_processor, model.device):
        seen = model(pixel_values=pixels, **tokens)
        cosines += torch.nn.functional.cosine_similarity(seen.image_embeds, seen.text_embeds).tolist()
    return 100 * float(np.clip(cosines, 0, None).mean())


@torch.no_grad()
def dino_consistency(video: np.ndarray, prompt: str) -> float:
    """VBench's form of subject consistency, in DINOv2: likeness of each frame to the one before and to the first."""
    model, processor = _loaded("dino_consistency")
    rows = [model(pixel_values=pixels).pooler_output for pixels in _prepared(video, processor, model.device)]
    return imaging.consistency(torch.cat(rows).double().cpu().numpy())


def _prepared(video: np.ndarray, processor, device: torch.device):
    """Batches of frames as a network wants them."""
    for start in range(0, len(video), BATCH):
        frames = list(video[start : start + BATCH])
        yield processor(images=frames, return_tensors="pt")["pixel_values"].to(device)


def missing(name: str) -> str:
    """What keeps a metric from being measured here and what to do, or nothing."""
    found = _tried(name, _source(name))
    return str(found) if isinstance(found, Absent) else ""


class Absent(ValueError):
    """Weights that are not on this machine."""


def _loaded(name: str) -> tuple[Any, Any]:
    """A network and what prepares its input."""
    found = _tried(name, _source(name))
    if isinstance(found, Absent):
        raise Absent(str(found))
    return found


def _source(name: str) -> str:
    return _folders.get(name, MODELS[name])


@cache
def _tried(name: str, source: str) -> "tuple[Any, Any] | Absent":
    """Loaded once, and looked for once."""
    try:
        return _load(name, source)
    except Absent as error:
        return error


def _load(name: str, source: str) -> tuple[Any, Any]:
    kinds = {
        "clip_score": ("clip", transformers.CLIPModel, transformers.CLIPProcessor),
        "dino_consistency": ("dinov2", transformers.Dinov2Model, transformers.AutoImageProcessor),
    }
    kind, network, processor = kinds[name]
    try:
        if (found := transformers.AutoConfig.from_pretrained(source, local_files_only=True).model_type) != kind:
            raise ValueError(f"it holds a model of type {found!r}, expected {kind!r}")
        model, told = network.from_pretrained(source, local_files_only=True, output_loading_info=True)
        if told["missing_keys"]:
            raise ValueError(f"its weights lack {sorted(told['missing_keys'])[0]}")
        ready = processor.from_pretrained(source, local_files_only=True)
    except (OSError, ValueError) as error:
        if source == MODELS[name]:
            get = f"get them with `hf download {source}`, or say where they are with {name}=FOLDER"
            raise Absent(f"{name}: the weights of {source} are not in the hub's cache; {get}") from error
        why = " ".join(str(error).split())[:200]
        raise Absent(f"{name}: {source} has no model that can be loaded ({why}); get {MODELS[name]} there") from error
    return model.eval().to("cuda" if torch.cuda.is_available() else "cpu"), ready
