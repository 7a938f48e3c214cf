"""Which samples a step sees: a function of the run's seed and the step alone, whatever the number of processes."""

import functools
import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .. import image_prompt
from ..batch import Batch, Clips, Condition, generator
from ..errors import UserError
from . import trajectories, videos

Encode = Callable[[Sequence[str]], Condition]


@dataclass
class Loaded:
    """A micro-batch on the CPU."""

    index: range
    prompts: list[str]
    cond: Condition
    trajectory: Tensor | None = None
    video: Clips | None = None


class PromptStream:
    """Prompts in a new random order each epoch, as micro-batches.

    Args:
        encode: encoded prompts, one row each (Embeddings.get).
        shape: of one latent, (C, F, H, W).

    Attributes:
        digests: of the data by kind; a run goes on with data of the same digests only.
    """

    def __init__(self, prompts: list[str], encode: Encode, negative: Condition, shape, train, device: torch.device):
        self.prompts, self.encode, self.negative = prompts, encode, negative.to(device)
        self.shape, self.train, self.device = shape, train, device
        seen = "\n".join([*prompts, *image_prompt.contents(prompts)])
        self.digests = {"prompts": hashlib.sha256(seen.encode()).hexdigest()}

    def batches(self, step: int, rank: int, world: int) -> list[Batch]:
        """The micro-batches of a step (counted over the whole run) that fall to a process."""
        return [self._batch(loaded) for loaded in self._load(step, rank, world)]

    def _load(self, step: int, rank: int, world: int) -> list[Loaded]:
        return [self._one(index) for index in _share(self.train, step, rank, world)]

    def _one(self, index: range) -> Loaded:
        prompts = [self.prompts[place] for place in _places(self.train.seed, index, len(self.prompts))]
        return Loaded(index, prompts, self.encode(prompts))

    def _batch(self, loaded: Loaded) -> Batch:
        return Batch(
            prompts=loaded.prompts,
            cond=loaded.cond.to(self.device),
            negative=self.negative.expand(len(loaded.prompts)),
            index=list(loaded.index),
            shape=self.shape,
            seed=self.train.seed,
            device=self.device,
            trajectory=None if loaded.trajectory is None else loaded.trajectory.to(self.device),
            video=None if loaded.video is None else loaded.video.to(self.device),
        )


class StoreStream(PromptStream):
    """A stream that reads from a store; a thread reads the next step's micro-batches.

    Args:
        what: it reads.
    """

    def __init__(self, what: str, *prompt_stream):
        super().__init__(*prompt_stream)
        self._thread = ThreadPoolExecutor(1, what)
        self._ahead: dict[tuple[int, int, int], Future] = {}

    def _load(self, step: int, rank: int, world: int) -> list[Loaded]:
        """What the thread has read ahead, or else reads now; UserError if a shard is damaged."""
        now, after = (step, rank, world), (step + 1, rank, world)
        coming = self._ahead.pop(now, None) or self._thread.submit(super()._load, *now)
        self._ahead = {after: self._thread.submit(super()._load, *after)}
        return coming.result()


class TrajectoryStream(StoreStream):
    """Records of a trajectory store in place of prompts.

    Args:
        records: how many of the store's, from the first on.
        levels: of the latents that a batch holds, their places among those that are stored, noise first.
    """

    def __init__(self, store: trajectories.Store, records: int, levels: Sequence[int], *prompt_stream):
        super().__init__("trajectories", [store.prompt(record) for record in range(records)], *prompt_stream)
        self.store, self.levels, self.digests = store, levels, {"trajectories": store.digest(records)}

    def _one(self, index: range) -> Loaded:
        records = _places(self.train.seed, index, len(self.prompts))
        trajectory = torch.stack([self.store.read(record, self.levels) for record in records])
        return replace(super()._one(index), trajectory=trajectory)


class VideoStream(StoreStream):
    """Prompts, and clips of a video store in a random order of their own; without prompts, the clips' captions.

    Args:
        kept: so many clips, the last ones, are not trained on.
    """

    def __init__(self, store: videos.Store, kept: int, prompts: list[str] | None, *prompt_stream):
        if kept >= len(store.clips):
            raise UserError(
                f"{store.path} has {len(store.clips)} clips: none is left to train on beside held_out.clips {kept}"
            )
        self.captions = store.prompts[: len(store.clips) - kept]
        super().__init__("videos", prompts or self.captions, *prompt_stream)
        self.store, self.alone = store, prompts is None
        self.digests = ({} if self.alone else self.digests) | {"videos": store.digest()}

    def held_out(self) -> Iterator[Batch]:
        """The clips that are kept from training, in order."""
        first, end, size = len(self.captions), len(self.store.clips), self.train.micro_batch_size
        for start in range(first, end, size):
            index = range(start, min(start + size, end))
            video = self._clips(index)
            yield self._batch(Loaded(index, video.prompts, video.cond, video=video))

    def _one(self, index: range) -> Loaded:
        video = self._clips(_places(self.train.seed, index, len(self.captions), "order of videos"))
        if self.alone:
            return Loaded(index, video.prompts, video.cond, video=video)
        return replace(super()._one(index), video=video)

    def _clips(self, places: Sequence[int]) -> Clips:
        captions = [self.store.prompt(place) for place in places]
        return Clips(torch.stack([self.store.read(place) for place in places]), captions, self.encode(captions))


def _share(train, step: int, rank: int, world: int) -> list[range]:
    """The sample indices of the micro-batches of a step that fall to a process."""
    first, size = step * train.batch_size, train.micro_batch_size
    starts = range(first, first + train.batch_size, size)
    return [range(start, start + size) for start in list(starts)[rank::world]]


def _places(seed: int, index: range, size: int, order: str = "order") -> list[int]:
    """Where the samples of a run are found among so many, in a new order each epoch."""
    epochs = [divmod(sample, size) for sample in index]
    return [int(_order(order, seed, epoch, size)[place]) for epoch, place in epochs]


@functools.lru_cache(4)
def _order(name: str, seed: int, epoch: int, size: int) -> Tensor:
    return torch.randperm(size, generator=generator(name, seed, epoch))


def check_share(train, world: int) -> None:
    """Raises UserError if the processes cannot share the global batch equally."""
    micro = train.batch_size // train.micro_batch_size
    if micro % world:
        raise UserError(
            f"train.batch_size {train.batch_size} is {micro} micro-batches of {train.micro_batch_size}; "
            f"{world} processes cannot share them equally: make it a multiple of {world * train.micro_batch_size}"
        )
