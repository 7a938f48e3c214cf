"""The flow convention and samplers against closed forms."""

import math
from itertools import pairwise

import pytest
import torch
from torch.testing import assert_close

from distill import flow, samplers
from tests import toys


@pytest.fixture
def path():
    """x0, eps, sigma (B,) in float64."""
    g = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, 3, 2, 4, 5, 6, generator=g, dtype=torch.float64)
    return x0, eps, torch.tensor([0.2, 0.6, 0.9], dtype=torch.float64)


def test_a_path_goes_from_data_to_noise(path):
    x0, eps, _ = path
    assert torch.equal(flow.mix(x0, eps, torch.zeros(3)), x0)
    assert torch.equal(flow.mix(x0, eps, torch.ones(3)), eps)


def test_the_velocity_is_the_paths_derivative(path):
    x0, eps, sigma = path
    h = 1e-6
    slope = (flow.mix(x0, eps, sigma + h) - flow.mix(x0, eps, sigma - h)) / (2 * h)
    assert_close(flow.velocity(x0, eps), slope, atol=1e-8, rtol=0)


def test_data_and_noise_predictions_give_back_the_path(path):
    x0, eps, sigma = path
    x, v = flow.mix(x0, eps, sigma), flow.velocity(x0, eps)
    assert_close(flow.x0(x, v, sigma), x0)
    assert_close(flow.eps(x, v, sigma), eps)
    assert_close(flow.mix(flow.x0(x, v, sigma), flow.eps(x, v, sigma), sigma), x)
    assert_close(flow.v_from_x0(x, x0, sigma), v)


def test_an_euler_step_to_zero_is_the_data_prediction(path):
    x, v, sigma = path
    assert_close(flow.step(x, v, sigma, torch.zeros(3)), flow.x0(x, v, sigma))


def test_renoising_with_the_predicted_noise_is_an_euler_step(path):
    x, v, sigma = path
    lower = sigma * torch.tensor([0.1, 0.5, 0.99])
    renoised = flow.mix(flow.x0(x, v, sigma), flow.eps(x, v, sigma), lower)
    assert_close(flow.step(x, v, sigma, lower), renoised)


def test_guidance_commutes_with_the_conversions(path):
    x, cond, sigma = path
    uncond = torch.cos(cond)
    guided = flow.guide(cond, uncond, 5.0)
    for convert in (flow.x0, flow.eps):
        both = flow.guide(convert(x, cond, sigma), convert(x, uncond, sigma), 5.0)
        assert_close(convert(x, guided, sigma), both)


def test_guidance_scales_mean_what_the_field_says(path):
    cond, uncond, _ = path
    assert_close(flow.guide(cond, uncond, 1.0), cond)
    assert torch.equal(flow.guide(cond, uncond, 0.0), uncond)
    assert torch.equal(flow.guide(cond, cond, 7.5), cond)
    s = 3.5  # of codes that write cond + s (cond - uncond)
    assert_close(flow.guide(cond, uncond, s + 1), cond + s * (cond - uncond))


def test_a_guided_call_is_guidance_of_two_calls():
    batch, x, sigma = toys.batch(), torch.randn(2, 2, 3, 4, 5), torch.tensor([0.3, 0.8])
    net = toys.net(toys.curved)
    apart = flow.guide(net(x, sigma, batch.cond), net(x, sigma, batch.negative), 4.0)
    net.role.calls.clear()
    assert_close(net.guided(x, sigma, batch.cond, batch.negative, 4.0), apart)
    assert [samples for samples, _ in net.role.calls] == [4]


def test_shift_is_a_group_that_adds_to_the_logit():
    u = torch.linspace(0.01, 0.99, 50, dtype=torch.float64)
    assert flow.shift(torch.tensor([0.0, 1.0]), 5.0).tolist() == [0.0, 1.0]
    assert_close(flow.shift(flow.shift(u, 3.0), 5.0), flow.shift(u, 15.0))
    assert_close(torch.logit(flow.shift(u, 5.0)), torch.logit(u) + math.log(5.0))
    assert_close(flow.unshift(flow.shift(u, 5.0), 5.0), u)


@pytest.mark.parametrize("k", [1, 2, 3, 4, 6, 8, 12, 16, 24, 48])
def test_every_kth_level_of_a_grid_is_the_coarser_grid(k):
    assert_close(flow.grid(48, 5.0)[::k], flow.grid(48 // k, 5.0), atol=0, rtol=1e-15)


def test_a_grid_descends_from_noise_to_data():
    grid = flow.grid(6, 5.0).tolist()
    assert grid == pytest.approx([1, 25 / 26, 10 / 11, 5 / 6, 5 / 7, 1 / 2, 0])
    assert all(a > b for a, b in pairwise(grid))


def test_score_of_a_gaussian(path):
    x, _, sigma = path
    data = toys.Gaussian()
    v, t = data(x, sigma, None), flow.like(sigma, x)
    closed_form = -(x - (1 - t) * data.mu) / data.variance(t)
    assert_close(flow.score(x, v, sigma), closed_form)


def test_fine_euler_steps_follow_the_gaussians_flow_map():
    data, noise = toys.Gaussian(), torch.linspace(-3, 3, 13).view(1, 1, 1, 1, 13)
    for s in (0.5, 0.0):
        sigmas = torch.linspace(1, s, 2001, dtype=torch.float64)
        reached = samplers.euler(toys.net(data), noise, sigmas, None)
        assert_close(reached, data.flow(noise, 1.0, s), atol=2e-3, rtol=0)


def test_the_euler_sampler_is_the_closed_form_of_k_steps():
    t = flow.grid(48, 5.0).flip(0).tolist()
    data, x = toys.GaussianEuler(8, t), torch.linspace(-3, 3, 13).view(1, 1, 1, 1, 13)
    for i in range(48, 0, -8):
        sigmas = torch.tensor(t[i - 8 : i + 1], dtype=torch.float64).flip(0)
        reached = samplers.euler(toys.net(toys.Gaussian()), x, sigmas, None)
        assert_close(reached, x + (t[i - 8] - t[i]) * data.average(x, i), atol=2e-6, rtol=0)


def test_the_euler_sampler_guides_every_step():
    batch, grid = toys.batch(), flow.grid(5, 3.0)
    noise = batch.noise()
    x = noise
    for sigma, lower in pairwise(grid):
        s = sigma.expand(2).float()
        cond, uncond = toys.curved(x, s, batch.cond), toys.curved(x, s, batch.negative)
        x = flow.step(x, uncond + 3.0 * (cond - uncond), sigma.expand(2), lower.expand(2)).float()
    sampled = samplers.euler(toys.net(toys.curved), noise, grid, batch.cond, batch.negative, 3.0)
    assert_close(sampled, x, atol=1e-5, rtol=0)


def test_guidance_without_a_negative_condition_is_refused():
    with pytest.raises(ValueError, match="guidance scale is 5"):
        samplers.euler(toys.net(toys.curved), torch.zeros(1, 1, 1, 1, 1), flow.grid(2, 1.0), None, scale=5)


def test_a_sigma_that_would_broadcast_wrongly_is_refused():
    with pytest.raises(ValueError, match=r"needs \(B,\) or \(B, F\)"):
        flow.like(torch.zeros(3), torch.zeros(2, 3, 4, 5, 6))
    assert flow.like(torch.zeros(2, 4), torch.zeros(2, 3, 4, 5, 6)).shape == (2, 1, 4, 1, 1)
