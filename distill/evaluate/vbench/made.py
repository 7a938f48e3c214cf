"""A folder of a suite's videos: what made them, which are there. Imports no torch.

settings.json                  what made the videos; a folder holds those of one setting
prompts.json                   the suite's list, as it was given
made/RANK.jsonl                a line for each video: file, prompt, text, seed, sha256
videos/DIMENSION/PROMPT-I.mp4  and nothing but videos: the official package looks at the first file of a folder
                               and expects all to end as it does
results/DIMENSION/             what the official package wrote
vbench.json                    means and scores
"""

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TextIO

from ... import disk
from ...errors import UserError
from . import layout
from .layout import Layout, Wanted

SETTINGS, PROMPTS = "settings.json", "prompts.json"
VIDEOS, RECORDS, RESULTS = "videos", "made", "results"
SHOWN = 10  # missing videos that are told


def settings(folder: Path) -> dict:
    """What made the videos of a folder; UserError if it is none."""
    try:
        return json.loads((folder / SETTINGS).read_text("utf-8"))
    except FileNotFoundError:
        raise UserError(f"{folder} holds no videos of VBench; make them with distill vbench write") from None
    except ValueError as error:
        raise UserError(f"{folder / SETTINGS}: damaged ({error})") from error


def agree(folder: Path, asked: dict, info: Path) -> None:
    """Note in a new folder what makes its videos, make an old one ready; UserError if others are there already."""
    if (folder / SETTINGS).is_file():
        there = settings(folder)
        changed = [
            f"{key} {there.get(key)!r}, now {value!r}"
            for key, value in asked.items()
            if there.get(key) != value and key != "source"  # a name; its weights count
        ]
        if changed:
            raise UserError(f"{folder} holds videos of other settings: {'; '.join(changed)}; give another --out")
        gather(folder)
        return
    if strange := [path.name for path in folder.glob("[!.]*") if path.name not in ("lock", PROMPTS)]:
        raise UserError(
            f"{folder} holds {strange[0]!r} but no {SETTINGS}: no folder of VBench videos; give another --out"
        )
    disk.replace(folder / PROMPTS, lambda file: shutil.copyfile(info, file))
    write_json(folder / SETTINGS, asked)


def suite_of(folder: Path) -> Layout:
    """The suite's prompts, as the folder has them; texts are in the records."""
    settings(folder)
    return layout.read(folder / PROMPTS, same_case=is_case_blind(folder))


def prepare(folder: Path) -> bool:
    """Make the folder, and say whether its disk takes names that differ in case for the same."""
    folder.mkdir(parents=True, exist_ok=True)
    return is_case_blind(folder)


def hold(folder: Path) -> TextIO:
    """Until the returned file is closed, no other command makes videos in the folder."""
    return disk.hold(folder, f"{folder} is in use by {{holder}}; wait for it, or give another --out")


class Records:
    """What a process has made, and what all of them had made before.

    Attributes:
        scratch: where a video is written before it is whole.
    """

    def __init__(self, folder: Path, rank: int):
        self.folder, self.known = folder, records(folder)
        place = folder / RECORDS
        place.mkdir(exist_ok=True)
        self.scratch, self.path = place / f"{rank:03d}.mp4", place / f"{rank:03d}.jsonl"

    def is_whole(self, wanted: Wanted) -> bool:
        """Whether a file is the one that was written, byte for byte."""
        path, record = self.folder / VIDEOS / wanted.file, self.known.get(wanted.file, {})
        return "sha256" in record and path.is_file() and disk.sha256(path) == record["sha256"]

    def take(self, video: Path, files: Sequence[Wanted], more: dict) -> None:
        """Move a video to its place, or places; a kill leaves nothing half-written there."""
        digest, copy = disk.sha256(video), video.with_name(f"copy_{video.name}")
        for each in files:
            target = self.folder / VIDEOS / each.file
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(video, copy)
            os.replace(copy, target)
            self._note(asdict(each) | {"sha256": digest, **more})
        video.unlink()

    def fault(self, files: Sequence[Wanted], reason: str) -> None:
        for each in files:
            self._note(asdict(each) | {"fault": reason})

    def _note(self, record: dict) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")


def records(folder: Path) -> dict[str, dict]:
    """file -> what is known of it; of several lines that of a video counts before a fault."""
    found: dict[str, dict] = {}
    for path in sorted((folder / RECORDS).glob("*.jsonl")):
        for line in _whole_lines(path):
            if "sha256" in line or "sha256" not in found.get(line["file"], {}):
                found[line["file"]] = line
    return found


def gather(folder: Path) -> None:
    """Put the lines of all earlier processes into the first file, so that a later line stands behind an earlier one."""
    paths, first = sorted((folder / RECORDS).glob("*.jsonl")), folder / RECORDS / "000.jsonl"
    if not paths:
        return
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for path in paths for line in _whole_lines(path))
    disk.replace(first, lambda file: file.write_text(text, "utf-8"))
    for path in paths:
        if path != first:
            path.unlink()


def missing(folder: Path, wanted: Sequence[Wanted]) -> list[str]:
    """A line for each video that is not there, with the reason where one is known."""
    known = records(folder)
    lines = []
    for each in wanted:
        record = known.get(each.file, {})
        if "sha256" not in record or not (folder / VIDEOS / each.file).is_file():
            lines.append(f"{each.file}: {record.get('fault', 'not made yet')}")
    return lines


def complain(folder: Path, wanted: Sequence[Wanted]) -> None:
    """UserError, in a few lines, unless all videos are there."""
    lines = missing(folder, wanted)
    if not lines:
        return
    more = [f"and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
    title = f"{folder}: {len(lines)} of {len(wanted)} videos are missing; the same command goes on with them"
    raise UserError("\n".join([title, *lines[:SHOWN], *more]))


def strange_files(folder: Path, dimension_folder: str) -> list[str]:
    """Names beside the videos of a dimension that the official package would stumble over."""
    return sorted(p.name for p in (folder / VIDEOS / dimension_folder).glob("*") if p.suffix != ".mp4")


def is_case_blind(folder: Path) -> bool:
    """Whether the disk takes names that differ in case for the same."""
    probe = folder / ".Case"
    probe.touch()
    try:
        return (folder / ".cASE").exists()
    finally:
        probe.unlink()


def write_json(path: Path, content: dict) -> None:
    disk.replace(path, lambda file: file.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", "utf-8"))


def _whole_lines(path: Path) -> Iterator[dict]:
    for line in path.read_text("utf-8", errors="replace").split("\n"):
        try:
            record = json.loads(line) if line else None
        except ValueError:
            continue  # torn by a kill: its video is made again
        if record:
            yield record
