"""Means and scores of a folder of videos, or of result files alone: vbench.json, and lines for the terminal."""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from ...errors import UserError
from . import external, made, results
from .layout import Layout
from .results import Measured
from .suites import FILTERED_FROM, FLICKERING, MEASURED, SUITES, Suite
from .totals import of_suite

RESULT = "vbench.json"
OURS = "all videos, without the official static filter; beside the table, never in a score"


def of_folder(folder: Path) -> dict:
    """What is known of the videos that a folder holds; also written to its vbench.json."""
    asked, said = made.suite_of(folder), made.settings(folder)
    places = [folder / made.RESULTS] if (folder / made.RESULTS).is_dir() else []
    suite, measured, notes = results.read(places, asked.suite)
    for dimension in external.stale(folder, asked):
        measured.pop(dimension, None)
        notes.append(f"{dimension} was measured on other videos; distill vbench run measures it anew")
    files, known = [each.file for each in asked.wanted(asked.dimensions)], made.records(folder)
    there = [file for file in files if "sha256" in known.get(file, {})]
    content = {"settings": said, "videos": {"made": len(there), "wanted": len(files)}}
    content |= _content(suite, measured, notes + _fewer(asked, measured))
    if flicker := _flicker(known):
        content["ours"] = {FLICKERING: flicker}
    made.write_json(folder / RESULT, content)
    return content


def of_files(places: Sequence[Path]) -> dict:
    """The same of result files that were made elsewhere."""
    return _content(*results.read(places))


def _content(suite: Suite, measured: dict[str, Measured], notes: list[str]) -> dict:
    try:
        scores = of_suite(suite, {name: each.mean for name, each in measured.items()})
    except UserError as error:
        raise UserError(f"{error} (from {', '.join(sorted({each.file for each in measured.values()}))})") from error
    dimensions = {
        name: {"mean": each.mean, "videos": len(each.videos), "file": each.file} for name, each in measured.items()
    }
    videos = {name: each.videos for name, each in measured.items()}
    return {"suite": suite.name, "scores": scores, "dimensions": dimensions, "notes": notes, "per_video": videos}


def _fewer(asked: Layout, measured: dict[str, Measured]) -> list[str]:
    """A line for each mean over fewer videos than there are: the packages only warn of it, or have left some out."""
    lines = []
    for name, each in measured.items():
        most = len(asked.wanted([name])) * (MEASURED if name == FLICKERING else FILTERED_FROM) // FILTERED_FROM
        if name != "Diversity" and len(each.videos) < most:  # that has one value for all videos of a prompt
            lines.append(f"{name} is the mean of {len(each.videos)} videos, of {most} at most")
    return lines


def _flicker(known: dict[str, dict]) -> dict | None:
    """Temporal flickering of the videos as they were written, by the official formula."""
    of = [line["flicker"] for line in known.values() if line["file"].startswith(f"{FLICKERING}/") and "flicker" in line]
    return {"mean": fmean(of), "videos": len(of), "about": OURS} if of else None


def lines(content: dict) -> list[str]:
    """Percentages, as papers print them."""
    suite = SUITES[content["suite"]]
    width = max(map(len, suite.dimensions))
    shown = [
        f"{name:{width}}  {_percent(content['dimensions'].get(name, {}).get('mean'))}" for name in suite.dimensions
    ]
    for name, each in content.get("ours", {}).items():
        shown.append(f"{name:{width}}  {_percent(each['mean'])}  ours: {each['about']}")
    scores = dict(content["scores"])
    missing = scores.pop("partial")
    shown += [f"{name:{width}}  {_percent(value, 'partial')}" for name, value in scores.items()]
    if missing:
        shown.append(f"partial: {len(missing)} of {len(suite.dimensions)} dimensions are missing: {', '.join(missing)}")
    return shown + [f"note: {note}" for note in content["notes"]]


def _percent(value: float | None, otherwise: str = "-") -> str:
    return f"{otherwise:>7}" if value is None else f"{100 * value:7.2f}"
