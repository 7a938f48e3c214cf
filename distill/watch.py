"""Follow a run's log from another terminal."""

import sys
import time
from collections.abc import Iterator
from pathlib import Path

from .errors import UserError
from .track import LOG, Bar, Lines, parsed

LOOK_EVERY = 0.5  # seconds
OVER = ("stop", "done")


def watch(folder: Path) -> None:
    """Show what the log holds and what is added to it, until the run stops or is done."""
    if not (folder / LOG).is_file():
        raise UserError(f"{folder} holds no {LOG}: it is not the folder of a run, or nothing was trained yet")
    show = None
    try:
        for line in _follow(folder / LOG):
            if line["kind"] in ("start", "resume") and show is None:
                show = (Bar if sys.stdout.isatty() else Lines)(line["updates"])
            show.write(line)
    finally:
        if show is not None:
            show.close()


def _follow(path: Path) -> Iterator[dict]:
    """Lines as they are written; ends after the last one that says so."""
    kind, text = None, ""
    with path.open(encoding="utf-8") as file:
        while True:
            text += file.readline()
            if text.endswith("\n"):
                line, text = parsed(text), ""
                if line is not None:
                    kind = line["kind"]
                    yield line
            elif kind in OVER:
                return
            else:
                time.sleep(LOOK_EVERY)
