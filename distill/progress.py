"""How far a long piece of work has come: a bar on a terminal, plain lines in files and pipes."""

import math
import sys
import time
from collections.abc import Callable

from rich import progress
from rich.console import Console

from .track import PLAIN_EVERY, duration


class Progress:
    """Context manager; `show` says how much is done, with the rate and the time left.

    Args:
        done: what was there before; it does not count for the rate.
        silent: on processes other than the main one.
    """

    def __init__(self, what: str, unit: str, total: int, done: float = 0, silent: bool = False):
        self.what, self.unit, self.total, self.done, self.silent = what, unit, total, done, silent
        self.begun, self.shown = time.monotonic(), -math.inf
        self.bar = None if silent or not sys.stdout.isatty() else _bar()
        self.task = self.bar and self.bar.add_task(what, total=total, completed=done, rate="")

    def __enter__(self) -> "Progress":
        if self.bar:
            self.bar.start()
        return self

    def __exit__(self, *_) -> None:
        if self.bar:
            self.bar.stop()

    def show(self, done: float) -> None:
        if self.bar:
            self.bar.update(self.task, completed=round(done, 1), rate=self._rate(done))
        elif not self.silent and (time.monotonic() - self.shown >= PLAIN_EVERY or done == self.total):
            self.shown = time.monotonic()
            print(f"{self.what}: {round(done, 1):.9g} of {self.total} {self.unit}s{self._rate(done)}", flush=True)

    def say(self, line: str) -> None:
        if self.bar:
            self.bar.console.print(line, markup=False)
        elif not self.silent:
            print(line, flush=True)

    def _rate(self, done: float) -> str:
        if done <= self.done:
            return ""
        seconds = (time.monotonic() - self.begun) / (done - self.done)
        return f"  {seconds:.3g} s/{self.unit}  {duration((self.total - done) * seconds)} left"


class Watched(Progress):
    """Calls `look_up` whenever something is to be shown; what it raises ends the work."""

    def __init__(self, look_up: Callable[[], None], what: str, unit: str, total: int):
        super().__init__(what, unit, total)
        self.look_up = look_up

    def show(self, done: float) -> None:
        self.look_up()
        super().show(done)


def _bar() -> progress.Progress:
    columns = ("{task.description}", progress.BarColumn(), "{task.completed:.9g}/{task.total}", "{task.fields[rate]}")
    return progress.Progress(*columns, console=Console(highlight=False))
