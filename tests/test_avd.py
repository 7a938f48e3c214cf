"""AVD: what it adds to DMD, against closed forms and recorded numbers; its memory over processes and interruptions."""

import math
import warnings

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from distill import checkpoint, flow, losses, recipe, registry
from distill.batch import Batch, Clips, Condition
from distill.errors import UserError
from distill.memory import RunningMean
from distill_methods.avd import AVD, PRESETS
from distill_methods.dmd import DMD
from tests import runs, tiny_wan, toys
from tests.test_dmd import NETWORKS, Setting, frames_second, injected, reference, stop_after, stubs  # noqa: F401

CASES = ["static", "small", "L0.81", "L0.79", "L0.61", "L0.59", "big"]


def real(batch: Batch, seed: int = 5) -> Batch:
    """The batch with real videos, whose captions are not its prompts."""
    g = torch.Generator().manual_seed(seed)
    latents = torch.randn(len(batch), *batch.shape, generator=g)
    batch.video = Clips(latents, ["a caption"] * len(batch), Condition(text=torch.full((len(batch), 1, 1), 7.0)))
    return batch


# Presets


def test_the_presets_are_the_two_recipes():
    paper, code = AVD(), AVD(preset="official_code")
    assert (paper.w, paper.w_reg, paper.tau, paper.taken_in, paper.table) == (5.0, 2.0, 0.6, False, False)
    assert (code.w, code.w_reg, code.tau, code.taken_in, code.table) == (6.0, 1.0, 0.8, True, True)
    for method in (paper, code):
        assert method.levels_told == [1.0, 0.9, 0.757, 0.522]
        assert (method.k, method.usual.history, method.w_temp, method.student_every) == (3.0, 0.95, 0.05, 5)
        assert (method.shift, method.score_range) == (5.0, (0.02, 0.98))


@pytest.mark.parametrize("preset", ["paper", "official_code"])
def test_an_option_beside_a_preset_is_seen(preset):
    with pytest.warns(UserWarning, match=rf"guidance is 4.0; preset {preset} has [56].0"):
        assert AVD(preset=preset, guidance=4.0).w == 4.0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        AVD(preset=preset, **PRESETS[preset])


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"adaptive": False, "steepness": 2.0}, "the regression is not adaptive"),
        ({"adaptive": False, "mean": "before"}, "the regression is not adaptive"),
        ({"regression": 0.0, "history": 0.9}, "the regression is not adaptive"),
        ({"regression": 0.0, "adaptive": False}, "regression is 0"),
        ({"regression": 0.0, "weighed": "sample"}, "regression is 0"),
        ({"temporal": 0.0, "threshold": 0.6}, "temporal is 0"),
    ],
)
@pytest.mark.filterwarnings("ignore:regression is 0.0")
def test_options_without_effect_are_refused(options, text):
    with pytest.raises(ValueError, match=text):
        AVD(**options)


def test_every_option_is_explained():
    """Those of DMD by DMD's own lines, and with DMD's defaults."""
    own, inherited = registry.options("avd").model_fields, registry.options("dmd").model_fields
    assert inherited.keys() < own.keys()
    assert all(field.description for field in own.values())
    for name in inherited.keys() - PRESETS["paper"].keys():
        assert (own[name].default, own[name].description) == (inherited[name].default, inherited[name].description)


def test_a_recipe_without_real_videos_hears_that_they_are_missing(tmp_path):
    path = runs.write(tmp_path, tiny_wan.build(tmp_path / "teacher"), "{name: avd}", NETWORKS)
    with pytest.raises(UserError, match=r"data.videos: required, but missing: the method learns from real videos"):
        recipe.load(path, ["train.steps=1"])


# The temporal loss


@pytest.mark.parametrize("case", CASES)
def test_the_temporal_loss_is_the_official_one(reference, case):  # noqa: F811
    data = reference("avd_temporal")
    x = frames_second(data[f"{case}_x"]).clone().requires_grad_()
    assert_close(losses.stillness(x).detach(), data[f"{case}_motion_loss"], rtol=1e-9, atol=1e-9)
    added = AVD(preset="official_code").temporal_loss(x)
    added.backward()
    assert_close(added.detach(), data[f"{case}_added_to_loss"], rtol=1e-9, atol=0)
    assert_close(frames_second(x.grad), data[f"{case}_grad"], rtol=1e-5, atol=1e-9)


def clip(seed: int = 0, scale: float = 0.5) -> Tensor:
    return scale * torch.randn(2, 4, 7, 6, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_a_clip_that_stands_still_is_the_worst():
    """V15: -ln 1e-6, whatever it shows."""
    still = clip()[:, :, :1].expand(-1, -1, 7, -1, -1)
    assert losses.stillness(still).item() == pytest.approx(13.8155, abs=1e-4)


def test_the_variance_is_that_of_a_population():
    """V16: of independent frames, (F - 1) / F."""
    g = torch.Generator().manual_seed(0)
    for F in (2, 5, 21):
        x = torch.randn(8, 4, F, 32, 32, generator=g)
        assert losses.stillness(x).item() == pytest.approx(-math.log((F - 1) / F), abs=0.02)


def test_scale_counts_and_offsets_and_order_do_not():
    """V17: L - 2 ln a, up to eps."""
    x = clip()
    L = losses.stillness(x)
    assert losses.stillness(3 * x).item() == pytest.approx(L.item() - 2 * math.log(3), abs=1e-4)
    offset = torch.randn(2, 4, 1, 6, 5, dtype=torch.float64)
    assert_close(losses.stillness(x + offset), L)
    assert_close(losses.stillness(x[:, :, [3, 1, 6, 0, 5, 2, 4]]), L)


@pytest.mark.parametrize(("preset", "tau"), [("paper", 0.6), ("official_code", 0.8)])
def test_the_temporal_loss_is_cut_off(preset, tau):
    """V18: below the threshold exactly 0, and so is its gradient."""
    method, x = AVD(preset=preset), clip()
    at_one = x * math.sqrt(math.exp(losses.stillness(x).item()))  # its L is 0, up to eps
    for L, cut in ((tau - 0.01, True), (tau + 0.01, False)):
        y = (at_one * math.exp(-L / 2)).requires_grad_()
        loss = method.temporal_loss(y)
        loss.backward()
        assert loss.item() == (0 if cut else pytest.approx(0.05 * L, abs=1e-4))
        assert (y.grad == 0).all() if cut else (y.grad != 0).any()


def test_the_temporal_gradient_is_known():
    """V19: -2 w (x_f - mean) / (F M (V + eps)); no net push on the frames; its norm follows from V."""
    x = clip(scale=0.2).requires_grad_()
    AVD().temporal_loss(x).backward()
    V, numel = x.detach().var(2, correction=0).mean(), x.numel()
    centred = x.detach() - x.detach().mean(2, keepdim=True)
    assert_close(x.grad, -2 * 0.05 * centred / (numel * (V + 1e-6)))
    assert x.grad.sum(2).abs().max() < 1e-12
    assert_close(x.grad.square().sum(), 4 * 0.05**2 * V / (numel * (V + 1e-6) ** 2))


# The regression


@pytest.mark.parametrize("case", range(6))
def test_the_regression_is_the_official_one(reference, case):  # noqa: F811
    """Its value and its gradient in every weight, unweighted."""
    data = reference("avd_reg_loss")
    method = stubs(AVD(preset="official_code", adaptive=False), data)
    b = injected(data).draws(
        noise=[frames_second(data[f"case{case}_noise"])], integers=[data[f"case{case}_index"][:, 0]]
    )
    b.video = Clips(frames_second(data["x0"]), ["a caption"] * 2, b.cond)
    loss = method.regression_loss(b)
    loss.backward()
    assert_close(loss.detach().double(), data[f"case{case}_loss"], rtol=1e-5, atol=0)
    for name, p in method.student.role.velocity.named_parameters():
        assert_close(p.grad, data[f"case{case}_gen_grad_{name}"], rtol=1e-3, atol=2e-5)


def test_velocity_noise_and_data_errors_are_one_error():
    """V14: x0-MSE / sigma^2, and eps-MSE = (1 - sigma)^2 of it, 0 at level 1."""
    y, eps, v = torch.randn(3, 4, 2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    sigma = torch.tensor([1.0, 0.9, 0.757, 0.522])
    x = flow.mix(y, eps, sigma)
    mse = losses.per_sample(v - flow.velocity(y, eps))
    assert_close(losses.per_sample(flow.x0(x, v, sigma) - y) / sigma**2, mse, rtol=1e-4, atol=1e-5)
    assert_close(losses.per_sample(flow.eps(x, v, sigma) - eps), (1 - sigma) ** 2 * mse, rtol=1e-4, atol=1e-5)


def test_real_videos_come_with_their_own_captions():
    """The student sees them noisy, at the drawn levels, and not under the batch's prompts."""
    seen = []

    def student(x, sigma, cond):
        seen.append((x, sigma, cond["text"].flatten().tolist()))
        return torch.zeros_like(x)

    method, b = toys.place(AVD(adaptive=False), student=student), real(toys.batch())
    loss = method.regression_loss(b)
    b.at(0)
    index, eps = b.integers(0, 4).tolist(), b.noise()
    level = torch.tensor([[1.0, 0.9, 0.757, 0.522][i] for i in index])
    ((x, sigma, text),) = seen
    assert_close(x, flow.mix(b.video.latents, eps, level))
    assert_close(sigma, level)
    assert text == [7.0, 7.0]
    assert_close(loss, 2 * (eps - b.video.latents).square().mean())


# Its weight


def weights(method: AVD, losses_of_levels) -> list[float]:
    """The weights of losses that come one by one."""
    found = []
    for loss, level in losses_of_levels:
        found.append(method.weight(torch.tensor([loss], dtype=torch.float64), [level]).item())
        method.usual.settle(lambda tensors: None)
    return found


def test_weights_and_means_are_the_official_ones(reference):  # noqa: F811
    data, method = reference("avd_adaptive"), AVD(preset="official_code")
    script = list(zip(data["reg_loss"].tolist(), data["step_index"].tolist(), strict=True))
    for n, (loss, level) in enumerate(script):
        weight = weights(method, [(loss, level)])[0]
        assert weight == pytest.approx(data["weight"][n].item(), abs=1e-12)
        assert method.w_reg * weight * loss == pytest.approx(data["added"][n].item(), abs=1e-12)
        assert_close(method.usual.means, data["ema_after"][n], rtol=1e-12, atol=0, equal_nan=True)
    plain = AVD(preset="official_code", adaptive=False)
    assert plain.w_reg * weights(plain, [(0.7, 0)])[0] * 0.7 == pytest.approx(data["added_when_flag_off"].item())


def test_a_loss_as_usual_weighs_a_half():
    """V9: falling, point-symmetric, between 0 and 1."""
    method = AVD()
    method.usual.means.fill_(0.4)
    d = torch.tensor([0.0, 0.1, 0.3, 2.0], dtype=torch.float64)
    above, below = method.weight(0.4 + d, [0] * 4), method.weight(0.4 - d, [0] * 4)
    assert above[0] == 0.5 and (above.diff() < 0).all()
    assert_close(above + below, torch.ones_like(d))
    assert ((above > 0) & (above < 1)).all()
    assert_close(above, 1 / (1 + torch.exp(3 * d)))


def test_the_mean_after_is_the_mean_before_with_a_smaller_k():
    """V10."""
    after, before = AVD(preset="official_code"), AVD(steepness=0.95 * 3.0)
    script = [(0.8, 0), (0.6, 1), (0.9, 0), (0.3, 1), (1.4, 0), (0.2, 3)]
    assert weights(after, script) == pytest.approx(weights(before, script), abs=1e-12)


def test_a_constant_loss_changes_nothing():
    """V11."""
    method = AVD()
    assert weights(method, [(0.7, 2)] * 20) == pytest.approx([0.5] * 20)
    assert method.usual.means[2].item() == pytest.approx(0.7)


def test_the_weight_carries_no_gradient():
    """V12: d(w L) = w dL."""
    method = stubbed = toys.place(AVD(), student=(net := toys.Affine()))
    method.usual.means.fill_(0.5)
    b = real(toys.batch())
    (found,) = torch.autograd.grad(stubbed.regression_loss(b), net.weight)
    b.at(0)
    index, eps = b.integers(0, 4).tolist(), b.noise()
    t = method.told(index)
    v = net(flow.mix(b.video.latents, eps, t), t, b.video.cond)
    L = (v - (eps - b.video.latents)).square().mean(dim=(1, 2, 3, 4))
    w = 1 / (1 + torch.exp(3 * (L.detach() - 0.5)))
    assert len(set(w.tolist())) == 2
    (expected,) = torch.autograd.grad(2 * (w * L).mean(), net.weight)
    assert_close(found, expected)


def test_a_level_seen_for_the_first_time_is_as_usual():
    """V13: a mean that began at 0 would weigh it 1 - sigmoid(k L)."""
    assert weights(AVD(), [(2.0, 1)]) == [0.5]
    method = AVD()
    method.usual.means.zero_()
    assert weights(method, [(2.0, 1)]) == pytest.approx([1 / (1 + math.exp(6))])


def test_a_micro_batch_as_one_has_the_level_of_its_first_sample():
    """The official code's way, which its batches of one do not show."""
    method = toys.place(AVD(preset="official_code", sigmas="table"), student=toys.curved)
    method.usual.means.copy_(torch.tensor([0.1, 0.2, 0.3, 0.4]))
    b = real(toys.batch(4))
    loss = method.regression_loss(b)
    b.at(0)
    index, eps = b.integers(0, 4).tolist(), b.noise()
    t = method.told(index)
    v = toys.curved(flow.mix(b.video.latents, eps, method.sigma(t)), t, b.video.cond)
    L = (v - (eps - b.video.latents)).square().mean().item()
    w = 1 / (1 + math.exp(3 * 0.95 * (L - method.usual.means[index[0]].item())))
    assert loss.item() == pytest.approx(w * L, rel=1e-4)
    method.usual.settle(lambda tensors: None)
    changed = (method.usual.means != torch.tensor([0.1, 0.2, 0.3, 0.4])).tolist()
    assert [n for n, moved in enumerate(changed) if moved] == [index[0]]


# Running means


def test_means_take_in_the_global_batch_at_once():
    """Whatever the micro-batches and whoever has them: alpha old + (1 - alpha) of the level's mean loss."""
    level, loss = [0, 2, 2, 0, 2, 1], torch.rand(6, dtype=torch.float64)
    expected = [0.9 * 0.5 + 0.1 * loss[[0, 3]].mean(), loss[5], 0.9 * 0.5 + 0.1 * loss[[1, 2, 4]].mean(), 0.5]
    for parts in ([6], [3, 3], [1, 5], [1] * 6):
        running = RunningMean(4, 0.9)
        running.means.copy_(torch.tensor([0.5, math.nan, 0.5, 0.5]))
        first = 0
        for size in parts:
            running.gather(loss[first : first + size], level[first : first + size])
            first += size
        assert_close(running.before(loss[:1], [0]), torch.tensor([0.5]).double())  # not before the update is done
        running.settle(lambda tensors: None)
        assert_close(running.means, torch.tensor(expected).double())
        running.settle(lambda tensors: pytest.fail("nothing was gathered"))


def test_processes_take_in_one_mean():
    """Weighted by how many samples each has at the level; a level that one of them lacks is taken in by both."""
    ranks = [RunningMean(3, 0.9), RunningMean(3, 0.9)]
    ranks[0].gather(torch.tensor([1.0, 2.0, 6.0]), [0, 0, 1])
    ranks[1].gather(torch.tensor([6.0, 4.0, 4.0]), [0, 1, 1])
    mean = torch.stack([rank.gathered for rank in ranks]).mean(0)
    for rank in ranks:
        rank.settle(lambda tensors: tensors[0].copy_(mean))
        assert_close(rank.means, torch.tensor([3.0, 14 / 3, math.nan]).double(), equal_nan=True)


# Updates


def test_avd_is_dmd_and_two_terms():
    """Without them, bit for bit; the fake score's update is DMD's."""
    with pytest.warns(UserWarning, match="regression is 0"):
        bare = AVD(regression=0.0, temporal=0.0)
    one, other = Setting(bare), Setting(DMD(guidance=5.0))
    for n in range(6):
        assert one.step(n, real(toys.batch(seed=n))) == other.step(n, toys.batch(seed=n))
    assert all(torch.equal(a, b) for a, b in zip(one.weights().values(), other.weights().values(), strict=True))
    student, fake = Setting(AVD()).step(0, real(toys.batch()))
    assert list(student["terms"]) == ["matching", "temporal", "regression"]
    assert list(fake["terms"]) == ["velocity"]


def test_a_generator_turn_makes_thirteen_forwards_and_a_fake_turn_five():
    """V20, at the last step of the rollout, where the official code always goes."""
    setting = Setting(AVD())
    setting.method.draw = lambda batch, step: [3]
    for n in range(11):
        lines = setting.step(n, real(toys.batch(1, seed=n)))
        assert len(lines) == (2 if n in (0, 5, 10) else 1)
        assert sum(sum(line["evaluations"].values()) for line in lines) == (13 if n in (0, 5, 10) else 5)


def test_each_update_leaves_the_other_network_alone():
    """V22."""
    setting = Setting(AVD())
    for update in setting.method.updates(0):
        with setting.engine.only(setting.roles[update.network], setting.roles.values()):
            parts = update.loss(real(toys.batch()))
            for part in [parts] if isinstance(parts, dict) else parts:
                sum(part.values()).backward()
            grads = {name: role.module.weight.grad is not None for name, role in setting.roles.items()}
        assert grads == {name: name == update.network for name in setting.roles}


def test_the_losses_of_a_cycle_are_the_formulas():
    """Eq. 4, 8, 5-7 and 9 in one, restated; the mean that the next cycle meets is that of eq. 6."""
    method = toys.place(AVD(), student=(net := toys.Affine()), teacher=toys.curved, fake_score=toys.Affine(b=0.1))
    method.usual.means.copy_(torch.tensor([3.5, 4.0, 4.5, 5.0]))
    b = real(toys.batch())
    found = {name: v.item() for part in method.student_loss(b, 0) for name, v in part.items()}
    b.at(0)
    index = b.integers(0, 4).tolist()
    x = b.noise()
    told = [1.0, 0.9, 0.757, 0.522]
    for n in range(max(index)):
        t, fresh = torch.full((2,), told[n]), b.noise()
        x0 = x - told[n] * net(x, t, b.cond)
        moved = (1 - told[n + 1]) * x0 + told[n + 1] * fresh
        x = torch.stack([moved[j] if n < index[j] else x[j] for j in range(2)])
    t = torch.tensor([told[i] for i in index])
    x = (x - t.view(2, 1, 1, 1, 1) * net(x, t, b.cond)).detach()
    u = b.uniform()
    s = (5 * u / (1 + 4 * u)).clamp(0.02, 0.98)
    S, eps = s.view(2, 1, 1, 1, 1), b.noise()
    x_t = (1 - S) * x + S * eps
    cond, uncond = toys.curved(x_t, s, b.cond), toys.curved(x_t, s, b.negative)
    x0_real = x_t - S * (uncond + 5 * (cond - uncond))
    x0_fake = x_t - S * method.fake_score(x_t, s, b.cond)
    g = (x0_fake - x0_real) / (x - x0_real).abs().mean(dim=(1, 2, 3, 4), keepdim=True)
    assert found["matching"] == pytest.approx(0.5 * g.square().mean().item(), rel=1e-4)
    L_temp = -math.log(x.var(2, correction=0).mean().item() + 1e-6)
    assert found["temporal"] == pytest.approx(0.05 * L_temp * (L_temp >= 0.6), rel=1e-4)
    level, eps, y = b.integers(0, 4).tolist(), b.noise(), b.video.latents
    t = torch.tensor([told[i] for i in level])
    T = t.view(2, 1, 1, 1, 1)
    L = (net((1 - T) * y + T * eps, t, b.video.cond) - (eps - y)).square().mean(dim=(1, 2, 3, 4)).double()
    usual = torch.tensor([3.5, 4.0, 4.5, 5.0]).double()
    w = 1 - torch.sigmoid(3 * (L - usual[level]))
    assert found["regression"] == pytest.approx(2 * (w * L).mean().item(), rel=1e-4)
    method.usual.settle(lambda tensors: None)
    for n in range(4):
        here = [L[j].item() for j in range(2) if level[j] == n]
        expected = 0.95 * usual[n].item() + 0.05 * sum(here) / len(here) if here else usual[n].item()
        assert method.usual.means[n].item() == pytest.approx(expected, rel=1e-5)


# The real command


class Made(AVD):
    """AVD on videos that are made up, until there is a store of real ones."""

    data = ("prompts",)

    def regression_loss(self, batch):
        latents = torch.tanh(2 * batch.noise())
        batch.video = Clips(latents, batch.prompts, batch.cond)
        return super().regression_loss(batch)


METHOD = "{name: 'tests.test_avd:Made', student_every: 2}"


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return tiny_wan.build(tmp_path_factory.mktemp("teacher"))


def test_means_are_equal_on_all_processes_and_those_of_one(teacher, tmp_path):
    found = []
    for processes in (1, 2):
        path = runs.write(tmp_path / str(processes), teacher, METHOD, NETWORKS)
        process = runs.command("run", path, "train.steps=5", "--processes", str(processes))
        said, _ = process.communicate(timeout=300)
        assert process.returncode == 0, said
        newest = checkpoint.newest(tmp_path / str(processes) / "run", print)
        states = [checkpoint.load_state(newest / f"rank_{rank:05d}.pt")["method"] for rank in range(processes)]
        found += [state["usual.means"] for state in states]
    one, first, second = found
    assert torch.equal(first, second)
    assert not one.isnan().any() and len(one.unique()) == 4
    assert_close(first, one, rtol=1e-4, atol=0)


def test_seven_steps_are_five_and_two(teacher, tmp_path):
    """Stopped before, within and after the third step that moves the student: bit for bit, the means too."""
    path = runs.write(tmp_path / "whole", teacher, METHOD, NETWORKS)
    whole = runs.final(runs.train(path, "train.steps=7"))
    assert not whole["rank_00000.method.usual.means"].isnan().any()
    for done in (6, 7, 8):
        path = runs.write(tmp_path / str(done), teacher, METHOD, NETWORKS)
        stop_after(path, done)
        runs.assert_same(whole, runs.final(runs.train(path, "train.steps=7")))
