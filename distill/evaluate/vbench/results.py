"""What the official packages write: {name}_eval_results.json, dimension -> [mean, values of single videos].

The mean is not that of the values: some dimensions weigh by frames, one leaves videos out. It is taken as it is.
"""

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath

from ...errors import UserError
from .suites import Suite, of_dimensions

ENDING = "_eval_results.json"
LEFT_OUT = -1.0  # what VBench-2.0 writes for a video that the mean does not count


@dataclass(frozen=True)
class Measured:
    """A dimension.

    Attributes:
        videos: file's name -> its value, like the mean from 0 to 1.
        file: where it was found.
    """

    mean: float
    videos: dict[str, float]
    file: str


def read(places: Sequence[Path], suite: Suite | None = None) -> tuple[Suite, dict[str, Measured], list[str]]:
    """The suite, its dimensions as far as they were measured, and lines about what was passed over.

    Args:
        places: files, or folders that hold some; of two files with the same dimension the later name counts, which is
            that of the later time as the packages name them.
        suite: None is what the dimensions are of.

    Raises:
        UserError: no results, or of no suite, or of both.
    """
    found, notes = {}, []
    for path in _files(places):
        try:
            said = _load(path)
        except UserError as error:
            notes.append(str(error))
            continue
        for dimension, result in said.items():
            if dimension in found:
                notes.append(f"{dimension} is in {found[dimension][0].name} and {path.name}; the latter is taken")
            found[dimension] = path, result
    if not found and suite is None:
        raise UserError("\n".join([f"no results in {', '.join(map(str, places))}; expected files *{ENDING}", *notes]))
    suite = suite or of_dimensions(set(found), f"{next(iter(found.values()))[0]}: ")
    return suite, dict(_understood(found, suite, notes)), notes


def _understood(
    found: dict[str, tuple[Path, object]], suite: Suite, notes: list[str]
) -> Iterator[tuple[str, Measured]]:
    """Dimensions in the suite's order; a line about each that has no mean."""
    for dimension, (path, _) in found.items():
        suite.check(dimension, f"{path}: ")
    for dimension in filter(found.__contains__, suite.dimensions):
        path, result = found[dimension]
        try:
            measured = _measured(result, suite.scale.get(dimension, 1.0), path.name)
        except (TypeError, ValueError, LookupError) as error:
            notes.append(f"{dimension}: {path.name} is not understood ({error!r}); expected [mean, [videos]]")
            continue
        if math.isfinite(measured.mean):
            yield dimension, measured
        else:
            notes.append(f"{dimension}: its mean is {measured.mean} in {path.name}; it counts as missing")


def _files(places: Iterable[Path]) -> list[Path]:
    files = []
    for place in places:
        if not place.exists():
            raise UserError(f"{place}: no such file or folder of results")
        files += place.rglob(f"*{ENDING}") if place.is_dir() else [place]
    return sorted(files, key=lambda path: (path.name, str(path)))


def _load(path: Path) -> dict:
    try:
        said = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}); is the package still writing it?") from error
    if not isinstance(said, dict):
        raise UserError(f"{path}: expected dimensions with their results, found a {type(said).__name__}")
    return said


def _measured(result, scale: float, file: str) -> Measured:
    mean, videos = (result, []) if isinstance(result, int | float) else (result[0], result[1])
    values = {_name(each["video_path"]): float(each["video_results"]) / scale for each in videos}
    return Measured(float(mean), {name: value for name, value in values.items() if value != LEFT_OUT}, file)


def _name(path: str) -> str:
    """Of a file, wherever the package ran."""
    return PureWindowsPath(path).name
