"""Many videos over the cores of this machine; what one of them does to its process harms no other."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

Item, Result = TypeVar("Item"), TypeVar("Result")


class Died(Exception):
    """The process that did a piece of work died of it."""


def over(work: Callable[[Item], Result], items: Sequence[Item], processes: int) -> Iterator[tuple[Item, Result | Died]]:
    """Each item with what `work` made of it, in the order in which they are done."""
    left = list(reversed(items))
    while left:
        suspects = yield from _until_broken(work, left, processes)
        for item in suspects:
            yield item, _alone(work, item)


def _until_broken(work: Callable[[Item], Result], left: list[Item], processes: int) -> Generator:
    """Do what is left, from the end, until a process dies; returns the items of which one may have killed it."""
    held, suspects = {}, []
    pool = _pool(min(processes, len(left)))
    try:
        while held or left and not suspects:
            while left and not suspects and len(held) < 2 * processes:
                future = pool.submit(work, left[-1])
                held[future] = left.pop()
            for done in wait(held, return_when=FIRST_COMPLETED).done:
                item = held.pop(done)
                if isinstance(done.exception(), BrokenProcessPool):
                    suspects.append(item)
                else:
                    yield item, done.result()
    except BrokenProcessPool:  # on submitting
        suspects += held.values()
    finally:
        pool.shutdown(cancel_futures=True)
    return suspects


def _alone(work: Callable[[Item], Result], item: Item) -> Result | Died:
    with _pool(1) as pool:
        try:
            return pool.submit(work, item).result()
        except BrokenProcessPool:
            return Died("the process that measured it died (perhaps for want of memory)")


def _pool(processes: int) -> ProcessPoolExecutor:
    context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    return ProcessPoolExecutor(processes, mp_context=context, initializer=_begin)


def _begin() -> None:
    """Ctrl-C is the parent's to answer, and its death ends the child."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_follow, daemon=True).start()


def _follow() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
