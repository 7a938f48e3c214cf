"""Reading stores of latents: what trajectory and video stores have in common. data/shards.py has their files."""

import bisect
import functools
import json
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from safetensors import SafetensorError, safe_open
from torch import Tensor

from .. import disk
from ..errors import UserError
from . import shards
from .shards import Kind

HEADERS = {"fp16": "F16", "fp32": "F32"}  # as safetensors name them
OPEN_FILES = 64


@dataclass(frozen=True)
class Shard:
    """The entry of one file.

    Attributes:
        first: its first record; the others follow.
        crc32: of each stored latent, one tuple per record, empty if it has none; training checks what it reads.
    """

    first: int
    crc32: tuple[tuple[str, ...], ...]
    bytes: int
    sha256: str

    @property
    def samples(self) -> range:
        return range(self.first, self.first + len(self.crc32))

    @property
    def rows(self) -> int:
        return sum(map(bool, self.crc32))

    def row(self, sample: int) -> int:
        """Of a record's latents in the file."""
        return sum(map(bool, self.crc32[: sample - self.first]))


class Store(ABC):
    """A store as its index describes it; latents stay on disk until they are read.

    Attributes:
        info: index.json.
        records: how many there are to be; stores of before this was noted say it by their last entry.
        shards: in the order of their records.
        broken: entries that cannot be read.

    Raises:
        UserError: the folder is not a store of this kind.
    """

    kind: ClassVar[Kind]

    def __init__(self, path: Path):
        self.path, self.info = path, self._checked_index(shards.index(path, self.kind))
        self.broken: list[Path] = []
        named = [entry for entry in sorted((path / "shards").glob("*.json")) if shards.samples_of(entry)]
        entries = [self._entry(entry) for entry in named]
        self.shards = sorted((shard for shard in entries if shard), key=lambda shard: shard.first)
        self.records = max([self.info.get("records", 0), *(shards.samples_of(entry).stop for entry in named)])
        self._firsts = [shard.first for shard in self.shards]
        self._latents = functools.lru_cache(OPEN_FILES)(self._latents)

    @property
    @abstractmethod
    def record_shape(self) -> list[int]:
        """Of a record's row."""

    @abstractmethod
    def _shard(self, said: dict) -> Shard:
        """An entry's; ValueError, KeyError or TypeError if it is none."""

    def _checked_index(self, info: dict) -> dict:
        return info

    def _entry(self, path: Path) -> Shard | None:
        try:
            shard = self._shard(json.loads(path.read_text("utf-8")))
            if shard.samples != shards.samples_of(path):
                raise ValueError("not so many records as it should name")
            return shard
        except (OSError, ValueError, KeyError, TypeError):
            self.broken.append(path)
            return None

    def file(self, shard: Shard) -> Path:
        return shards.file(self.path, shard.samples)

    def missing(self, records: int, size: int) -> list[range]:
        """The records that are not there, as shards; none is longer than the size or crosses a multiple of it."""
        held = {sample for shard in self.shards for sample in shard.samples}
        gaps: list[range] = []
        for sample in (s for s in range(records) if s not in held):
            if gaps and gaps[-1].stop == sample and sample % size:
                gaps[-1] = range(gaps[-1].start, sample + 1)
            else:
                gaps.append(range(sample, sample + 1))
        return gaps

    def latent(self, sample: int, *place: int) -> Tensor:
        """One of a record's latents (C, F, H, W), float32: the only one, or that at a place.

        Raises:
            UserError: it is not what was written.
        """
        shard = self.holding(sample)
        try:
            x = self._latents(shard)[(shard.row(sample), *place)]
        except (SafetensorError, OSError, IndexError) as error:
            raise UserError(f"{self.file(shard)}: damaged ({error}); {self.kind.repair}") from error
        if shards.crc32(x) != shard.crc32[sample - shard.first][sum(place)]:
            fault = f"record {sample} is not what was written"
            raise UserError(f"{self.file(shard)}: damaged ({fault}); {self.kind.repair}")
        return x.float()

    def holding(self, sample: int) -> Shard:
        """The shard with a record."""
        return self.shards[bisect.bisect_right(self._firsts, sample) - 1]

    def _latents(self, shard: Shard):
        """The file's tensor, mapped into memory."""
        return safe_open(self.file(shard), framework="pt").get_slice("latents")

    def damage(self, shard: Shard, thorough: bool) -> str | None:
        """What is wrong with a file, or None; its contents are looked at if `thorough`."""
        path = self.file(shard)
        if not path.is_file():
            return "it is missing"
        if path.stat().st_size != shard.bytes:
            return f"{path.stat().st_size} bytes, its entry says {shard.bytes}"
        if fault := self._other_latents(shard):
            return fault
        return "it does not match its sha256" if thorough and disk.sha256(path) != shard.sha256 else None

    def _other_latents(self, shard: Shard) -> str | None:
        """In what the file's tensor is not of the index's shape and precision."""
        expected = HEADERS.get(self.info["precision"]), [shard.rows, *self.record_shape]
        try:
            found = _header(self.file(shard))["latents"]
            found = found["dtype"], found["shape"]
        except (OSError, ValueError, KeyError, TypeError, OverflowError):
            return "its header is not that of latents"
        (dtype, shape), (said, size) = found, expected
        return None if found == expected else f"latents {dtype} {shape}, the index says {said} {size}"

    def damaged(self, thorough: bool, show: Callable[[int], None] = lambda done: None) -> list[str]:
        """A line for everything that is damaged.

        Args:
            thorough: look at the contents, too, and for records that are missing.
            show: is told how many shards were looked at.
        """
        found = [(path, "not the entry of a shard") for path in self.broken]
        for done, shard in enumerate(self.shards, 1):
            if fault := self.damage(shard, thorough):
                found.append((self.file(shard), fault))
            show(done)
        lines = [f"{path}: damaged ({fault}); {self.kind.repair}" for path, fault in found]
        return lines + ([f"{self.path}: lacks {said}; {self.kind.add}" for said in self._lacks()] if thorough else [])

    def _lacks(self) -> list[str]:
        """The records without an entry, as words."""
        torn = {sample for path in self.broken for sample in shards.samples_of(path)}
        gaps = [gap for gap in self.missing(self.records, sys.maxsize) if not torn.issuperset(gap)]
        return [f"record {gap[0]}" if len(gap) == 1 else f"records {gap[0]} to {gap[-1]}" for gap in gaps]

    def count(self) -> str:
        """How many records there are, and are not."""
        gaps = self.missing(self.records, sys.maxsize)
        lost = f", {sum(map(len, gaps))} missing, the first {gaps[0][0]}" if gaps else ""
        return f"{sum(len(shard.samples) for shard in self.shards)} in {len(self.shards)} shards{lost}"


def _header(path: Path) -> dict:
    """What a safetensors file says of its tensors."""
    with path.open("rb") as opened:
        size = int.from_bytes(opened.read(8), "little")
        return json.loads(opened.read(min(size, path.stat().st_size)))
