"""Checkpoints that are either whole or not there.

One is written into `update_<n>.tmp`, every file flushed to disk and listed with size and sha256 in a manifest, and the
folder is then renamed. The newest one whose files match its manifest is the one that a run continues from.
"""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from . import disk, weights
from .engine import Engine
from .errors import UserError

VERSION = 1


@dataclass
class Position:
    """How far a run has come: `update` updates of step `step` of stage `stage` are done, `done` and `steps` in all."""

    stage: int = 0
    step: int = 0
    update: int = 0
    steps: int = 0
    done: int = 0


def folder(run: Path, update: int) -> Path:
    return run / "checkpoints" / f"update_{update:08d}"


def save(run: Path, position: Position, info: dict, write: Callable[[Path], None], engine: Engine) -> Path:
    """Write a checkpoint; every process calls this.

    Args:
        info: what the manifest says besides position and files.
        write: writes this process's files into a folder.
    """
    final = folder(run, position.done)
    tmp = final.with_suffix(".tmp")
    if engine.main:
        shutil.rmtree(tmp, ignore_errors=True)
        tmp.mkdir(parents=True)
    engine.wait()
    write(tmp)
    engine.wait()
    shares = engine.all(_files(tmp, engine.rank, engine.world))
    if engine.main:
        _seal(tmp, position, info, {name: said for share in shares for name, said in share.items()})
        if final.exists():  # the same update again, after a torn one was skipped
            shutil.rmtree(final)
        os.rename(tmp, final)
        disk.sync(final.parent)
    engine.wait()
    return final


def prune(run: Path, keep: int) -> None:
    """Remove all but the newest checkpoints."""
    for old in _newest_first(run)[keep:]:
        shutil.rmtree(old)


def newest(run: Path, warn: Callable[[str], None], look: Callable[[Path], str | None] | None = None) -> Path | None:
    """The newest checkpoint that is whole; each torn one that is passed over is told to `warn`.

    Args:
        look: says what is wrong with one; None is `damage`, by this process alone.
    """
    for candidate in _newest_first(run):
        fault = (look or damage)(candidate)
        if fault is None:
            return candidate
        warn(f"{candidate} is damaged ({fault}); falling back to the one before it")
    return None


def damage(checkpoint: Path, rank: int = 0, world: int = 1) -> str | None:
    """What is wrong with a checkpoint's files, or with a process's share of them; None if nothing is."""
    try:
        files = manifest(checkpoint)["files"]
    except (OSError, ValueError, KeyError) as error:
        return f"manifest.json: {error}"
    for name, said in list(files.items())[rank::world]:
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != said["size"]:
            return f"{name} has {path.stat().st_size} bytes, its manifest says {said['size']}"
        if disk.sha256(path) != said["sha256"]:
            return f"{name} does not match its sha256"
    return None


def manifest(checkpoint: Path) -> dict:
    return json.loads((checkpoint / "manifest.json").read_text())


def network(checkpoint: Path, name: str) -> Path:
    """Where one keeps a network, for distill/weights.py."""
    return checkpoint / "networks" / name


def load_network(run: Path, name: str, update: int | None = None) -> dict[str, Tensor]:
    """The state dict of a saved network, mapped from its files (weights.read)."""
    return weights.read(find_network(run, name, update))


def find_network(run: Path, name: str, update: int | None = None) -> Path:
    """Where the newest whole checkpoint, or that of an update, keeps a network."""
    checkpoint = folder(run, update) if update is not None else newest(run, lambda message: None)
    if checkpoint is None or not checkpoint.is_dir():
        have = ", ".join(str(int(c.name.split("_")[1])) for c in _newest_first(run)) or "none"
        raise UserError(f"{run}: no whole checkpoint{'' if update is None else f' of update {update}'}; it has: {have}")
    if (fault := damage(checkpoint)) is not None:
        raise UserError(f"{checkpoint} is damaged ({fault}); name another --update")
    if name not in (saved := weights.names(checkpoint / "networks")):
        raise UserError(f"{checkpoint} holds no network {name!r}; it has: {', '.join(saved)}")
    return network(checkpoint, name)


def _files(tmp: Path, rank: int, world: int) -> dict[str, dict]:
    """A process's share of the files: on the disk now, with sizes and sums."""
    found = {}
    for path in sorted(p for p in tmp.rglob("*") if p.is_file())[rank::world]:
        disk.sync(path)
        found[path.relative_to(tmp).as_posix()] = {"size": path.stat().st_size, "sha256": disk.sha256(path)}
    return found


def _seal(tmp: Path, position: Position, info: dict, files: dict[str, dict]) -> None:
    body = {"version": VERSION, "position": vars(position), **info, "files": dict(sorted(files.items()))}
    (tmp / "manifest.json").write_text(json.dumps(body, indent=1))
    for path in [tmp / "manifest.json", *{p.parent for p in tmp.rglob("*")}]:
        disk.sync(path)


def _newest_first(run: Path) -> list[Path]:
    found = (run / "checkpoints").glob("update_*")
    return sorted((p for p in found if p.is_dir() and p.suffix != ".tmp"), reverse=True)


def load_state(path: Path) -> dict:
    return torch.load(path, map_location="cpu", weights_only=True)
