"""Velocity networks with known answers, in the place of roles: for tests of a method's mathematics."""

import contextlib
from collections.abc import Callable

import torch
from torch import Tensor, nn

from distill import flow
from distill.batch import Batch, Condition
from distill.networks import Net


class Toy:
    """A role around a function or module of (x, sigma, cond); keeps (samples, gradient on) of every call."""

    guidance_embedded = False

    def __init__(self, velocity: Callable[[Tensor, Tensor, Condition], Tensor]):
        self.velocity = velocity
        self.calls: list[tuple[int, bool]] = []

    def forward(self, x: Tensor, sigma: Tensor, cond: Condition) -> Tensor:
        self.calls.append((x.shape[0], torch.is_grad_enabled()))
        return self.velocity(x, sigma, cond)

    def plainly(self) -> contextlib.AbstractContextManager:
        return contextlib.nullcontext()

    def copy_from(self, other: "Toy") -> None:
        self.velocity.load_state_dict(other.velocity.state_dict())


def net(velocity: Callable[[Tensor, Tensor, Condition], Tensor]) -> Net:
    return Net(Toy(velocity))


def place(method, **velocities):
    """Put toys in the places of a method's networks; returns the method."""
    for name, velocity in velocities.items():
        setattr(method, name, net(velocity))
    return method


def batch(size: int = 2, shape: tuple[int, ...] = (2, 3, 4, 5), seed: int = 0, text: float = 1.0) -> Batch:
    """A batch whose condition is `text` everywhere and whose negative condition is 0; texts are (B, 1, 1)."""
    cond = Condition(text=torch.full((size, 1, 1), text))
    return Batch(["a prompt"] * size, cond, Condition(text=torch.zeros(size, 1, 1)), list(range(size)), shape, seed)


def text(cond: Condition, x: Tensor) -> Tensor:
    """A condition's value, shaped to broadcast over x."""
    return cond["text"].flatten().view(-1, *[1] * (x.ndim - 1))


class Gaussian:
    """The exact velocity for data N(mu, s^2), in float64."""

    def __init__(self, mu: float = 0.7, s2: float = 0.36):
        self.mu, self.s2 = mu, s2

    def variance(self, t):
        return (1 - t) ** 2 * self.s2 + t**2

    def slope(self, t):
        return (t - (1 - t) * self.s2) / self.variance(t)

    def v(self, x: Tensor, t) -> Tensor:
        return self.slope(t) * (x - (1 - t) * self.mu) - self.mu

    def flow(self, x: Tensor, t: float, s: float) -> Tensor:
        """The exact flow map from noise level t to s."""
        scale = (self.variance(s) / self.variance(t)) ** 0.5
        return (1 - s) * self.mu + scale * (x - (1 - t) * self.mu)

    def __call__(self, x: Tensor, sigma: Tensor, cond: Condition) -> Tensor:
        return self.v(x.double(), flow.like(sigma.double(), x))


class GaussianEuler(Gaussian):
    """The average velocity of k Euler steps of the Gaussian's flow along t, from whichever t_i is asked for."""

    def __init__(self, k: int, t: list[float], **data):
        super().__init__(**data)
        self.k, self.t = k, t

    def average(self, x: Tensor, i: int) -> Tensor:
        t, end = self.t, max(i - self.k, 0)
        growth = 1.0
        for j in range(i, end, -1):
            growth *= 1 + (t[j - 1] - t[j]) * self.slope(t[j])
        return (x - (1 - t[i]) * self.mu) * (growth - 1) / (t[end] - t[i]) - self.mu

    def __call__(self, x: Tensor, sigma: Tensor, cond: Condition) -> Tensor:
        (level,) = sigma.unique().tolist()
        i = min(range(len(self.t)), key=lambda j: abs(self.t[j] - level))
        return self.average(x.double(), i)


def straight(mu: float) -> Callable:
    """The flow to a single point mu: straight lines."""
    return lambda x, sigma, cond: (x - mu) / flow.like(sigma, x)


def curved(x: Tensor, sigma: Tensor, cond: Condition) -> Tensor:
    """A flow that bends, differently for every x, sigma and condition."""
    s = flow.like(sigma, x)
    return torch.tanh(2 * x) * (1 + s) + 0.5 * torch.cos(3 * s + x) + s * text(cond, x)


class Affine(nn.Module):
    """v = a x + b + c text + d sigma, trainable."""

    def __init__(self, a: float = 0.5, b: float = -0.2, c: float = 0.3, d: float = 0.1):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([a, b, c, d]))

    def forward(self, x: Tensor, sigma: Tensor, cond: Condition) -> Tensor:
        a, b, c, d = self.weight
        return a * x + b + c * text(cond, x) + d * flow.like(sigma, x)
