"""Samplers: pure functions of a network, noise and noise levels. Latents stay float32 throughout."""

import hashlib
from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

from . import flow
from .batch import Condition, generator
from .networks import Net


def euler(
    net: Net, noise: Tensor, sigmas: Tensor, cond: Condition, negative: Condition | None = None, scale: float = 1.0
) -> Tensor:
    """Integrate the flow from noise to data with one evaluation per step, two (in one call) under guidance.

    Args:
        sigmas: (n + 1,), from 1 down to 0; differences are taken in its own precision.
        negative: what guidance leads away from; needed where scale is not 1.
    """
    for x in walk(net, noise, sigmas, cond, negative, scale):
        end = x
    return end


def walk(
    net: Net, noise: Tensor, sigmas: Tensor, cond: Condition, negative: Condition | None = None, scale: float = 1.0
) -> Iterator[Tensor]:
    """The latents at every level of `euler`, the noise itself first."""
    if negative is None and scale != 1:
        raise ValueError(f"guidance scale is {scale}; a scale other than 1 needs the negative condition")
    x = noise.float()
    yield x
    for sigma, sigma_next in pairwise(sigmas.tolist()):
        levels = torch.full(x.shape[:1], sigma)
        v = net(x, levels, cond) if negative is None else net.guided(x, levels, cond, negative, scale)
        x = x + (sigma_next - sigma) * v
        yield x


def renoise(net: Net, noise: Tensor, sigmas: Tensor, cond: Condition, told: Tensor | None = None) -> Tensor:
    """Predict the data at each level, and go to the next by mixing the prediction with fresh noise.

    That noise follows from the first alone (`more_noise`), so the same noise always gives the same latents.

    Args:
        sigmas: (n + 1,), from 1 down to 0.
        told: the levels that the network is told instead, (n + 1,), where they are not the same.
    """
    x = noise.float()
    told = (sigmas if told is None else told).tolist()
    for n, (sigma, sigma_next) in enumerate(pairwise(sigmas.tolist())):
        v = net(x, torch.full(x.shape[:1], told[n]), cond)
        x = flow.x0(x, v, torch.full(x.shape[:1], sigma))
        if sigma_next > 0:
            x = flow.mix(x, more_noise(noise, n), torch.full(x.shape[:1], sigma_next))
    return x


def more_noise(noise: Tensor, draw: int) -> Tensor:
    """Standard normal latents like `noise`, (B, ...), seeded by the content of each sample's noise and `draw`."""
    rows = [row.float().cpu().contiguous() for row in noise]
    keys = [hashlib.blake2b(row.numpy().tobytes(), digest_size=16).hexdigest() for row in rows]
    fresh = [
        torch.randn(row.shape, generator=generator("renoise", key, draw)) for row, key in zip(rows, keys, strict=True)
    ]
    return torch.stack(fresh).to(noise.device)
