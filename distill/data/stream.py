"""Which samples a step sees: a function of the run's seed and the step alone, whatever the number of processes."""

import hashlib

import torch

from ..batch import Batch, Condition, generator
from ..errors import UserError


class PromptStream:
    """Prompts in a new random order each epoch, as micro-batches.

    Args:
        encode: encoded prompts, one row each (Embeddings.get).
        shape: of one latent, (C, F, H, W).
    """

    def __init__(self, prompts: list[str], encode, negative: Condition, shape, train, device: torch.device):
        self.prompts, self.encode, self.negative = prompts, encode, negative.to(device)
        self.shape, self.train, self.device = shape, train, device
        self.digest = hashlib.sha256("\n".join(prompts).encode()).hexdigest()

    def batches(self, step: int, rank: int, world: int) -> list[Batch]:
        """The micro-batches of a step (counted over the whole run) that fall to a process."""
        first, size = step * self.train.batch_size, self.train.micro_batch_size
        starts = range(first, first + self.train.batch_size, size)
        return [self._batch(range(start, start + size)) for start in list(starts)[rank::world]]

    def _batch(self, index: range) -> Batch:
        prompts = [self.prompts[self._prompt(i)] for i in index]
        return Batch(
            prompts=prompts,
            cond=self.encode(prompts).to(self.device),
            negative=self.negative.expand(len(prompts)),
            index=list(index),
            shape=self.shape,
            seed=self.train.seed,
            device=self.device,
        )

    def _prompt(self, sample: int) -> int:
        epoch, place = divmod(sample, len(self.prompts))
        return int(torch.randperm(len(self.prompts), generator=generator("order", self.train.seed, epoch))[place])


def check_share(train, world: int) -> None:
    """Raises UserError if the processes cannot share the global batch equally."""
    micro = train.batch_size // train.micro_batch_size
    if micro % world:
        raise UserError(
            f"train.batch_size {train.batch_size} is {micro} micro-batches of {train.micro_batch_size}; "
            f"{world} processes cannot share them equally: make it a multiple of {world * train.micro_batch_size}"
        )
