"""LCM: what is consistent has no loss, and where consistency begins."""

import pytest
import torch
from torch.testing import assert_close

from distill import flow
from distill_methods.lcm import LCM, pseudo_huber
from tests import toys
from tests.test_perflow import batch


@pytest.mark.parametrize("mu", [0.0, 0.7])
def test_a_network_that_predicts_the_same_data_everywhere_has_no_loss(mu):
    def point(x, sigma, cond):  # finite at level 0, where no velocity matters
        return (x - mu) / flow.like(sigma, x).clamp(min=1e-6)

    method = toys.place(LCM(guidance=1.0, teacher_steps=7), teacher=point, student=point, target=point)
    assert method.loss(batch())["consistency"] < 1e-9
    toys.place(method, student=toys.straight(mu + 1))
    assert_close(method.loss(batch())["consistency"], torch.tensor(1.0), atol=2e-3, rtol=0)  # |d| - c, far from 0


def test_at_the_last_step_the_target_is_the_teachers_latent_whatever_the_target_network_says():
    """f(x, 0) = x: the boundary condition of consistency models."""
    method = toys.place(LCM(guidance=1.0, teacher_steps=1), teacher=toys.straight(0.4), student=toys.straight(1.4))
    losses = [
        toys.place(method, target=lambda x, sigma, cond, k=k: x * k + k).loss(batch())["consistency"] for k in (0, 50)
    ]
    assert_close(losses[0], losses[1])
    assert_close(losses[0], torch.tensor(1.0), atol=2e-3, rtol=0)


def test_the_target_is_the_averages_prediction_one_guided_teacher_step_later():
    method, places = LCM(guidance=3.0, teacher_steps=4, shift=5.0), []

    def target(x, sigma, cond):
        places.append((x, sigma))
        return x * 0

    toys.place(method, teacher=toys.curved, student=toys.curved, target=target)
    made = batch(size=64)
    loss = method.loss(made)["consistency"]
    again = made.at(0)
    i, eps = again.integers(0, 4), again.noise()
    grid = flow.grid(4, 5.0)
    t, t_next = grid[i].float(), grid[i + 1].float()
    y, cond = made.video.latents, made.video.cond
    s, e = (level.view(-1, 1, 1, 1, 1) for level in (t, t_next))
    x = (1 - s) * y + s * eps
    uncond, given = toys.curved(x, t, made.negative), toys.curved(x, t, cond)
    x_next = x + (e - s) * (uncond + 3 * (given - uncond))
    assert_close(places[0][0], x_next)
    assert_close(places[0][1], t_next)
    student = x - s * toys.curved(x, t, cond)
    assert_close(loss, ((student - x_next).square() + 1e-6).sqrt().mean() - 1e-3)  # target: x_next - e * 0
    assert set(i.tolist()) == {0, 1, 2, 3}


def test_pseudo_huber_is_square_near_zero_and_keeps_its_precision_there():
    d = torch.tensor([1e-6, -1e-6])
    assert_close(pseudo_huber(d, 1e-3), torch.tensor(5e-10), rtol=1e-4, atol=0)
    assert_close(pseudo_huber(torch.tensor([3.0, -4.0]), 1e-3), torch.tensor(3.499), rtol=1e-5, atol=0)


def test_sampling_predicts_the_data_and_noises_it_again():
    method = toys.place(LCM(steps=3, shift=2.0), student=toys.straight(0.2))
    x = method.sample(torch.randn(2, 2, 3, 4, 5), toys.batch().cond)
    assert_close(x, torch.full_like(x, 0.2), atol=1e-5, rtol=0)
    assert method.renoises and method.student.role.calls == [(2, True)] * 3
