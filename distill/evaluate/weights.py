"""Where the weights of metrics are, and what keeps them from being used. Nothing is ever downloaded.

Models of transformers lie in the hub's cache, single files in torch's (`hub/checkpoints`), or all of a metric's in one
folder that the user names (`clip_score=FOLDER`).
"""

import pickle
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torchmetrics
import transformers
from torch import Tensor, nn

from . import kept
from .lpips import Lpips

MODELS = {
    "clip_score": "openai/clip-vit-base-patch32",
    "dino_consistency": "facebook/dinov2-base",
    "aesthetic": "openai/clip-vit-large-patch14",
}
KINDS = {
    "clip_score": ("clip", transformers.CLIPModel, transformers.CLIPProcessor),
    "dino_consistency": ("dinov2", transformers.Dinov2Model, transformers.AutoImageProcessor),
    "aesthetic": ("clip", transformers.CLIPModel, transformers.CLIPImageProcessor),
}
ALEXNET = "alexnet-owt-7be5be79.pth"  # as torchvision names the file
LPIPS_HEADS = "functional/image/lpips_models/alex.pth"  # of torchmetrics; BSD-2-Clause, R. Zhang et al.
AESTHETIC_HEADS = ("sac+logos+ava1-l14-linearMSE.pth", "sa_0_4_vit_l_14_linear.pth")  # the first that is there
LINEAR = {"weight", "bias"}  # keys of the second
CHAIN, HIDDEN = (0, 2, 4, 6, 7), (1024, 128, 64, 16)  # layers and widths of the first; between them was dropout

_folders: dict[str, str] = {}  # where the user said that weights are


class Absent(ValueError):
    """Weights that are not on this machine."""


def place(name: str, folder: str) -> None:
    """From now on the weights of a metric are in this folder."""
    _folders[name] = folder


def missing(name: str) -> str:
    """What keeps a metric from being measured here and what to do, or nothing."""
    found = _tried(name, _folders.get(name))
    return str(found) if isinstance(found, Absent) else ""


def loaded(name: str) -> tuple[Any, ...]:
    """A metric's network first, then what goes with it.

    Raises:
        Absent: its weights are not here.
    """
    found = _tried(name, _folders.get(name))
    if isinstance(found, Absent):
        raise Absent(str(found))
    return found


def identity(name: str) -> str:
    """Digits that change with the weights."""
    return _identity(name, _folders.get(name))


@cache
def _identity(name: str, folder: str | None) -> str:
    networks = [part for part in _tried(name, folder) if isinstance(part, nn.Module)]
    return " ".join(map(kept.weights, networks))


@cache
def _tried(name: str, folder: str | None) -> tuple[Any, ...] | Absent:
    """Loaded once, and looked for once."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        parts = LOADERS[name](name, folder) if name in LOADERS else _transformer(name, folder)
    except Absent as error:
        return error
    return tuple(part.eval().to(device) if isinstance(part, nn.Module) else part for part in parts)


def _transformer(name: str, folder: str | None) -> tuple[Any, Any]:
    """A network and what prepares its input."""
    source, (kind, network, processor) = folder or MODELS[name], KINDS[name]
    try:
        if (found := transformers.AutoConfig.from_pretrained(source, local_files_only=True).model_type) != kind:
            raise ValueError(f"it holds a model of type {found!r}, expected {kind!r}")
        model, told = network.from_pretrained(source, local_files_only=True, output_loading_info=True)
        if told["missing_keys"]:
            raise ValueError(f"its weights lack {sorted(told['missing_keys'])[0]}")
        return model, processor.from_pretrained(source, local_files_only=True)
    except (OSError, ValueError) as error:
        if folder is None:
            get = f"get them with `hf download {source}`, or say where they are with {name}=FOLDER"
            raise Absent(f"{name}: the weights of {source} are not in the hub's cache; {get}") from error
        why = " ".join(str(error).split())[:200]
        raise Absent(f"{name}: {source} has no model that can be loaded ({why}); get {MODELS[name]} there") from error


def _aesthetic(name: str, folder: str | None) -> tuple[Any, Any, nn.Module]:
    model, processor = _transformer(name, folder)
    path = _file(name, folder, AESTHETIC_HEADS)
    state = _state(name, path)
    return model, processor, _filled(name, path, _head(model.config.projection_dim, linear=set(state) == LINEAR), state)


def _head(width: int, linear: bool) -> nn.Module:
    """The layers of a published head, under the names that they have in its file."""
    if linear:
        return nn.Linear(width, 1)
    sizes = zip(CHAIN, pairwise([width, *HIDDEN, 1]), strict=True)
    layers = nn.Sequential(OrderedDict((str(i), nn.Linear(*size)) for i, size in sizes))
    return nn.Sequential(OrderedDict(layers=layers))


def _lpips(name: str, folder: str | None) -> tuple[nn.Module]:
    path, heads = _file(name, folder, (ALEXNET,)), Path(torchmetrics.__file__).parent / LPIPS_HEADS
    backbone = {key: value for key, value in _state(name, path).items() if key.startswith("features.")}
    learned = {f"heads.{key[3]}": value.flatten() for key, value in _state(name, heads).items()}  # lin0.model.1.weight
    return (_filled(name, path, Lpips(), backbone | learned),)


LOADERS = {"aesthetic": _aesthetic, "lpips": _lpips}


def _file(name: str, folder: str | None, names: Sequence[str]) -> Path:
    """The first of these files that is there."""
    where = Path(folder or Path(torch.hub.get_dir()) / "checkpoints")
    for path in map(where.joinpath, names):
        if path.is_file():
            return path
    place = folder or "hub/checkpoints of torch's cache ($TORCH_HOME, or ~/.cache/torch)"
    raise Absent(f"{name}: {' or '.join(names)} is not in {place}; put it there, or say where it is with {name}=FOLDER")


def _state(name: str, path: Path) -> dict[str, Tensor]:
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, ValueError, pickle.UnpicklingError) as error:
        kind = type(error).__name__
        raise Absent(f"{name}: {path.name} cannot be read as weights ({kind}); get it again") from error
    if isinstance(found, Mapping) and all(isinstance(value, Tensor) for value in found.values()):
        return dict(found)
    raise Absent(f"{name}: {path.name} holds {type(found).__name__}, expected tensors by name; get it again")


def _filled(name: str, path: Path, network: nn.Module, state: dict[str, Tensor]) -> nn.Module:
    """The network with these weights, all of them and no others."""
    wanted, found = ({key: tuple(value.shape) for key, value in each.items()} for each in (network.state_dict(), state))
    for key in [*wanted, *found]:
        if wanted.get(key) != found.get(key):
            has, expected = (f"of shape {each[key]}" if key in each else "absent" for each in (found, wanted))
            raise Absent(
                f"{name}: {path.name}: {key} is {has}, expected {expected}; these are weights of something else"
            )
    network.load_state_dict(state)
    return network
