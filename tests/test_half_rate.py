"""Samplers whose first steps are at half the frame rate, and the scheduler that plays them in diffusers."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from distill import flow, samplers
from distill.batch import Condition
from distill.playback.student_scheduler import StudentScheduler

from . import toys

LEVELS = torch.tensor([1.0, 0.9, 0.757, 0.522, 0.0], dtype=torch.float64)
COND = Condition(text=torch.full((2, 1, 1), 0.5))


def doubled(x: Tensor) -> Tensor:
    """A stand-in for the U-Net: between two frames, their difference."""
    return samplers.between(x, x[:, :, 1:] - x[:, :, :-1])


def noise(frames: int = 5) -> Tensor:
    return torch.randn(2, 3, frames, 4, 4, generator=torch.Generator().manual_seed(0))


def half(steps: int) -> samplers.Half:
    return samplers.Half(steps, doubled)


def watched(seen: list):
    """A network that mixes frames, and notes what it is asked."""

    def velocity(x, sigma, cond):
        seen.append((x.shape[2], sigma[0].item()))
        return toys.curved(x, sigma, cond) + 0.3 * x.mean(2, keepdim=True)

    return velocity


def renoised(net, x_T: Tensor, steps: int) -> Tensor:
    """Section 3.4 written out: so many steps on every second frame, then the interpolated prediction, renoised."""
    levels, x = [s.item() for s in LEVELS], x_T[:, :, ::2]
    for n in range(3):
        x0 = x - levels[n] * net(x, torch.full((2,), levels[n]), COND)
        fresh = samplers.more_noise(x_T, n)
        if n == steps - 1:
            x0 = doubled(x0)
        if n < steps - 1:
            fresh = fresh[:, :, ::2]
        x = (1 - levels[n + 1]) * x0 + levels[n + 1] * fresh
    return x - levels[3] * net(x, torch.full((2,), levels[3]), COND)


def eulered(net, x_T: Tensor, steps: int) -> Tensor:
    """Even frames take their Euler steps; the new ones begin as if they had been on the way from their own noise."""
    levels, x = [s.item() for s in LEVELS], x_T[:, :, ::2]
    for n in range(4):
        v = net(x, torch.full((2,), levels[n]), COND)
        walked = x + (levels[n + 1] - levels[n]) * v
        if n == steps - 1:
            x0 = doubled(x - levels[n] * v)
            new = (1 - levels[n + 1]) * x0[:, :, 1::2] + levels[n + 1] * x_T[:, :, 1::2]
            walked = samplers.between(walked, new)
        x = walked
    return x


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize(("renoises", "written_out"), [(True, renoised), (False, eulered)])
def test_half_rate_is_what_the_paper_says_written_out(steps, renoises, written_out):
    seen: list = []
    net, x = toys.net(watched(seen)), noise()
    made = samplers.half_rate(net, x, LEVELS, COND, half(steps), renoises=renoises)
    expected_seen, seen[:] = list(seen), []
    assert_close(made, written_out(net, x, steps), rtol=1e-5, atol=1e-5)
    assert (
        expected_seen
        == seen
        == [(3 if n < steps else 5, pytest.approx(level)) for n, level in enumerate(LEVELS.tolist()[:-1])]
    )


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("renoises", [True, False])
def test_where_frames_are_apart_the_even_ones_are_those_of_the_full_rate(steps, renoises):
    """The same noise gives the same even frames, at both rates, from a network that sees each frame by itself."""
    net, x = toys.net(toys.curved), noise()
    full = (samplers.renoise if renoises else samplers.euler)(net, x, LEVELS, COND)
    made = samplers.half_rate(net, x, LEVELS, COND, half(steps), renoises=renoises)
    assert_close(made[:, :, ::2], full[:, :, ::2], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(made, full, atol=1e-3)


def test_a_network_is_told_the_levels_that_it_knows():
    seen: list = []
    told = torch.tensor([1.0, 0.8, 0.6, 0.4, 0.0])
    samplers.half_rate(toys.net(watched(seen)), noise(), LEVELS, COND, half(2), renoises=True, told=told)
    assert [level for _, level in seen] == pytest.approx([1.0, 0.8, 0.6, 0.4])


@pytest.mark.parametrize(
    ("steps", "frames", "message"),
    [
        (4, 5, "4 steps at half the frame rate, of 4"),
        (0, 5, "0 steps at half the frame rate, of 4"),
        (2, 4, "4 latent frames cannot be halved and restored: an odd number is needed, 3 or more"),
        (2, 1, "1 latent frames cannot be halved"),
    ],
)
def test_what_cannot_be_halved_is_refused(steps, frames, message):
    with pytest.raises(ValueError, match=message):
        samplers.half_rate(toys.net(toys.curved), noise(frames), LEVELS, COND, half(steps), renoises=True)


def played(scheduler: StudentScheduler, net, x_T: Tensor, interpolate=None) -> Tensor:
    """As a pipeline uses a scheduler."""
    scheduler.set_timesteps(4)
    x = x_T if interpolate is None else scheduler.begin_half_rate(x_T, interpolate)
    scheduler.set_begin_index(0)
    for t in scheduler.timesteps:
        v = net(x, (t / 1000).expand(2), COND)
        x = scheduler.step(v, t, x, return_dict=False)[0]
    return x


@pytest.mark.parametrize("renoises", [True, False])
def test_the_exported_scheduler_takes_the_samplers_steps(renoises):
    net, x = toys.net(watched([])), noise()
    told = torch.tensor([1.0, 0.8, 0.6, 0.4, 0.0])
    if renoises:
        expected = samplers.renoise(net, x, LEVELS, COND, told)
    else:
        told, expected = LEVELS, samplers.euler(net, x, LEVELS, COND)
    levels = {"sigmas": LEVELS.tolist(), "told": told[:-1].tolist(), "renoises": renoises}
    scheduler = StudentScheduler(**levels, half_rate=2)
    assert_close(played(scheduler, net, x), expected, rtol=0, atol=1e-5)
    halved = samplers.half_rate(net, x, LEVELS, COND, half(2), renoises=renoises, told=told)
    assert_close(played(scheduler, net, x, doubled), halved, rtol=0, atol=1e-5)
    assert_close(played(scheduler, net, x), expected, rtol=0, atol=1e-5)  # and forgets that it was at half rate


def test_the_exported_scheduler_refuses_what_the_student_was_not_made_for():
    scheduler = StudentScheduler(sigmas=LEVELS.tolist())
    with pytest.raises(ValueError, match="50 steps: this student takes 4; pass num_inference_steps=4"):
        scheduler.set_timesteps(50)
    with pytest.raises(ValueError, match="4 latent frames cannot be halved"):
        scheduler.begin_half_rate(noise(4), doubled)
    with pytest.raises(ValueError, match="begin_index is 2"):
        scheduler.set_begin_index(2)


def test_fresh_noise_is_the_same_in_the_exported_file():
    from distill.playback import student_scheduler

    x = noise()
    assert torch.equal(student_scheduler.more_noise(x, 1), samplers.more_noise(x, 1))
    assert not torch.equal(student_scheduler.more_noise(x, 1), samplers.more_noise(x, 0))


def test_levels_of_the_scheduler_are_the_students_to_float32():
    scheduler = StudentScheduler(sigmas=LEVELS.tolist())
    assert torch.equal(scheduler.sigmas, LEVELS.float())
    assert torch.equal(scheduler.timesteps, 1000 * LEVELS[:-1].float())
    assert flow.grid(4, 1.0).shape == LEVELS.shape
