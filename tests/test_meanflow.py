"""MeanFlow against the exact average velocities of Gaussian data."""

from contextlib import nullcontext

import pytest
import torch
from torch.testing import assert_close

from distill import flow
from distill.networks import Net
from distill_methods.meanflow import MeanFlow
from tests import toys
from tests.test_perflow import batch

DATA = toys.Gaussian()


class Averages:
    """A role that knows u(z, t, r) of Gaussian data, plus `wrong` everywhere."""

    guidance_embedded = False

    plainly = staticmethod(nullcontext)

    def __init__(self, wrong: float = 0.0):
        self.wrong, self.ends = wrong, []

    def forward(self, x, sigma, cond, end):
        self.ends.append(end)
        t, r = (flow.like(level.double(), x) for level in (sigma, end))
        scale = ((1 - r) ** 2 * DATA.s2 + r**2).sqrt() / ((1 - t) ** 2 * DATA.s2 + t**2).sqrt()
        arrived = (1 - r) * DATA.mu + scale * (x.double() - (1 - t) * DATA.mu)
        gap = t - r
        far = (x - arrived) / torch.where(gap == 0, torch.ones_like(gap), gap)
        return torch.where(gap == 0, DATA.v(x.double(), t), far) + self.wrong


def method(wrong: float = 0.0, **options) -> MeanFlow:
    made = toys.place(MeanFlow(guidance=1.0, **options), teacher=DATA)
    made.student = Net(Averages(wrong))
    return made


@pytest.mark.parametrize("difference", [None, 1e-3])
def test_exact_average_velocities_have_no_loss(difference):
    """u = v - (t - r) du/dt, eq. 6, with the derivative by forward mode or by a difference."""
    error = method(instant=0.0, power=0.0, difference=difference).loss(batch(64))["velocity"]
    assert error < (1e-8 if difference is None else 1e-4)
    assert method(0.3, instant=0.0, power=0.0, difference=difference).loss(batch(64))["velocity"] > 0.05


@pytest.mark.parametrize("r", [0.1, 0.5])
def test_on_straight_paths_the_velocity_does_not_change_along_the_flow(r):
    """There the average velocity is the velocity, and the second term of the target vanishes."""
    made = MeanFlow()
    role = toys.Toy(toys.straight(0.3))
    role.forward = lambda x, sigma, cond, end: toys.straight(0.3)(x, sigma, cond)
    made.student = Net(role)
    x, t = torch.randn(2, 2, 3, 4, 5), torch.tensor([0.9, 0.6])
    v = toys.straight(0.3)(x, t, None)
    _, du_dt = made.student.jvp(x, t, toys.batch().cond, v, torch.ones(2), end=torch.full((2,), r))
    assert_close(du_dt, torch.zeros_like(x), atol=1e-5, rtol=0)
    _, bent = made.student.jvp(x, t, toys.batch().cond, -v, torch.ones(2), end=torch.full((2,), r))
    assert bent.abs().max() > 0.1


def test_with_no_distance_the_student_learns_the_guided_velocity():
    made = method(0.5, instant=1.0, power=0.0)
    assert_close(made.loss(batch())["velocity"], torch.tensor(0.25), atol=1e-5, rtol=0)
    assert all(torch.equal(end, made.student.role.ends[0]) for end in made.student.role.ends)


def test_each_sample_is_weighed_by_its_own_error():
    loss = method(0.5, instant=1.0, power=1.0, offset=0.05).loss(batch())["velocity"]
    assert_close(loss, torch.tensor(0.25 / 0.30), atol=1e-5, rtol=0)


def test_times_are_shifted_logit_normal_and_r_is_never_above_t():
    made = MeanFlow(times=(-0.4, 1.0), shift=3.0, instant=0.75)
    t, r = made.times(toys.batch(4000))
    assert bool((r <= t).all()) and abs((r == t).float().mean().item() - 0.75) < 0.03
    normal = torch.distributions.Normal(-0.4, 1.0)
    drawn = torch.logit(flow.unshift(torch.cat([t[r < t], r[r < t]]), 3.0))  # both of a pair: an unordered sample
    for q in (0.1, 0.5, 0.9):
        assert abs((drawn < normal.icdf(torch.tensor(q))).float().mean().item() - q) < 0.03


def test_a_step_of_any_length_is_exact_with_exact_averages():
    made, noise = method(steps=2, shift=5.0), torch.randn(2, 2, 3, 4, 5)
    arrived = made.sample(noise, toys.batch().cond).double()
    assert_close(arrived, DATA.flow(noise.double(), 1.0, 0.0), atol=1e-5, rtol=0)
    told = [end.unique().item() for end in made.student.role.ends]
    assert told == pytest.approx([5 * 0.5 / (1 + 4 * 0.5), 0.0])


def test_the_derivative_stays_within_the_noise_levels_there_are():
    made, x = method(), torch.randn(2, 2, 3, 4, 5)
    t, end = torch.tensor([1.0, 0.0004]), torch.zeros(2)
    seen = []
    forward = made.student.role.forward

    def watched(x, sigma, cond, end):
        seen.append(sigma)
        return forward(x, sigma, cond, end)

    made.student.role.forward = watched
    one = torch.ones(2)
    _, exact = made.student.jvp(x, t, toys.batch().cond, DATA.v(x, t.view(-1, 1, 1, 1, 1)), one, end=end)
    seen.clear()
    _, chord = made.student.jvp(
        x, t, toys.batch().cond, DATA.v(x, t.view(-1, 1, 1, 1, 1)), one, difference=1e-3, end=end
    )
    assert torch.cat(seen).max() <= 1 and torch.cat(seen).min() >= 0
    assert_close(chord[0], exact[0], atol=2e-2, rtol=0)
