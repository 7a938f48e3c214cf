"""GPD's identities, each against a closed form or a naive restatement of the paper. Toys stand in for networks."""

import math
import warnings
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from distill import flow, samplers
from distill.batch import Batch
from distill.descent import descend
from distill.engine import Engine, Role
from distill.method import Update
from distill.networks import Net
from distill_methods.gpd import GPD, conjugates, high_pass
from tests import tiny_wan, toys

K_VALUES = range(2, 9)


def at(method: GPD, k: int) -> GPD:
    """The method in its stage k."""
    (method.stage,) = (stage for stage in method.stages() if stage.k == k)
    return method


def target(method: GPD, z, i: int, batch: Batch):
    """The velocity that the method would have the student learn (eq. 7)."""
    return (method.refine(z, i, batch) - z) / (method.t[i - method.stage.k] - method.t[i])


def rollout(method: GPD, step: int = 0, **batch) -> tuple[list, list[dict]]:
    """The points z of one step's trajectory and the loss terms on the way."""
    b = toys.batch(**batch)
    points, terms = [b.noise()], []
    b.at(0)
    for n, update in enumerate(method.updates(step)):
        terms.append(update.loss(b.at(n)))
        points.append(b.state["z"])
    return points, terms


# Targets


def test_the_target_of_one_step_is_the_teachers_own():
    """P1: theta = frozen = phi and k = 1: the frozen student crosses nothing and the loss is zero."""
    method = toys.place(GPD(), teacher=toys.curved, prior=toys.curved, student=toys.curved)
    method.stage = replace(method.stage, k=1, guidance=1.0, prior_guidance=1.0)
    b = toys.batch()
    z = b.state["z"] = b.noise()
    assert torch.equal(method.solve(method.prior, z, 30, 30, b, 1.0), z)
    assert method.loss(b, i=30)["velocity"] < 1e-9


def test_the_first_stage_targets_the_mean_of_two_teacher_velocities():
    """P2, and P6: the weights are shares of the interval."""
    method = at(toys.place(GPD(), teacher=toys.curved, prior=toys.curved), 2)
    b, t, i, w = toys.batch(), method.t, 20, 6.0
    z = b.noise()

    def guided(x, level):
        s = torch.full((2,), level)
        return flow.guide(toys.curved(x, s, b.cond), toys.curved(x, s, b.negative), w)

    first = guided(z, t[i])
    second = guided(z + (t[i - 1] - t[i]) * first, t[i - 1])
    dt1, dt2 = t[i - 1] - t[i], t[i - 2] - t[i - 1]
    assert_close(target(method, z, i, b), (dt1 * first + dt2 * second) / (dt1 + dt2), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("k", K_VALUES)
def test_a_straight_flow_is_learned_already(k):
    """P3: with data in one point every target is the teacher's velocity, in every stage."""
    straight = toys.straight(0.3)
    method = at(toys.place(GPD(), teacher=straight, prior=straight, student=straight), k)
    _, terms = rollout(method)
    assert max(term.item() for each in terms for term in each.values()) < 1e-8


@pytest.mark.parametrize("k", K_VALUES)
def test_an_exact_prior_gives_the_exact_target(k):
    """P4: Gaussian data; a frozen student that knows the teacher's k - 1 steps makes a target of k steps."""
    method = at(GPD(), k)
    toys.place(method, teacher=toys.Gaussian(), prior=toys.GaussianEuler(k - 1, method.t))
    b, exact = toys.batch(), toys.GaussianEuler(k, method.t)
    z = b.noise()
    for i in method.stage.trajectories[0]:
        assert_close(target(method, z, i, b).double(), exact.average(z.double(), i), atol=3e-5, rtol=0)


@pytest.mark.parametrize("k", K_VALUES)
def test_the_ideal_target_is_the_teachers_k_guided_steps(k):
    """P5: by induction over stages, at one guidance scale; hence online and constant targets then agree."""
    online = at(GPD(guidance=(3.0, 3.0)), k)
    constant = at(GPD(guidance=(3.0, 3.0), target="constant"), k)
    b, i = toys.batch(), 24
    z = b.noise()

    def walk(x, n):
        """n of the teacher's guided steps from t_i, naively."""
        for j in range(i, i - n, -1):
            s = torch.full((len(x),), constant.t[j])
            cond, uncond = toys.curved(x, s, b.cond), toys.curved(x, s, b.negative)
            x = x + (constant.t[j - 1] - constant.t[j]) * (uncond + 3.0 * (cond - uncond))
        return x

    def ideal_prior(x, sigma, cond):
        n = k - 1
        average = (walk(z, n) - z) / (online.t[i - n] - online.t[i])
        return average.repeat(x.shape[0] // 2, 1, 1, 1, 1)  # both halves alike: guidance leaves it as it is

    toys.place(online, teacher=toys.curved, prior=ideal_prior)
    toys.place(constant, teacher=toys.curved)
    assert_close(online.refine(z, i, b), walk(z, k), atol=1e-5, rtol=0)
    assert_close(constant.refine(z, i, b), walk(z, k), atol=1e-6, rtol=0)


@pytest.mark.parametrize("k", K_VALUES)
def test_the_target_is_a_convex_mean_of_frozen_student_and_teacher(k):
    """P6."""
    method = at(toys.place(GPD(), teacher=lambda x, *_: x * 0 + 2.0, prior=lambda x, *_: x * 0 - 3.0), k)
    b, t, i = toys.batch(), method.t, 40
    a = (t[i - k + 1] - t[i]) / (t[i - k] - t[i])
    assert 0 < a < 1
    z = b.noise()
    assert_close(target(method, z, i, b), torch.full_like(z, a * -3.0 + (1 - a) * 2.0), atol=2e-4, rtol=0)


@pytest.mark.parametrize("k", [2, 5, 8])
def test_the_rollout_follows_the_refined_points(k):
    """P7 and P9: targets telescope to the path from noise, and what the student says does not bend it."""
    paths = []
    for student in (lambda x, *_: x * 0, lambda x, *_: x * 0 + 9.0):
        method = at(toys.place(GPD(high_frequency=0), teacher=toys.curved, prior=toys.curved, student=student), k)
        points, terms = rollout(method)
        paths.append(points)
        moved = torch.zeros_like(points[0])
        for z, i, each in zip(points[:-1], method.stage.trajectories[0], terms, strict=True):
            v = target(method, z, i, toys.batch())
            assert_close(each["velocity"], (student(z) - v).square().mean(), rtol=1e-4, atol=0)
            moved += (method.t[i - k] - method.t[i]) * v
        assert_close(moved, points[-1] - points[0], atol=1e-5, rtol=0)
    assert all(torch.equal(a, b) for a, b in zip(*paths, strict=True))


def test_the_trajectory_starts_from_the_batchs_noise():
    method = at(toys.place(GPD(), teacher=toys.curved, prior=toys.curved, student=toys.curved), 8)
    b, z = toys.batch(), toys.batch().noise()
    next(iter(method.updates(0))).loss(b.at(0))
    assert_close(b.state["z"], method.refine(z, 48, toys.batch()))


@pytest.mark.parametrize("k", [k for k in K_VALUES if 48 % k == 0])
def test_an_ideal_student_samples_like_the_teacher(k):
    """P8: its 48 / k steps are the teacher's 48."""
    method = at(GPD(), k)
    toys.place(method, student=toys.GaussianEuler(k, method.t))
    noise = toys.batch().noise()
    teacher = samplers.euler(toys.net(toys.Gaussian()), noise, flow.grid(48, 5.0), None)
    assert len(method.grid()) == 48 // k + 1
    assert_close(method.sample(noise, None), teacher, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("k", "short"), [(5, 3), (7, 6)])
def test_a_step_size_that_does_not_divide_ends_in_a_short_step(k, short):
    method = at(GPD(), k)
    grid = method.grid().tolist()
    assert grid == [method.t[i] for i in (*range(48, short - 1, -k), 0)]
    straight = toys.place(method, student=toys.straight(0.3)).sample(toys.batch().noise(), None)
    assert_close(straight, torch.full_like(straight, 0.3), atol=1e-5, rtol=0)


def test_the_final_student_samples_on_the_papers_grid():
    """METHODS: 1, .9615, .9091, .8333, .7143, .5, 0 at shift 5; 1, .9756, .9412, .8889, .8, .6154, 0 at shift 8."""
    assert GPD().grid().tolist() == pytest.approx([1, 0.9615, 0.9091, 0.8333, 0.7143, 0.5, 0], abs=5e-5)
    shift8 = [1, 0.9756, 0.9412, 0.8889, 0.8, 0.6154, 0]
    assert GPD(shift=8.0).grid().tolist() == pytest.approx(shift8, abs=5e-5)


# The high-frequency loss

SHAPE = (5, 6, 8), (4, 5, 7), (1, 3, 1)


def literal_filter(shape, cutoff=0.25, alpha=1.0):
    """Eq. 9 on the full spectrum, written with loops."""
    H = torch.empty(shape, dtype=torch.float64)
    f = [torch.fft.fftfreq(n, dtype=torch.float64).tolist() for n in shape]
    for t, ft in enumerate(f[0]):
        for h, fh in enumerate(f[1]):
            for w, fw in enumerate(f[2]):
                H[t, h, w] = 1 - math.exp(-alpha * (ft**2 / cutoff**2 + fh**2 / cutoff**2 + fw**2 / cutoff**2))
    return H


def literal_high(z, H):
    """Eq. 10."""
    return torch.fft.ifftn(torch.fft.fftn(z.double(), dim=(-3, -2, -1)) * H, dim=(-3, -2, -1))


@pytest.mark.parametrize("shape", SHAPE)
def test_the_filter_is_equation_9(shape):
    half = literal_filter(shape)[..., : shape[-1] // 2 + 1]
    assert_close(high_pass(shape, 0.25, 0.25, 1.0).double(), half, atol=1e-6, rtol=0)


def test_cutoffs_belong_to_their_axes():
    H = high_pass((8, 8, 8), cutoff_t=0.25, cutoff_s=0.5, alpha=math.log(2))
    assert H[2, 0, 0] == pytest.approx(0.5)  # alpha = ln 2 makes half of it pass at the cut-off
    assert H[0, 4, 0] == pytest.approx(0.5)
    assert H[0, 0, 4] == pytest.approx(0.5)


@pytest.mark.parametrize("shape", SHAPE)
def test_the_spectral_energy_is_that_of_the_filtered_latents(shape):
    """Parseval, on even, odd and single-pixel axes."""
    z = torch.randn(2, 3, *shape, generator=torch.Generator().manual_seed(0))
    high = literal_high(z, literal_filter(shape))
    assert high.imag.abs().max() < 1e-6  # P11: H is even
    assert GPD().high_frequency_energy(z).double() == pytest.approx(high.real.square().mean().item(), rel=1e-5)


def test_what_the_filter_passes():
    """P10, P12."""
    z = torch.randn(2, 3, 5, 6, 8, generator=torch.Generator().manual_seed(0))
    c = torch.tensor([5.0, -3.0, 100.0]).view(1, 3, 1, 1, 1)
    energy = GPD().high_frequency_energy
    H = high_pass((5, 6, 8), 0.25, 0.25, 1.0)
    assert H[0, 0, 0] == 0 <= H.min() <= H.max() < 1
    assert energy(z + c).item() == pytest.approx(energy(z).item(), rel=1e-4)
    assert energy(z) < z.square().mean()
    assert energy(3 * z).item() == pytest.approx(9 * energy(z).item(), rel=1e-6)
    centred = z - z.mean((-3, -2, -1), keepdim=True)
    assert GPD(alpha=1e6).high_frequency_energy(z).item() == pytest.approx(centred.square().mean().item(), rel=1e-5)
    assert GPD(alpha=1e-9).high_frequency_energy(z) < 1e-12


def test_conjugate_pairs_fill_the_spectrum():
    assert [int(conjugates(width).sum()) for width in range(1, 9)] == list(range(1, 9))


def literal_loss(method: GPD, student, batch: Batch, i: int):
    """Algorithm 1, lines 8-19, with a second evaluation for z_pred and both transforms (eq. 5-13)."""
    k, t = method.stage.k, method.t
    z, s = batch.state["z"], torch.full((len(batch),), t[i])
    z_star = method.refine(z, i, batch)
    v_target = (z_star - z) / (t[i - k] - t[i])
    loss = (student(z, s, batch.cond) - v_target).square().mean()
    if k == 8 and i <= 24:
        z_pred = z + (t[i - k] - t[i]) * student(z, s, batch.cond)
        H = literal_filter(z.shape[-3:])
        loss = loss + 0.5 * (literal_high(z_pred, H) - literal_high(z_star, H)).abs().square().mean()
    return loss


@pytest.mark.parametrize("i", [48, 24, 16, 8])
def test_one_residual_gives_the_loss_and_gradient_of_the_literal_step(i):
    """P13."""
    results = []
    for literal in (False, True):
        student, b = toys.Affine(), toys.batch()
        method = at(toys.place(GPD(), teacher=toys.curved, prior=toys.curved, student=student), 8)
        b.state["z"] = b.noise()
        loss = literal_loss(method, student, b, i) if literal else sum(method.loss(b, i).values())
        loss.backward()
        results.append((loss.double(), student.weight.grad))
    assert_close(results[0], results[1], rtol=2e-5, atol=1e-6)


def test_the_high_frequency_loss_acts_in_the_second_half_of_the_last_stage():
    """P14: by index, i <= N / 2."""
    method = toys.place(GPD(), teacher=toys.curved, prior=toys.curved, student=toys.curved)
    for k in K_VALUES:
        _, terms = rollout(at(method, k))
        active = [i for i, each in zip(method.stage.trajectories[0], terms, strict=True) if "high_frequency" in each]
        assert active == ([24, 16, 8] if k == 8 else [])
    assert [each.keys() for each in rollout(at(replaced(method, high_frequency=0), 8))[1]] == [{"velocity"}] * 6


def test_the_constant_high_frequency_loss_acts_at_every_index_of_the_last_stage():
    method = toys.place(GPD(high_frequency_gate="always"), teacher=toys.curved, prior=toys.curved, student=toys.curved)
    assert sum("high_frequency" in each for each in rollout(at(method, 8))[1]) == 6
    assert not any("high_frequency" in each for each in rollout(at(method, 7))[1])


def replaced(method: GPD, **options) -> GPD:
    """Another GPD around the same networks."""
    other = GPD(**options)
    other.teacher, other.prior, other.student = method.teacher, method.prior, method.student
    return other


# Stages


def test_the_teachers_guidance_falls_linearly():
    """P15."""
    assert [stage.guidance for stage in GPD().stages()] == [6.0, 5.25, 4.5, 3.75, 3.0, 2.25, 1.5]
    assert [stage.guidance for stage in GPD(teacher_steps=12).stages()] == [6.0]


def test_the_indices_that_a_trajectory_visits():
    """P16."""
    stages = GPD().stages()
    assert [stage.k for stage in stages] == list(K_VALUES)
    for stage, count in zip(stages, [24, 16, 12, 9, 8, 6, 6], strict=True):
        assert list(stage.trajectories[0]) == [48 - j * stage.k for j in range(count)]


@pytest.mark.parametrize("iterations", [1, 24, 25, 150])
def test_a_stage_has_exactly_its_iterations(iterations):
    for random_start in (False, True):
        method = GPD(iterations=iterations, random_start=random_start)
        for stage in method.stages():
            method.stage = stage
            assert sum(len(list(method.updates(step))) for step in range(stage.steps)) == iterations


def test_stages_may_differ_in_length():
    stages = GPD(teacher_steps=12, steps=3, iterations=[30, 20, 10]).stages()
    assert [sum(map(len, stage.trajectories)) for stage in stages] == [30, 20, 10]


def test_late_starts_visit_every_index():
    """The frozen student of the next stage is asked at all of them."""
    method = GPD(random_start=True, iterations=2000)
    for stage in method.stages():
        visited = {i for trajectory in stage.trajectories for i in trajectory}
        assert visited == set(range(stage.k, 49))
    assert method.stages() == method.stages()


def test_a_late_start_is_a_point_of_the_teachers_path():
    method = toys.place(GPD(random_start=True), teacher=toys.curved)
    b, w = toys.batch(), method.stage.guidance
    grid = torch.tensor(method.t[44:], dtype=torch.float64).flip(0)
    path = samplers.euler(method.teacher, toys.batch().noise(), grid, b.cond, b.negative, w)
    assert_close(method.start(b, 44), path)


def effective_guidance(frozen_guidance: str) -> list[float]:
    """The scale that ideal students absorb, stage by stage: v = scale * text, on an even grid."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        method = GPD(shift=1.0, frozen_guidance=frozen_guidance)
    scales = [1.0]
    for stage in method.stages():
        method.stage, absorbed = stage, scales[-1]
        toys.place(
            method,
            teacher=lambda x, s, cond: x * 0 + toys.text(cond, x),
            prior=lambda x, s, cond, a=absorbed: x * 0 + a * toys.text(cond, x),
        )
        b = toys.batch()
        scales.append(target(method, b.noise(), 48, b).mean().item())
    return scales[1:]


def test_guidance_is_absorbed_as_a_running_mean():
    """P17: with guidance on the frozen student in the first stage only."""
    expected, e = [], 1.0
    for k, w in zip(K_VALUES, [6, 5.25, 4.5, 3.75, 3, 2.25, 1.5], strict=True):
        e = 6.0 if k == 2 else ((k - 1) * e + w) / k
        expected.append(e)
    assert effective_guidance("first_stage") == pytest.approx(expected, rel=1e-3)
    assert expected == pytest.approx([6, 5.75, 5.44, 5.10, 4.75, 4.39, 4.03], abs=0.01)


def test_guidance_on_every_frozen_student_compounds():
    """P17: the literal reading."""
    expected, e = [], 1.0
    for k, w in zip(K_VALUES, [6, 5.25, 4.5, 3.75, 3, 2.25, 1.5], strict=True):
        e = ((k - 1) * w * e + w) / k
        expected.append(e)
    assert effective_guidance("always") == pytest.approx(expected, rel=1e-3)
    assert expected[-1] == pytest.approx(1486, abs=0.5)


def test_guiding_every_frozen_student_warns():
    with pytest.warns(UserWarning, match="frozen_guidance: always"):
        stages = GPD(frozen_guidance="always").stages()
    assert [stage.prior_guidance for stage in stages] == [stage.guidance for stage in stages]
    assert [stage.prior_guidance for stage in GPD().stages()] == [6.0] + [None] * 6


def test_moments_are_fresh_unless_carried():
    assert not any(stage.carry_optimizers for stage in GPD().stages())
    assert all(stage.carry_optimizers for stage in GPD(carry_optimizer=True).stages())


def test_the_prior_is_the_student_of_the_last_stage():
    method = toys.place(GPD(), teacher=toys.Affine(), prior=toys.Affine(), student=toys.Affine(a=0.9))
    method.begin(method.stages()[3])
    assert torch.equal(method.prior.role.velocity.weight, method.student.role.velocity.weight)


def test_the_ablations_baseline_is_one_stage_of_constant_targets():
    (stage,) = GPD(progressive=False, target="constant", iterations=3000).stages()
    assert (stage.k, stage.guidance, sum(map(len, stage.trajectories))) == (8, 6.0, 3000)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 5}, "steps is 5; teacher_steps 48 needs one of 1, 2, 3, 4, 6, 8, 12, 16, 24"),
        ({"steps": 48}, "steps is 48"),
        ({"iterations": [150, 150]}, r"iterations has 2 entries for 7 stages \(k = 2..8\)"),
        ({"target": "constant", "frozen_guidance": "always"}, "no effect on constant targets"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        GPD(**options)


# Cost and gradients


def calls(method: GPD, i: int) -> dict[str, list[tuple[int, bool]]]:
    b = toys.batch()
    b.state["z"] = b.noise()
    nets = {name: toys.place(method, **{name: toys.Affine()}) and getattr(method, name).role for name in GPD.networks}
    sum(method.loss(b, i).values()).backward()
    return {name: role.calls for name, role in nets.items()}


def test_an_update_evaluates_no_more_than_it_must():
    """The minimum of the cost study: (samples, gradient) per call, for 2 samples."""
    for i in (48, 8):
        expected = {"teacher": [(4, False)], "prior": [(2, False)], "student": [(2, True)]}
        assert calls(at(GPD(), 8), i) == expected
    assert calls(at(GPD(), 2), 2) == {"teacher": [(4, False)], "prior": [(4, False)], "student": [(2, True)]}
    assert calls(at(GPD(guidance=(6.0, 1.0)), 8), 8)["teacher"] == [(2, False)]
    constant = calls(at(GPD(target="constant"), 8), 8)
    assert constant == {"teacher": [(4, False)] * 8, "prior": [], "student": [(2, True)]}


def test_gradients_reach_the_student_alone():
    """G12."""
    frozen = {"teacher": toys.Affine(), "prior": toys.Affine(a=0.4)}
    student = toys.Affine(a=0.3)
    method = at(toys.place(GPD(), **frozen, student=student), 8)
    b = toys.batch()
    for n, update in enumerate(method.updates(0)):
        assert update.network == "student"
        sum(update.loss(b.at(n)).values()).backward()
    assert student.weight.grad.abs().min() > 0
    assert all(net.weight.grad is None for net in frozen.values())
    assert not b.state["z"].requires_grad


@pytest.fixture(scope="module")
def wan(tmp_path_factory):
    from distill.teachers.wan import Wan

    return Wan(tiny_wan.build(tmp_path_factory.mktemp("wan")))


@pytest.mark.parametrize(("k", "i"), [(2, 48), (5, 48), (8, 48), (8, 8)])
def test_an_update_of_a_wan_costs_its_evaluations_and_no_more(wan, k, i):
    """Through the trainer's own descent: forward passes counted by hooks, and floating point operations."""
    method = at(GPD(), k)
    roles = {name: Role(name, wan.network().eval()) for name in GPD.networks}
    for name, role in roles.items():
        setattr(method, name, Net(role))
    roles["student"].prepare(SimpleNamespace(**ADAMW), updates=1)
    samples = {name: [] for name in roles}
    for name, role in roles.items():
        role.module.transformer.register_forward_pre_hook(lambda _, x, name=name: samples[name].append(x[0].shape[0]))
    b = wan_batch(wan)
    b.state["z"] = b.noise()
    with FlopCounterMode(display=False) as ours:
        descend(Update("student", partial(method.loss, i=i)), [b], 0, roles, Engine(), clip=1.0)
    prior = 2 if k == 2 else 1
    assert samples == {"teacher": [4], "prior": [2 * prior], "student": [2]}
    assert ours.get_total_flops() == bare_flops(wan, b, 2 + prior)


ADAMW = {"lr": 1e-3, "weight_decay": 0.01, "betas": (0.9, 0.999), "eps": 1e-8, "schedule": "constant", "warmup": 0}


def wan_batch(wan) -> Batch:
    cond = wan.encode(["a red circle moves left", "a blue square"])
    return Batch(["", ""], cond, wan.encode(["", ""]), [0, 1], wan.latent_shape(**tiny_wan.VIDEO), seed=0)


def bare_flops(wan, batch: Batch, forwards: int) -> int:
    """Of so many forward passes of the batch, and one forward and backward pass, with nothing around them."""
    network = wan.network().eval()
    inputs = batch.noise(), torch.tensor([0.5, 0.5]), batch.cond
    with FlopCounterMode(display=False) as counter:
        for _ in range(forwards):
            with torch.no_grad():
                network(*inputs)
        network(*inputs).square().mean().backward()
    return counter.get_total_flops()


# The whole algorithm


class Table(torch.nn.Module):
    """v = a_i x + b_i with its own numbers at every level t_i: any student of Gaussian data, no more."""

    def __init__(self, t: list[float], data: toys.Gaussian):
        super().__init__()
        slopes = torch.tensor([data.slope(s) for s in t])
        levels = torch.tensor(t)
        self.register_buffer("t", levels)
        self.a = torch.nn.Parameter(slopes)
        self.b = torch.nn.Parameter(-slopes * (1 - levels) * data.mu - data.mu)

    def forward(self, x, sigma, cond):
        i = (self.t - sigma[0]).abs().argmin()
        return self.a[i] * x + self.b[i]


def train(method: GPD, size: int, lr: float) -> None:
    """A trainer in a few lines."""
    step = 0
    for stage in method.stages():
        method.stage = stage
        method.begin(stage)
        optimizer = torch.optim.Adam(method.student.role.velocity.parameters(), lr=lr)
        for n in range(stage.steps):
            b = toys.batch(size, shape=(1, 1, 4, 4), seed=step)
            for position, update in enumerate(method.updates(n)):
                optimizer.zero_grad()
                sum(update.loss(b.at(position)).values()).backward()
                optimizer.step()
            step += 1


def test_all_stages_teach_three_steps_to_do_what_twelve_do():
    """Trained end to end on Gaussian data, the student closes more than 9/10 of the gap to the teacher's 12 steps."""
    method, data = (
        GPD(teacher_steps=12, steps=3, guidance=(1.0, 1.0), iterations=400, random_start=True),
        toys.Gaussian(),
    )
    toys.place(method, teacher=data, **{name: Table(method.t, data) for name in ("student", "prior")})
    train(method, size=64, lr=0.02)
    noise = toys.batch(64, shape=(1, 1, 4, 4), seed=-1).noise()
    reference, coarse = (samplers.euler(method.teacher, noise, flow.grid(n, 5.0), None) for n in (12, 3))
    with torch.no_grad():
        gap, left = (coarse - reference).square().mean(), (method.sample(noise, None) - reference).square().mean()
    assert left < 0.1**2 * gap
