"""Recording a teacher's trajectories into a store. A record depends on its prompt and seed alone."""

from collections.abc import Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path

import torch
from torch import Tensor

from . import assemble, flow, samplers, teachers, video
from .batch import generator
from .data import agreement, prompts, trajectories
from .data.prompts import Embeddings
from .data.trajectories import Store
from .engine import Engine, Role
from .errors import UserError
from .fill import Filler
from .networks import Net
from .progress import Progress
from .signals import StopRequest
from .teachers import stock


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
        recorder.fill(repair)
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


class Recorder(Filler):
    """Context manager: holds the store while it is written to."""

    store, unit, units, doing = Store, "record", "trajectories", "recording"

    def __init__(self, recipe, asked: dict, teacher, embeddings: Embeddings, engine: Engine, stop: StopRequest):
        super().__init__(engine, stop)
        self.recipe, self.said, self.asked = recipe, recipe.data.trajectories, asked
        self.path, self.total, self.size = Path(self.said.path), self.said.records, self.said.shard
        self.teacher, self.embeddings = teacher, embeddings
        self.prompts = prompts.read(recipe.data.prompts)

    def __exit__(self, *_) -> None:
        self.__dict__.pop("_net", None)  # the memory is needed for training
        super().__exit__()

    def clips(self) -> None:
        """Decode the last latents of records that have no clip yet."""
        mine = range(self.engine.rank, self.total, self.engine.world)
        self.engine.main_first(self._hold_for_clips)
        wanted = [sample for sample in mine if not self._clip(sample).exists()]
        with Progress("decoding", "clip", len(wanted), silent=not self.engine.main) as self.progress:
            self._together(partial(self._decode, wanted), "recorded, though not all decoded,")

    # Opening, on the main process

    def _make(self) -> None:
        if not trajectories.is_store(self.path):
            trajectories.create(self.path, self.asked)

    def _differences(self, store: Store, writing: bool = False) -> list[str]:
        return agreement.differences(store, self.asked, self.prompts, self.total, writing)

    def _hold_for_clips(self) -> None:
        if self._lock is None and not all(self._clip(sample).exists() for sample in range(self.total)):
            self._hold()

    # A process's own work

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
        role = Role("teacher", self.teacher.network(dtype=dtype).eval(), precision=precision, device=self.engine.device)
        stock.set_up(role.module, self.recipe.train, gradients=False)
        return Net(role)

    def _prompt(self, sample: int) -> str:
        return self.prompts[sample % len(self.prompts)]


def noise_of(seed: int, samples: Sequence[int], shape: Sequence[int]) -> Tensor:
    """Standard normal (B, C, F, H, W), each of its own seed and sample."""
    keys = [("trajectory", seed, sample) for sample in samples]
    return torch.stack([torch.randn(*shape, generator=generator(*key)) for key in keys])
