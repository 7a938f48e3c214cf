"""The latent interpolation U-Net: the official module's numbers, and what holds for any weights."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from distill.interpolation import Interpolator, PositionNorm

OFFICIAL = "sd.interpolation_module."


@pytest.fixture
def official(shared):
    with np.load(shared / "parity" / "avd_interp.npz") as data:
        return {name: torch.from_numpy(data[name]) for name in data.files}


def small(seed: int = 0, **options) -> Interpolator:
    """Random weights and random running means."""
    torch.manual_seed(seed)
    net = Interpolator(channels=3, width=4, **options)
    for module in net.modules():
        if isinstance(module, PositionNorm):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            nn.init.normal_(module.weight)
    return net


def loaded(official) -> Interpolator:
    net = Interpolator(channels=4, width=4)
    net.load_state_dict(
        {k.removeprefix(OFFICIAL): v for k, v in official.items() if k.startswith(OFFICIAL)}, strict=False
    )
    return net


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_the_official_modules_frames(official, mode):
    """V23. The official loop normalizes the pairs of each position by themselves while it trains."""
    net = loaded(official).train(mode == "train")
    assert_close(net(official["x"]), official[f"y_{mode}"], rtol=1e-5, atol=1e-6)


def test_the_default_module_is_as_large_as_the_official_one(official):
    assert sum(p.numel() for p in Interpolator().parameters()) == official["official_param_count"].item() == 235_760


@pytest.mark.parametrize("residual", [False, True])
def test_one_batched_call_is_the_loop_over_pairs(residual):
    """In training too: frames, gradients, and what batch normalization remembers."""
    x = torch.randn(2, 3, 4, 6, 8)
    batched, looped = small(residual=residual), small(residual=residual)
    y = batched(x)
    pairs = [looped(x[:, :, i : i + 2])[:, :, 1] for i in range(3)]
    assert_close(y[:, :, 1::2], torch.stack(pairs, 2), rtol=1e-5, atol=1e-6)
    y.square().sum().backward()
    (torch.stack(pairs, 2).square().sum() + x.square().sum()).backward()
    for name, value in looped.state_dict().items():
        assert_close(batched.state_dict()[name], value, rtol=1e-5, atol=1e-6, msg=name)
    for mine, theirs in zip(batched.parameters(), looped.parameters(), strict=True):
        assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-4)


def test_pairs_taken_together_share_their_statistics():
    norm, plain = PositionNorm(3), nn.BatchNorm2d(3)
    x = torch.randn(6, 3, 4, 5) + torch.arange(6.0).view(-1, 1, 1, 1)
    assert_close(norm(x, 1), plain(x))
    assert_close(norm.running_var, plain.running_var)
    assert not torch.allclose(PositionNorm(3)(x, 3), plain(x), atol=0.1)
    seen = small(statistics="together").enc1.conv[1]
    assert int(seen.num_batches_tracked) == 0
    net = small(statistics="together")
    net(torch.randn(2, 3, 4, 4, 4))
    assert int(net.enc1.conv[1].num_batches_tracked) == 1


@pytest.mark.parametrize("frames", [2, 3, 11])
@pytest.mark.parametrize("mode", [True, False])
def test_the_frames_that_are_given_stay_bit_for_bit(frames, mode):
    x = torch.randn(2, 3, frames, 8, 4)
    y = small().train(mode)(x)
    assert y.shape == (2, 3, 2 * frames - 1, 8, 4)
    assert torch.equal(y[:, :, ::2], x)


def test_a_frame_between_two_depends_on_these_two_alone():
    net, x = small().eval(), torch.randn(1, 3, 4, 8, 8)
    other = x.clone()
    other[:, :, 3] = 0
    y, changed = net(x), net(other)
    assert torch.equal(y[:, :, :5], changed[:, :, :5]) and not torch.allclose(y[:, :, 5], changed[:, :, 5])


def test_a_single_frame_is_unchanged():
    x = torch.randn(2, 3, 1, 8, 8)
    assert torch.equal(small()(x), x)


@pytest.mark.parametrize("size", [(5, 7), (6, 10), (1, 1), (4, 6)])
def test_sides_that_4_does_not_divide_are_padded_by_their_edges(size):
    net, x = small().eval(), torch.randn(2, 3, 2, *size)
    height, width = (-side % 4 for side in size)
    padded = nn.functional.pad(x, (0, width, 0, height, 0, 0), mode="replicate")
    y = net(x)
    assert y.shape == (2, 3, 3, *size)
    assert_close(y[:, :, 1], net(padded)[:, :, 1, : size[0], : size[1]])


def test_a_residual_network_that_says_nothing_makes_the_mean_of_two_neighbours():
    net = small(residual=True)
    nn.init.zeros_(net.out_conv.weight)
    nn.init.zeros_(net.out_conv.bias)
    x = torch.randn(2, 3, 3, 4, 4)
    assert_close(net(x)[:, :, 1::2], (x[:, :, :-1] + x[:, :, 1:]) / 2)


def test_latents_stay_float32_around_a_network_in_bf16():
    net, x = small().eval().to(torch.bfloat16), torch.randn(1, 3, 3, 4, 4)
    y = net(x)
    assert y.dtype == torch.float32 and torch.equal(y[:, :, ::2], x)
    assert_close(y, small().eval()(x), rtol=0.1, atol=0.1)


def test_other_channels_are_refused():
    with pytest.raises(ValueError, match=r"latents \(1, 4, 3, 4, 4\) do not fit: expected \(B, 3, F, H, W\)"):
        small()(torch.randn(1, 4, 3, 4, 4))
