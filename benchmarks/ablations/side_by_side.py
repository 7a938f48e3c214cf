"""Small residual networks of several seeds, trained side by side as one stack: a batch is one call for all of them."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

WIDTH, BLOCKS = 32, 3  # AccVideo's Fig. 13 is a drawing without numbers


class Draws:
    """Random numbers for several seeds side by side: what a seed draws does not depend on its neighbours."""

    def __init__(self, seeds: tuple[int, ...]) -> None:
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def normal(self, count: int) -> Tensor:
        return torch.cat([torch.randn(count, generator=g) for g in self.generators])

    def uniform(self, count: int) -> Tensor:
        return torch.cat([torch.rand(count, generator=g) for g in self.generators])


class ResNets(nn.Module):
    """Independent residual networks (x, t) -> v, one for each seed; each answers for its equal share of the points."""

    def __init__(self, seeds: tuple[int, ...]) -> None:
        super().__init__()
        draws = Draws(seeds)
        sizes = [(2, WIDTH), *[(WIDTH, WIDTH)] * 2 * BLOCKS, (WIDTH, 1)]
        self.weights = nn.ParameterList(uniform(draws, (rows, columns), rows) for rows, columns in sizes)
        self.biases = nn.ParameterList(uniform(draws, (1, columns), rows) for rows, columns in sizes)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        seeds = len(self.weights[0])
        layers = list(zip(self.biases, self.weights, strict=True))

        def linear(h: Tensor, layer: int) -> Tensor:
            bias, weight = layers[layer]
            return torch.baddbmm(bias, h, weight)

        h = linear(torch.stack([x, t], dim=-1).view(seeds, -1, 2), 0)
        for block in range(BLOCKS):
            h = h + linear(linear(h.relu(), 2 * block + 1).relu(), 2 * block + 2)
        return linear(h.relu(), -1).flatten()


def uniform(draws: Draws, shape: tuple[int, int], inputs: int) -> nn.Parameter:
    """PyTorch's usual initial values of a layer, (seeds, *shape)."""
    values = draws.uniform(shape[0] * shape[1]).view(-1, *shape)
    return nn.Parameter((2 * values - 1) / inputs**0.5)


def descend(networks: nn.Module, loss: Callable[[], Tensor], rates: Iterable[float]) -> None:
    """A step of Adam for each rate, all networks at once; it is elementwise, so none feels the others in the sum."""
    optimizer = torch.optim.Adam(networks.parameters(), fused=True)
    for rate in rates:
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        loss().sum().backward()
        optimizer.step()
