"""Filling a store of latents, shard by shard. A record depends on its recipe and number alone.

The unit of work is a shard: processes take them in turn, and each is written whole or not at all, so any number of
processes writes the same store and one that was killed goes on where it stopped.
"""

import json
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import ClassVar, TypeVar

from . import disk
from .data import shards
from .data.store import Shard, Store
from .engine import Engine
from .errors import Stopped, UserError, user_line
from .progress import Progress
from .signals import StopRequest

LOG = "log.jsonl"  # in the store: how long each shard took, for the cost of training (docs/compare.md)
Result = TypeVar("Result")


class Filler(ABC):
    """Context manager: holds a store while it is written to.

    Attributes:
        store: its class.
        unit, units: what a record is to people, as in "10 of 12 trajectories".
        doing: as a bar says it.
        own: names in the folder that are there before its index.
        path: the store's folder.
        size: records per shard.
        total: how many there are to be.
    """

    store: ClassVar[type[Store]]
    unit: ClassVar[str]
    units: ClassVar[str]
    doing: ClassVar[str]
    own: ClassVar[tuple[str, ...]] = ()
    path: Path
    size: int
    total: int

    def __init__(self, engine: Engine, stop: StopRequest):
        self.engine, self.stop = engine, stop
        self._lock = None

    @abstractmethod
    def _make(self) -> None:
        """An index, where there is none yet."""

    @abstractmethod
    def _differences(self, store: Store, writing: bool = False) -> list[str]:
        """A line for everything in which the store is not what the recipe asks for.

        Args:
            writing: records are about to be written, though none is missing.
        """

    @abstractmethod
    def _shard(self, samples: range) -> None:
        """Make and write one."""

    def __enter__(self) -> "Filler":
        return self

    def __exit__(self, *_) -> None:
        if self._lock is not None:
            self._lock.close()

    def fill(self, repair: bool) -> None:
        """Write the shards that are missing.

        Args:
            repair: look at the contents of every shard, and make damaged ones anew; without it they are an error.
        """
        gaps, held = self._together(partial(self.engine.main_first, partial(self._open, repair)))
        mine, silent = slice(self.engine.rank, None, self.engine.world), not self.engine.main
        wanted, beyond = gaps[mine], None
        if repair and held:
            with Progress("checking", "shard", len(held[mine]), silent=silent) as self.progress:
                found = self._together(partial(self._damaged, held[mine]))
            within = [shard for shard in found if shard.samples.stop <= self.total]
            beyond = self.engine.first(next((shard for shard in found if shard not in within), None))
            self._together(partial(self._take_out, within))
            wanted = wanted + [shard.samples for shard in within]
        before = self.engine.main_first(self._done)
        with Progress(self.doing, self.unit, self.total, before, silent) as self.progress:
            if gaps:
                missing = sum(map(len, gaps))
                self.progress.say(f"{self.path} lacks {missing} of {self.total} {self.units}: {self.doing} them")
            self._together(partial(self._work, wanted))
            if before < self.total:
                self.progress.show(self._done())
        self.engine.main_first(self._check_complete)
        if beyond:
            raise UserError(self._beyond(beyond.samples))

    # Opening, on the main process

    def _open(self, repair: bool) -> tuple[list[range], list[Shard]]:
        """The shards to make and those that are there. Whoever only reads a whole store needs no lock."""
        if repair or not shards.is_store(self.path) or self.store(self.path).missing(self.total, self.total):
            self._hold()  # before looking: what another process has begun is its own
            self._make()
        store = self.store(self.path)
        faults = self._differences(store)
        if faults or not repair and (faults := store.damaged(thorough=False)):
            raise UserError("\n".join(faults))
        if self._lock is not None:
            shards.expect(self.path, self.total)
            self._remove(store.broken)
            shards.sweep(self.path)
        return store.missing(self.total, self.size), store.shards

    def _check_free(self) -> None:
        """UserError if the folder holds something that is no store."""
        others, kind = [name for name in shards.others(self.path) if name not in self.own], self.store.kind
        if not others or shards.is_store(self.path):
            return
        if "shards" in others:
            raise UserError(shards.no_index(self.path, kind))
        raise UserError(
            f"{self.path} holds {others[0]!r} but no {shards.INDEX}: not a {kind.name}; "
            f"set {kind.section}.path=NEW_FOLDER"
        )

    def _remove(self, entries: list[Path]) -> None:
        """Entries that cannot be read: their records are made again."""
        for samples in map(shards.samples_of, entries):
            if samples.stop > self.total:
                raise UserError(self._beyond(samples))
        for entry in entries:
            entry.unlink()

    def _beyond(self, samples: range) -> str:
        kind = self.store.kind
        return (
            f"{shards.file(self.path, samples)}: damaged, and holds records beyond the recipe's {self.total}; "
            f"set {kind.section}.records={samples.stop} or more to {kind.verb} them anew"
        )

    def _hold(self) -> None:
        self._check_free()
        self.path.mkdir(parents=True, exist_ok=True)
        what = f"being {self.store.kind.participle}"
        self._lock = disk.hold(self.path, f"{self.path} is {what} by {{holder}}; wait for it")

    def _check_complete(self) -> None:
        if gaps := self.store(self.path).missing(self.total, self.total):
            lacks = f"{self.path} lacks record {gaps[0][0]} after {self.doing}"
            raise UserError(f"{lacks}; do all processes see this folder?")

    # A process's own work

    def _damaged(self, held: list[Shard]) -> list[Shard]:
        store, found = self.store(self.path), []
        for done, shard in enumerate(held, 1):
            self._look_up()
            if fault := store.damage(shard, thorough=True):
                print(f"{store.file(shard)}: damaged ({fault})", flush=True)
                found.append(shard)
            self.progress.show(done)
        return found

    def _take_out(self, damaged: list[Shard]) -> None:
        """Their records count no longer and are made anew, unless the recipe would make others."""
        store = self.store(self.path)
        faults = damaged and self._differences(store, writing=True)
        if faults:
            raise UserError("\n".join(faults))
        for shard in damaged:
            store.file(shard).with_suffix(".json").unlink()

    def _work(self, wanted: list[range]) -> None:
        for samples in wanted:
            started = time.perf_counter()
            self._shard(samples)
            self._note(samples, time.perf_counter() - started)

    def _note(self, samples: range, seconds: float) -> None:
        """One write, so that processes do not tear each other's lines."""
        line = json.dumps({"first": samples[0], "last": samples[-1], "seconds": round(seconds, 3)})
        with (self.path / LOG).open("a", encoding="utf-8") as log:
            log.write(line + "\n")

    def _done(self) -> int:
        """How many records all processes have written."""
        return shards.recorded(self.path, self.total)

    # Leaving

    def _look_up(self) -> None:
        if self.stop.signal:
            raise Interrupted

    def _together(self, work: Callable[[], Result], what: str | None = None) -> Result:
        """Each process does its work; if a signal or a fault ends it in one, they leave together.

        Args:
            what: has been done with those that are there.
        """
        came = fault = result = None
        try:
            result = work()
        except Interrupted:
            came = signal.Signals(self.stop.signal).name if self.stop.signal else None  # it came to another process
        except Exception as error:  # the first process says it for all
            fault = user_line(error)
            if fault is None:
                raise
        came, fault = self.engine.first(came), self.engine.first(fault)
        if fault:
            raise UserError(fault)
        if came:
            said = f"{came}: {self._reached(what or self.store.kind.participle)}"
            raise Stopped(f"{said}; go on with the same command", 130)
        return result

    def _reached(self, what: str) -> str:
        return f"{self._done()} of {self.total} {self.units} are {what} in {self.path}"


class Interrupted(Exception):
    """A signal asks this process to leave its shard."""
