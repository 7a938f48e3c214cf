"""Networks that are told where a step ends, besides where it is: for methods that learn average velocities.

A second time embedding, of the distance to the end, is added to the stock one. Its last layer is zero at first, so a
network begins as the teacher, whatever the end. A student whose steps are fixed can be folded back into the stock
network, which diffusers then runs.
"""

import copy
import re
from collections.abc import Sequence
from itertools import pairwise

import torch
from diffusers.models.embeddings import TimestepEmbedding
from torch import Tensor, nn


class EndEmbedding(nn.Module):
    """A stock time embedding, and what the distance to the end adds to it.

    Attributes:
        distance: projected like a time, (B, D); set before each evaluation, which takes it away.
    """

    def __init__(self, time: TimestepEmbedding):
        super().__init__()
        self.time, self.further = time, copy.deepcopy(time)
        nn.init.zeros_(self.further.linear_2.weight)
        nn.init.zeros_(self.further.linear_2.bias)
        self.distance: Tensor | None = None

    def forward(self, sample: Tensor, condition: Tensor | None = None) -> Tensor:
        distance, self.distance = self.distance, None
        return self.time(sample, condition) + self.further(distance)

    @torch.no_grad()
    def folded(self, times: Tensor, distances: Tensor) -> TimestepEmbedding:
        """The stock embedding that says at these times, (N, D), what this one says at these distances, (N, D).

        Its last layer is changed as little as possible: N equations for each of its rows, which has far more weights.
        """
        stock = copy.deepcopy(self.time)
        hidden = stock.act(stock.linear_1(times)).double()
        extra = self.further(distances).double()
        change = torch.linalg.lstsq(hidden.cpu(), extra.cpu(), driver="gelsd").solution.T
        stock.linear_2.weight += change.to(stock.linear_2.weight)
        return stock


class ToldEnds(nn.Module):
    """What velocity networks of a family inherit; `_time_embedding` says where the family keeps its own."""

    def _time_embedding(self) -> tuple[nn.Module, str, nn.Module]:
        """The module that holds the time embedding, its name there, and the projection of 1000 sigma before it."""
        raise NotImplementedError(f"{type(self).__name__} must define _time_embedding()")

    def stock_name(self, name: str) -> str | None:
        """What the stock network calls the weight that one of ours begins as; None begins at zero."""
        if ".further.linear_2." in name:
            return None
        return re.sub(r"\.(time|further)(?=\.linear_\d\.)", "", name.removeprefix("transformer."))

    def tell_ends(self) -> None:
        """From now on take the end of each step."""
        parent, name, _ = self._time_embedding()
        setattr(parent, name, EndEmbedding(getattr(parent, name)))

    def _tell(self, sigma: Tensor, end: Tensor | None) -> None:
        """Pass on the end of this evaluation's steps; None is a step of no length."""
        parent, name, projection = self._time_embedding()
        embedding = getattr(parent, name)
        if not isinstance(embedding, EndEmbedding):
            if end is not None:
                raise ValueError("this network is not told where steps end; declare it as Trained(ends=True)")
            return
        if sigma.ndim != 1:
            raise ValueError(f"sigma has shape {tuple(sigma.shape)}; with ends it is one level per clip, (B,)")
        distance = torch.zeros_like(sigma) if end is None else sigma - end.to(sigma)
        embedding.distance = projection(1000 * distance.float())

    def folded(self, levels: Sequence[float]) -> "ToldEnds":
        """A network without ends, which says the same at each of these noise levels, of steps that end at the next.

        All other weights are this network's own, not copies.
        """
        made = copy.deepcopy(self, {id(each): each for each in (*self.parameters(), *self.buffers())})
        parent, name, projection = made._time_embedding()
        steps = torch.tensor(list(pairwise(levels)), dtype=torch.float32, device=next(made.parameters()).device)
        times, distances = projection(1000 * steps[:, 0]), projection(1000 * (steps[:, 0] - steps[:, 1]))
        setattr(parent, name, getattr(parent, name).folded(times, distances))
        return made
