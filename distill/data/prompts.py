"""Prompts' encodings, kept on disk so that the text encoder is needed once."""

import os
import tempfile
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import pad

from .. import image_prompt
from ..batch import Condition
from ..errors import UserError
from ..teachers.base import Teacher
from .prompt_file import listed, read

__all__ = ["Embeddings", "default_cache", "listed", "read"]

ENCODED_AT_ONCE = 32


def default_cache() -> Path:
    """$DISTILL_CACHE, or distill's folder in the user's cache."""
    return Path(os.environ.get("DISTILL_CACHE") or Path.home() / ".cache" / "distill")


class Embeddings:
    """A teacher's encodings of prompts, in one file each, named by teacher, text length and prompt (and image)."""

    def __init__(self, teacher: Teacher, folder: Path | None = None):
        self.teacher = teacher
        self.folder = (folder or default_cache()) / "embeddings" / teacher.fingerprint

    def prepare(self, prompts: Sequence[str], negative: str | None = None) -> None:
        """Encode what is not there yet; afterwards `get` needs no text encoder.

        Args:
            negative: a prompt without an image, whatever the family.
        """
        image_prompt.check(prompts, self.teacher)
        wanted = dict.fromkeys([*prompts, *([] if negative is None else [negative])])
        missing = [p for p in wanted if not self._file(p).is_file()]
        for kind in (True, False):
            self._encode([p for p in missing if image_prompt.has_image(p) == kind])

    def _encode(self, prompts: list[str]) -> None:
        for start in range(0, len(prompts), ENCODED_AT_ONCE):
            some = prompts[start : start + ENCODED_AT_ONCE]
            cond = self.teacher.encode(some)
            for i, prompt in enumerate(some):
                _write(self._file(prompt), {name: rows[i] for name, rows in cond.items()})

    def get(self, prompts: Sequence[str]) -> Condition:
        """The condition of prepared prompts, one row each."""
        rows = [_read(self._file(p)) for p in prompts]
        return Condition({name: torch.stack([row[name] for row in rows]) for name in rows[0]})

    def _file(self, prompt: str) -> Path:
        name = blake2b(self._key(prompt).encode(), digest_size=16).hexdigest()
        return self.folder / name[:2] / f"{name}.safetensors"

    def _key(self, prompt: str) -> str:
        """What its encoding depends on; an image counts by its content, and by the size that it is encoded for."""
        length, video = self.teacher.max_sequence_length, self.teacher.video
        if not image_prompt.has_image(prompt):
            return f"{length}\n{prompt}"
        size = f"{video.frames} {video.height} {video.width}"
        return f"{length}\n{size}\n{image_prompt.content(prompt)}\n{image_prompt.text(prompt)}"


def _write(path: Path, tensors: dict[str, Tensor]) -> None:
    """Without the zeros that pad them, whose number the metadata keep; whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lengths = {name: str(len(t)) for name, t in tensors.items()}
    trimmed = {name: _compact(t[: _length(t)]) for name, t in tensors.items()}
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".tmp", delete=False) as file:
        try:
            save_file(trimmed, file.name, metadata=lengths)
        except SafetensorError as error:
            os.unlink(file.name)
            raise UserError(f"{path}: cannot be written ({error}); DISTILL_CACHE may name another folder") from error
    os.replace(file.name, path)


def _read(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            found = {name: (file.get_tensor(name).float(), int(length)) for name, length in file.metadata().items()}
    except SafetensorError as error:
        raise UserError(f"{path}: damaged ({error}); remove it, and the prompt is encoded again") from error
    return {name: pad(t, [0, 0] * (t.ndim - 1) + [0, length - len(t)]) for name, (t, length) in found.items()}


def _length(t: Tensor) -> int:
    """Up to the last row that is not zero."""
    rows = t.flatten(1).any(1) if t.ndim > 1 else t != 0
    return int(rows.nonzero().max()) + 1 if rows.any() else 0


def _compact(t: Tensor) -> Tensor:
    """In bf16 or fp16 if that loses nothing, as for a text encoder that computes in it."""
    halves = [half for half in (t.bfloat16(), t.half()) if torch.equal(half.float(), t)]
    return [*halves, t][0].contiguous()
