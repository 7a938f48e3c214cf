"""Building networks without weights, and filling them from safetensors: no process holds more than it keeps.

A module is built with parameters on "meta". It is then filled whole, mapped from the files; or it is partitioned first
(ZeRO-3), and of every tensor each process reads its own slice alone.
"""

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from diffusers import ModelMixin
from torch import Tensor, nn

from .. import weights
from ..errors import UserError
from .ends import ToldEnds
from .files import PipelineFiles
from .parts import quiet

WEIGHTS = "diffusion_pytorch_model"  # what diffusers calls a network's files

Names = Callable[[str], str | None]
Partition = Callable[[nn.Module], object]


def build(kind: type[ModelMixin], config: Mapping, path: str, dtype: torch.dtype) -> ModelMixin:
    """A network without weights, which are to have this precision but for those that diffusers spares.

    Args:
        path: of the pipeline, for the message.
    """
    if (said := config.get("_class_name", kind.__name__)) != kind.__name__:
        raise UserError(f"{path}: transformer/config.json is of a {said}, expected a {kind.__name__}")
    with quiet(), without_weights():
        module = kind.from_config(dict(config)).eval()
    spared = set(module._keep_in_fp32_modules or ())
    for name, weight in module.named_parameters():
        weight.data = weight.data.to(torch.float32 if spared & set(name.split(".")) else dtype)
    return module


@contextlib.contextmanager
def without_weights() -> Iterator[None]:
    """Parameters lose their memory as soon as a module has them; what it computes for its buffers is real."""
    register = nn.Module.register_parameter

    def on_meta(module: nn.Module, name: str, weight: nn.Parameter | None) -> None:
        register(module, name, weight if weight is None else nn.Parameter(weight.to("meta"), weight.requires_grad))

    nn.Module.register_parameter = on_meta
    try:
        yield
    finally:
        nn.Module.register_parameter = register


def of_pipeline(
    module: ToldEnds,
    files: PipelineFiles,
    device: torch.device | str,
    *,
    ends: bool = False,
    partition: Partition | None = None,
) -> ToldEnds:
    """What base.Teacher.network returns, of a velocity network around what `build` returned."""
    if ends:
        module.tell_ends()
    if torch.device(device).type == "meta":
        return module
    files.weights("transformer")
    path = files.folder("transformer") / "transformer" / WEIGHTS
    unused = module.transformer._keys_to_ignore_on_load_unexpected or ()
    fill(module, path, device, names=module.stock_name, unused=unused, partition=partition)
    return module.to(device)


def fill(
    module: nn.Module,
    path: Path,
    device: torch.device | str = "cpu",
    *,
    names: Names = lambda name: name,
    unused: Sequence[str] = (),
    partition: Partition | None = None,
) -> None:
    """Give a module that was built without weights those of files (distill/weights.py), in its own precision.

    Args:
        device: of the parameters.
        names: a name of the module's -> that in the files; None is a tensor of zeros.
        unused: patterns of names in the files that the module may lack.
        partition: leaves a piece of each parameter of a module on this process (base.Teacher.network).

    Raises:
        UserError: a file is missing or damaged, or the files are not of this module.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    stored = {name: names(name) for name in shapes}
    _check(stored, shapes, path, unused)
    if partition is None:
        _fill(module, stored, path, device)
    else:
        _partition(module, device, partition)
        _fill_pieces(module, stored, path)


def _check(
    stored: Mapping[str, str | None], shapes: Mapping[str, tuple[int, ...]], path: Path, unused: Sequence[str]
) -> None:
    """UserError for the first tensor of another shape, or that is missing, or left over."""
    found, at = weights.entries(path), f"{path.parent}: these weights are not of the network that its config describes"
    wanted = {there: shapes[name] for name, there in stored.items() if there is not None}
    for name, shape in wanted.items():
        if name in found and found[name].shape != shape:
            raise UserError(f"{at}: {name} has shape {found[name].shape} in {found[name].file.name}, expected {shape}")
    if missing := [name for name in wanted if name not in found]:
        raise UserError(f"{at}: {missing[0]} is missing ({len(missing)} of {len(wanted)} tensors are)")
    over = [name for name in found if name not in wanted and not any(re.search(each, name) for each in unused)]
    if over:
        raise UserError(f"{at}: it has no place for {over[0]} ({len(over)} of {len(found)} tensors are left over)")


def _fill(module: nn.Module, stored: Mapping[str, str | None], path: Path, device: torch.device | str) -> None:
    like = module.state_dict()
    whole = {name: torch.zeros_like(like[name], device=device) for name, there in stored.items() if there is None}
    for name, tensor in _each(stored, path):
        whole[name] = tensor.to(device, like[name].dtype)
    module.load_state_dict(whole, assign=True)


def _partition(module: nn.Module, device: torch.device | str, partition: Partition) -> None:
    """Leave pieces of parameters that have memory, and nothing in it.

    All have the same memory: blocks of their own would stay with the process when they are freed between pieces
    (docs/engines.md has the measurement).
    """
    memory = torch.empty(max(weight.nbytes for weight in module.parameters()), dtype=torch.uint8, device=device)
    for each in reversed(list(module.modules())):  # a module is partitioned after those in it
        own = dict(each.named_parameters(recurse=False))
        for name, weight in own.items():
            lent = memory[: weight.nbytes].view(weight.dtype).view(weight.shape)
            setattr(each, name, nn.Parameter(lent, weight.requires_grad))
        if own:
            partition(each)


def _fill_pieces(module: nn.Module, stored: Mapping[str, str | None], path: Path) -> None:
    targets = dict(module.named_parameters()) | dict(module.named_buffers())
    for name, there in stored.items():
        if there is None:
            targets[name].ds_tensor.zero_()
    for name, tensor in _each(stored, path):
        target = targets[name]
        if isinstance(target, nn.Parameter):
            _fill_piece(target, tensor)
        else:
            target.copy_(tensor)


def _fill_piece(weight: nn.Parameter, tensor: Tensor) -> None:
    """This process's slice of a flat tensor, in `ds_tensor`; zeros behind the tensor's end."""
    piece, rank = weight.ds_tensor, weight.ds_zero_partition_rank
    mine = tensor.flatten()[rank * piece.numel() : (rank + 1) * piece.numel()]
    piece.zero_()
    piece[: mine.numel()].copy_(mine)


def _each(stored: Mapping[str, str | None], path: Path) -> Iterator[tuple[str, Tensor]]:
    """Names of the module with the tensors in the files, in these files' order."""
    wanted: dict[str, list[str]] = {}
    for name, there in stored.items():
        if there is not None:
            wanted.setdefault(there, []).append(name)
    for there, tensor in weights.stream(path):
        for name in wanted.get(there, ()):
            yield name, tensor
