"""The table of a video store, clips.jsonl: a line for each video of the source, kept or dropped, and why."""

import dataclasses
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError
from . import shards

TABLE = "clips.jsonl"
KEPT, DROPPED, OPEN = "kept", "dropped", "open"


@dataclass(frozen=True)
class Row:
    """A video.

    Attributes:
        video: its path as the list has it, or from the source's folder.
        where: FILE:LINE of the list.
        bytes: of the file; with the caption and the path, what it is known by.
        width, height, fps, seconds: as it is displayed (data/footage.py).
        places: records that it may fill in the store.
        clips: that it has filled.
        verdict: kept, dropped, or open: not encoded yet.
        reason: why it was dropped, or why one of its clips was.
    """

    video: str
    where: str | None
    caption: str
    bytes: int | None = None
    width: int | None = None
    height: int | None = None
    fps: float | None = None
    seconds: float | None = None
    places: int = 0
    clips: int = 0
    verdict: str = OPEN
    reason: str | None = None

    def dropped(self, reason: str) -> "Row":
        return dataclasses.replace(self, places=0, verdict=DROPPED, reason=reason)


def write(path: Path, rows: Sequence[Row]) -> None:
    lines = [json.dumps(dataclasses.asdict(row), ensure_ascii=False) for row in rows]
    shards.write_text(path / TABLE, "\n".join(lines))


def read(path: Path) -> list[Row]:
    """Raises UserError if it is not there, or damaged."""
    try:
        return [Row(**json.loads(line)) for line in (path / TABLE).read_text("utf-8").split("\n") if line]
    except FileNotFoundError:
        fault = "missing"
    except (ValueError, TypeError) as error:
        fault = f"damaged ({error})"
    raise UserError(f"{path / TABLE}: {fault}; restore it, or prepare into a new folder")


def places(rows: Sequence[Row]) -> list[tuple[Row, int]]:
    """For each record of the store the video that it is cut from, and which of its clips it is, from 0."""
    return [(row, clip) for row in rows for clip in range(row.places)]


def summary(rows: Sequence[Row]) -> Iterator[str]:
    """How many were kept, or may be, and how many dropped for like reasons."""
    counts = Counter(row.verdict for row in rows)
    kept = f"{counts[KEPT]} kept ({sum(row.clips for row in rows)} clips)"
    taken = f"{counts[OPEN]} may be encoded" if counts[OPEN] else kept
    yield f"{len(rows)} videos: {taken}, {counts[DROPPED]} dropped"
    for reason, count in Counter(kind_of(row.reason) for row in rows if row.verdict == DROPPED).most_common():
        yield f"  {count:6} {reason}"


def kind_of(reason: str) -> str:
    """What reasons have in common: all before a colon or a parenthesis."""
    return reason.partition(":")[0].partition(" (")[0]
