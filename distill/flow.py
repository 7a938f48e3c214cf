"""The rectified-flow convention, and nothing but it.

A path goes from data to noise, `x_sigma = (1 - sigma) x0 + sigma eps`, sigma = 1 is noise, and networks predict its
velocity `v = dx/dsigma = eps - x0`. Latents are (B, C, F, H, W); sigma is (B,) or (B, F), float32.
"""

import torch
from torch import Tensor


def like(sigma: Tensor, x: Tensor) -> Tensor:
    """View sigma, (B,) or (B, F), on any device, so that it broadcasts over x, (B, C, F, H, W)."""
    sigma = sigma.to(x.device)
    if sigma.shape == x.shape[:1]:
        return sigma.view(-1, *[1] * (x.ndim - 1))
    if x.ndim == 5 and sigma.shape == (x.shape[0], x.shape[2]):
        return sigma.view(x.shape[0], 1, x.shape[2], 1, 1)
    raise ValueError(f"sigma has shape {tuple(sigma.shape)}; x {tuple(x.shape)} needs (B,) or (B, F)")


def mix(x0: Tensor, eps: Tensor, sigma: Tensor) -> Tensor:
    """The point of the path at noise level sigma."""
    s = like(sigma, x0)
    return (1 - s) * x0 + s * eps


def velocity(x0: Tensor, eps: Tensor) -> Tensor:
    return eps - x0


def x0(x: Tensor, v: Tensor, sigma: Tensor) -> Tensor:
    """The data that a velocity points to."""
    return x - like(sigma, x) * v


def eps(x: Tensor, v: Tensor, sigma: Tensor) -> Tensor:
    """The noise that a velocity comes from."""
    return x + (1 - like(sigma, x)) * v


def v_from_x0(x: Tensor, x0: Tensor, sigma: Tensor) -> Tensor:
    """The velocity whose data prediction is x0; sigma > 0."""
    return (x - x0) / like(sigma, x)


def score(x: Tensor, v: Tensor, sigma: Tensor) -> Tensor:
    """The gradient of the log density of x_sigma; sigma > 0."""
    return -eps(x, v, sigma) / like(sigma, x)


def step(x: Tensor, v: Tensor, sigma: Tensor, sigma_next: Tensor) -> Tensor:
    """One Euler step from sigma to sigma_next."""
    return x + like(sigma_next - sigma, x) * v


def guide(cond: Tensor, uncond: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance; scale 1 is off. Codes that write `cond + s (cond - uncond)` mean scale s + 1."""
    return uncond + scale * (cond - uncond)


def shift(u: Tensor, s: float) -> Tensor:
    """Move uniform times towards noise: Wan's s u / (1 + (s - 1) u)."""
    return s * u / (1 + (s - 1) * u)


def unshift(sigma: Tensor, s: float) -> Tensor:
    """The u with shift(u, s) = sigma."""
    return sigma / (s - (s - 1) * sigma)


def grid(steps: int, s: float) -> Tensor:
    """The noise levels of a sampler, (steps + 1,), float64, from 1 down to 0: shift(i / steps, s)."""
    return shift(torch.arange(steps, -1, -1, dtype=torch.float64) / steps, s)


def nearest(sigma: Tensor, levels: Tensor) -> Tensor:
    """Of the levels, (N,), the one nearest to each sigma, (B,); of two as near, the first."""
    levels = levels.to(sigma)
    return levels[(levels - sigma[:, None]).abs().argmin(1)]


def grid_shift(sigmas: Tensor) -> float:
    """The shift s with grid(steps, s) = sigmas, (steps + 1,).

    Raises:
        ValueError: no shifted grid has these levels.
    """
    steps = len(sigmas) - 1
    u = (steps - 1) / steps  # the second level; a grid of one step has every shift
    sigma = sigmas[1].item()
    s = 1.0 if steps == 1 else sigma * (1 - u) / (u * (1 - sigma))
    if (grid(steps, s) - sigmas.double().cpu()).abs().max() > 1e-6:
        raise ValueError(f"the noise levels {[round(x, 4) for x in sigmas.tolist()]} are not a shifted grid")
    return round(s, 9)
