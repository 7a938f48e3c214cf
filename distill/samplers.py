"""Samplers: pure functions of a network, noise and noise levels. Latents stay float32 throughout."""

from itertools import pairwise

import torch
from torch import Tensor

from .batch import Condition
from .networks import Net


def euler(
    net: Net, noise: Tensor, sigmas: Tensor, cond: Condition, negative: Condition | None = None, scale: float = 1.0
) -> Tensor:
    """Integrate the flow from noise to data with one evaluation per step, two (in one call) under guidance.

    Args:
        sigmas: (n + 1,), from 1 down to 0; differences are taken in its own precision.
        negative: what guidance leads away from; needed where scale is not 1.
    """
    if negative is None and scale != 1:
        raise ValueError(f"guidance scale is {scale}; a scale other than 1 needs the negative condition")
    x = noise.float()
    for sigma, sigma_next in pairwise(sigmas.tolist()):
        levels = torch.full(x.shape[:1], sigma)
        v = net(x, levels, cond) if negative is None else net.guided(x, levels, cond, negative, scale)
        x = x + (sigma_next - sigma) * v
    return x
