"""A teacher whose data are N(0, SPREAD^2) in every direction, so that all it does has a closed form."""

from itertools import pairwise

import torch

from distill import flow
from distill.batch import Condition
from distill.engine import Role
from distill.networks import Net

SPREAD = 0.4


class Velocity(torch.nn.Module):
    """E[eps - x0 | x] = x (sigma - (1 - sigma) SPREAD^2) / ((1 - sigma)^2 SPREAD^2 + sigma^2), for any prompt."""

    def __init__(self):
        super().__init__()
        self.unused = torch.nn.Parameter(torch.zeros(1))

    def forward(self, x, sigma, cond, features=None):
        if features is not None:
            return [layer * x for layer in features]
        s = flow.like(sigma, x)
        return x * (s - (1 - s) * SPREAD**2) / ((1 - s) ** 2 * SPREAD**2 + s**2)


def euler_factor(steps: int, shift: float) -> float:
    """What Euler multiplies noise with, in plain arithmetic."""
    sigmas = [shift * u / (1 + (shift - 1) * u) for u in (i / steps for i in range(steps, -1, -1))]
    factor = 1.0
    for s, s_next in pairwise(sigmas):
        factor *= 1 + (s_next - s) * (s - (1 - s) * SPREAD**2) / ((1 - s) ** 2 * SPREAD**2 + s**2)
    return factor


class GaussianTeacher:
    family, fingerprint, negative_prompt = "gaussian", "gaussian", ""
    takes_images, own_guidance, depth = False, 1.0, 3

    def __init__(self):
        self.decoded = 0

    def latent_shape(self, frames, height, width):
        return 3, frames, height, width

    def decode(self, latents):
        self.decoded += len(latents)
        return ((latents.permute(0, 2, 3, 4, 1) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


class NoEmbeddings:
    def get(self, prompts):
        return Condition({"text": torch.zeros(len(prompts), 1, 1)})


def net() -> Net:
    return Net(Role("teacher", Velocity()))
