"""Samplers: pure functions of a network, noise and noise levels. Latents stay float32 throughout."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from . import flow
from .batch import Condition, generator
from .networks import Net


def euler(
    net: Net,
    noise: Tensor,
    sigmas: Tensor,
    cond: Condition,
    negative: Condition | None = None,
    scale: float = 1.0,
    ends: bool = False,
) -> Tensor:
    """Integrate the flow from noise to data with one evaluation per step, two (in one call) under guidance.

    Args:
        sigmas: (n + 1,), from 1 down to 0; differences are taken in its own precision.
        negative: what guidance leads away from; needed where scale is not 1.
        ends: the network, which is not guided, is told where each step ends.
    """
    for x in walk(net, noise, sigmas, cond, negative, scale, ends):
        end = x
    return end


def walk(
    net: Net,
    noise: Tensor,
    sigmas: Tensor,
    cond: Condition,
    negative: Condition | None = None,
    scale: float = 1.0,
    ends: bool = False,
) -> Iterator[Tensor]:
    """The latents at every level of `euler`, the noise itself first."""
    if negative is None and scale != 1:
        raise ValueError(f"guidance scale is {scale}; a scale other than 1 needs the negative condition")
    if negative is not None and ends:
        raise ValueError("a network that is told where steps end has absorbed its guidance; leave out the negative")
    x = noise.float()
    yield x
    for sigma, sigma_next in pairwise(sigmas.tolist()):
        levels = torch.full(x.shape[:1], sigma)
        told = {"end": torch.full(x.shape[:1], sigma_next)} if ends else {}
        v = net(x, levels, cond, **told) if negative is None else net.guided(x, levels, cond, negative, scale)
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


@dataclass(frozen=True)
class Half:
    """How a sampler takes its first steps at half the frame rate.

    Attributes:
        steps: how many, fewer than the sampler has.
        interpolate: makes 2F - 1 latent frames of F (distill/interpolation.py).
    """

    steps: int
    interpolate: Callable[[Tensor], Tensor]


def half_rate(
    net: Net, noise: Tensor, sigmas: Tensor, cond: Condition, half: Half, *, renoises: bool, told: Tensor | None = None
) -> Tensor:
    """`renoise` or `euler` whose first steps see every second latent frame. AVD, section 3.4.

    The prediction of the data at the last of them gets its missing frames from the interpolator, and noise as between
    any two steps: fresh noise, of which half-rate steps take every second frame; or, of Euler steps, what the
    prediction leaves of the frames that were there, and of the new ones the noise that they would have started from.

    Args:
        noise: of all F frames, F odd.
        renoises: fresh noise between steps, as in `renoise`.
        told: as in `renoise`.
    """
    check_half(half.steps, len(sigmas) - 1, noise.shape[2])
    x, told = noise.float()[:, :, ::2], (sigmas if told is None else told).tolist()
    for n, (sigma, sigma_next) in enumerate(pairwise(sigmas.tolist())):
        level = torch.full(x.shape[:1], sigma)
        v = net(x, torch.full(x.shape[:1], told[n]), cond)
        x0, eps = flow.x0(x, v, level), more_noise(noise, n) if renoises and sigma_next > 0 else flow.eps(x, v, level)
        if n + 1 == half.steps:
            x0, eps = half.interpolate(x0), eps if renoises else between(eps, noise.float()[:, :, 1::2])
        elif n + 1 < half.steps and renoises:
            eps = eps[:, :, ::2]
        x = flow.mix(x0, eps, torch.full(x.shape[:1], sigma_next))
    return x


def check_half(steps: int, of: int, frames: int) -> None:
    """ValueError unless so many of a sampler's steps can be taken at half the frame rate."""
    if not 0 < steps < of:
        raise ValueError(f"{steps} steps at half the frame rate, of {of}: it must be at least one, and not all of them")
    if frames % 2 == 0 or frames == 1:
        raise ValueError(f"{frames} latent frames cannot be halved and restored: an odd number is needed, 3 or more")


def between(frames: Tensor, others: Tensor) -> Tensor:
    """One of the others, (B, C, F - 1, H, W), between any two of F frames."""
    return torch.cat([torch.stack([frames[:, :, :-1], others], 3).flatten(2, 3), frames[:, :, -1:]], 2)


def more_noise(noise: Tensor, draw: int) -> Tensor:
    """Standard normal latents like `noise`, (B, ...), seeded by the content of each sample's noise and `draw`."""
    rows = [row.float().cpu().contiguous() for row in noise]
    keys = [hashlib.blake2b(row.numpy().tobytes(), digest_size=16).hexdigest() for row in rows]
    fresh = [
        torch.randn(row.shape, generator=generator("renoise", key, draw)) for row, key in zip(rows, keys, strict=True)
    ]
    return torch.stack(fresh).to(noise.device)
