"""What a run says while it works: log.jsonl always, a progress bar or plain lines, other trackers if named.

Every line of the log is one JSON object that opens with its `kind`; `update` lines carry `update`, `step`, `stage`,
`stages`, `network`, `terms`, `loss`, `grad_norm`, `lr` and `seconds`.
"""

import json
import math
import sys
import time
from collections import deque
from pathlib import Path
from typing import Protocol

from rich import progress
from rich.console import Console

from . import recipe as recipes
from .errors import UserError

LOG = "log.jsonl"
PLAIN_EVERY = 10.0  # seconds between two plain lines
WINDOW = 100  # updates over which the rate is taken
NOT_MEASURED = ("time", "update")
KEPT = ("start", "resume", "stop", "warning")  # the run's history, whichever updates were lost since


class Tracker:
    """Takes in what happens and hands it on. Processes other than the main one say nothing."""

    def __init__(self, folder: Path, recipe, main: bool, total_updates: int):
        self.every, self.total = recipe.log.every, total_updates
        self.logged: dict[str, int] = {}
        self.stores: list[Sink] = []
        self.shows: list[Sink] = []
        if main:
            self.stores = [Log(folder / LOG), *(Elsewhere(name, folder, recipe) for name in recipe.log.trackers)]
            self.shows = [(Bar if sys.stdout.isatty() else Lines)(total_updates)]

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(self, *error) -> None:
        for sink in self.stores + self.shows:
            sink.close()

    def start(self, kind: str, update: int, **info) -> None:
        """The run starts or resumes, with so many updates done."""
        self.event(kind, update=update, updates=self.total, **info)

    def event(self, kind: str, **info) -> None:
        line = {"kind": kind, "time": round(time.time(), 3), **info}
        for sink in self.stores + self.shows:
            sink.write(line)

    def say(self, message: str) -> None:
        """For whoever watches; not kept."""
        for sink in self.shows:
            sink.write({"kind": "note", "message": message})

    def update(self, line: dict) -> None:
        """One update is done; each network's are logged once in `log.every` updates, and always shown."""
        line = {"kind": "update", **line}
        for sink in self.stores * self._due(line) + self.shows:
            sink.write(line)

    def _due(self, line: dict) -> bool:
        window, network = (line["update"] - 1) // self.every, line["network"]
        due = self.logged.get(network) != window
        self.logged[network] = window
        return due


class Sink(Protocol):
    def write(self, line: dict) -> None: ...

    def close(self) -> None: ...


class Log:
    """Appends to log.jsonl; a line is on disk's side of the process before the next one is written."""

    def __init__(self, path: Path):
        torn = path.exists() and not path.read_bytes().endswith(b"\n")
        self.file = path.open("a", encoding="utf-8")
        if torn:  # the process before was killed within a line; ours must not be glued to it
            self.file.write("\n")

    def write(self, line: dict) -> None:
        self.file.write(json.dumps(line) + "\n")
        self.file.flush()

    def close(self) -> None:
        self.file.close()


class Rate:
    """Seconds per update over the last WINDOW updates, validation and checkpoints left out."""

    def __init__(self, total: int):
        self.total, self.seconds = total, deque(maxlen=WINDOW)

    def describe(self, line: dict) -> str:
        self.seconds.append(line["seconds"])
        mean = sum(self.seconds) / len(self.seconds)
        return f"{mean:.3g} s/update  {duration((self.total - line['update']) * mean)} left"


class Bar:
    """A progress bar, for a terminal."""

    def __init__(self, total: int):
        self.rate = Rate(total)
        columns = ("{task.description}", progress.BarColumn(), progress.MofNCompleteColumn(), "{task.fields[rate]}")
        self.progress = progress.Progress(*columns, console=Console(highlight=False))
        self.task = self.progress.add_task("starting", total=total, rate="")
        self.progress.start()

    def write(self, line: dict) -> None:
        if line["kind"] == "update":
            rate = self.rate.describe(line)
            self.progress.update(self.task, completed=line["update"], description=describe(line), rate=rate)
            return
        if "update" in line:
            self.progress.update(self.task, completed=line["update"])
        self.progress.console.print(describe(line), markup=False)

    def close(self) -> None:
        self.progress.stop()


class Lines:
    """A plain line every PLAIN_EVERY seconds and at every event, for files and pipes."""

    def __init__(self, total: int):
        self.total, self.rate, self.shown = total, Rate(total), -math.inf

    def write(self, line: dict) -> None:
        if line["kind"] != "update":
            print(describe(line), flush=True)
            return
        rate = self.rate.describe(line)
        if time.monotonic() - self.shown >= PLAIN_EVERY or line["update"] == self.total:
            self.shown = time.monotonic()
            print(f"update {line['update']}/{self.total}  {describe(line)}  {rate}", flush=True)

    def close(self) -> None:
        pass


class Elsewhere:
    """A tracker that accelerate knows: loss terms as `network/term`, the recipe as hyperparameters."""

    def __init__(self, name: str, folder: Path, recipe):
        from accelerate import tracking

        if name not in map(str, tracking.get_available_trackers()):
            raise UserError(f"log.trackers: {name} is not installed; pip install {name}, or leave it out")
        kind = tracking.LOGGER_TYPE_TO_CLASS[name]
        where = {"logging_dir": str(folder)} if kind.requires_logging_directory else {}
        self.tracker = kind(folder.name, **where)
        self.tracker.start()
        options = recipes.flatten(recipe).items()
        self.tracker.store_init_configuration({k: v if number(v) else str(v) for k, v in options})

    def write(self, line: dict) -> None:
        if line["kind"] == "update":
            values = {f"{line['network']}/{name}": value for name, value in scalars(line).items()}
        elif line["kind"] == "validation":
            values = {f"validation/{name}": v for name, v in line.items() if name not in NOT_MEASURED and number(v)}
        else:
            return
        self.tracker.log(values, step=line["update"])

    def close(self) -> None:
        self.tracker.finish()


def scalars(line: dict) -> dict[str, float]:
    """The measured numbers of an update line: its terms, loss, grad_norm, lr and seconds."""
    values = {name: line[name] for name in ("loss", "grad_norm", "lr", "seconds") if line.get(name) is not None}
    return line["terms"] | values


def number(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def describe(line: dict) -> str:
    """One line for people."""
    if line["kind"] == "update":
        stage = f"stage {line['stage'] + 1}/{line['stages']}  " if line["stages"] > 1 else ""
        return f"{stage}{line['network']} loss {line['loss']:.4g}"
    at = f" at update {line['update']}" if "update" in line else ""
    if line["kind"] == "note":
        return line["message"]
    if "message" in line:
        return f"{line['kind']}{at}: {line['message']}"
    rest = "  ".join(f"{k} {brief(v)}" for k, v in line.items() if k not in ("kind", "time", "update") and plain(v))
    return f"{line['kind']}{at}" + (f": {rest}" if rest else "")


def plain(value) -> bool:
    return number(value) or isinstance(value, str)


def brief(value: str | float) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def duration(seconds: float) -> str:
    """As 42 s, 12 min, 3 h 05 min."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def read(folder: Path) -> list[dict]:
    """The lines of a run's log as the run now stands.

    A line that a kill tore is skipped. What a process did after the checkpoint from which the next one went on is
    not part of the run any more, and of several lines for one update the last one counts.
    """
    lines = []
    for text in (folder / LOG).read_text(encoding="utf-8").splitlines():
        line = parsed(text)
        if line is None:
            continue
        if line["kind"] == "resume":
            lines = [old for old in lines if old["kind"] in KEPT or old.get("update", 0) <= line["update"]]
        lines.append(line)
    last = {line["update"]: i for i, line in enumerate(lines) if line["kind"] == "update"}
    return [line for i, line in enumerate(lines) if line["kind"] != "update" or last[line["update"]] == i]


def parsed(text: str) -> dict | None:
    try:
        return json.loads(text)
    except ValueError:
        return None
