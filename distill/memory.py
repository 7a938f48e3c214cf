"""What a method may remember beyond a step: modules without weights, saved and resumed with the method."""

from collections import deque
from collections.abc import Callable

import torch
from torch import Tensor, nn

from .batch import Condition


class LatentQueue(nn.Module):
    """Micro-batches of generated latents on their way to the next step, first in, first out.

    With each travel the real latents and the conditions of the same prompts. Values are copied and detached.
    """

    def __init__(self):
        super().__init__()
        self.waiting: deque[tuple[Tensor, Tensor, Condition]] = deque()

    def __len__(self) -> int:
        return len(self.waiting)

    def push(self, latents: Tensor, reals: Tensor, cond: Condition) -> None:
        """Append latents (B, C, F, H, W), real latents (B, K, C, F, H, W) and conditions of the same prompts."""
        sizes = latents.shape[0], reals.shape[0], cond.size
        if len(set(sizes)) > 1:
            raise ValueError(f"{sizes[0]} latents, {sizes[1]} real ones and {sizes[2]} conditions; expected as many")
        copied = Condition({k: _copy(v) for k, v in cond.items()})
        self.waiting.append((_copy(latents), _copy(reals), copied))

    def pop(self, device: torch.device | str) -> tuple[Tensor, Tensor, Condition]:
        """Remove the oldest latents; returns them with their real latents and conditions."""
        if not self.waiting:
            raise ValueError("the queue is empty: a pop has no push before it")
        latents, reals, cond = self.waiting.popleft()  # on the CPU after a resume
        return latents.to(device), reals.to(device), cond.to(device)

    def get_extra_state(self) -> list[dict]:
        return [{"latents": x, "reals": reals, "cond": dict(cond)} for x, reals, cond in self.waiting]

    def set_extra_state(self, state: list[dict]) -> None:
        self.waiting = deque((each["latents"], each["reals"], Condition(each["cond"])) for each in state)


class RunningMean(nn.Module):
    """Exponential running means of a loss, one for each noise level: of the global batch, equal on every process.

    What the micro-batches of an update gather is taken in after it, all at once. So what is read depends neither on
    the order of the samples nor on how many processes share them.

    Args:
        history: weight of the old mean.

    Attributes:
        means: (levels,), nan before the first loss of a level.
    """

    def __init__(self, levels: int, history: float):
        super().__init__()
        self.history = history
        self.register_buffer("means", torch.full((levels,), torch.nan, dtype=torch.float64))
        self.gathered: Tensor | None = None  # (2, levels): sums and counts

    def before(self, loss: Tensor, level: list[int]) -> Tensor:
        """The mean at each sample's level, (B,); of a level that has none, the sample's own loss."""
        means = self.means[level].to(loss)
        return torch.where(means.isnan(), loss.detach(), means)

    def after(self, loss: Tensor, level: list[int]) -> Tensor:
        """What that mean would be with the sample's own loss taken in, and no other."""
        return self.history * self.before(loss, level) + (1 - self.history) * loss.detach()

    def gather(self, loss: Tensor, level: list[int]) -> None:
        """Keep losses, (B,), of an update until it is done.

        Args:
            level: indices of their noise levels.
        """
        if self.gathered is None:
            self.gathered = torch.zeros(2, len(self.means), dtype=torch.float64, device=loss.device)
        values = torch.stack([loss.detach().double(), torch.ones_like(loss, dtype=torch.float64)])
        self.gathered.index_add_(1, torch.tensor(level, device=loss.device), values)

    def settle(self, average: Callable[[list[Tensor]], None]) -> None:
        """Take in what was gathered, on all processes: the mean of the global batch, at the levels that it has."""
        if self.gathered is None:
            return
        average([self.gathered])
        sums, counts = self.gathered.to(self.means.device)
        loss, self.gathered = sums / counts, None
        old = torch.where(self.means.isnan(), loss, self.means)
        self.means.copy_(torch.where(counts > 0, self.history * old + (1 - self.history) * loss, self.means))


def settle(method: nn.Module, average: Callable[[list[Tensor]], None]) -> None:
    """After an update: let the method's running means take in what they gathered.

    Args:
        average: replaces tensors by their means over the processes (Engine.average).
    """
    for each in method.modules():
        if isinstance(each, RunningMean):
            each.settle(average)


def _copy(tensor: Tensor) -> Tensor:
    """Its own memory: a view would keep, and save, all of what it looks at."""
    return tensor.detach().clone(memory_format=torch.contiguous_format)
