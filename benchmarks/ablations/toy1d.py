"""AccVideo's one-dimensional world: training data {-3, 3}, all in closed form. arXiv:2503.19462, section 3.2, A.1.

`x_t = (1 - t) x0 + t x1`, x1 ~ N(0, 1). A flow in one dimension keeps ranks, so its trajectories need no integration.
The data of a distillation are moved away from {-3, 3} in one of three ways; the paper does not say which is its own.
Points and times are (N,); everything random comes from the caller.
"""

import torch
from torch import Tensor

from distill import flow

DATA = 3.0  # p(x): -DATA and DATA, equally often
MOVES = {"both up": (1, 1), "outward": (-1, 1), "inward": (1, -1)}  # which way the lower and the upper point go
LEVELS = torch.linspace(0.02, 1, 50, dtype=torch.float64)  # noise levels at which useless points are counted
NEAR = 0.05  # from a trajectory; without a threshold no point is useless: at M = 0 the marginals are equal


def moved(move: str, distance: float) -> tuple[float, float]:
    """The two points of p_d(x), each `distance` away from where the teacher had it."""
    down, up = MOVES[move]
    return -DATA + down * distance, DATA + up * distance


def mismatch(points: tuple[float, float]) -> float:
    """M, the sum over distillation data of the distance to the nearest training datum (Eq. 4)."""
    return sum(abs(abs(x_d) - DATA) for x_d in points)


def expected_data(x: Tensor, t: Tensor) -> Tensor:
    """E[x0 | x_t = x]; t > 0."""
    return DATA * torch.tanh(DATA * (1 - t) * x / t**2)


def velocity(x: Tensor, t: Tensor) -> Tensor:
    """The minimiser of the flow matching loss (Eq. 3): a teacher that is never wrong; t > 0."""
    return flow.v_from_x0(x, expected_data(x, t), t)


def flow_map(noise: Tensor, t: Tensor) -> Tensor:
    """Where the teacher's trajectory from `noise` is at t > 0: the point of the same rank, by bisection in float64."""
    n, t, noise = noise.double().abs(), t.double(), noise.double()
    centre, width = DATA * (1 - t), t * 2**0.5
    low, high = torch.zeros_like(n), centre + t * n
    for _ in range(64):
        x = (low + high) / 2
        right, left = (x - centre) / width, (x + centre) / width
        inner = (torch.erfc(-right) - torch.erfc(left)) / 4  # mass in [0, x]; exact where the distribution is flat
        outer = (torch.erfc(right) + torch.erfc(left)) / 4  # mass beyond x; exact in the tail
        small = torch.where(n < 1, inner < torch.erf(n / 2**0.5) / 2, outer > torch.erfc(n / 2**0.5) / 2)
        low, high = torch.where(small, x, low), torch.where(small, high, x)
    return (low + high) / 2 * noise.sign()


def quantiles(count: int) -> Tensor:
    """Standard normal noise without randomness, ascending: the centres of `count` equal shares."""
    return torch.special.ndtri((torch.arange(count, dtype=torch.float64) + 0.5) / count)


def trajectories(noise: Tensor) -> Tensor:
    """The teacher's trajectories from some noise at all LEVELS, (LEVELS, N), ascending at each."""
    return flow_map(noise.sort().values, LEVELS.view(-1, 1))


def off_trajectory(x: Tensor, level: Tensor, paths: Tensor) -> float:
    """The share of points farther than NEAR from the nearest of some trajectories at their noise level.

    Args:
        level: (N,), indices into LEVELS.
        paths: (LEVELS, trajectories), as `trajectories` gives them.
    """
    far = 0
    for index, path in enumerate(paths):
        points = x[level == index]
        above = torch.searchsorted(path, points)
        below, above = path[(above - 1).clamp(min=0)], path[above.clamp(max=len(path) - 1)]
        far += int((torch.minimum((points - below).abs(), (points - above).abs()) > NEAR).sum())
    return far / len(x)


def wrong_mode(x: Tensor, up: Tensor) -> float:
    """The share of points that the teacher takes to the other mode than the one they were made from.

    Args:
        up: (N,), whether the point was made from the upper datum.
    """
    return ((x > 0) != up).double().mean().item()


def forward_diffused(points: tuple[float, float], up: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """Start points as previous methods take them: data and noise that do not belong together."""
    lower, upper = points
    return flow.mix(torch.where(up, upper, lower).to(noise), noise, t)


def wasserstein(x: Tensor, points: tuple[float, float]) -> Tensor:
    """W1 from samples, (..., N) with N even, to equal shares of two points, (...)."""
    lower, upper = sorted(points)
    below, above = x.sort(dim=-1).values.chunk(2, dim=-1)
    return ((below - lower).abs().mean(-1) + (above - upper).abs().mean(-1)) / 2
