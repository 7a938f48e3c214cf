"""PeRFlow against the exact flow of Gaussian data, whose windows have closed forms."""

import pytest
import torch
from torch.testing import assert_close

from distill import flow
from distill.batch import Clips, Condition
from distill_methods.perflow import PeRFlow
from tests import toys

DATA = toys.Gaussian()


def batch(size: int = 6, seed: int = 0):
    """Prompts that say 1, videos whose captions say 2."""
    made = toys.batch(size, seed=seed)
    latents = torch.randn(size, *made.shape, generator=torch.Generator().manual_seed(seed))
    made.video = Clips(latents, ["a caption"] * size, Condition(text=torch.full((size, 1, 1), 2.0)))
    return made


def levels(K: int, n: int, s: float) -> list[float]:
    return [s * u / (1 + (s - 1) * u) for u in (i / (K * n) for i in range(K * n, -1, -1))]


def crossing(t: list[float], first: int, n: int) -> tuple[float, float]:
    """x_e = a x_s + b of n Euler steps from level `first` on."""
    a, b = 1.0, 0.0
    for j in range(first, first + n):
        slope, dt = DATA.slope(t[j]), t[j + 1] - t[j]
        constant = -slope * (1 - t[j]) * DATA.mu - DATA.mu
        a, b = a * (1 + dt * slope), b * (1 + dt * slope) + dt * constant
    return a, b


class Lines:
    """The velocity of the line that a point lies on, in its window."""

    def __init__(self, K: int, n: int, shift: float):
        self.t, self.n = levels(K, n, shift), n

    def __call__(self, x, sigma, cond):
        return torch.stack([self.one(row, level) for row, level in zip(x.double(), sigma.tolist(), strict=True)])

    def one(self, x, level):
        start = max(i for i in range(0, len(self.t) - 1, self.n) if self.t[i] >= level - 1e-7)
        s, e = self.t[start], self.t[start + self.n]
        a, b = crossing(self.t, start, self.n)
        growth, offset = (1 - a) / (s - e), -b / (s - e)  # v = growth x_s + offset
        x_s = (x - (level - s) * offset) / (1 + (level - s) * growth)
        return growth * x_s + offset


@pytest.mark.parametrize(("K", "n"), [(1, 4), (4, 3)])
def test_a_student_that_knows_every_line_has_no_loss_and_walks_as_the_teacher_does(K, n):
    method = PeRFlow(windows=K, teacher_steps=n, shift=3.0, guidance=1.0)
    toys.place(method, teacher=DATA, student=Lines(K, n, 3.0))
    for seed in range(4):
        assert method.loss(batch(seed=seed))["velocity"] < 1e-9
    noise, x = torch.randn(2, 2, 3, 4, 5), None
    for t, t_next in zip(levels(K, n, 3.0)[:-1], levels(K, n, 3.0)[1:], strict=True):
        x = noise.double() if x is None else x
        x = x + (t_next - t) * DATA.v(x, t)
    assert_close(method.sample(noise, Condition(text=torch.ones(2, 1, 1))).double(), x, atol=1e-5, rtol=0)


def test_the_line_starts_at_the_noised_video_and_is_met_anywhere_on_it():
    method, seen = PeRFlow(windows=1, teacher_steps=1, shift=5.0, guidance=1.0), []

    def student(x, sigma, cond):
        seen.append((x, sigma))
        return x * 0

    toys.place(method, teacher=toys.straight(0.3), student=student)
    made = batch(size=400)
    method.loss(made)
    x, t = seen[0]
    eps = made.at(0)
    eps.integers(0, 1)
    eps = eps.noise()  # the draws of the loss, in order: window, noise, place on the line
    line = flow.mix(torch.full_like(eps, 0.3), eps, t)  # one window from pure noise to the teacher's only point
    assert_close(x, line, atol=1e-5, rtol=0)
    assert 0.4 < t.mean() < 0.6 and t.min() < 0.05 and t.max() > 0.95


def test_the_teacher_is_guided_by_the_captions_in_every_step_of_the_window():
    method = PeRFlow(windows=3, teacher_steps=5, guidance=4.0)
    said = []

    def teacher(x, sigma, cond):
        said.append(cond["text"].flatten().tolist())
        return x * 0

    toys.place(method, teacher=teacher, student=lambda x, sigma, cond: x * 0)
    method.loss(batch(size=2))
    assert said == [[2.0, 2.0, 0.0, 0.0]] * 5
    assert method.student.role.calls == [(2, True)] and all(not grad for _, grad in method.teacher.role.calls)
