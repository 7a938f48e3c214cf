"""What was sampled and measured once is kept, under names that follow from all that it depends on.

Whoever asks for the same latents or values again gets them from here: another run with the same teacher, another
command, the same command after a kill. Removing any of the files is safe, they are made anew.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .. import health
from ..curate import imaging
from ..data import prompts
from ..disk import replace
from ..embedded import world as embedded_world
from ..engine import Engine

LIMIT = 20 << 30  # bytes of latents and values that are kept; beyond, those that were not used for longest go


def folder() -> Path:
    """In the folder of caches, beside the encodings of prompts."""
    return prompts.default_cache() / "evaluations"


def tensors(path: Path, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """What the file holds; made now, and kept, if it is not there or damaged."""
    return _kept(path, load_file, make, lambda content, file: save_file(content, file))


def values(path: Path, make: Callable[[], dict]) -> dict:
    """The same of JSON."""
    return _kept(path, lambda file: json.loads(file.read_text()), make, lambda content, file: write(content, file))


def together(keep: Callable[[Path, Callable[[], dict]], dict], path: Path, make: Callable, engine: Engine) -> dict:
    """What `tensors` or `values` returns, where making it takes all processes: every one of them comes here."""

    def missing() -> dict:
        raise FileNotFoundError(path)

    def there() -> bool:
        try:
            return bool(keep(path, missing))
        except FileNotFoundError:
            return False

    if not engine.main_first(there):
        content = make()
        engine.main_first(lambda: bool(keep(path, lambda: content)))
    return keep(path, make)


def _kept(path: Path, read: Callable[[Path], dict], make: Callable[[], dict], save: Callable) -> dict:
    if path.exists():
        try:
            content = read(path)
            os.utime(path)  # it was used: `trim` goes by that
            return content
        except (OSError, ValueError, SafetensorError):  # torn, or removed meanwhile
            pass
    content = make()
    replace(path, lambda file: save(content, file))
    return content


def write(content: dict, path: Path) -> None:
    """JSON of numbers that are all finite."""
    path.write_text(json.dumps(content, indent=1, allow_nan=False))


def trim(limit: int = LIMIT) -> None:
    """Remove what was not used for longest until the rest is within the limit."""
    found = [(path, path.stat()) for path in folder().rglob("*") if path.is_file()]
    size = sum(stat.st_size for _, stat in found)
    for path, stat in sorted(found, key=lambda pair: pair[1].st_mtime):
        if size <= limit:
            break
        path.unlink(missing_ok=True)
        size -= stat.st_size


def weights(module: nn.Module) -> str:
    """16 hex digits of the sha256 of a network's weights and buffers."""
    return contents(sorted(module.state_dict().items()))


def contents(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """The same of tensors by name, in the order of names (Role.everything)."""
    digest = hashlib.sha256()
    for name, tensor in tensors:
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


@cache
def code() -> str:
    """12 hex digits that change with the code that measures: values of other code are not taken for its own."""
    others = [Path(module.__file__) for module in (health, imaging, embedded_world)]
    sources = sorted(Path(__file__).parent.glob("*.py")) + others
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:12]
