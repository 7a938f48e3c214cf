"""Features of a network: the stock blocks' own outputs, no block too many, gradients to the input and to no weight."""

import pytest
import torch
from diffusers import WanTransformer3DModel
from torch import Tensor

from distill.engine import Engine, Role
from distill.networks import Net
from distill.teachers.wan import Wan
from tests import tiny_wan

DEPTH = 4
SIGMA = torch.tensor([25 / 26, 0.5])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_wan.build(tmp_path_factory.mktemp("wan"), layers=DEPTH)


@pytest.fixture(scope="module")
def teacher(folder):
    return Wan(folder)


@pytest.fixture
def role(teacher):
    return Role("teacher", teacher.network().eval())


@pytest.fixture
def cond(teacher):
    return teacher.encode(["a red circle moves left .", "a blue square ."])


def noise(teacher: Wan) -> Tensor:
    return torch.randn(2, *teacher.latent_shape(**tiny_wan.VIDEO), generator=torch.Generator().manual_seed(0))


def stock(folder, x: Tensor, timestep: Tensor, cond) -> list[Tensor]:
    """What each block of stock diffusers' transformer returns, unfolded by loops: (B, D, F', h, w)."""
    transformer = WanTransformer3DModel.from_pretrained(folder, subfolder="transformer", dtype=torch.float32)
    transformer.requires_grad_(False)
    seen: list[Tensor] = []
    for block in transformer.blocks:
        block.register_forward_hook(lambda module, inputs, output: seen.append(output))
    transformer(x, timestep, cond["text"])
    frames, height, width = x.shape[2], x.shape[3] // 2, x.shape[4] // 2
    unfolded = []
    for tokens in seen:
        places = iter(tokens.unbind(1))
        rows = [[torch.stack([next(places) for _ in range(width)], -1) for _ in range(height)] for _ in range(frames)]
        unfolded.append(torch.stack([torch.stack(row, -2) for row in rows], 2))
    return unfolded


def blocks_run(role: Role) -> list[int]:
    """Appends the number of every block that runs, and 0 for the projection behind them."""
    seen: list[int] = []
    transformer = role.module.transformer
    for i, block in enumerate(transformer.blocks, 1):
        block.register_forward_pre_hook(lambda *_, i=i: seen.append(i))
    transformer.proj_out.register_forward_pre_hook(lambda *_: seen.append(0))
    return seen


@torch.no_grad()
def test_features_are_what_the_stock_blocks_return(folder, teacher, role, cond):
    x = noise(teacher)
    expected = stock(folder, x, 1000 * SIGMA, cond)
    found = Net(role).features(x, SIGMA, cond, [1, 2, 3, 4])
    assert [f.shape for f in found] == [(2, teacher.width, 3, 4, 6)] * 4
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)


@torch.no_grad()
def test_features_come_in_the_order_in_which_they_are_asked(teacher, role, cond):
    net, x = Net(role), noise(teacher)
    last, first, again = net.features(x, SIGMA, cond, [4, 1, 4])
    assert torch.equal(last, again)
    assert torch.equal(last, net.features(x, SIGMA, cond, (4,))[0])
    assert torch.equal(first, net.features(x, SIGMA, cond, (1,))[0])
    assert not torch.equal(first, last)


@torch.no_grad()
def test_features_of_frames_with_noise_levels_of_their_own(folder, teacher, role, cond):
    x = noise(teacher)
    sigma = torch.rand(2, x.shape[2], generator=torch.Generator().manual_seed(1))
    timestep = torch.tensor([[1000 * s for s in row for _ in range(4 * 6)] for row in sigma.tolist()])
    expected = stock(folder, x, timestep, cond)[2]
    torch.testing.assert_close(Net(role).features(x, sigma, cond, [3])[0], expected, atol=1e-6, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize(("layers", "run"), [([2], [1, 2]), ([3, 1], [1, 2, 3]), ([4], [1, 2, 3, 4])])
def test_nothing_behind_the_deepest_block_is_evaluated(teacher, role, cond, layers, run):
    seen = blocks_run(role)
    Net(role).features(noise(teacher), SIGMA, cond, layers)
    assert seen == run
    assert role.evaluations == 2  # samples: an early stop is one evaluation of each


def test_gradients_pass_to_the_input_and_to_no_weight(folder, teacher, role, cond):
    """A13: the input's gradient is that of the stock blocks, while another network is the one that trains."""
    weights = torch.randn(2, teacher.width, 3, 4, 6, generator=torch.Generator().manual_seed(2))
    gradients = []
    student = Role("student", torch.nn.Linear(2, 2))
    with Engine().only(student, [role, student]):
        x = noise(teacher).requires_grad_()
        (Net(role).features(x, SIGMA, cond, [3])[0] * weights).sum().backward()
        gradients.append(x.grad)
        assert all(p.grad is None for p in role.parameters)
    x = noise(teacher).requires_grad_()
    (stock(folder, x, 1000 * SIGMA, cond)[2] * weights).sum().backward()
    gradients.append(x.grad)
    assert gradients[0].abs().max() > 1e-3
    torch.testing.assert_close(*gradients, atol=1e-4, rtol=1e-4)


def test_checkpointing_changes_no_gradient_of_features_and_runs_blocks_again(teacher, role, cond):
    gradients, runs = [], []
    for checkpointed in (False, True):
        if checkpointed:
            role.module.enable_checkpointing()
        seen, x = blocks_run(role), noise(teacher).requires_grad_()
        Net(role).features(x, SIGMA, cond, [2])[0].square().sum().backward()
        gradients.append(x.grad)
        runs.append(len(seen))
    torch.testing.assert_close(*gradients)
    assert runs == [2, 4]


@torch.no_grad()
def test_bf16_features_arrive_in_float32(teacher, cond):
    x, found = noise(teacher), {}
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        role = Role("teacher", teacher.network(dtype).eval(), precision=precision)
        (found[precision],) = Net(role).features(x, SIGMA, cond, [4])
    assert found["bf16"].dtype == torch.float32
    assert 1e-5 < (found["bf16"] - found["fp32"]).abs().max() < 0.1 * found["fp32"].abs().max()


def test_the_teacher_knows_its_depth_and_width(teacher):
    transformer = teacher.network().transformer
    assert teacher.depth == len(transformer.blocks) == DEPTH
    assert teacher.width == transformer.proj_out.in_features == 24


@pytest.mark.parametrize("layers", [[0], [5], [2, 5], []])
def test_a_block_that_is_not_there_is_refused(teacher, role, cond, layers):
    with pytest.raises(ValueError, match=r"features of blocks \[.*\]; this network has blocks 1 to 4"):
        Net(role).features(noise(teacher), SIGMA, cond, layers)
