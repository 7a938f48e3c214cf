"""`distill evaluate`: opens what is to be measured (opening.py), measures it, and says what was found."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path

from .. import recipe as recipes
from .. import report, track
from ..engine import Engine
from ..errors import Stopped, UserError
from ..progress import Progress
from ..signals import StopRequest
from . import fidelity, kept
from .opening import Opened, open_evaluation


def run(source: str, changes: dict, *, teacher: str | None = None, out: Path | None = None) -> Iterator[str]:
    """Evaluate, write evaluation.json, and say what it holds, line by line.

    Args:
        changes: fields of Asked that are not the recipe's.
    """
    engine = Engine()
    try:
        with StopRequest() as stop:
            opened = open_evaluation(source, changes, engine, teacher=teacher)
            result, path = _evaluated(opened, out, stop)
    finally:
        engine.close()
    if engine.main:
        yield from described(result)
        yield f"result: {path}"


def _evaluated(opened: Opened, out: Path | None, stop: StopRequest) -> tuple[dict, Path]:
    engine, folder, total = opened.engine, out or opened.folder, opened.setting.asked.samples
    engine.main_first(lambda: refuse(folder, opened.facts["key"]) if out else recipes.check_output(folder, "--out"))
    engine.main_first(kept.trim)
    opened.setting.look_up = lambda: _leave_if(stop)
    with Progress("evaluating", "sample", total, silent=not engine.main) as progress:
        for line in opened.facts["notes"] + opened.setting.asked.absent():
            progress.say(f"note: {line}")
        try:
            result = opened.result(progress.show)
        except fidelity.Interrupted as error:
            name = signal.Signals(stop.signal or signal.SIGTERM).name
            raise Stopped(f"{name}: what is done is kept; go on with the same command", 130) from error
    return result, engine.main_first(lambda: _written(result, folder))


def _written(result: dict, folder: Path) -> Path:
    """The file; a run's page shows it, too."""
    path = fidelity.write(result, folder)
    if (folder / track.LOG).exists():
        report.write(folder)
    return path


def _leave_if(stop: StopRequest) -> None:
    if stop.signal:
        raise fidelity.Interrupted


def refuse(folder: Path, key: str) -> None:
    """UserError if the folder holds another evaluation, or cannot be written."""
    recipes.check_output(folder.absolute(), "--out")
    path = folder / fidelity.RESULT
    if path.exists():
        try:
            other = json.loads(path.read_text()).get("key")
        except ValueError:  # torn; it is made anew
            return
        if other != key:
            raise UserError(f"{path} is an evaluation of something else, or with other settings; give another --out")


def described(result: dict) -> Iterator[str]:
    """A table for the console: a line per metric, a column per sampler."""
    names = list(result["samplers"])
    width = max(len(name) for name in names) + 2
    rows = [("evaluations", [f"{v['evaluations']:g}" for v in result["samplers"].values()])]
    for metric in result["metrics"]:
        found = [v.get("world", {}).get(metric["name"], v.get(metric["name"])) for v in result["samplers"].values()]
        rows.append((metric["name"], [_cell(value) for value in found]))
    yield f"{'':18}" + "".join(f"{name:>{width}}" for name in names)
    for name, cells in rows:
        yield f"{name:18}" + "".join(f"{cell:>{width}}" for cell in cells)
    for name, gap in result["gap_closed"].items():
        mean, low, high = (f"{100 * gap[key]:.0f}" for key in ("mean", "low", "high"))
        yield f"the student closes {mean} % [{low}, {high}] of the gap of {name}"
    for line in result["failures"][:5]:
        yield f"failed: {line}"
    if len(result["failures"]) > 5:
        yield f"failed: {len(result['failures']) - 5} more are listed in the result"


def _cell(value: dict | None) -> str:
    return "" if value is None or value["mean"] is None else f"{value['mean']:.4g}"
