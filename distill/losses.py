"""Terms that methods share: functions of tensors."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import relu, softplus

Adversarial = Literal["non_saturating", "saturating", "hinge"]


def generator(fake: Tensor, form: Adversarial) -> Tensor:
    """What a generator descends, from the discriminator's logits of its samples: mean over all logits.

    With D = sigmoid(logit): -log D (non_saturating), log(1 - D) (saturating: the minimax form), -logit (hinge).
    """
    if form == "non_saturating":
        return softplus(-fake).mean()
    if form == "saturating":
        return -softplus(fake).mean()
    return -fake.mean()


def discriminator(real: Tensor, fake: Tensor, form: Adversarial) -> tuple[Tensor, Tensor]:
    """What a discriminator descends, its parts of real and of fake logits: -log D and -log(1 - D), or hinges at 1."""
    if form == "hinge":
        return relu(1 - real).mean(), relu(1 + fake).mean()
    return softplus(-real).mean(), softplus(fake).mean()


def suspicion(logits: Tensor) -> Tensor:
    """1 - D, the mean over each sample's logits: (B, ...) -> (B,); how sure a discriminator is that it is not real."""
    return torch.sigmoid(-logits).flatten(1).mean(1)


def matching(x: Tensor, real: Tensor, fake: Tensor) -> Tensor:
    """A loss whose gradient in x is g / numel, with g = (fake - real) / mean |x - real| for each sample; float64.

    Args:
        real, fake: the data that two denoisers see in a noisy x; g is their score difference, normalised.
    """
    x, real, fake = x.double(), real.detach().double(), fake.detach().double()
    size = (x.detach() - real).abs().mean(dim=tuple(range(1, x.ndim)), keepdim=True)
    g = torch.nan_to_num((fake - real) / size)  # 0 / 0: all three are equal
    return 0.5 * (x - (x.detach() - g)).square().mean()


def stillness(x: Tensor, eps: float = 1e-6) -> Tensor:
    """-log of the variance over time of latents (B, C, F, H, W), its mean over all the rest; float64."""
    return -torch.log(x.double().var(dim=2, correction=0).mean() + eps)


def per_sample(residual: Tensor) -> Tensor:
    """Mean square of each sample: (B, ...) -> (B,)."""
    return residual.square().flatten(1).mean(1)
