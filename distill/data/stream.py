"""Which samples a step sees: a function of the run's seed and the step alone, whatever the number of processes."""

import functools
import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from .. import image_prompt
from ..batch import Batch, Condition, generator
from ..errors import UserError
from .trajectories import Store

Encode = Callable[[Sequence[str]], Condition]
Loaded = tuple[range, list[str], Condition, Tensor | None]  # a micro-batch on the CPU: index, prompts, cond, trajectory


class PromptStream:
    """Prompts in a new random order each epoch, as micro-batches.

    Args:
        encode: encoded prompts, one row each (Embeddings.get).
        shape: of one latent, (C, F, H, W).

    Attributes:
        digest: a run goes on with data of the same digest only.
    """

    def __init__(self, prompts: list[str], encode: Encode, negative: Condition, shape, train, device: torch.device):
        self.prompts, self.encode, self.negative = prompts, encode, negative.to(device)
        self.shape, self.train, self.device = shape, train, device
        seen = "\n".join([*prompts, *image_prompt.contents(prompts)])
        self.digest = hashlib.sha256(seen.encode()).hexdigest()

    def batches(self, step: int, rank: int, world: int) -> list[Batch]:
        """The micro-batches of a step (counted over the whole run) that fall to a process."""
        return [self._batch(*loaded) for loaded in self._load(step, rank, world)]

    def _load(self, step: int, rank: int, world: int) -> list[Loaded]:
        return [self._one(index) for index in _share(self.train, step, rank, world)]

    def _one(self, index: range) -> Loaded:
        prompts = [self.prompts[place] for place in self._places(index)]
        return index, prompts, self.encode(prompts), None

    def _places(self, index: range) -> list[int]:
        """Where the samples of a run are found among the prompts."""
        epochs = [divmod(sample, len(self.prompts)) for sample in index]
        return [int(_order(self.train.seed, epoch, len(self.prompts))[place]) for epoch, place in epochs]

    def _batch(self, index: range, prompts: list[str], cond: Condition, trajectory: Tensor | None) -> Batch:
        return Batch(
            prompts=prompts,
            cond=cond.to(self.device),
            negative=self.negative.expand(len(prompts)),
            index=list(index),
            shape=self.shape,
            seed=self.train.seed,
            device=self.device,
            trajectory=None if trajectory is None else trajectory.to(self.device),
        )


class TrajectoryStream(PromptStream):
    """Records of a trajectory store in place of prompts; a thread reads those of the next step.

    Args:
        records: how many of the store's, from the first on.
        levels: of the latents that a batch holds, their places among those that are stored, noise first.
    """

    def __init__(self, store: Store, records: int, levels: Sequence[int], *prompt_stream):
        super().__init__([store.prompt(record) for record in range(records)], *prompt_stream)
        self.store, self.levels, self.digest = store, levels, store.digest(records)
        self._thread = ThreadPoolExecutor(1, "trajectories")
        self._ahead: dict[tuple[int, int, int], Future] = {}

    def _load(self, step: int, rank: int, world: int) -> list[Loaded]:
        """What the thread has read ahead, or else reads now; UserError if a shard is damaged."""
        now, after = (step, rank, world), (step + 1, rank, world)
        coming = self._ahead.pop(now, None) or self._thread.submit(super()._load, *now)
        self._ahead = {after: self._thread.submit(super()._load, *after)}
        return coming.result()

    def _one(self, index: range) -> Loaded:
        trajectory = torch.stack([self.store.read(record, self.levels) for record in self._places(index)])
        return *super()._one(index)[:3], trajectory


def _share(train, step: int, rank: int, world: int) -> list[range]:
    """The sample indices of the micro-batches of a step that fall to a process."""
    first, size = step * train.batch_size, train.micro_batch_size
    starts = range(first, first + train.batch_size, size)
    return [range(start, start + size) for start in list(starts)[rank::world]]


@functools.lru_cache(2)
def _order(seed: int, epoch: int, size: int) -> Tensor:
    return torch.randperm(size, generator=generator("order", seed, epoch))


def check_share(train, world: int) -> None:
    """Raises UserError if the processes cannot share the global batch equally."""
    micro = train.batch_size // train.micro_batch_size
    if micro % world:
        raise UserError(
            f"train.batch_size {train.batch_size} is {micro} micro-batches of {train.micro_batch_size}; "
            f"{world} processes cannot share them equally: make it a multiple of {world * train.micro_batch_size}"
        )
