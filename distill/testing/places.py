"""Runs of the conformance kit in several processes: every engine and layout that a method must not notice.

The processes are forked from a server that has imported everything, once for all methods, and has done nothing else.
"""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path

from .. import launch, track
from ..errors import UserError

PATIENCE = 300.0  # seconds; processes that wait for each other would do so for hours


@dataclass(frozen=True)
class Place:
    """A layout of processes and engines.

    Args:
        overrides: of the recipe, what asks for the engine.
    """

    name: str
    processes: int
    overrides: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        return self.name.replace(" ", "_")


RECOMPUTED = "train.activation_checkpointing=full"
PLACES = (
    Place("two processes", 2),
    Place("zero1 on two processes", 2, ("engine=zero1",)),
    Place("zero2 on two processes", 2, ("engine=zero2",)),
    Place("zero3 on two processes", 2, ("engine=zero3", RECOMPUTED)),
)


class Refused(UserError):
    """The engine cannot keep a network as the place asks, or deepspeed is missing, and it says so."""


def run(recipe: Path, end: int, overrides: Sequence[str], processes: int, cache: Path) -> list[dict]:
    """The log of a run up to an update, by so many processes.

    Raises:
        UserError: what the first that failed said.
    """
    together(_train, (str(recipe), end, list(overrides)), processes, cache)
    output = next(each for each in reversed(overrides) if each.startswith("output="))
    return [line for line in track.read(Path(output.removeprefix("output="))) if line["kind"] == "update"]


def together(work: Callable[..., None], arguments: Sequence, processes: int, cache: Path) -> None:
    """Do work in so many processes that know each other; UserError with what the first that failed said."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["distill.testing.trial", "distill.testing.imported"])
    port, pipes = launch.free_port(), [context.Pipe(duplex=False) for _ in range(processes)]
    children = []
    for rank, (_, mouth) in enumerate(pipes):
        environment = launch.environment(rank, processes, port) | {"DISTILL_CACHE": str(cache)}
        children.append(context.Process(target=_child, args=(work, arguments, environment, mouth), daemon=True))
        children[-1].start()
        mouth.close()
    try:
        _wait([ear for ear, _ in pipes])
    finally:
        for child in children:
            child.kill()
            child.join()


def _wait(ears: list[Connection]) -> None:
    """Every process says one thing: nothing when it is done, or what went wrong."""
    deadline = time.monotonic() + PATIENCE
    while ears:
        ready = wait(ears, deadline - time.monotonic())
        if not ready:
            raise UserError(f"after {PATIENCE:.0f} s a process is still waiting: for another that does not come?")
        for ear in ready:
            ears.remove(ear)
            if fault := _said(ear):
                raise Refused(fault) if fault.startswith("UserError: engine") else UserError(fault)


def _said(ear: Connection) -> str:
    try:
        return ear.recv()
    except EOFError:
        return "a process was killed"


def _child(work: Callable[..., None], arguments: Sequence, environment: dict[str, str], mouth: Connection) -> None:
    """Leaves without the interpreter's teardown, which gloo's threads have aborted (docs/log.md)."""
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    import torch

    torch.set_num_threads(1)
    try:
        work(*arguments)
        mouth.send("")
    except BaseException as error:  # told to the parent, which shows it
        mouth.send(f"{type(error).__name__}: {error}")
    os._exit(0)


def _train(recipe: str, end: int, overrides: list[str]) -> None:
    from . import trial

    trial.run(Path(recipe), end, overrides)
