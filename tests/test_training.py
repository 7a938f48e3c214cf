"""The loop around a method: who is moved, by how much, with which samples."""

import copy
import math
from types import SimpleNamespace

import pytest
import torch

from distill import recipe as recipes
from distill.batch import Batch, Condition
from distill.data.stream import PromptStream, check_share
from distill.descent import descend
from distill.engine import Engine, Role
from distill.errors import UserError
from distill.folder import RunFolder
from distill.method import Update
from distill.signals import StopRequest
from distill.trainer import Trainer

from . import runs, tiny_wan

NETWORKS = ("student", "critic", "head")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return tiny_wan.build(tmp_path_factory.mktemp("teacher"))


@pytest.fixture
def trainer(teacher, tmp_path):
    """Makes trainers that have not begun; each takes overrides of the recipe."""

    def make(*overrides, method=runs.GPD, networks=("student",)):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        recipe = recipes.load(runs.write(folder, teacher, method, networks), overrides)
        with RunFolder(recipe, Engine()) as run:
            return Trainer(recipe, Engine(), run.path, StopRequest())

    return make


def weights(role):
    return {k: v.clone() for k, v in role.module.state_dict().items()}


def moved(before, role):
    return any(not torch.equal(before[k], v) for k, v in role.module.state_dict().items())


def first_update(trainer):
    """One update of the student, from a trainer that has not begun; its log line."""
    trainer.method.stage = trainer.stages[0]
    trainer._enter(trainer.stages[0])
    batches = trainer.stream.batches(0, 0, 1)
    update = next(iter(trainer.method.updates(0)))
    return trainer._descend(update, batches)


def test_an_update_moves_its_network_and_no_other(trainer):
    it = trainer(method=runs.PAIR, networks=NETWORKS)
    it.method.stage = it.stages[0]
    it._enter(it.stages[0])
    batches = it.stream.batches(0, 0, 1)
    seen = []
    for position, update in enumerate(it.method.updates(0)):
        before = {name: weights(role) for name, role in it.roles.items()}
        descend(update, batches, position, it.roles, it.engine, clip=1.0)
        seen.append([name for name, role in it.roles.items() if moved(before[name], role)])
        assert all(p.grad is None for role in it.roles.values() for p in role.parameters)
    assert seen == [["student"], ["critic"], ["head"]]


def test_gradients_of_another_network_are_frozen_while_a_loss_runs(trainer):
    it = trainer(method=runs.PAIR, networks=NETWORKS)
    with it.engine.only(it.roles["critic"], it.roles.values()):
        free = [name for name, role in it.roles.items() if any(p.requires_grad for p in role.parameters)]
    assert free == ["critic"]
    assert not any(p.requires_grad for role in it.roles.values() for p in role.parameters)


def test_accumulation_does_not_change_an_update(trainer):
    lines, states = [], []
    for size in (1, 2, 4):
        it = trainer(f"train.micro_batch_size={size}")
        lines.append(first_update(it))
        states.append(weights(it.roles["student"]))
    for line, state in zip(lines[1:], states[1:], strict=True):
        assert line["loss"] == pytest.approx(lines[0]["loss"], rel=1e-5)
        assert line["grad_norm"] == pytest.approx(lines[0]["grad_norm"], rel=1e-4)
        # AdamW's first step is lr * sign(g): compare where the gradient is not lost in rounding
        different = sum((state[k] - states[0][k]).abs().gt(1e-4).sum().item() for k in state)
        assert different < 0.01 * sum(v.numel() for v in state.values())


class Quadratic(torch.nn.Module):
    """v = w, so that gradients are known."""

    def __init__(self, *w):
        super().__init__()
        self.w = torch.nn.Parameter(torch.tensor(w))

    def forward(self, x, sigma, cond):
        return self.w.expand(len(x), -1)


OPTIM = SimpleNamespace(lr=0.1, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, schedule="cosine", warmup=0)


def quadratic(*w, updates=10, optim=OPTIM):
    role = Role("net", Quadratic(*w))
    role.prepare(optim, updates)
    return role


def batch(index=(0, 1)):
    cond = Condition(text=torch.zeros(len(index), 1, 1))
    return Batch(["a"] * len(index), cond, cond, list(index), (1, 1, 2, 2), seed=5)


def test_a_loss_in_parts_has_the_gradient_of_the_whole():
    def whole(b):
        w = role.module.w
        return {"a": (w**2).sum(), "b": 3 * w.sum()}

    def parts(b):
        yield {"a": (role.module.w**2).sum()}
        yield {"b": 3 * role.module.w.sum()}

    lines = []
    for loss in (whole, parts):
        role = quadratic(1.0, -2.0)
        lines.append(descend(Update("net", loss), [batch()], 0, {"net": role}, Engine(), clip=None))
    assert lines[0] == lines[1]
    assert lines[0]["terms"] == {"a": 5.0, "b": -3.0} and lines[0]["loss"] == 2.0
    assert lines[0]["grad_norm"] == pytest.approx(math.hypot(2 + 3, -4 + 3))


def test_clipping_scales_the_gradient_and_reports_the_norm_before():
    role = quadratic(3.0, 4.0)
    role.module.requires_grad_(True)
    (role.module.w**2).sum().div(2).backward()
    assert role.clip(1.0).item() == pytest.approx(5.0)
    torch.testing.assert_close(role.module.w.grad, torch.tensor([0.6, 0.8]))


def test_the_learning_rate_follows_half_a_cosine():
    role = quadratic(1.0, updates=4)
    rates = []
    for _ in range(4):
        rates.append(role.lr)
        role.module.w.grad = torch.ones(1)
        role.step()
    expected = [0.1 * (1 + math.cos(math.pi * i / 4)) / 2 for i in range(4)]
    assert rates == pytest.approx(expected)


def test_adamw_takes_the_step_of_its_paper():
    """One step: w (1 - lr wd) - lr m_hat / (sqrt(v_hat) + eps), with m_hat = g and v_hat = g^2."""
    role = quadratic(2.0, optim=SimpleNamespace(**{**vars(OPTIM), "weight_decay": 0.5}))
    line = descend(Update("net", lambda b: role.module.w.sum() * 0.3), [batch()], 0, {"net": role}, Engine(), clip=None)
    assert role.module.w.item() == pytest.approx(2.0 * (1 - 0.1 * 0.5) - 0.1, rel=1e-6)
    assert line["grad_norm"] == pytest.approx(0.3)


def test_moments_are_fresh_in_a_stage_unless_they_are_carried():
    role = quadratic(1.0)
    role.module.w.grad = torch.ones(1)
    role.step()
    old = role.optimizer.state[role.module.w]["exp_avg"].clone()
    role.prepare(OPTIM, 5, keep_moments=True)
    assert torch.equal(role.optimizer.state[role.module.w]["exp_avg"], old) and role.lr == 0.1
    role.prepare(OPTIM, 5)
    assert not role.optimizer.state


def test_an_average_is_the_closed_form_in_float32():
    role = quadratic(0.0)
    average = role.averaged("average")
    for step in range(1, 6):
        with torch.no_grad():
            role.module.w.fill_(float(step))
        average.average_from(role, 0.9)
    expected = sum(0.1 * 0.9 ** (5 - step) * step for step in range(1, 6))
    assert average.module.w.item() == pytest.approx(expected, rel=1e-6)


def test_the_students_average_is_what_is_sampled(trainer):
    it = trainer("train.ema=0.5")
    noise, cond = torch.randn(1, *it.stream.shape), it.embeddings.get(["a"])
    with torch.no_grad():
        for p in it.roles["student"].parameters:
            p.add_(0.1)
    averaged = it.gallery.sample(noise, cond)
    assert (averaged - it.method.sample(noise, cond)).abs().max() > 0.1
    it.roles["student"].copy_from(it.roles["student_ema"])
    # not bitwise: kernels round by the alignment of weights in memory, and a copy is aligned otherwise than a file
    torch.testing.assert_close(averaged, it.method.sample(noise, cond), rtol=1e-4, atol=1e-5)


def test_bf16_computes_in_bf16_and_keeps_float32_weights(trainer):
    full, half = trainer(), trainer("train.precision=bf16")
    one, other = first_update(full), first_update(half)
    assert one["loss"] != other["loss"] and other["loss"] == pytest.approx(one["loss"], rel=0.05)
    assert {p.dtype for p in half.roles["student"].parameters} == {torch.float32}
    assert torch.bfloat16 in {p.dtype for p in half.roles["teacher"].parameters}
    state = half.roles["student"].optimizer.state_dict()["state"]
    assert all(s["exp_avg"].dtype == torch.float32 for s in state.values())


def test_activation_checkpointing_changes_no_number(trainer):
    one, other = trainer(), trainer("train.activation_checkpointing=full")
    assert first_update(one) == first_update(other)
    other.roles["student"].module.requires_grad_(True)
    kept = {}
    for name, it in (("whole", one), ("checkpointed", other)):
        it.roles["student"].module.requires_grad_(True)
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=saved: (s.append(t.numel()), t)[1], lambda t: t):
            b = it.stream.batches(0, 0, 1)[0]
            it.method.student(b.noise(), torch.ones(len(b)), b.cond)
        kept[name] = sum(saved)
    assert kept["checkpointed"] < 0.5 * kept["whole"]


def test_a_loss_that_does_not_reach_its_network_is_named():
    role = quadratic(1.0)
    update = Update("net", lambda b: {"lost": role.module.w.detach().sum()})
    with pytest.raises(UserError, match=r"'net': its loss \(lost\) does not depend on its weights"):
        descend(update, [batch()], 0, {"net": role}, Engine(), clip=None)


def test_noise_belongs_to_the_sample_not_to_the_micro_batch():
    together, apart = batch((7, 8)), [batch((7,)), batch((8,))]
    for _ in range(2):  # and the second draw differs from the first
        assert torch.equal(together.noise(), torch.cat([b.noise() for b in apart]))
        assert torch.equal(together.uniform(), torch.cat([b.uniform() for b in apart]))
    b = batch((7,))
    draws = [b.noise(), b.noise(), b.at(1).noise(), batch((9,)).noise()]
    assert all(not torch.equal(x, y) for i, x in enumerate(draws) for y in draws[:i])
    assert torch.equal(b.at(0).noise(), draws[0])


def test_noise_is_standard_normal():
    x = torch.cat([batch((i,)).noise().flatten() for i in range(2500)])  # 10 000 numbers
    assert abs(x.mean()) < 0.04 and abs(x.std() - 1) < 0.03


def stream(batch_size=4, micro=1, prompts=6):
    train = SimpleNamespace(seed=2, batch_size=batch_size, micro_batch_size=micro)
    texts = [str(i) for i in range(prompts)]
    zero = Condition(text=torch.zeros(1, 1, 1))
    return PromptStream(texts, lambda p: zero.expand(len(p)), zero, (1, 1, 2, 2), train, torch.device("cpu"))


def test_every_epoch_shows_each_prompt_once_in_a_new_order():
    seen = [p for step in range(6) for b in stream().batches(step, 0, 1) for p in b.prompts]
    epochs = [seen[i : i + 6] for i in range(0, 24, 6)]
    assert all(sorted(epoch) == sorted(seen[:6]) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


@pytest.mark.parametrize("world", [2, 4])
def test_processes_share_the_same_global_batch(world):
    alone = [(b.prompts, b.index) for b in stream().batches(3, 0, 1)]
    shared = [(b.prompts, b.index) for rank in range(world) for b in stream().batches(3, rank, world)]
    assert sorted(shared) == sorted(alone)


def test_a_batch_that_processes_cannot_share_is_refused():
    with pytest.raises(UserError, match="4 micro-batches of 1; 3 processes cannot share them.*a multiple of 3"):
        check_share(SimpleNamespace(batch_size=4, micro_batch_size=1), 3)
    check_share(SimpleNamespace(batch_size=4, micro_batch_size=1), 2)


def test_a_copy_is_frozen_in_time(trainer):
    it = trainer()
    before = copy.deepcopy(it.roles["prior"].module.state_dict())
    first_update(it)
    assert moved(before, it.roles["student"]) and not moved(before, it.roles["prior"])
