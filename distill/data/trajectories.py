"""Trajectory stores: a teacher's latents at the key steps of its own denoising, recorded once (docs/trajectories.md).

STORE/index.json says how the records were made. STORE/shards/FIRST-LAST.safetensors holds one tensor, `latents`
(R, K + 1, C, F, H, W), noise first; the .json of the same name is written after it and makes its records count.
"""

import bisect
import functools
import hashlib
import json
import os
import shutil
import sys
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .. import disk, image_prompt
from ..errors import UserError

VERSION = 1
INDEX = "index.json"
PARTIAL = ".partial"  # ends the names of files that are being written
DTYPES = {"fp16": torch.float16, "fp32": torch.float32}
HEADERS = {"fp16": "F16", "fp32": "F32"}  # as safetensors name them
KINDS = {
    **dict.fromkeys(("teacher.family", "teacher.path", "teacher.fingerprint", "precision"), str),
    **dict.fromkeys(("version", "video.frames", "video.height", "video.width", "steps", "seed"), int),
    **dict.fromkeys(("shift", "guidance"), int | float),
    **dict.fromkeys(("latent_shape", "levels"), list),
}  # what index.json must say
OPEN_FILES = 64
REPAIR = "record it anew with `distill synthesize RECIPE`"
ADD = "record what is missing with `distill synthesize RECIPE`"


@dataclass(frozen=True)
class Shard:
    """The entry of one file.

    Attributes:
        first: its first record; the others follow.
        images: the contents (image_prompt.content) of those that the prompts name.
        crc32: of each stored latent, one row per record; training checks what it reads.
    """

    first: int
    prompts: tuple[str, ...]
    images: tuple[str | None, ...]
    crc32: tuple[tuple[str, ...], ...]
    bytes: int
    sha256: str

    @property
    def samples(self) -> range:
        return range(self.first, self.first + len(self.prompts))


class Store:
    """A store as its index describes it; latents stay on disk until `read`.

    Attributes:
        info: index.json.
        records: how many there are to be; stores of before this was noted say it by their last entry.
        shards: in the order of their records.
        broken: entries that cannot be read.

    Raises:
        UserError: the folder is not a store.
    """

    def __init__(self, path: Path):
        self.path, self.info = path, _index(path)
        self.broken: list[Path] = []
        named = [entry for entry in sorted((path / "shards").glob("*.json")) if samples_of(entry)]
        entries = [self._entry(entry) for entry in named]
        self.shards = sorted((shard for shard in entries if shard), key=lambda shard: shard.first)
        self.records = max([self.info.get("records", 0), *(samples_of(entry).stop for entry in named)])
        self._firsts = [shard.first for shard in self.shards]
        self._latents = functools.lru_cache(OPEN_FILES)(self._latents)

    def _entry(self, path: Path) -> Shard | None:
        try:
            said = json.loads(path.read_text("utf-8"))
            prompts, sums = ([record[key] for record in said["records"]] for key in ("prompt", "crc32"))
            images = tuple(record.get("image") for record in said["records"])
            crc32 = tuple(map(tuple, sums))
            shard = Shard(int(said["first"]), tuple(prompts), images, crc32, said["bytes"], said["sha256"])
            if shard.samples != samples_of(path) or {len(row) for row in crc32} != {len(self.info["levels"])}:
                raise ValueError("not so many records, or sums, as it should name")
            return shard
        except (OSError, ValueError, KeyError, TypeError):
            self.broken.append(path)
            return None

    def file(self, shard: Shard) -> Path:
        return file(self.path, shard.samples)

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

    def prompt(self, sample: int) -> str:
        shard, row = self._find(sample)
        return shard.prompts[row]

    def read(self, sample: int, places: Sequence[int]) -> Tensor:
        """A record's latents at these places among the stored levels, (len(places), C, F, H, W), float32.

        Raises:
            UserError: they are not what was written.
        """
        shard, row = self._find(sample)
        try:
            found = [self._latents(shard)[row, place] for place in places]
        except (SafetensorError, OSError, IndexError) as error:
            raise UserError(f"{self.file(shard)}: damaged ({error}); {REPAIR}") from error
        for place, x in zip(places, found, strict=True):
            if _crc32(x) != shard.crc32[row][place]:
                raise UserError(f"{self.file(shard)}: damaged (record {sample} is not what was written); {REPAIR}")
        return torch.stack(found).float()

    def _find(self, sample: int) -> tuple[Shard, int]:
        shard = self.shards[bisect.bisect_right(self._firsts, sample) - 1]
        return shard, sample - shard.first

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
        expected = HEADERS.get(self.info["precision"]), [len(shard.prompts), *record_shape(self.info)]
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
        lines = [f"{path}: damaged ({fault}); {REPAIR}" for path, fault in found]
        return lines + ([f"{self.path}: lacks {said}; {ADD}" for said in self._lacks()] if thorough else [])

    def _lacks(self) -> list[str]:
        """The records without an entry, as words."""
        torn = {sample for path in self.broken for sample in samples_of(path)}
        gaps = [gap for gap in self.missing(self.records, sys.maxsize) if not torn.issuperset(gap)]
        return [f"record {gap[0]}" if len(gap) == 1 else f"records {gap[0]} to {gap[-1]}" for gap in gaps]

    def describe(self) -> list[str]:
        """Lines for people."""
        info, shape = self.info, " x ".join(map(str, self.info["latent_shape"]))
        size = " x ".join(str(info["video"][side]) for side in ("frames", "height", "width"))
        levels = ", ".join(f"{level:.4g}" for level in info["levels"])
        gaps = self.missing(self.records, sys.maxsize)
        lost = f", {sum(map(len, gaps))} missing, the first {gaps[0][0]}" if gaps else ""
        return [
            f"teacher   {info['teacher']['family']} {info['teacher']['path']} ({info['teacher']['fingerprint']})",
            f"video     {size} (frames, height, width), latents {shape} (channels, frames, height, width)",
            f"recorder  {info['steps']} steps, shift {info['shift']}, guidance {info['guidance']}, seed {info['seed']}",
            f"levels    {levels}, in {info['precision']}",
            f"records   {sum(len(shard.prompts) for shard in self.shards)} in {len(self.shards)} shards{lost}",
        ]

    def digest(self, records: int) -> str:
        """Changes with what training sees of so many records, not with where they lie."""
        info = self.info | {"teacher": self.info["teacher"]["fingerprint"]}
        info.pop("records", None)  # more may come
        prompts = [self.prompt(sample) for sample in range(records)]
        named = [image for shard in self.shards for image in zip(shard.samples, shard.images, strict=True)]
        images = [image for sample, image in named if image and sample < records]
        return hashlib.sha256(json.dumps([info, prompts, *images], sort_keys=True).encode()).hexdigest()


def create(path: Path, info: dict) -> None:
    """Make an empty store."""
    (path / "shards").mkdir(parents=True, exist_ok=True)
    _write(path / INDEX, json.dumps(info, indent=1, ensure_ascii=False))


def expect(path: Path, records: int) -> None:
    """Note in the index that there are to be so many records, or more."""
    info = json.loads((path / INDEX).read_text("utf-8"))
    if info.get("records", 0) < records:
        _write(path / INDEX, json.dumps(info | {"records": records}, indent=1, ensure_ascii=False))


def others(path: Path) -> list[str]:
    """The names of what lies in a folder and no recorder that was killed before its index could have left there."""
    found = sorted(inner.name for inner in path.iterdir()) if path.is_dir() else []
    if not _has_shards(path):
        found = [name for name in found if name != "shards"]
    return [name for name in found if name not in ("lock", INDEX + PARTIAL)]


def sweep(path: Path) -> None:
    """Remove what is part of no shard; to be called by whoever holds the lock."""
    shards = path / "shards"
    files = [file for file in shards.glob("*.safetensors") if samples_of(file)]
    without = [file for file in files if not file.with_suffix(".json").exists()]
    for leftover in [*shards.glob(f"*{PARTIAL}"), *shards.glob(".tmp*"), *without]:  # .tmp*: safetensors' own
        leftover.unlink()


def add(path: Path, first: int, prompts: Sequence[str], latents: Tensor) -> None:
    """Write a shard and then its entry, each whole or not at all.

    Args:
        latents: (R, K + 1, C, F, H, W), in the store's precision.
    """
    target = file(path, range(first, first + len(prompts)))
    _check_fits(path, len(prompts), latents)
    partial = target.with_name(target.name + PARTIAL)
    try:
        save_file({"latents": latents.contiguous()}, partial)
    except SafetensorError as error:
        raise UserError(f"{partial}: cannot be written ({error}); what was recorded before is kept") from error
    shutil.copymode(path / INDEX, partial)  # safetensors writes for the owner alone
    disk.sync(partial)
    size, digest = partial.stat().st_size, disk.sha256(partial)
    os.replace(partial, target)
    disk.sync(target.parent)
    _write(target.with_suffix(".json"), _entry(first, prompts, latents, size, digest))


def file(path: Path, samples: range) -> Path:
    return path / "shards" / f"{samples[0]:08d}-{samples[-1]:08d}.safetensors"


def samples_of(path: Path) -> range:
    """The records that a file of a shard holds, by its name; none if it is not such a name."""
    first, dash, last = path.stem.partition("-")
    return range(int(first), int(last) + 1) if dash and first.isdecimal() and last.isdecimal() else range(0)


def record_shape(info: dict) -> list[int]:
    """(K + 1, C, F, H, W)"""
    return [len(info["levels"]), *info["latent_shape"]]


def recorded(path: Path, records: int) -> int:
    """How many of so many records have entries, by the names of these."""
    held = [samples_of(entry) for entry in (path / "shards").glob("*.json")]
    return sum(max(min(samples.stop, records) - samples.start, 0) for samples in held)


def is_store(path: Path) -> bool:
    return (path / INDEX).is_file()


def _index(path: Path) -> dict:
    try:
        info = json.loads((path / INDEX).read_text("utf-8"))
        wrong = [key for key, kind in KINDS.items() if not isinstance(_value(info, key), kind)]
        if wrong := wrong or ["records"] * (not isinstance(info.get("records", 0), int)):
            raise ValueError(f"no proper {wrong[0]!r}")
        info |= {"levels": [float(level) for level in info["levels"]]}
    except FileNotFoundError:
        raise UserError(no_index(path)) from None
    except (ValueError, TypeError) as error:
        raise UserError(f"{path / INDEX}: damaged ({error}); restore it, or record into a new folder") from error
    if info["version"] != VERSION:
        raise UserError(
            f"{path / INDEX}: version {info['version']}, this distill reads version {VERSION}; "
            "record anew with data.trajectories.path=NEW_FOLDER"
        )
    return info


def no_index(path: Path) -> str:
    """What to say of a folder without an index."""
    if _has_shards(path):
        return f"{path} holds shards but no {INDEX}: the store's index is lost; restore it, or record into a new folder"
    return f"{path} holds no {INDEX}: it is not a trajectory store"


def _has_shards(path: Path) -> bool:
    return any(samples_of(inner) for inner in (path / "shards").glob("*.*"))


def _value(info, key: str):
    """That of a key like `video.width`, or None."""
    for part in key.split("."):
        info = info.get(part) if isinstance(info, dict) else None
    return info


def _check_fits(path: Path, records: int, latents: Tensor) -> None:
    """UserError unless a shard's latents are of the index's shape and precision: else it would be damaged at once."""
    info = _index(path)
    expected = DTYPES.get(info["precision"]), [records, *record_shape(info)]
    if (latents.dtype, list(latents.shape)) != expected:
        raise UserError(
            f"{path}: latents {latents.dtype} {list(latents.shape)} do not fit its index, which says "
            f"{expected[0]} {expected[1]}; change the recipe back, or record into a new folder"
        )


def _header(path: Path) -> dict:
    """What a safetensors file says of its tensors."""
    with path.open("rb") as opened:
        size = int.from_bytes(opened.read(8), "little")
        return json.loads(opened.read(min(size, path.stat().st_size)))


def _entry(first: int, prompts: Sequence[str], latents: Tensor, size: int, digest: str) -> str:
    """JSON with one record per line."""
    rows = enumerate(zip(prompts, latents, strict=True), first)
    records = [
        {"sample": j, **_made_from(prompt), "crc32": [_crc32(x) for x in record]} for j, (prompt, record) in rows
    ]
    lines = ",\n  ".join(json.dumps(record, ensure_ascii=False) for record in records)
    head = json.dumps({"first": first, "bytes": size, "sha256": digest})
    return f'{head[:-1]},\n "records": [\n  {lines}\n ]}}'


def _made_from(prompt: str) -> dict[str, str]:
    image = image_prompt.content(prompt)
    return {"prompt": prompt} | ({"image": image} if image else {})


def _write(path: Path, text: str) -> None:
    partial = path.with_name(path.name + PARTIAL)
    partial.write_text(text + "\n", "utf-8")
    disk.sync(partial)
    os.replace(partial, path)
    disk.sync(path.parent)


def _crc32(x: Tensor) -> str:
    return f"{zlib.crc32(x.contiguous().numpy()):08x}"
