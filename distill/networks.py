"""The handle through which a method sees a network: noise levels in, velocities out, float32 at the border."""

from typing import Protocol

import torch
from torch import Tensor

from . import flow
from .batch import Condition


class Role(Protocol):
    """What stands behind a handle: a network in its place (distill/engine.py)."""

    def forward(self, x: Tensor, sigma: Tensor, cond: Condition, **extra) -> Tensor: ...

    def copy_from(self, other: "Role") -> None: ...


class Net:
    """A velocity network. x is (B, C, F, H, W), sigma (B,) or (B, F), results are float32 and shaped like x."""

    def __init__(self, role: Role):
        self.role = role

    def __call__(self, x: Tensor, sigma: Tensor, cond: Condition, **extra) -> Tensor:
        flow.like(sigma, x)  # raises on a shape that would broadcast wrongly
        return self.role.forward(x, sigma.to(x.device, torch.float32), cond, **extra).float()

    def x0(self, x: Tensor, sigma: Tensor, cond: Condition, **extra) -> Tensor:
        """The prediction of the data."""
        return flow.x0(x, self(x, sigma, cond, **extra), sigma.to(x.device, torch.float32))

    def guided(self, x: Tensor, sigma: Tensor, cond: Condition, negative: Condition, scale: float) -> Tensor:
        """The velocity under classifier-free guidance, in one batched call; scale 1 evaluates the condition alone."""
        if scale == 1:
            return self(x, sigma, cond)
        both = self(torch.cat([x, x]), torch.cat([sigma, sigma]), Condition.cat([cond, negative]))
        return flow.guide(*both.chunk(2), scale)

    def copy_from(self, other: "Net") -> None:
        """Take over the other network's weights; optimizer moments stay."""
        self.role.copy_from(other.role)
