"""Videos and their captions: a folder with a text file beside each video, or a .csv or .jsonl of paths and captions."""

import csv
import io
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError

VIDEOS = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".wmv", ".flv", ".ogv", ".gif")
PATHS, CAPTIONS = ("path", "video", "file"), ("caption", "text", "prompt")  # names of columns; the first one is taken
SHOWN = 10  # faults of a file that are told


@dataclass(frozen=True)
class Listed:
    """A video as it is listed.

    Attributes:
        name: its path as the list has it, or from the folder.
        where: FILE:LINE of a list.
        fault: why it cannot be taken.
    """

    name: str
    path: Path
    caption: str = ""
    where: str | None = None
    fault: str | None = None


def read(source: Path) -> list[Listed]:
    """What a source lists, in its order, or by name if it is a folder.

    Raises:
        UserError: it is no such source, has no videos, or lines that cannot be understood: each is named.
    """
    if not source.exists():
        raise UserError(f"{source}: no such folder, .csv or .jsonl file of videos; set data.videos.source")
    if source.is_dir():
        found = [_beside(source, path) for path in sorted(_videos(source))]
        what = f"videos ({', '.join(VIDEOS)}), each with a text file of the same name"
    elif rows := ROWS.get(source.suffix.lower()):
        found = _listed(source, rows)
        what = "a path and a caption in each line"
    else:
        raise UserError(f"{source}: expected a folder of videos, a .csv or a .jsonl file")
    if not found:
        raise UserError(f"{source}: no videos; expected {what}")
    return list(_once(found))


# A folder


def _videos(folder: Path) -> Iterator[Path]:
    """Of all folders below, but for hidden ones."""
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(parent, name) for name in files if _is_video(name))


def _is_video(name: str) -> bool:
    return name.lower().endswith(VIDEOS) and not name.startswith(".")


def _beside(folder: Path, path: Path) -> Listed:
    name, text = path.relative_to(folder).as_posix(), path.with_suffix(".txt")
    try:
        caption = _caption(text.read_text("utf-8-sig"))
        return Listed(name, path, caption, fault=None if caption else f"no caption: {text.name} is empty")
    except FileNotFoundError:
        return Listed(name, path, fault=f"no caption: {text.name} is missing")
    except UnicodeDecodeError as error:
        return Listed(name, path, fault=f"no caption: {text.name} is not UTF-8 at byte {error.start}")


# A list


def _listed(source: Path, rows: Callable[[Path], Iterator[tuple[int, dict | str]]]) -> list[Listed]:
    found, faults = [], []
    for line, row in rows(source):
        row = row if isinstance(row, str) else _columns(row)
        where = f"{source}:{line}"
        if isinstance(row, str):
            faults.append(f"{where}: {row}")
            continue
        name, caption = str(row[0] or "").strip(), _caption(str(row[1] or ""))
        path = source.parent / Path(name).expanduser()
        reason = "no path" if not name else None if path.is_file() else f"no such file: {path}"
        found.append(Listed(name, path, caption, where, reason or (None if caption else "no caption: it is empty")))
    if faults:
        more = [f"{source}: {len(faults) - SHOWN} more lines like these"] if len(faults) > SHOWN else []
        raise UserError("\n".join(faults[:SHOWN] + more))
    return found


def _columns(row: dict) -> tuple[str | None, str | None] | str:
    """A row's path and caption, or what it lacks."""
    kinds = ((PATHS, "path"), (CAPTIONS, "caption"))
    keys = [next((key for key in names if key in row), None) for names, _ in kinds]
    for key, (names, what) in zip(keys, kinds, strict=True):
        if key is None:
            return f"no {what}; expected a column {' or '.join(names)}, has {', '.join(map(str, row)) or 'none'}"
    return row[keys[0]], row[keys[1]]


def _csv_rows(source: Path) -> Iterator[tuple[int, dict | str]]:
    """The number of a row's last line, and its columns or what is wrong with it."""
    lines = csv.DictReader(io.StringIO(_text(source), newline=""), restkey="", strict=True)
    try:
        if lines.fieldnames and isinstance(fault := _columns(dict.fromkeys(lines.fieldnames)), str):
            yield 1, fault
            return
        for row in lines:
            yield lines.line_num, f"more values than columns: {row['']}" if "" in row else row
    except csv.Error as error:
        yield lines.reader.line_num, f"not CSV ({error})"


def _json_rows(source: Path) -> Iterator[tuple[int, dict | str]]:
    for line, text in enumerate(_text(source).split("\n"), 1):
        if text.strip():
            try:
                row = json.loads(text)
                yield line, row if isinstance(row, dict) else "not a JSON object"
            except ValueError as error:
                yield line, f"not JSON ({error})"


ROWS = {".csv": _csv_rows, ".jsonl": _json_rows}


def _text(source: Path) -> str:
    try:
        return source.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{source}: not UTF-8 at byte {error.start}; save the list as UTF-8 text") from error


# Both


def _caption(text: str) -> str:
    """On one line."""
    return " ".join(text.split())


def _once(found: list[Listed]) -> Iterator[Listed]:
    """Each video once: what is listed again is a fault."""
    seen: dict[Path, Listed] = {}
    for listed in found:
        path = Path(os.path.normpath(listed.path))
        first = seen.setdefault(path, listed)
        if first is listed or listed.fault:
            yield listed
        else:
            yield Listed(listed.name, listed.path, listed.caption, listed.where, f"listed before: {_place(first)}")


def _place(listed: Listed) -> str:
    return f"in line {listed.where.rpartition(':')[2]}" if listed.where else f"as {listed.name}"
