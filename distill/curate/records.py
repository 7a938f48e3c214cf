"""What was measured, kept: one line per video and measurement, so that nothing is measured twice.

A video is known by its path, size and time of change; a changed file is measured anew.
"""

import hashlib
import json
import os
from pathlib import Path

from ..errors import UserError

FILE = "signals.jsonl"


class Records:
    """Context manager: signals.jsonl of a folder, read, and open for more lines.

    Attributes:
        found: (identity of a video, what measured it) -> its line.
    """

    def __init__(self, folder: Path):
        self.path = folder / FILE
        self.found: dict[tuple[str, str], dict] = {}

    def __enter__(self) -> "Records":
        self._file = self.path.open("ab")
        for number, line in enumerate(self._whole_lines(), 1):
            self._take(number, line)
        return self

    def __exit__(self, *_) -> None:
        self._file.close()

    def get(self, video: str, by: str) -> dict | None:
        return self.found.get((video, by))

    def add(self, video: str, path: Path, by: str, outcome: dict) -> None:
        """Keep {"values": signals} or {"bad": why there are none} of the video of an identity."""
        line = {"id": video, "video": str(path), "by": by} | outcome
        self._file.write(json.dumps(line).encode() + b"\n")
        self._file.flush()
        self.found[video, by] = line

    def _whole_lines(self) -> list[bytes]:
        """A kill may have left half a line, which is cut off."""
        data = self.path.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            os.truncate(self.path, whole)
        return data[:whole].splitlines()

    def _take(self, number: int, line: bytes) -> None:
        try:
            read = json.loads(line)
            self.found[read["id"], read["by"]] = read
        except (ValueError, TypeError, KeyError):
            raise UserError(f"{self.path}:{number}: not a measurement; delete the line to measure anew") from None


def identity(path: Path) -> str:
    """Of a file's path and contents, as far as size and time of change tell."""
    state = path.stat()
    return hashlib.sha256(f"{path.absolute()}\0{state.st_size}\0{state.st_mtime_ns}".encode()).hexdigest()[:24]
