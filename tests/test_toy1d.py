"""AccVideo's 1D experiment against closed forms, naive restatements and reference numbers, where those are at hand."""

import json
import math

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from benchmarks.ablations import side_by_side, toy1d
from benchmarks.ablations import useless_points as experiment
from benchmarks.ablations import useless_points_page as page
from tests.conftest import ROOT

TINY = experiment.Plan(
    teacher_steps=3, teacher_batch=8, points=500, student_steps=3, student_batch=8, pairs=32, samples=20, seeds=(0, 1)
)
NAMES = {"both up": "translate", "outward": "outward", "inward": "inward"}  # of the moves, in the reference


@pytest.fixture
def oracle(shared):
    with np.load(shared / "parity" / "oracle_toy1d.npz") as data:
        return {key: torch.from_numpy(data[key]) for key in data.files}


def each(low: float, high: float, count: int, t: float) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.linspace(low, high, count, dtype=torch.float64)
    return x, torch.full_like(x, t)


def normal_cdf(x: float) -> float:
    return math.erfc(-x / 2**0.5) / 2


@pytest.mark.parametrize("t", [0.1, 0.5, 1.0])
def test_the_expected_data_is_bayes(t):
    x, times = each(-4, 4, 41, t)
    likelihood = [torch.exp(-((x - (1 - t) * x0) ** 2) / (2 * t**2)) for x0 in (-3.0, 3.0)]
    posterior = (3 * likelihood[1] - 3 * likelihood[0]) / (likelihood[0] + likelihood[1])
    assert_close(toy1d.expected_data(x, times), posterior, atol=1e-9, rtol=0)


def test_the_velocity_minimises_the_flow_matching_loss():
    """The regression of x1 - x0 on x_t, by bins; A.1."""
    draw, t = torch.Generator().manual_seed(0), 0.6
    x1 = torch.randn(400_000, generator=draw, dtype=torch.float64)
    x0 = torch.tensor([-3.0, 3.0], dtype=torch.float64).repeat(200_000)
    x = (1 - t) * x0 + t * x1
    for low in (-1.5, -0.2, 0.3, 1.2):
        inside = (x > low) & (x < low + 0.1)
        target, found = (x1 - x0)[inside], toy1d.velocity(x[inside], torch.full_like(x[inside], t))
        assert (target - found).mean().abs() < 5 * target.std() / len(target) ** 0.5


def test_the_velocity_and_the_flow_map_are_the_references(oracle):
    for row, t in enumerate(oracle["t"]):
        times = t.expand(17)
        assert_close(toy1d.velocity(oracle["x1"], times), oracle["velocity"][row], atol=1e-9, rtol=0)
        assert_close(toy1d.flow_map(oracle["x1"], times), oracle["flow_map_from_noise"][row], atol=1e-7, rtol=0)


def test_the_flow_map_integrates_the_velocity():
    """Against Runge-Kutta steps from pure noise."""
    x, t = each(-3.5, 3.5, 29, 1.0)
    n, end = 2000, 0.2
    h, noise = torch.full_like(x, (end - 1) / n), x
    for _ in range(n):
        k1 = toy1d.velocity(x, t)
        k2 = toy1d.velocity(x + h / 2 * k1, t + h / 2)
        k3 = toy1d.velocity(x + h / 2 * k2, t + h / 2)
        k4 = toy1d.velocity(x + h * k3, t + h)
        x, t = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4), t + h
    assert_close(toy1d.flow_map(noise, torch.full_like(x, end)), x, atol=1e-8, rtol=0)


@pytest.mark.parametrize("t", [0.02, 0.3, 0.999])
def test_the_flow_map_keeps_ranks(t):
    """The distribution function of x_t at the map's point is that of the noise; the map is odd."""
    noise = torch.arange(-80, 81, dtype=torch.float64) / 20
    x = toy1d.flow_map(noise, torch.full_like(noise, t))
    for point, rank in zip(x.tolist(), noise.tolist(), strict=True):
        mass = (normal_cdf((point + 3 * (1 - t)) / t) + normal_cdf((point - 3 * (1 - t)) / t)) / 2
        assert mass == pytest.approx(normal_cdf(rank), abs=1e-12)
    assert x[80] == 0
    assert_close(x, -x.flip(0))


def test_the_mismatch_sums_distances_to_the_nearest_datum():
    """Eq. 4. A shift of 6 puts one point on the other's place: M is 6, not 12."""
    assert toy1d.mismatch((-3, 3)) == 0
    assert {move: toy1d.mismatch(toy1d.moved(move, 1.5)) for move in toy1d.MOVES} == dict.fromkeys(toy1d.MOVES, 3)
    assert toy1d.moved("outward", 2) == (-5, 5) and toy1d.moved("inward", 2) == (-1, 1)
    assert toy1d.mismatch(toy1d.moved("both up", 6)) == toy1d.mismatch((3, 9)) == 6


@pytest.mark.parametrize("move", toy1d.MOVES)
@pytest.mark.parametrize("distance", [0, 1, 3])
def test_wrong_pairs_occur_as_often_as_gaussian_tails_say(move, distance):
    points, count = toy1d.moved(move, distance), 100_000
    _, found = experiment.useless(points, count, toy1d.LEVELS.new_zeros(50, 1), torch.Generator().manual_seed(0))
    lower, upper = points
    tails = [normal_cdf((1 - t) * lower / t) + normal_cdf(-(1 - t) * upper / t) for t in toy1d.LEVELS.tolist()]
    expected = sum(tails) / 2 / len(tails)
    assert abs(found - expected) < 4 * (expected * (1 - expected) / count) ** 0.5


def test_points_off_every_trajectory_are_those_far_from_all():
    """Against all distances."""
    draw = torch.Generator().manual_seed(0)
    x, level = 3 * torch.randn(600, generator=draw, dtype=torch.float64), torch.randint(50, (600,), generator=draw)
    paths = toy1d.trajectories(torch.randn(40, generator=draw, dtype=torch.float64))
    nearest = [min(abs(path - point) for path in paths[i].tolist()) for point, i in zip(x.tolist(), level, strict=True)]
    expected = sum(distance > 0.05 for distance in nearest) / 600
    assert 0.2 < expected < 0.9
    assert toy1d.off_trajectory(x, level, paths) == pytest.approx(expected, abs=1e-12)


def test_points_on_trajectories_are_not_useless():
    noise = torch.randn(500, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    level = torch.arange(500) % 50
    x = toy1d.flow_map(noise, toy1d.LEVELS[level])
    assert toy1d.off_trajectory(x, level, toy1d.trajectories(noise)) == 0
    assert toy1d.wrong_mode(x, noise > 0) == 0


@pytest.mark.parametrize("move", toy1d.MOVES)
def test_useless_points_are_as_frequent_as_in_the_reference(oracle, move):
    """Fig. 2(e). The reference drew 1000 trajectories of its own: off-trajectory shares differ by their spread."""
    for M in (0, 1, 4, 6):
        row = oracle["M"].tolist().index(M)
        points, draw = toy1d.moved(move, M / 2), torch.Generator().manual_seed(7)
        off, wrong = experiment.useless(points, 60_000, experiment.teacher_paths(0), draw)
        assert wrong == pytest.approx(oracle[f"{NAMES[move]}_mode_flip"][row].item(), abs=0.008)
        assert off == pytest.approx(oracle[f"{NAMES[move]}_off_trajectory"][row].item(), abs=0.02 if M else 0.002)


def test_the_wasserstein_distance_is_the_area_between_distributions():
    x = torch.randn(2, 1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 4
    grid = torch.linspace(-20, 20, 200_001, dtype=torch.float64)
    for samples, found in zip(x, toy1d.wasserstein(x, (9.0, -3.0)), strict=True):
        empirical = torch.searchsorted(samples.sort().values, grid, right=True) / 1000
        target = (grid >= -3).double() / 2 + (grid >= 9).double() / 2
        assert found.item() == pytest.approx((empirical - target).abs().sum().item() * 40 / 200_000, abs=1e-3)


def test_stacked_networks_are_residual_networks_side_by_side():
    nets = side_by_side.ResNets((3, 4))
    x, t = torch.randn(2, 2, 5, generator=torch.Generator().manual_seed(0))
    for seed in range(2):
        w, b = ([p[seed] for p in parameters] for parameters in (nets.weights, nets.biases))
        h = torch.stack([x[seed], t[seed]], dim=-1) @ w[0] + b[0]
        for i in range(1, 2 * side_by_side.BLOCKS, 2):
            h = h + (h.relu() @ w[i] + b[i]).relu() @ w[i + 1] + b[i + 1]
        expected = (h.relu() @ w[-1] + b[-1]).flatten()
        assert_close(nets(x.flatten(), t.flatten()).view(2, 5)[seed], expected)


def test_a_seed_trains_alike_alone_and_beside_others():
    def trained(seeds: tuple[int, ...]) -> torch.Tensor:
        nets = experiment.train_teachers(experiment.Plan(teacher_steps=5, teacher_batch=64, seeds=seeds))
        x, t = torch.linspace(-4, 4, 9).repeat(len(seeds)), torch.full((9 * len(seeds),), 0.5)
        return nets(x, t).view(len(seeds), -1)

    together = trained((0, 1))
    assert_close(together[1:], trained((1,)))
    assert (together[0] - together[1]).abs().max() > 0.1


def test_a_learned_teacher_approaches_the_closed_form():
    """A short training at a higher rate; A.1's takes a minute."""
    x, t = torch.linspace(-2.5, 2.5, 21), torch.full((21,), 0.5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment, "TEACHER_LR", 3e-3)
        nets = experiment.train_teachers(experiment.Plan(teacher_steps=400, teacher_batch=256, seeds=(0,)))
    assert (nets(x, t) - toy1d.velocity(x, t)).square().mean() < 0.1 * toy1d.velocity(x, t).square().mean()


def test_recorded_trajectories_are_the_teachers_euler_steps():
    """For v = x an Euler step of 1/40 shrinks by 39/40, 10 times in each window."""
    plan, draws = experiment.Plan(pairs=64, seeds=(0,)), side_by_side.Draws((0,))
    on = experiment.Setting("outward", 2, on_trajectory=1)
    x, t = experiment.start_points(plan, on, lambda x, t: x, draws)
    assert sorted(set(t.tolist())) == [0.25, 0.5, 0.75, 1.0]
    again = side_by_side.Draws((0,))
    again.uniform(64), again.uniform(64), again.normal(64), again.uniform(64)
    assert_close(x, again.normal(64) * (1 - 1 / 40) ** (40 * (1 - t)))


def test_other_start_points_are_noised_data():
    plan, apart = experiment.Plan(pairs=4000, seeds=(0,)), experiment.Setting("outward", 6)
    x, t = experiment.start_points(plan, apart, lambda x, t: x, side_by_side.Draws((0,)))
    late = x[t == 0.25]
    assert late.abs().mean() == pytest.approx(0.75 * 9, abs=0.05)
    assert (late.abs() - 0.75 * 9).std() == pytest.approx(0.25, abs=0.02)
    half, _ = experiment.start_points(
        plan, experiment.Setting("outward", 6, on_trajectory=0.5), lambda x, t: x, side_by_side.Draws((0,))
    )
    assert (half == x).double().mean() == pytest.approx(0.5, abs=0.04)


def test_perflow_learns_where_the_teacher_ends():
    """A teacher with v = 2 everywhere: every window's line has slope 2."""
    plan = experiment.Plan(student_steps=600, student_batch=64, pairs=512, seeds=(0,))
    students, draws = side_by_side.ResNets((0,)), side_by_side.Draws((0,))

    def teacher(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return torch.full_like(x, 2.0)

    x, t = experiment.start_points(plan, experiment.Setting("outward", 0), teacher, draws)
    experiment.perflow(plan, students, teacher, x, t, draws)
    assert (students(x, t) - 2).abs().mean() < 0.03


def test_perflows_target_is_constant_along_a_window(monkeypatch):
    """B1, for a teacher that bends: points and targets that the students see lie on the chords."""
    seen, plan = [], experiment.Plan(student_steps=1, student_batch=200, pairs=50, seeds=(0,))
    students, draws = side_by_side.ResNets((0,)), side_by_side.Draws((0,))
    monkeypatch.setattr(
        side_by_side.ResNets, "forward", lambda self, x, t: seen.append((x, t)) or x * self.weights[0].sum()
    )
    x_s, t_s = experiment.start_points(plan, experiment.Setting("outward", 1), toy1d.velocity, draws)
    experiment.perflow(plan, students, toy1d.velocity, x_s, t_s, draws)
    x_e = experiment.integrate(toy1d.velocity, x_s, t_s, t_s - 0.25, 10)
    (x, t) = seen[0]
    share = (t_s[:, None] - t) / 0.25  # of every window that the time lies in
    on_chord = ((1 - share) * x_s[:, None] + share * x_e[:, None] - x).abs() < 1e-5
    assert ((share >= -1e-6) & (share <= 1 + 1e-6) & on_chord).any(0).all()


def test_students_start_as_their_teachers_and_each_half_asks_its_own(monkeypatch):
    """The closed form answers the first half, the networks the second; results come back by kind, then seed."""
    asked, nets = [], side_by_side.ResNets((7, 8))
    monkeypatch.setattr(
        experiment, "perflow", lambda plan, students, teacher, x, t, draws: asked.append((teacher, x, t))
    )
    plan = experiment.Plan(pairs=6, samples=40, seeds=(3, 4))
    rows = experiment.generation_errors(plan, experiment.Setting("outward", 1), nets)
    teacher, x, t = asked[0]
    answers = teacher(x, t)
    assert_close(answers[:12], toy1d.velocity(x[:12], t[:12]))
    assert_close(answers[12:], nets(x[12:], t[12:]))
    assert torch.equal(x[:12], x[12:]) and not torch.equal(x[:6], x[6:12])
    z = toy1d.quantiles(40).float().repeat(2)
    for edge in (1.0, 0.75, 0.5, 0.25):
        z = z - nets(z, torch.full_like(z, edge)) / 4
    expected = toy1d.wasserstein(z.view(2, 40), (-3.0, 3.0))
    assert [row["teacher"] for row in rows] == ["closed form", "ResNet"]
    assert_close(torch.tensor([row["w1"] for row in rows]), expected.expand(2, 2))


def test_points_out_of_reach_are_counted_in_the_gap_and_outside():
    """Data at -9 and 9 reach 2.25 +- 2.25, 4.5 +- 1.5 and 6.75 +- .75, and their mirror images."""
    path = torch.zeros(5, 1, 2, dtype=torch.float64)
    path[1:4, 0] = torch.tensor([[0.0, 4.6], [-2.9, -3.1], [5.9, -7.6]])
    between, beyond = experiment.uncovered(path, (-9.0, 9.0))
    assert (between.item(), beyond.item()) == (pytest.approx(2 / 6), pytest.approx(2 / 6))


def test_the_experiment_writes_its_figure_and_tables(tmp_path):
    experiment.write(experiment.measure(TINY), tmp_path)
    result = json.loads((tmp_path / "benchmarks/results/useless_points.json").read_text())
    assert len(result["useless"]) == 18 and len(result["errors"]) == 2 * len(experiment.SETTINGS)
    assert all(len(row["w1"]) == 2 and np.isfinite(row["w1"]).all() for row in result["errors"])
    assert (tmp_path / "benchmarks/results/useless_points.md").read_text() == page.tables(result)
    drawn = (tmp_path / "docs/images/accvideo_1d.svg").read_text()
    assert drawn == page.figure(result) and "var(" not in drawn
    assert drawn.count("<polyline") == 3 + 3 + 4 + 4


@pytest.fixture
def recorded():
    return json.loads((ROOT / "benchmarks/results/useless_points.json").read_text())


def test_the_documents_show_the_recorded_run(recorded):
    text = (ROOT / "docs/methods/accvideo_1d.md").read_text()
    assert page.useless_table(recorded["useless"]) in text
    assert page.error_table(recorded) in text
    assert page.provenance(recorded) in text.replace("\n", " ")
    assert (ROOT / "docs/images/accvideo_1d.svg").read_text() == page.figure(recorded)


@pytest.mark.parametrize("teacher", ["closed form", "ResNet"])
def test_the_recorded_run_says_what_the_document_says(recorded, teacher):
    """Only outward moves hurt, beyond the seeds' spread, with either teacher; covering where students go mends it."""
    found = {(r["move"], r["M"], r["on_trajectory"]): r["w1"] for r in recorded["errors"] if r["teacher"] == teacher}
    clean = found["outward", 0, 0]
    assert all(min(found["outward", M, 0]) > 1.5 * max(clean) for M in (4, 6, 12))
    assert all(np.mean(found[move, M, 0]) < 1.5 * np.mean(clean) for move in ("inward", "both up") for M in (2, 4, 6))
    assert all(np.mean(found["outward", M, 0.5]) < 0.5 * np.mean(found["outward", M, 0]) for M in (6, 12))
