"""The files of a store of latents: each is written whole or not at all, and said by another to be there.

STORE/index.json says how the records were made. STORE/shards/FIRST-LAST.safetensors holds one tensor, `latents`, a row
for each record that has some; the .json of the same name, its entry, is written after it and makes its records count.
"""

import json
import os
import shutil
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from .. import disk
from ..errors import UserError

INDEX = "index.json"
PARTIAL = ".partial"  # ends the names of files that are being written
DTYPES = {"fp16": torch.float16, "fp32": torch.float32}


@dataclass(frozen=True)
class Kind:
    """What a store says of itself.

    Attributes:
        name: as in "trajectory store".
        verb, participle: of what makes its records: record, recorded.
        command: that does it.
        section: of a recipe.
        version: of the format.
        keys: what index.json must hold, and of which types.
    """

    name: str
    verb: str
    participle: str
    command: str
    section: str
    version: int
    keys: dict[str, type]

    @property
    def repair(self) -> str:
        return f"{self.verb} it anew with `{self.command} RECIPE`"

    @property
    def add(self) -> str:
        return f"{self.verb} what is missing with `{self.command} RECIPE`"


def create(path: Path, info: dict) -> None:
    """Make an empty store."""
    (path / "shards").mkdir(parents=True, exist_ok=True)
    write_text(path / INDEX, json.dumps(info, indent=1, ensure_ascii=False))


def expect(path: Path, records: int) -> None:
    """Note in the index that there are to be so many records, or more."""
    info = json.loads((path / INDEX).read_text("utf-8"))
    if info.get("records", 0) < records:
        write_text(path / INDEX, json.dumps(info | {"records": records}, indent=1, ensure_ascii=False))


def others(path: Path) -> list[str]:
    """The names of what lies in a folder and nobody who was killed before the index could have left there."""
    found = sorted(inner.name for inner in path.iterdir()) if path.is_dir() else []
    if not has_shards(path):
        found = [name for name in found if name != "shards"]
    return [name for name in found if name not in ("lock", INDEX + PARTIAL)]


def sweep(path: Path) -> None:
    """Remove what is part of no shard; to be called by whoever holds the lock."""
    shards = path / "shards"
    files = [file for file in shards.glob("*.safetensors") if samples_of(file)]
    without = [file for file in files if not file.with_suffix(".json").exists()]
    for leftover in [*shards.glob(f"*{PARTIAL}"), *shards.glob(".tmp*"), *without]:  # .tmp*: safetensors' own
        leftover.unlink()


def write(path: Path, first: int, records: Sequence[dict], latents: Tensor, shape: Sequence[int], kind: Kind) -> None:
    """Write a shard and then its entry, each whole or not at all.

    Args:
        records: what the entry says of each.
        latents: a row for each record that has some, in the store's precision.
        shape: that they should have.
    """
    _check_fits(path, latents, shape, kind)
    target = file(path, range(first, first + len(records)))
    partial = target.with_name(target.name + PARTIAL)
    try:
        save_file({"latents": latents.contiguous()}, partial)
    except SafetensorError as error:
        raise UserError(f"{partial}: cannot be written ({error}); what was {kind.participle} before is kept") from error
    shutil.copymode(path / INDEX, partial)  # safetensors writes for the owner alone
    disk.sync(partial)
    size, digest = partial.stat().st_size, disk.sha256(partial)
    os.replace(partial, target)
    disk.sync(target.parent)
    write_text(target.with_suffix(".json"), _entry(first, records, size, digest))


def _check_fits(path: Path, latents: Tensor, shape: Sequence[int], kind: Kind) -> None:
    """UserError unless a shard's latents are of the index's shape and precision: else it would be damaged at once."""
    expected = DTYPES.get(index(path, kind)["precision"]), list(shape)
    if (latents.dtype, list(latents.shape)) != expected:
        raise UserError(
            f"{path}: latents {latents.dtype} {list(latents.shape)} do not fit its index, which says "
            f"{expected[0]} {expected[1]}; change the recipe back, or {kind.verb} into a new folder"
        )


def _entry(first: int, records: Sequence[dict], size: int, digest: str) -> str:
    """JSON with one record per line."""
    lines = ",\n  ".join(json.dumps(record, ensure_ascii=False) for record in records)
    head = json.dumps({"first": first, "bytes": size, "sha256": digest})
    return f'{head[:-1]},\n "records": [\n  {lines}\n ]}}'


def file(path: Path, samples: range) -> Path:
    return path / "shards" / f"{samples[0]:08d}-{samples[-1]:08d}.safetensors"


def samples_of(path: Path) -> range:
    """The records that a file of a shard holds, by its name; none if it is not such a name."""
    first, dash, last = path.stem.partition("-")
    return range(int(first), int(last) + 1) if dash and first.isdecimal() and last.isdecimal() else range(0)


def recorded(path: Path, records: int) -> int:
    """How many of so many records have entries, by the names of these."""
    held = [samples_of(entry) for entry in (path / "shards").glob("*.json")]
    return sum(max(min(samples.stop, records) - samples.start, 0) for samples in held)


def is_store(path: Path) -> bool:
    return (path / INDEX).is_file()


def index(path: Path, kind: Kind) -> dict:
    """What index.json says.

    Raises:
        UserError: it is not there, or not that of a store of this kind and version.
    """
    try:
        info = json.loads((path / INDEX).read_text("utf-8"))
        wrong = [key for key, type_ in kind.keys.items() if not isinstance(_value(info, key), type_)]
        if wrong := wrong or ["records"] * (not isinstance(info.get("records", 0), int)):
            raise ValueError(f"no proper {wrong[0]!r}")
    except FileNotFoundError:
        raise UserError(no_index(path, kind)) from None
    except (ValueError, TypeError) as error:
        raise damaged_index(path, kind, error) from error
    if info["version"] != kind.version:
        raise UserError(
            f"{path / INDEX}: version {info['version']}, this distill reads version {kind.version}; "
            f"{kind.verb} anew with {kind.section}.path=NEW_FOLDER"
        )
    return info


def damaged_index(path: Path, kind: Kind, error: Exception) -> UserError:
    return UserError(f"{path / INDEX}: damaged ({error}); restore it, or {kind.verb} into a new folder")


def no_index(path: Path, kind: Kind) -> str:
    """What to say of a folder without an index."""
    if has_shards(path):
        lost = f"{path} holds shards but no {INDEX}: the store's index is lost"
        return f"{lost}; restore it, or {kind.verb} into a new folder"
    return f"{path} holds no {INDEX}: it is not a {kind.name}"


def has_shards(path: Path) -> bool:
    return any(samples_of(inner) for inner in (path / "shards").glob("*.*"))


def _value(info, key: str):
    """That of a key like `video.width`, or None."""
    for part in key.split("."):
        info = info.get(part) if isinstance(info, dict) else None
    return info


def write_text(path: Path, text: str) -> None:
    """Whole or not at all."""
    partial = path.with_name(path.name + PARTIAL)
    partial.write_text(text + "\n", "utf-8")
    disk.sync(partial)
    os.replace(partial, path)
    disk.sync(path.parent)


def crc32(x: Tensor) -> str:
    return f"{zlib.crc32(x.contiguous().numpy()):08x}"
