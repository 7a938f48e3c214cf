"""Running the official package in an environment of its own, a dimension at a time. Imports no torch."""

import hashlib
import json
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from ...errors import UserError
from . import driver, made, results
from .layout import Layout
from .suites import FLICKERING, Suite

RAN, LOG = "ran.json", "log.txt"
VERSION = """
import importlib.metadata, {0}
try:
    print("{0}", importlib.metadata.version("{0}"))
except importlib.metadata.PackageNotFoundError:  # a checkout
    print("{0} without a version")
"""
INSTALL = "install it into an environment of its own (docs/vbench.md)"


def run(
    folder: Path,
    python: Path,
    dimensions: Sequence[str] = (),
    device: str = "auto",
    tell: Callable[[str], None] = print,
) -> list[str]:
    """Measure dimensions on the folder's videos; a line for each that fails, the others go on.

    What was measured before on the same videos is not measured again.
    """
    asked = made.suite_of(folder)
    program = shutil.which(python)
    if program is None:
        raise UserError(f"--python {python}: no such program; expected the python of {asked.suite.title}'s environment")
    python = Path(program).absolute()  # measurements have a working directory of their own
    package, faults = version(python, asked.suite), []
    for dimension in asked.chosen(dimensions):
        try:
            tell(f"{dimension}: {_measured(folder, python, package, asked, dimension, device)}")
        except UserError as error:
            faults.append(f"{dimension}: {error}")
            tell(faults[-1])
    return faults


def version(python: Path, suite: Suite) -> str:
    """The name and version of the package; UserError if that python does not have it."""
    command = [python, "-c", VERSION.format(suite.package)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"--python {python} lacks {suite.package} ({_last_line(done.stderr)}); {INSTALL}")
    return done.stdout.strip().splitlines()[-1]


def stale(folder: Path, asked: Layout) -> list[str]:
    """Dimensions that were measured on other videos than those of the same names now."""
    ran = {path.parent.name: json.loads(path.read_text()) for path in (folder / made.RESULTS).glob(f"*/{RAN}")}
    known = made.records(folder)
    return [d for d in asked.dimensions if d in ran and ran[d]["videos"] != _digest(known, asked, d)]


def _measured(folder: Path, python: Path, package: str, asked: Layout, dimension: str, device: str) -> str:
    """The mean of a dimension, in words, from what its results say."""
    _check_videos(folder, asked, dimension)
    out = folder / made.RESULTS / dimension
    ran = {"package": package, "videos": _digest(made.records(folder), asked, dimension)}
    if not (out / RAN).is_file() or json.loads((out / RAN).read_text()) != ran:
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        _drive(folder, python, asked.suite, dimension, device, out)
        made.write_json(out / RAN, ran)
    _, found, notes = results.read([out], asked.suite)
    if dimension not in found:
        raise UserError(f"{package} wrote no result ({'; '.join(notes) or 'no file'}); see {out / LOG}")
    return f"{found[dimension].mean:.4f} ({package}, {len(found[dimension].videos)} videos)"


def _check_videos(folder: Path, asked: Layout, dimension: str) -> None:
    """UserError unless the videos of a dimension are all there, and alone."""
    wanted = asked.wanted([dimension])
    if lines := made.missing(folder, wanted):
        raise UserError(f"{len(lines)} of {len(wanted)} videos are missing; distill vbench write goes on with them")
    if strange := made.strange_files(folder, asked.suite.folder(dimension)):
        raise UserError(f"{strange[0]!r} is among the videos and would be taken for one; remove it")


def _digest(known: dict[str, dict], asked: Layout, dimension: str) -> str:
    """Of the videos of a dimension, as they were written."""
    sums = [known.get(each.file, {}).get("sha256") for each in asked.wanted([dimension])]
    return hashlib.sha256(json.dumps(sums).encode()).hexdigest()[:16]


def _drive(folder: Path, python: Path, suite: Suite, dimension: str, device: str, out: Path) -> None:
    arguments = {
        "package": suite.package,
        "main": suite.main,
        "dimension": dimension,
        "videos": (folder / made.VIDEOS / suite.folder(dimension)).absolute(),
        "info": (folder / made.PROMPTS).absolute(),
        "out": out.absolute(),
        "device": device,
    }
    command = [python, driver.__file__, *(word for name, value in arguments.items() for word in (f"--{name}", value))]
    command += ["--static-filter"] if dimension == FLICKERING else []
    with (out / LOG).open("w") as log:
        done = subprocess.run(list(map(str, command)), stdout=log, stderr=subprocess.STDOUT, cwd=out, check=False)
    if done.returncode:
        said = _last_line((out / LOG).read_text(errors="replace"))
        raise UserError(f"{suite.package} failed ({said}); see {out / LOG}")


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:200] if lines else "it says nothing"
