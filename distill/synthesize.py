"""Recording a teacher's trajectories into a store. A record depends on its prompt and seed alone.

The unit of work is a shard: processes take them in turn, and each is written whole or not at all, so any number of
processes writes the same store and one that was killed goes on where it stopped.
"""

import signal
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from . import assemble, disk, flow, samplers, teachers, video
from .batch import generator
from .data import agreement, prompts, trajectories
from .data.prompts import Embeddings
from .data.trajectories import Shard, Store
from .engine import Engine, Role
from .errors import Stopped, UserError, user_line
from .networks import Net
from .progress import Progress
from .signals import StopRequest

Result = TypeVar("Result")


def run(recipe) -> Path:
    """Record what a recipe's store lacks, replace what is damaged; returns the store.

    Raises:
        UserError: the recipe asks for something else than what the store holds; nothing was changed.
        Stopped: a signal came; what was recorded is kept.
    """
    engine = Engine()
    try:
        with StopRequest() as stop:
            levels = assemble.method(recipe).levels()
            teacher, embeddings = open_teacher(recipe, levels, engine)
            return complete(recipe, levels, teacher, embeddings, engine, stop, True).path
    finally:
        engine.close()


def open_teacher(recipe, levels: Tensor, engine: Engine) -> tuple[teachers.Teacher, Embeddings]:
    """The teacher, with the store's prompts encoded, unless the store will not do."""
    teacher = teachers.load(recipe.teacher, recipe.video)
    engine.main_first(lambda: refuse(recipe, levels, teacher))
    embeddings = Embeddings(teacher)
    texts = prompts.read(recipe.data.prompts)[: recipe.data.trajectories.records]
    engine.main_first(lambda: embeddings.prepare(texts, agreement.negative_prompt(recipe, teacher)))
    teacher.unload()
    return teacher, embeddings


def complete(
    recipe, levels: Tensor, teacher, embeddings: Embeddings, engine: Engine, stop: StopRequest, repair: bool = False
) -> Store:
    """The recipe's store, with every record that it asks for; recorded now if it is not there.

    Args:
        levels: that the method asks for.
        embeddings: of every prompt.
        repair: look at the contents of every shard, and record damaged ones anew; without it they are an error.
    """
    said = recipe.data.trajectories
    asked = engine.main_first(lambda: refuse(recipe, levels, teacher))
    with Recorder(recipe, asked, teacher, embeddings, engine, stop) as recorder:
        recorder.record(repair)
        if said.clips:
            recorder.clips()
    teacher.unload()
    return Store(said.path)


def refuse(recipe, levels: Tensor, teacher) -> dict:
    """The settings asked for; UserError if recipe and store do not fit, before prompts are encoded, or days of work."""
    asked, said = agreement.settings(recipe, teacher), recipe.data.trajectories
    agreement.places(levels, recipe, asked["levels"], "the recipe")
    if trajectories.is_store(said.path):
        faults = agreement.differences(Store(said.path), asked, prompts.read(recipe.data.prompts), said.records)
        if faults:
            raise UserError("\n".join(faults))
    return asked


class Recorder:
    """Context manager: holds the store while it is written to."""

    def __init__(self, recipe, asked: dict, teacher, embeddings: Embeddings, engine: Engine, stop: StopRequest):
        self.recipe, self.said, self.asked = recipe, recipe.data.trajectories, asked
        self.path, self.total = Path(self.said.path), self.said.records
        self.teacher, self.embeddings, self.engine, self.stop = teacher, embeddings, engine, stop
        self.prompts = prompts.read(recipe.data.prompts)
        self._lock = None

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(self, *_) -> None:
        self.__dict__.pop("_net", None)  # the memory is needed for training
        if self._lock is not None:
            self._lock.close()

    def record(self, repair: bool) -> None:
        gaps, held = self.engine.main_first(partial(self._open, repair))
        mine, silent = slice(self.engine.rank, None, self.engine.world), not self.engine.main
        wanted, beyond = gaps[mine], None
        if repair and held:
            with Progress("checking", "shard", len(held[mine]), silent=silent) as self.progress:
                found = self._together(partial(self._damaged, held[mine]), "recorded")
            within = [shard for shard in found if shard.samples.stop <= self.total]
            beyond = self.engine.first(next((shard for shard in found if shard not in within), None))
            self._together(partial(self._take_out, within), "recorded")
            wanted = wanted + [shard.samples for shard in within]
        before = self.engine.main_first(self._done)
        with Progress("recording", "record", self.total, before, silent) as self.progress:
            if gaps:
                missing = sum(map(len, gaps))
                self.progress.say(f"{self.path} lacks {missing} of {self.total} trajectories: recording them")
            self._together(partial(self._record, wanted), "recorded")
            if before < self.total:
                self.progress.show(self._done())
        self.engine.main_first(self._check_complete)
        if beyond:
            raise UserError(self._beyond(beyond.samples))

    def clips(self) -> None:
        """Decode the last latents of records that have no clip yet."""
        mine = range(self.engine.rank, self.total, self.engine.world)
        self.engine.main_first(self._hold_for_clips)
        wanted = [sample for sample in mine if not self._clip(sample).exists()]
        with Progress("decoding", "clip", len(wanted), silent=not self.engine.main) as self.progress:
            self._together(partial(self._decode, wanted), "recorded, though not all decoded,")

    # Opening, on the main process

    def _open(self, repair: bool) -> tuple[list[range], list[Shard]]:
        """The shards to record and those that are there. Whoever only reads a whole store needs no lock."""
        if repair or not trajectories.is_store(self.path) or Store(self.path).missing(self.total, self.total):
            self._hold()  # before looking: what another recorder has begun is its own
            self._make()
        store = Store(self.path)
        faults = agreement.differences(store, self.asked, self.prompts, self.total)
        if faults or not repair and (faults := store.damaged(thorough=False)):
            raise UserError("\n".join(faults))
        if self._lock is not None:
            trajectories.expect(self.path, self.total)
            self._remove(store.broken)
            trajectories.sweep(self.path)
        return store.missing(self.total, self.said.shard), store.shards

    def _make(self) -> None:
        """An index, where there is none yet."""
        if not trajectories.is_store(self.path):
            trajectories.create(self.path, self.asked)

    def _check_free(self) -> None:
        """UserError if the folder holds something that is no store."""
        others = trajectories.others(self.path)
        if not others or trajectories.is_store(self.path):
            return
        if "shards" in others:
            raise UserError(trajectories.no_index(self.path))
        raise UserError(
            f"{self.path} holds {others[0]!r} but no {trajectories.INDEX}: not a trajectory store; "
            "set data.trajectories.path=NEW_FOLDER"
        )

    def _remove(self, entries: list[Path]) -> None:
        """Entries that cannot be read: their records are recorded again."""
        for samples in map(trajectories.samples_of, entries):
            if samples.stop > self.total:
                raise UserError(self._beyond(samples))
        for entry in entries:
            entry.unlink()

    def _beyond(self, samples: range) -> str:
        return (
            f"{trajectories.file(self.path, samples)}: damaged, and holds records beyond the recipe's {self.total}; "
            f"set data.trajectories.records={samples.stop} or more to record them anew"
        )

    def _hold_for_clips(self) -> None:
        if self._lock is None and not all(self._clip(sample).exists() for sample in range(self.total)):
            self._hold()

    def _hold(self) -> None:
        self._check_free()
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = disk.hold(self.path, f"{self.path} is being recorded by {{holder}}; wait for it")

    def _check_complete(self) -> None:
        if gaps := Store(self.path).missing(self.total, self.total):
            raise UserError(f"{self.path} lacks record {gaps[0][0]} after recording; do all processes see this folder?")

    # A process's own work

    def _damaged(self, shards: list[Shard]) -> list[Shard]:
        store, found = Store(self.path), []
        for done, shard in enumerate(shards, 1):
            self._look_up()
            if fault := store.damage(shard, thorough=True):
                print(f"{store.file(shard)}: damaged ({fault})", flush=True)
                found.append(shard)
            self.progress.show(done)
        return found

    def _take_out(self, damaged: list[Shard]) -> None:
        """Their records count no longer and are recorded anew, unless the recipe would make others."""
        store = Store(self.path)
        faults = damaged and agreement.differences(store, self.asked, self.prompts, self.total, writing=True)
        if faults:
            raise UserError("\n".join(faults))
        for shard in damaged:
            store.file(shard).with_suffix(".json").unlink()

    def _record(self, shards: list[range]) -> None:
        for samples in shards:
            self._shard(samples)

    def _decode(self, wanted: list[int]) -> None:
        store = Store(self.path)
        for done, sample in enumerate(wanted, 1):
            self._look_up()
            last = store.read(sample, [len(store.info["levels"]) - 1])
            self._clip(sample).parent.mkdir(exist_ok=True)
            video.write(self._clip(sample), self.teacher.decode(last)[0], self.recipe.video.fps)
            self.progress.show(done)

    def _clip(self, sample: int) -> Path:
        return self.path / "clips" / f"{sample:08d}.mp4"

    def _shard(self, samples: range) -> None:
        size = self.said.batch_size
        parts = [self._trajectories(samples[i : i + size]) for i in range(0, len(samples), size)]
        trajectories.add(self.path, samples[0], [self._prompt(sample) for sample in samples], torch.cat(parts))

    @torch.no_grad()
    def _trajectories(self, samples: range) -> Tensor:
        """The kept latents (B, K + 1, C, F, H, W) in the store's precision, on the CPU."""
        kept = agreement.kept(self.said.steps, self.said.keep)
        before, found = self._done() + samples[0] % self.said.shard, []
        for i, x in enumerate(self._denoise(samples)):
            if i in kept:
                found.append(x.to("cpu", trajectories.DTYPES[self.said.precision]))
            self._look_up()
            self.progress.show(min(before + i / self.said.steps * len(samples), self.total - 0.1))
        latents = torch.stack(found, 1)
        if not latents.isfinite().all():
            raise UserError(f"records {samples[0]} to {samples[-1]}: the teacher's latents are not finite")
        return latents

    def _denoise(self, samples: range) -> Iterator[Tensor]:
        cond = self.embeddings.get([self._prompt(sample) for sample in samples]).to(self.engine.device)
        negative = self.embeddings.get([self.asked["negative_prompt"]]).to(self.engine.device).expand(len(samples))
        noise = noise_of(self.said.seed, samples, self.asked["latent_shape"]).to(self.engine.device)
        sigmas = flow.grid(self.said.steps, self.said.shift)
        return samplers.walk(self._net, noise, sigmas, cond, negative, self.said.guidance)

    @cached_property
    def _net(self) -> Net:
        precision = self.recipe.train.precision
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        module = self.teacher.network(dtype=dtype).eval()
        return Net(Role("teacher", module, precision=precision, device=self.engine.device))

    def _prompt(self, sample: int) -> str:
        return self.prompts[sample % len(self.prompts)]

    def _done(self) -> int:
        """How many records all processes have written."""
        return trajectories.recorded(self.path, self.total)

    # Leaving

    def _look_up(self) -> None:
        if self.stop.signal:
            raise _Interrupted

    def _together(self, work: Callable[[], Result], what: str) -> Result:
        """Each process does its work; if a signal or a fault ends it in one, they leave together."""
        came = fault = result = None
        try:
            result = work()
        except _Interrupted:
            came = signal.Signals(self.stop.signal).name
        except Exception as error:  # the first process says it for all
            fault = user_line(error)
            if fault is None:
                raise
        came, fault = self.engine.first(came), self.engine.first(fault)
        if fault:
            raise UserError(fault)
        if came:
            said = f"{came}: {self._done()} of {self.total} trajectories are {what} in {self.path}"
            raise Stopped(f"{said}; go on with the same command", 130)
        return result


class _Interrupted(Exception):
    """A signal asks this process to leave its shard."""


def noise_of(seed: int, samples: Sequence[int], shape: Sequence[int]) -> Tensor:
    """Standard normal (B, C, F, H, W), each of its own seed and sample."""
    keys = [("trajectory", seed, sample) for sample in samples]
    return torch.stack([torch.randn(*shape, generator=generator(*key)) for key in keys])
