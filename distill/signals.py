"""Ctrl-C and SIGTERM ask a run to save and leave; a second Ctrl-C leaves at once."""

import signal
import threading


class StopRequest:
    """Context manager; `.signal` is the number of the signal that came, or 0."""

    def __init__(self):
        self.signal = 0
        self._before: dict = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            self._before = {s: signal.signal(s, self._note) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame) -> None:
        if self.signal and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number
