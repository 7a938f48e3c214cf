"""Training what a comparison lacks: every run is a `distill run` of its own, which goes on where it stopped."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from .. import track
from . import children
from .children import Command
from .inputs import Column, Run


def finished(folder: Path) -> bool:
    """Whether a run did all of its updates, and what comes after them."""
    if not (folder / track.LOG).is_file():
        return False
    events = [line["kind"] for line in track.read(folder) if line["kind"] in ("start", "resume", "stop", "done")]
    return bool(events) and events[-1] == "done"


def train(
    columns: Sequence[Column], logs: Path, *, processes: int, jobs: int, tell: Callable[[str], None]
) -> dict[Path, str]:
    """Train the runs that are not finished; returns the folder of each that failed, with the reason.

    Args:
        logs: the folder for what the runs say.

    Raises:
        Stopped: a signal came, and the runs have saved where they are.
    """
    wanted = {
        run.folder: Command(
            f"training {run} in {run.folder}", arguments(run, processes), logs / f"train_{column.key}_{run.seed}.log"
        )
        for column in columns
        for run in column.runs
        if not (run.is_export or finished(run.folder))
    }
    reasons = children.run(list(wanted.values()), jobs, tell)
    return {folder: reason for folder, reason in zip(wanted, reasons, strict=True) if reason}


def arguments(run: Run, processes: int) -> list[str]:
    """Of the folder of a run, or of a recipe with the run's seed and folder."""
    changes = [f"train.seed={run.seed}", f"output={json.dumps(str(run.folder))}"] * run.source.is_file()
    return ["run", str(run.source), *changes, *["--processes", str(processes)] * (processes > 1)]
