"""The handle through which a method sees a network: noise levels in, velocities out, float32 at the border."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from . import flow
from .batch import Condition


class Role(Protocol):
    """What stands behind a handle: a network in its place (distill/engine.py).

    Attributes:
        guidance_embedded: the network takes the guidance scale as a condition (teachers/base.py).
    """

    guidance_embedded: bool

    def forward(self, x: Tensor, sigma: Tensor, cond: Condition, **extra) -> Tensor: ...

    def copy_from(self, other: "Role") -> None: ...

    def plainly(self) -> AbstractContextManager:
        """Within it evaluations use torch's own attention, and nothing compiled."""
        ...


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

    @torch.no_grad()
    def jvp(
        self,
        x: Tensor,
        sigma: Tensor,
        cond: Condition,
        dx: Tensor,
        dsigma: Tensor,
        *,
        difference: float | None = None,
        **extra,
    ) -> tuple[Tensor, Tensor]:
        """The velocity, and its derivative along (dx, dsigma), shaped like x and sigma; no gradients.

        Args:
            difference: the derivative is that of the chord over this distance to both sides, as far as sigma stays
                within 0 and 1: two more evaluations, and any kernel of attention; None is exact, by forward mode.
        """

        def net(x: Tensor, sigma: Tensor) -> Tensor:
            return self(x, sigma, cond, **extra)

        if difference is None:
            with self.role.plainly(), sdpa_kernel(SDPBackend.MATH):  # the only one with forward mode
                return torch.func.jvp(net, (x, sigma), (dx, dsigma))
        ahead = ((sigma + difference * dsigma).clamp(0, 1) - sigma) / dsigma
        behind = ((sigma - difference * dsigma).clamp(0, 1) - sigma) / dsigma
        ends = [net(x + flow.like(h, x) * dx, sigma + h * dsigma) for h in (ahead, behind)]
        return net(x, sigma), (ends[0] - ends[1]) / flow.like(ahead - behind, x)

    def guided(self, x: Tensor, sigma: Tensor, cond: Condition, negative: Condition, scale: float) -> Tensor:
        """The velocity under guidance, in one batched call; scale 1 evaluates the condition alone.

        A network with embedded guidance is told the scale and evaluates the condition alone, whatever the scale.
        """
        if self.role.guidance_embedded:
            return self(x, sigma, Condition(cond, guidance=torch.full(x.shape[:1], float(scale), device=x.device)))
        if scale == 1:
            return self(x, sigma, cond)
        uncond = Condition({**cond, **negative})  # of an image, too, which guidance does not lead away from
        both = self(torch.cat([x, x]), torch.cat([sigma, sigma]), Condition.cat([cond, uncond]))
        return flow.guide(*both.chunk(2), scale)

    def features(self, x: Tensor, sigma: Tensor, cond: Condition, layers: Sequence[int]) -> list[Tensor]:
        """Hidden states after these transformer blocks, counted from 1; no block after the deepest is evaluated.

        Each is (B, D, F', h, w) with one position per patch token, float32. Gradients pass to x.
        """
        flow.like(sigma, x)
        return [f.float() for f in self.role.forward(x, sigma.to(x.device, torch.float32), cond, features=layers)]

    def copy_from(self, other: "Net") -> None:
        """Take over the other network's weights; optimizer moments stay."""
        self.role.copy_from(other.role)
