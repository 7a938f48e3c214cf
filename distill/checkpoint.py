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
from safetensors.torch import load_file, save_file
from torch import Tensor

from . import disk
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


def save(
    run: Path, position: Position, info: dict, write: Callable[[Path], None], wait: Callable[[], None], main: bool
) -> Path:
    """Write a checkpoint; every process calls this.

    Args:
        info: what the manifest says besides position and files.
        write: writes this process's files into a folder.
        wait: waits for all processes.
    """
    final = folder(run, position.done)
    tmp = final.with_suffix(".tmp")
    if main:
        shutil.rmtree(tmp, ignore_errors=True)
        tmp.mkdir(parents=True)
    wait()
    write(tmp)
    wait()
    if main:
        _seal(tmp, position, info)
        if final.exists():  # the same update again, after a torn one was skipped
            shutil.rmtree(final)
        os.rename(tmp, final)
        disk.sync(final.parent)
    wait()
    return final


def prune(run: Path, keep: int) -> None:
    """Remove all but the newest checkpoints."""
    for old in _newest_first(run)[keep:]:
        shutil.rmtree(old)


def newest(run: Path, warn: Callable[[str], None]) -> Path | None:
    """The newest checkpoint that is whole; each torn one that is passed over is told to `warn`."""
    for candidate in _newest_first(run):
        fault = damage(candidate)
        if fault is None:
            return candidate
        warn(f"{candidate} is damaged ({fault}); falling back to the one before it")
    return None


def damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint's files, or None."""
    try:
        files = manifest(checkpoint)["files"]
    except (OSError, ValueError, KeyError) as error:
        return f"manifest.json: {error}"
    for name, said in files.items():
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


def save_network(path: Path, state: dict[str, Tensor]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({k: v.detach().cpu().contiguous().clone() for k, v in state.items()}, path)


def load_network(run: Path, name: str, update: int | None = None) -> dict[str, Tensor]:
    """The state dict of a saved network, from the newest whole checkpoint or that of an update."""
    checkpoint = folder(run, update) if update is not None else newest(run, lambda message: None)
    if checkpoint is None or not checkpoint.is_dir():
        have = ", ".join(str(int(c.name.split("_")[1])) for c in _newest_first(run)) or "none"
        raise UserError(f"{run}: no whole checkpoint{'' if update is None else f' of update {update}'}; it has: {have}")
    if (fault := damage(checkpoint)) is not None:
        raise UserError(f"{checkpoint} is damaged ({fault}); name another --update")
    path = checkpoint / "networks" / f"{name}.safetensors"
    if not path.is_file():
        saved = ", ".join(sorted(p.stem for p in path.parent.glob("*.safetensors")))
        raise UserError(f"{checkpoint} holds no network {name!r}; it has: {saved}")
    return load_file(path)


def _seal(tmp: Path, position: Position, info: dict) -> None:
    files = {}
    for path in sorted(p for p in tmp.rglob("*") if p.is_file()):
        disk.sync(path)
        files[path.relative_to(tmp).as_posix()] = {"size": path.stat().st_size, "sha256": disk.sha256(path)}
    body = {"version": VERSION, "position": vars(position), **info, "files": files}
    (tmp / "manifest.json").write_text(json.dumps(body, indent=1))
    for path in [tmp / "manifest.json", *{p.parent for p in tmp.rglob("*")}]:
        disk.sync(path)


def _newest_first(run: Path) -> list[Path]:
    found = (run / "checkpoints").glob("update_*")
    return sorted((p for p in found if p.is_dir() and p.suffix != ".tmp"), reverse=True)


def load_state(path: Path) -> dict:
    return torch.load(path, map_location="cpu", weights_only=True)
