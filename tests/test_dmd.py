"""DMD: its gradient, its draws, its rollouts and what each update costs, against closed forms and recorded numbers."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.testing import assert_close

from distill import assemble, build, checkpoint, export, flow, losses, recipe, sample, samplers, student
from distill.batch import Batch, Condition
from distill.data import prompts
from distill.descent import descend
from distill.embedded import world
from distill.engine import Engine, Role
from distill.errors import Stopped
from distill.networks import Net
from distill_methods.dmd import DMD, TABLE
from tests import runs, tiny_wan, toys

RECIPES = Path(__file__).parents[1] / "recipes"
OFFICIAL = {"guidance": 6.0, "sigmas": "table", "score_draw": "thousandths"}
OPTIM = SimpleNamespace(lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01, schedule="constant", warmup=0)
NETWORKS = ("student", "fake_score")


def frames_second(x: torch.Tensor) -> torch.Tensor:
    """(B, F, C, H, W), as the reference has latents, to (B, C, F, H, W), or back."""
    return x.transpose(1, 2)


class Stub(nn.Module):
    """The reference's network, v = A x + 0.25 d tanh(x) + b t + c mean(text), with one role's recorded weights."""

    def __init__(self, data: dict, role: str):
        super().__init__()
        for name in "Adbc":
            self.register_parameter(name, nn.Parameter(data[f"{role}_{name}"].clone()))

    def forward(self, x, sigma, cond):
        def channels(p):
            return p.view(-1, 1, 1, 1)

        text = cond["text"].flatten(1).mean(1).view(-1, 1, 1, 1, 1)
        linear = torch.einsum("ij,bjfhw->bifhw", self.A, x) + 0.25 * channels(self.d) * torch.tanh(x)
        return linear + channels(self.b) * flow.like(sigma, x) + channels(self.c) * text


class Injected(Batch):
    """A batch that draws what it is given."""

    def draws(self, *, noise=(), integers=()) -> "Injected":
        self.given = {"noise": list(noise), "integers": list(integers)}
        return self

    def noise(self):
        return self.given["noise"].pop(0)

    def integers(self, low, high):
        return self.given["integers"].pop(0)


def injected(data: dict) -> Injected:
    """A batch of two of the reference's shape, with its conditions."""
    cond = Condition(text=data["cond"])
    negative = Condition(text=data.get("uncond", torch.zeros_like(data["cond"])))
    return Injected(["a prompt"] * 2, cond, negative, [0, 1], (4, 3, 6, 5), seed=0)


def stubs(method, data: dict):
    """The recorded networks in their places."""
    roles = {"student": "gen", "teacher": "real", "fake_score": "fake"}
    return toys.place(method, **{n: Stub(data, r) for n, r in roles.items() if f"{r}_A" in data})


@pytest.fixture
def reference(shared):
    def load(name: str) -> dict[str, torch.Tensor]:
        with np.load(shared / "parity" / f"{name}.npz") as data:
            return {key: torch.from_numpy(data[key]) for key in data.files if data[key].dtype.kind != "U"}

    return load


# The gradient


def triple(seed: int = 0, size: int = 2) -> list[torch.Tensor]:
    return list(torch.randn(3, size, 2, 3, 4, 5, generator=torch.Generator().manual_seed(seed)))


def gradient(x, real, fake) -> torch.Tensor:
    """numel times the loss's gradient in x."""
    x = x.clone().requires_grad_()
    losses.matching(x, real, fake).backward()
    return x.grad.double() * x.numel()


def test_equal_scores_leave_the_student_alone():
    """V1, and V5: where all three are equal, 0 / 0 is 0."""
    x, real, _ = triple()
    for point in (x, real):
        assert losses.matching(point, real, real) == 0
        assert (gradient(point, real, real) == 0).all()


def test_the_gradient_is_the_normalised_difference():
    """V2, V4: L = mean(g^2) / 2 and dL/dx = g / numel; fake = x has mean |g| = 1 for each sample."""
    x, real, fake = triple()
    g = torch.stack([(fake[b] - real[b]) / (x[b] - real[b]).abs().mean() for b in range(2)]).double()
    assert_close(losses.matching(x, real, fake), g.square().mean() / 2, rtol=1e-6, atol=0)
    assert_close(gradient(x, real, fake), g, rtol=1e-5, atol=1e-6)
    assert_close(gradient(x, real, x).abs().mean(dim=(1, 2, 3, 4)), torch.ones(2).double(), rtol=1e-5, atol=0)


def test_the_gradient_knows_no_scale():
    """V3."""
    x, real, fake = triple()
    assert_close(gradient(4 * x, 4 * real, 4 * fake), gradient(x, real, fake))


def test_each_sample_is_normalised_by_itself():
    """V6."""
    x, real, fake = triple()
    x[1] *= 10
    alone = [gradient(*(each[b : b + 1] for each in (x, real, fake))) for b in range(2)]
    assert_close(gradient(x, real, fake), torch.cat(alone))


def test_the_loss_is_computed_in_float64():
    """V24: latents in bf16 are cast before anything is subtracted."""
    low = [each.bfloat16() for each in triple()]
    assert losses.matching(*low).dtype == torch.float64
    assert_close(losses.matching(*low), losses.matching(*(each.double() for each in low)), rtol=0, atol=0)


@pytest.mark.parametrize("level", [0.1, 0.5, 0.98])
def test_two_gaussians_differ_by_the_same_everywhere(level):
    """V7: x0_fake - x0_real = (m - mu) t^2 / D(t)."""
    method, m, mu, s2 = DMD(guidance=1.0, score_range=(level - 1e-6, level)), -0.4, 0.7, 0.36
    toys.place(method, teacher=toys.Gaussian(mu, s2), fake_score=toys.Gaussian(m, s2))
    real, fake = method.predict(torch.randn(2, 2, 3, 4, 5), toys.batch())
    expected = (m - mu) * level**2 / ((1 - level) ** 2 * s2 + level**2)
    assert_close(fake - real, torch.full_like(real, expected), rtol=0, atol=1e-4)


def test_descent_moves_one_gaussian_to_the_other():
    """V7: with an exact fake score the mean of the student's samples becomes the teacher's."""
    m, mu = torch.tensor(-0.4, requires_grad=True), 0.7
    x = torch.randn(64, 1, 1, 2, 2, generator=torch.Generator().manual_seed(0)) * 0.6
    method, optimizer = DMD(guidance=1.0), torch.optim.SGD([m], lr=0.05)
    for n in range(200):
        toys.place(method, teacher=toys.Gaussian(mu), fake_score=toys.Gaussian(m.item()))
        batch = toys.batch(64, (1, 1, 2, 2), seed=n)
        optimizer.zero_grad()
        method.terms(x + m, batch)["matching"].backward()
        optimizer.step()
    assert m.item() == pytest.approx(mu, abs=0.01)


@pytest.mark.parametrize("scale", [1.0, 5.0])
def test_guidance_is_in_the_standard_convention(scale):
    """w = 1 is the condition alone, and only the teacher is guided."""
    method, b = DMD(guidance=scale), toys.batch()
    toys.place(method, teacher=toys.curved, fake_score=toys.curved)
    real, fake = method.predict(torch.zeros(2, 2, 3, 4, 5), b)
    t = method.score_time(b.at(0)).float()
    x_t = flow.mix(torch.zeros(2, 2, 3, 4, 5), b.noise(), t)
    cond, uncond = toys.curved(x_t, t, b.cond), toys.curved(x_t, t, b.negative)
    assert_close(real, x_t - flow.like(t, x_t) * (uncond + scale * (cond - uncond)))
    assert_close(fake, x_t - flow.like(t, x_t) * cond)
    assert method.fake_score.role.calls == [(2, False)]
    assert method.teacher.role.calls == [(2 if scale == 1 else 4, False)]


# Recorded numbers


def test_the_table_is_the_official_one(reference):
    data = reference("avd_scheduler")
    assert_close(TABLE.float(), data["sigmas"], rtol=0, atol=2e-7)
    asked = data["query_timestep"].float() / 1000
    sigma = DMD(**OFFICIAL).sigma(asked)
    assert_close(sigma, data["query_sigma"], rtol=0, atol=2e-7)
    x0, noise, x_t = (data[name][:, :, None] for name in ("x0", "noise", "xt"))
    assert_close(flow.mix(x0, noise, sigma), x_t, rtol=0, atol=1e-6)
    n = len(data["flow_from_x0"])
    assert_close(flow.v_from_x0(x_t[:n], x0[:n], sigma[:n]), data["flow_from_x0"][:, :, None], rtol=1e-3, atol=1e-4)
    exact = DMD().sigma(asked)
    assert torch.equal(exact, asked) and 0 < (exact - sigma)[asked > 0.003].abs().max() < 2e-3


def test_predictions_and_gradient_are_the_official_ones(reference):
    data = reference("avd_kl_grad")
    method, b = stubs(DMD(**OFFICIAL), data), injected(data).draws(noise=[frames_second(data["noise"])])
    method.score_time = lambda batch: data["timestep"][:, 0] / 1000
    x = frames_second(data["x0"])
    real, fake = method.predict(x, b)
    assert_close(frames_second(real), data["real_cfg_x0"], rtol=1e-5, atol=1e-5)
    assert_close(frames_second(fake), data["fake_x0"], rtol=1e-5, atol=1e-5)
    assert_close(frames_second(fake - real), data["grad_norm0"], rtol=1e-4, atol=1e-5)
    assert_close(frames_second(gradient(x, real, fake)).float(), data["grad_norm1"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("sigmas", "rtol"), [("table", 1e-5), ("exact", 5e-3)])
def test_the_loss_is_the_official_one(reference, sigmas, rtol):
    """With draws in the reference's order: the level of the scores, and noise."""
    data = reference("avd_dmd_loss")
    method = stubs(DMD(**OFFICIAL | {"sigmas": sigmas}), data)
    drawn = data["draw000_randint"][:, 0]
    b = injected(data).draws(noise=[frames_second(data["draw001_randn_like"])], integers=[drawn])
    x = frames_second(data["x0"]).clone().requires_grad_()
    loss = method.terms(x, b)["matching"]
    loss.backward()
    assert_close(loss.detach(), data["loss"], rtol=rtol, atol=0)
    found, expected = frames_second(x.grad), data["grad_x0"]
    assert (found - expected).norm() < rtol * expected.norm()


def test_the_official_time_law(reference):
    """V8."""
    data, method = reference("avd_dmd_loss"), DMD(**OFFICIAL)
    b = injected(data).draws(integers=[data["many_uniform_int"][:, 0]])
    assert_close(method.score_time(b) * 1000, data["many_timestep_used"][:, 0], rtol=1e-6, atol=0)


def test_the_rollout_is_the_official_one(reference):
    """Every input of the student's steps, with the reference's noise."""
    data = reference("avd_backward_sim")
    method = stubs(DMD(**OFFICIAL), data)
    fresh = [frames_second(data[f"draw00{n}_randn_like"].view(2, 3, 4, 6, 5)) for n in range(3)]
    for index in ([0, 0], [1, 1], [2, 2], [3, 3], [3, 1], [0, 2]):
        b = injected(data).draws(noise=[frames_second(data["noise"]).clone(), *fresh])
        with torch.no_grad():
            x = frames_second(method.rollout(b, index))
        expected = torch.stack([data["trajectory"][row, n] for row, n in enumerate(index)])
        assert_close(x, expected, rtol=1e-5, atol=2e-5)


# Noise levels


@pytest.mark.parametrize("draw", ["continuous", "thousandths"])
def test_score_levels_are_shifted_and_clamped(draw):
    """V8: 5 u / (1 + 4 u), clamped: a tenth of the draws are at 0.98."""
    method, b = DMD(score_draw=draw), toys.batch(4000, (1, 1, 1, 1))
    t = method.score_time(b)
    b.at(0)
    u = b.uniform() if draw == "continuous" else b.integers(0, 1000) / 1000
    assert_close(t, (5 * u / (1 + 4 * u)).clamp(0.02, 0.98))
    assert t.shape == (4000,) and (t == 0.98).float().mean().item() == pytest.approx(0.092, abs=0.02)
    assert t.median().item() == pytest.approx(0.833, abs=0.02)


def test_levels_are_listed_or_counted():
    assert_close(DMD().grid(), torch.tensor([1, 0.9, 0.757, 0.522, 0]).double(), atol=1e-6, rtol=0)
    assert_close(DMD(levels=4, shift=5.0).grid(), flow.grid(4, 5.0), atol=1e-6, rtol=0)
    table = DMD(sigmas="table").grid()
    assert_close(table[[0, 2, 3]], torch.tensor([1, 0.75669, 0.52216]).double(), atol=1e-5, rtol=0)
    assert DMD().teacher_shift() == 5.0


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"levels": (0.9, 0.5)}, "must begin at 1 and fall"),
        ({"levels": (1.0, 0.5, 0.5)}, "must begin at 1 and fall"),
        ({"score_range": (0.5, 0.5)}, "it must rise"),
        ({"reuse": True, "student_every": 1}, "reuse has no effect"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(options, text):
    with pytest.raises(ValueError, match=text):
        DMD(**options)


# Rollouts


def test_a_rollout_noises_what_the_student_says():
    """V21: from noise; of a student that always says c, (1 - s) c + s eps."""
    c = 3.0
    method = toys.place(DMD(), student=lambda x, sigma, cond: (x - c) / flow.like(sigma, x))
    for n, level in enumerate([1.0, 0.9, 0.757, 0.522]):
        b = toys.batch()
        x = method.rollout(b, [n, n])
        b.at(0)
        fresh = [b.noise() for _ in range(n + 1)]
        assert_close(x, (1 - level) * c + level * fresh[n])


def test_no_sample_is_taken_further_than_its_step():
    """Each sample's input is that of a rollout of its own; the student is asked that often and no more."""
    method = toys.place(DMD(), student=toys.curved)
    together = method.rollout(toys.batch(4), [2, 0, 3, 1])
    assert method.student.role.calls == [(3, True), (2, True), (1, True)]
    for b, n in enumerate([2, 0, 3, 1]):
        assert_close(method.rollout(toys.batch(4), [n] * 4)[b], together[b])


def test_only_the_drawn_step_is_differentiated():
    student, method = toys.Affine(), DMD()
    toys.place(method, student=student)
    method.draw = lambda batch, step: [3, 1]
    x = method.generate(toys.batch(), 0)
    assert [grad for _, grad in method.student.role.calls] == [False, False, False, True]
    with torch.no_grad():
        x_in = method.rollout(toys.batch(), [3, 1])
    t = torch.tensor([0.522, 0.9])
    (found,) = torch.autograd.grad(x.square().sum(), student.weight)
    again = x_in - flow.like(t, x_in) * student(x_in, t, toys.batch().cond)
    (expected,) = torch.autograd.grad(again.square().sum(), student.weight)
    assert_close(found, expected)


@pytest.mark.parametrize("drawn", ["sample", "shared"])
def test_steps_are_drawn_uniformly(drawn):
    method, counts = DMD(drawn=drawn), torch.zeros(4)
    for step in range(400):
        one = [method.draw(Batch(["a"], None, None, [8 * step + n], (1,) * 4, seed=0), step)[0] for n in range(8)]
        counts += torch.bincount(torch.tensor(one), minlength=4)
        assert drawn == "sample" or len(set(one)) == 1  # on whichever process its samples are
    assert (counts / counts.sum() - 0.25).abs().max() < 0.06


def test_sampling_adds_noise_that_follows_from_the_first():
    """Each sample by itself, so that clips do not depend on what else is in a batch; the rollout's own law."""
    method = toys.place(DMD(), student=toys.curved)
    noise = torch.randn(3, 2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    cond = toys.batch(3).cond
    x = method.sample(noise, cond)
    assert torch.equal(x, method.sample(noise.clone(), cond))
    for b in range(3):
        assert_close(method.sample(noise[b : b + 1], cond.rows([b]))[0], x[b])
    fresh = [samplers.more_noise(noise, n) for n in range(3)]
    by_hand = noise
    for n, (s, s_next) in enumerate([(1.0, 0.9), (0.9, 0.757), (0.757, 0.522), (0.522, 0.0)]):
        by_hand = by_hand - s * toys.curved(by_hand, torch.full((3,), s), cond)
        by_hand = by_hand if s_next == 0 else (1 - s_next) * by_hand + s_next * fresh[n]
    assert_close(x, by_hand, rtol=1e-4, atol=1e-5)


def test_fresh_noise_is_noise():
    noise = torch.randn(2, 4, 8, 32, 32, generator=torch.Generator().manual_seed(0))
    draws = [noise, *(samplers.more_noise(noise, n) for n in range(3))]
    flat = torch.stack([d[b].flatten() for d in draws for b in range(2)])
    assert_close(torch.corrcoef(flat), torch.eye(8), rtol=0, atol=0.03)
    assert_close(flat.var(1), torch.ones(8), rtol=0.03, atol=0)
    moved = noise.clone()
    moved[0, 0, 0, 0, 0] += 1e-3
    assert not torch.equal(samplers.more_noise(moved, 0)[0], draws[1][0])
    assert torch.equal(samplers.more_noise(moved, 0)[1], draws[1][1])


# Updates


class Setting:
    """A method among real roles, as a run has it."""

    def __init__(self, method):
        self.method = method
        modules = {"teacher": toys.Affine(), "student": toys.Affine(a=0.4), "fake_score": toys.Affine(b=0.1)}
        self.roles = {name: Role(name, module) for name, module in modules.items()}
        for name, role in self.roles.items():
            setattr(method, name, Net(role))
        for name in NETWORKS:
            self.roles[name].prepare(OPTIM, 100)
        self.engine = Engine()

    def step(self, n: int, *batches: Batch) -> list[dict]:
        return [
            descend(update, list(batches), position, self.roles, self.engine, None)
            for position, update in enumerate(self.method.updates(n))
        ]

    def weights(self) -> dict:
        return {n: role.module.weight.detach().clone() for n, role in self.roles.items()}


def test_the_student_moves_first_in_every_fifth_step():
    """V20: the order over 11 steps; V22 and G12: an update moves its own network and no other."""
    setting = Setting(DMD())
    for n in range(11):
        names = ["student", "fake_score"] if n in (0, 5, 10) else ["fake_score"]
        updates = list(setting.method.updates(n))
        assert [update.network for update in updates] == names
        for position, update in enumerate(updates):
            before = setting.weights()
            descend(update, [toys.batch(seed=n)], position, setting.roles, setting.engine, None)
            moved = [name for name, w in setting.weights().items() if not torch.equal(w, before[name])]
            assert moved == [update.network]


@pytest.mark.parametrize("drawn", [0, 1, 2, 3])
@pytest.mark.parametrize("scale", [1.0, 6.0])
def test_evaluations_are_the_fewest_that_do(drawn, scale):
    """The student's n rollout steps and its own, one of the fake score, and two of a guided teacher."""
    setting = Setting(DMD(guidance=scale))
    setting.method.draw = lambda batch, step: [drawn] * len(batch)
    student, fake = setting.step(0, toys.batch())
    assert student["evaluations"] == {"teacher": 2 if scale == 1 else 4, "student": 2 * (drawn + 1), "fake_score": 2}
    assert fake["evaluations"] == {"student": 2 * (drawn + 1), "fake_score": 2}


def test_the_fake_score_learns_what_the_student_makes():
    """With a student that says c, the loss of a fake score that knows is 0."""
    c = 0.3
    method = toys.place(DMD(), student=toys.straight(c), fake_score=toys.straight(c))
    assert method.fake_loss(toys.batch(), 1)["velocity"] < 1e-8
    toys.place(method, fake_score=toys.straight(c + 0.1))
    b = toys.batch()
    loss = method.fake_loss(b, 1)["velocity"]
    b.at(0)
    index = method.draw(b, 1)
    method.rollout(b, index)
    t = method.score_time(b)
    assert loss.item() == pytest.approx((0.01 / t.square()).mean().item(), rel=1e-3)  # velocity is off by 0.1 / t


def test_reused_samples_are_those_of_the_students_step():
    """The student is asked in its own step alone; conditions travel along; nothing is left when it moves again."""
    setting = Setting(DMD(reuse=True, student_every=3))
    seen = []
    inner = setting.roles["fake_score"].forward

    def watched(x, sigma, cond):
        seen.append(cond["text"].flatten().tolist())
        return inner(x, sigma, cond)

    setting.roles["fake_score"].forward = watched
    for n in range(6):
        batches = [toys.batch(seed=n, text=float(10 * n + j)) for j in range(2)]
        lines = setting.step(n, *batches)
        assert ("student" in lines[-1]["evaluations"]) == (n % 3 == 0)
        assert len(setting.method.generated) == (0 if n % 3 == 2 else 2)
        first = 10.0 * (n - n % 3)
        assert seen[-2:] == [[first] * 2, [first + 1] * 2]


# The real command


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return tiny_wan.build(tmp_path_factory.mktemp("teacher"))


METHOD = "{name: dmd, student_every: 3, guidance: 3.0}"
REUSED = "{name: dmd, student_every: 3, guidance: 3.0, reuse: true, drawn: shared}"


@pytest.mark.parametrize("method", [METHOD, REUSED], ids=["dmd", "reuse"])
def test_seven_steps_are_five_and_two(teacher, tmp_path, method):
    """Stopped before, within and after the second step that moves the student: bit for bit."""
    path = runs.write(tmp_path / "whole", teacher, method, NETWORKS)
    whole = runs.final(runs.train(path, "train.steps=7"))
    for done in (4, 5, 6):
        path = runs.write(tmp_path / str(done), teacher, method, NETWORKS)
        stop_after(path, done)
        run = runs.train(path, "train.steps=7")
        runs.assert_same(whole, runs.final(run))


def stop_after(path: Path, updates: int) -> None:
    """Train, and be told to stop after so many updates."""
    from distill import trainer

    class Told(trainer.Trainer):
        def _stop_asked(self):
            return self.position.done == updates

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "Trainer", Told)
        with pytest.raises(Stopped):
            runs.train(path, "train.steps=7")


def test_two_processes_learn_what_one_does_and_log_what_both_have_spent(teacher, tmp_path):
    found, spent = [], []
    for processes in (1, 2):
        path = runs.write(tmp_path / str(processes), teacher, METHOD, NETWORKS)
        process = runs.command("run", path, "train.steps=4", "--processes", str(processes))
        said, _ = process.communicate(timeout=300)
        assert process.returncode == 0, said
        lines = [
            json.loads(line) for line in (tmp_path / str(processes) / "run" / "log.jsonl").read_text().splitlines()
        ]
        found.append([line["loss"] for line in lines if line["kind"] == "update"])
        spent.append([(line["evaluations"], line["differentiated"]) for line in lines if line["kind"] == "update"])
    assert len(found[0]) == 6
    assert found[0] == pytest.approx(found[1], rel=1e-3)
    assert spent[0] == spent[1] and spent[0][0][0]["teacher"] == 8  # a batch of 4, guided


def test_the_export_brings_a_scheduler_that_adds_noise(teacher, tmp_path):
    """Also where the levels are a shifted grid, which a stock scheduler would walk in Euler steps."""
    path = runs.write(tmp_path, teacher, "{name: dmd, levels: 4}", NETWORKS)
    folder = export.export(runs.train(path, "train.steps=1"), tmp_path / "student")
    index = json.loads((folder / "model_index.json").read_text())
    facts = json.loads((folder / "distill.json").read_text())
    assert index["scheduler"] == ["student_scheduler", "StudentScheduler"]
    assert facts["renoises"] and facts["difference"] <= 1e-5


def test_a_student_is_sampled_by_its_own_steps(teacher, tmp_path):
    """`distill sample`: the method's sampler, noise between its steps and all; the same seed is the same clip."""
    run = runs.train(runs.write(tmp_path, teacher, METHOD, NETWORKS), "train.steps=1")
    made = [sample.sample(str(run), ["a red circle"], seed=3, out=tmp_path / n, latents=True)[0] for n in "ab"]
    one, other = (load_file(path.with_suffix(".safetensors"))["latents"] for path in made)
    assert torch.equal(one, other)
    found = student.load(run)
    noise = torch.randn(1, *one.shape[1:], generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        assert_close(found.method.sample(noise, found.teacher.encode(["a red circle"])), one)


# The recipes


def test_the_demo_is_evaluated_on_prompts_that_no_training_has_seen():
    loaded = recipe.load(RECIPES / "tiny_dmd.yaml")
    splits = {
        "train": prompts.read(loaded.data.prompts),
        "heldout": prompts.read(loaded.evaluation.prompts) + loaded.validation.prompts,
    }
    for split, listed in splits.items():
        assert {world.split_of(world.parse(prompt)) for prompt in listed} == {split}
    assert loaded.validation.guidance == loaded.evaluation.guidance == loaded.method.options["guidance"]
    assert 4 in loaded.evaluation.teacher_steps


def test_the_wan_recipe_says_what_is_printed():
    loaded = recipe.load(RECIPES / "dmd_wan13b.yaml")
    method = assemble.method(loaded)
    assert method.levels_told == [1.0, 0.9, 0.757, 0.522]
    assert (method.w, method.student_every, method.shift) == (5.0, 5, 5.0)
    for name in NETWORKS:
        optim = loaded.optim[name]
        assert (optim.lr, optim.betas, optim.clip) == (2e-6, (0.9, 0.999), 10.0)
    assert "vbench" not in str(loaded.data.prompts)


def test_the_recipes_train_their_teachers(tmp_path):
    """tiny_dmd a few steps of the embedded teacher; dmd_wan13b a random Wan, in bf16 with checkpointing."""
    small = {
        "train.steps": 2,
        "validation.every": 100,
        "validation.prompts": "[a red plain circle stays still on gray]",
    }
    small |= {"train.batch_size": 2, "train.micro_batch_size": 1, "validation.teacher_steps": "[1]"}
    shapes = {"video.frames": 5, "video.height": 32, "video.width": 48}
    cases = {
        "tiny_dmd": {"evaluation": "null"},
        "dmd_wan13b": {"teacher.path": tiny_wan.build(tmp_path / "teacher"), **shapes},
    }
    for name, more in cases.items():
        overrides = (f"{key}={value}" for key, value in (small | more | {"output": tmp_path / name}).items())
        run = runs.train(RECIPES / f"{name}.yaml", *overrides)
        lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
        terms = [(line["network"], *line["terms"]) for line in lines if line["kind"] == "update"]
        assert terms == [("student", "matching"), ("fake_score", "velocity"), ("fake_score", "velocity")]
        assert lines[-1]["kind"] == "done" and checkpoint.newest(run, print) is not None


def test_the_demo_builds(tmp_path):
    lines = build.describe(recipe.load(RECIPES / "tiny_dmd.yaml"))
    assert lines[-1] == "sampling  4 evaluations per clip"
    steps = recipe.load(RECIPES / "tiny_dmd.yaml").train.steps
    assert f"{steps} of fake_score" in lines[-2]
