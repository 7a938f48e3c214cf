"""Commands of the toolkit in processes of their own, one after the other or side by side."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from ..errors import Stopped

INTERRUPTED = 130  # exit code


@dataclass(frozen=True)
class Command:
    """`distill ARGUMENTS`.

    Attributes:
        what: it does, for whoever watches.
        log: the file for its errors; side by side with others, for all that it says.
    """

    what: str
    arguments: Sequence[str]
    log: Path


def run(commands: Sequence[Command], jobs: int, tell: Callable[[str], None]) -> list[str | None]:
    """Run them, so many at a time; why each failed, in its own last words, or None.

    Raises:
        Stopped: a signal came. Those that were running have saved and left, the others were not begun.
    """
    with Children(aside=jobs > 1) as children, ThreadPoolExecutor(jobs) as pool:

        def one(command: Command) -> str | None:
            if not children.stopped:
                tell(command.what)
            return None if children.stopped else children.call(command)

        reasons = list(pool.map(one, commands))
    if children.stopped:
        raise Stopped(f"{children.stopped}: what is done is kept; go on with the same command", INTERRUPTED)
    return reasons


class Children:
    """Context manager: a signal asks the running ones to save and leave.

    Attributes:
        aside: they run side by side, each on one thread, and say nothing here.
        stopped: the name of the signal that came, or "".
    """

    def __init__(self, aside: bool):
        self.aside, self.stopped = aside, ""
        self._running: set[subprocess.Popen] = set()
        self._before: dict = {}

    def __enter__(self) -> "Children":
        if threading.current_thread() is threading.main_thread():
            self._before = {s: signal.signal(s, self._stop) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def call(self, command: Command) -> str | None:
        command.log.parent.mkdir(parents=True, exist_ok=True)
        environment = os.environ | ({"OMP_NUM_THREADS": "1"} if self.aside else {})
        line = [sys.executable, "-m", "distill", *command.arguments]
        with command.log.open("w+", encoding="utf-8") as said:
            child = subprocess.Popen(line, stdout=said if self.aside else None, stderr=said, env=environment)
            self._running.add(child)
            if self.stopped:  # the signal came between the look and the start
                child.terminate()
            code = child.wait()
            self._running.remove(child)
            said.seek(0)
            words = [text.strip() for text in said if text.strip()]
        if code == 0:
            return None
        return f"killed by {signal.Signals(-code).name}" if code < 0 else (words or [f"exit code {code}"])[-1]

    def _stop(self, number: int, frame) -> None:
        self.stopped = signal.Signals(number).name
        for child in list(self._running):
            child.terminate()  # not SIGINT: Ctrl-C has reached them already, and a second one means leave at once
