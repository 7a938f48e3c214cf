"""What files need so that a kill, a torn write or a second process does no harm."""

import fcntl
import hashlib
import os
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from .errors import UserError


def hold(folder: Path, refusal: str) -> TextIO:
    """Lock a folder until the returned file is closed.

    Args:
        refusal: what UserError says if another process holds it; `{holder}` is that process.
    """
    lock = (folder / "lock").open("a+")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        holder = lock.read().strip() or "another process"
        lock.close()
        raise UserError(refusal.format(holder=holder)) from None
    lock.truncate(0)
    lock.write(f"process {os.getpid()} on {socket.gethostname()}")
    lock.flush()
    return lock


def sync(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def replace(path: Path, write: Callable[[Path], object]) -> None:
    """Have a file written, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".partial-") as folder:
        write(Path(folder) / path.name)
        os.replace(Path(folder) / path.name, path)


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()
