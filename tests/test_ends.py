"""Networks that are told where a step ends: as the teacher at first, a stock network in the end."""

import copy
import itertools

import pytest
import torch
from torch.testing import assert_close

from distill import teachers
from distill.engine import Role
from distill.networks import Net
from distill.recipe import TeacherSpec, Video
from distill.teachers.ends import EndEmbedding
from tests import tiny_hunyuan, tiny_wan

LEVELS = [1.0, 0.9375, 0.8333, 0.625, 0.0]


@pytest.fixture(scope="module", params=["wan", "hunyuan_video"])
def teacher(request, tmp_path_factory):
    tiny = {"wan": tiny_wan, "hunyuan_video": tiny_hunyuan}[request.param]
    folder = tiny.build(tmp_path_factory.mktemp(request.param) / "teacher")
    return teachers.load(TeacherSpec(family=request.param, path=str(folder)), Video(**tiny.VIDEO, fps=8))


@pytest.fixture
def inputs(teacher):
    x = torch.randn(2, *teacher.latent_shape(5, 32, 48), generator=torch.Generator().manual_seed(0))
    return x, torch.tensor([0.9375, 0.625]), teacher.encode(["a red circle", "a blue square"])


def told(teacher, seed: int | None = None):
    """A told network; with a seed, its second embedding has learned something."""
    network = teacher.network().eval()
    network.tell_ends()
    if seed is not None:
        (embedding,) = (module for module in network.modules() if isinstance(module, EndEmbedding))
        torch.manual_seed(seed)
        for weight in embedding.further.linear_2.parameters():
            torch.nn.init.normal_(weight, std=0.5)
    return network


@torch.no_grad()
def test_it_begins_as_the_teacher_whatever_the_end(teacher, inputs):
    network, before = told(teacher), teacher.network().eval()(*inputs)
    for end in (None, torch.zeros(2), inputs[1] / 2):
        assert torch.equal(network(*inputs, end=end), before)


@torch.no_grad()
def test_the_end_matters_once_it_has_learned_and_none_is_a_step_of_no_length(teacher, inputs):
    network = told(teacher, seed=1)
    at_once, far = network(*inputs, end=inputs[1]), network(*inputs, end=torch.zeros(2))
    assert torch.equal(network(*inputs), at_once)
    assert (at_once - far).abs().max() > 1e-3
    mixed = network(*inputs, end=torch.stack([inputs[1][0], torch.zeros(())]))
    assert_close(mixed, torch.stack([at_once[0], far[1]]), atol=1e-5, rtol=0)


@torch.no_grad()
def test_folded_it_is_a_stock_network_that_says_the_same_at_its_own_steps_alone(teacher, inputs):
    network, (x, _, cond) = told(teacher, seed=1), inputs
    stock = network.folded(LEVELS)
    assert stock.state_dict().keys() == teacher.network().state_dict().keys()
    for level, end in itertools.pairwise(LEVELS):
        sigma, ends = torch.full((2,), level), torch.full((2,), end)
        assert_close(stock(x, sigma, cond), network(x, sigma, cond, end=ends), atol=1e-5, rtol=0)
    between = torch.full((2,), 0.75)
    assert (stock(x, between, cond) - network(x, between, cond, end=between * 0)).abs().max() > 1e-3
    assert any(isinstance(module, EndEmbedding) for module in network.modules())  # it is as it was


def test_the_derivative_by_forward_mode_is_that_of_a_small_difference(teacher, inputs):
    net, (x, sigma, cond) = Net(Role("student", told(teacher, seed=1))), inputs
    along = torch.randn(x.shape, generator=torch.Generator().manual_seed(1)), torch.ones(2)
    v, exact = net.jvp(x, sigma, cond, *along, end=sigma / 3)
    again, chord = net.jvp(x, sigma, cond, *along, difference=2e-4, end=sigma / 3)
    assert_close(v, again, atol=1e-5, rtol=0)
    assert_close(exact, chord, atol=0.03 * exact.abs().max().item(), rtol=0)
    _, elsewhere = net.jvp(x, sigma, cond, *along, end=sigma)
    assert (elsewhere - exact).abs().max() > 0.1 * exact.abs().max()  # the end stays where it is, the distance grows
    assert not exact.requires_grad and net.role.evaluations == 2 + 3 * 2 + 2


def test_a_stock_network_refuses_an_end_and_a_told_one_levels_per_frame(teacher, inputs):
    x, sigma, cond = inputs
    with pytest.raises(ValueError, match=r"not told where steps end; declare it as Trained\(ends=True\)"):
        teacher.network()(x, sigma, cond, end=sigma)
    frames = sigma[:, None].expand(2, x.shape[2])
    with pytest.raises(ValueError, match=r"sigma has shape \(2, \d\); .*one (noise )?level per clip, \(B,\)"):
        told(teacher)(x, frames, cond, end=sigma)


def test_a_told_network_can_be_copied_at_any_time(teacher, inputs):
    """The distance of an evaluation does not stay behind."""
    network = told(teacher, seed=1)
    network(*inputs, end=inputs[1] / 2)
    assert_close(copy.deepcopy(network)(*inputs), network(*inputs))
