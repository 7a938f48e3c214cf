"""Networks as safetensors: NAME.safetensors or, where that would be long, NAME-00001-of-00003.safetensors and so on.

Several come with NAME.safetensors.index.json, which says what is where, as diffusers and transformers have it.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .errors import UserError

MOST_BYTES = 4 << 30  # of one file, which is also what its writer holds in memory
SUFFIX, INDEX = ".safetensors", ".safetensors.index.json"


@dataclass(frozen=True)
class Entry:
    """A tensor in a file.

    Attributes:
        dtype: in the format's own words, such as F32.
    """

    file: Path
    shape: tuple[int, ...]
    dtype: str


def write(
    path: Path, tensors: Iterable[tuple[str, Tensor]], main: bool = True, most_bytes: int = MOST_BYTES
) -> list[Path]:
    """Write a network; returns its files. No more than one of them, and one tensor, is ever in memory.

    Args:
        path: without a suffix.
        tensors: names and tensors; one is only kept until the next is asked for.
        main: a process that is not asks for all tensors, since gathering takes everyone, and writes none.
        most_bytes: of a file that holds more than one tensor.
    """
    if not main:
        for _ in tensors:
            pass
        return []
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_name(path.name + INDEX).unlink(missing_ok=True)
    partial, held = [], []  # how many there will be, and with it their names, is known at the end
    for content in _filled(tensors, most_bytes):
        partial.append(path.with_name(f"{path.name}.{len(partial) + 1:05d}.partial"))
        save_file(content, partial[-1], metadata={"format": "pt"})
        held.append({name: tensor.nbytes for name, tensor in content.items()})
        content.clear()  # before the next is gathered
    return _named(path, partial, held)


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of a network, mapped from its files: they take memory as they are touched, and can be given back."""
    return dict(stream(path))


def stream(path: Path) -> Iterator[tuple[str, Tensor]]:
    """As `read`, one after the other."""
    for file in files(path):
        with opened(file) as content:
            for name in content.keys():  # noqa: SIM118, no dictionary
                yield name, content.get_tensor(name)


def entries(path: Path) -> dict[str, Entry]:
    """What a network's files hold, without reading it."""
    found = {}
    for file in files(path):
        with opened(file) as content:
            for name in content.keys():  # noqa: SIM118, no dictionary
                part = content.get_slice(name)
                found[name] = Entry(file, tuple(part.get_shape()), part.get_dtype())
    return found


def files(path: Path) -> list[Path]:
    """Of a network; UserError names one that is missing."""
    index = path.with_name(path.name + INDEX)
    if not index.is_file():
        whole = path.with_name(path.name + SUFFIX)
        if not whole.is_file():
            raise UserError(f"{path.parent} has no weights: expected {whole.name} or {index.name}")
        return [whole]
    names = sorted(set(_index(index).values()))
    for name in names:
        if not (path.parent / name).is_file():
            raise UserError(f"{path.parent / name} is missing, {index.name} lists it; fetch or copy the folder anew")
    return [path.parent / name for name in names]


def names(folder: Path) -> list[str]:
    """Of the networks in a folder."""
    several = {file.name.removesuffix(INDEX) for file in folder.glob(f"*{INDEX}")}
    parts = {part for name in several for part in _index(folder / f"{name}{INDEX}").values()}
    return sorted(several | {file.stem for file in folder.glob(f"*{SUFFIX}") if file.name not in parts})


def opened(file: Path) -> safe_open:
    """UserError for what is no whole safetensors file."""
    try:
        return safe_open(file, framework="pt")
    except SafetensorError as error:
        raise UserError(
            f"{file} is no whole safetensors file ({file.stat().st_size} bytes; {error}); fetch or copy it anew"
        ) from error


def _filled(tensors: Iterable[tuple[str, Tensor]], most_bytes: int) -> Iterator[dict[str, Tensor]]:
    """What goes into each file: at most so many bytes, or one tensor."""
    content: dict[str, Tensor] = {}
    size = 0
    for name, tensor in tensors:
        if content and size + tensor.nbytes > most_bytes:
            yield content
            content, size = {}, 0
        # a copy: what was gathered is freed, and a view of a flat buffer would be written with all of it
        content[name] = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        size += tensor.nbytes
    if content:
        yield content


def _named(path: Path, partial: list[Path], held: list[Mapping[str, int]]) -> list[Path]:
    if len(partial) == 1:
        return [partial[0].rename(path.with_name(path.name + SUFFIX))]
    found, where = [], {}
    for i, (file, sizes) in enumerate(zip(partial, held, strict=True), 1):
        found.append(file.rename(path.with_name(f"{path.name}-{i:05d}-of-{len(partial):05d}{SUFFIX}")))
        where |= dict.fromkeys(sizes, found[-1].name)
    size = sum(sum(sizes.values()) for sizes in held)
    index = {"metadata": {"total_size": size}, "weight_map": where}
    path.with_name(path.name + INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
    return found


def _index(file: Path) -> dict[str, str]:
    """Tensor -> the name of its file."""
    try:
        return dict(json.loads(file.read_text(encoding="utf-8"))["weight_map"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} is no index of safetensors files ({error}); fetch or copy it anew") from error
