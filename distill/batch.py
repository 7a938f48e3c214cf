"""What a loss receives: conditions, and randomness that depends on nothing but the sample."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


class Condition(dict[str, Tensor]):
    """Everything a teacher needs besides x and sigma: named tensors, batch first (Wan: `text` (B, L, D))."""

    @property
    def size(self) -> int:
        """The number of samples."""
        return next(iter(self.values())).shape[0]

    def to(self, *args, **kwargs) -> "Condition":
        return Condition({k: v.to(*args, **kwargs) for k, v in self.items()})

    def rows(self, index) -> "Condition":
        """The samples that a slice or index tensor selects."""
        return Condition({k: v[index] for k, v in self.items()})

    def expand(self, n: int) -> "Condition":
        """One sample repeated n times, without copying."""
        return Condition({k: v.expand(n, *v.shape[1:]) for k, v in self.items()})

    @staticmethod
    def cat(parts: Sequence["Condition"]) -> "Condition":
        return Condition({k: torch.cat([p[k] for p in parts]) for k in parts[0]})


def generator(*key: int | str) -> torch.Generator:
    """A CPU generator seeded by the words of a key alone, the same on every machine and process."""
    digest = hashlib.blake2b("/".join(map(str, key)).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little"))


@dataclass
class Clips:
    """Real videos and their captions, as many as the batch has prompts: clean latents (B, C, F, H, W), float32."""

    latents: Tensor
    prompts: list[str]
    cond: Condition

    def to(self, device: torch.device) -> "Clips":
        return Clips(self.latents.to(device), self.prompts, self.cond.to(device))


@dataclass
class Batch:
    """A micro-batch of prompts, or of records of a trajectory store.

    Attributes:
        cond, negative: the prompts and the negative prompt, encoded, one row per sample.
        index: global sample indices; sample i of a run is the same on any number of processes.
        shape: of one latent, (C, F, H, W).
        update: position of the current update within its step; part of the key of every draw.
        state: tensors that a method carries through the updates of one step, saved with a checkpoint.
        trajectory: (B, K + 1, C, F, H, W), float32: the teacher's latents at the noise levels `Method.levels()`, noise
            first, for methods that read "trajectories".
        video: real videos with captions of their own, for methods that read "videos".
    """

    prompts: list[str]
    cond: Condition
    negative: Condition
    index: list[int]
    shape: tuple[int, int, int, int]
    seed: int
    device: torch.device = torch.device("cpu")
    update: int = 0
    state: dict[str, Tensor] = field(default_factory=dict)
    trajectory: Tensor | None = None
    video: Clips | None = None
    _draws: int = 0

    def __len__(self) -> int:
        return len(self.index)

    def at(self, update: int) -> "Batch":
        """The same batch as the update at that position of the step sees it."""
        self.update, self._draws = update, 0
        return self

    def noise(self) -> Tensor:
        """Standard normal latents (B, C, F, H, W); a new draw at every call."""
        return self._draw(lambda g: torch.randn(self.shape, generator=g))

    def uniform(self) -> Tensor:
        """Uniform on [0, 1), (B,); a new draw at every call."""
        return self._draw(lambda g: torch.rand((), generator=g))

    def integers(self, low: int, high: int) -> Tensor:
        """Uniform integers in [low, high), (B,); a new draw at every call."""
        return self._draw(lambda g: torch.randint(low, high, (), generator=g))

    def _draw(self, one) -> Tensor:
        self._draws += 1
        keys = [(self.seed, i, self.update, self._draws) for i in self.index]
        return torch.stack([one(generator("draw", *key)) for key in keys]).to(self.device)
