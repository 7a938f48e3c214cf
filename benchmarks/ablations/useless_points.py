"""Are useless data points harmful? AccVideo's 1D experiment: Fig. 2(e) and 2(f) in under five minutes on one core.

    python benchmarks/ablations/useless_points.py

(e): how many start points of a distillation are useless, against the mismatch M of its data (Eq. 4).
(f): how far a 4-step PeRFlow student is from the teacher's data, against M. Teachers: a ResNet trained as in A.1, and
the closed form, which is never wrong. Two controls that the paper has not: start points from the teacher's own
trajectories, and outward data with as many of these added (if useless points harm, they still must).
Writes benchmarks/results/useless_points.json and .md, and docs/images/accvideo_1d.svg.
"""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from itertools import pairwise, product
from pathlib import Path

import torch
from torch import Tensor

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.ablations import toy1d
from benchmarks.ablations.side_by_side import Draws, ResNets, descend
from benchmarks.ablations.useless_points_page import figure, tables
from distill import flow
from distill.environment import machine, versions

WINDOWS, SUBSTEPS = 4, 10  # PeRFlow's; the teacher takes SUBSTEPS Euler steps in each window
TRAJECTORIES = 1000  # of the teacher; a point is useless if it is far from all of them
TEACHER_LR, STUDENT_LR = 1e-4, 1e-3  # A.1 constant; ours, falling linearly to 0
TRAINING = (-toy1d.DATA, toy1d.DATA)

Velocity = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Plan:
    """Sizes; the first two are A.1's."""

    teacher_steps: int = 10_000
    teacher_batch: int = 2048
    points: int = 200_000  # counted for each move and M of (e)
    student_steps: int = 2000
    student_batch: int = 512
    pairs: int = 16_384  # start points with the teacher's answer, per student
    samples: int = 20_000
    seeds: tuple[int, ...] = (0, 1, 2)


@dataclass(frozen=True)
class Setting:
    """Where start points come from.

    Attributes:
        on_trajectory: share taken from the teacher's trajectories; the rest is forward-diffused data.
    """

    move: str
    distance: float
    on_trajectory: float = 0.0


SETTINGS = [
    Setting("outward", 0),
    *(Setting("outward", d) for d in (1, 2, 3, 6)),
    *(Setting("both up", d) for d in (1, 2, 3)),
    *(Setting("inward", d) for d in (1, 2, 3)),
    Setting("outward", 0, on_trajectory=1),
    *(Setting("outward", d, on_trajectory=0.5) for d in (3, 6)),
]


def main() -> None:
    torch.set_num_threads(1)
    write(measure(Plan()), ROOT)


def write(result: dict, root: Path) -> None:
    results, images = root / "benchmarks" / "results", root / "docs" / "images"
    for folder in (results, images):
        folder.mkdir(parents=True, exist_ok=True)
    (results / "useless_points.json").write_text(json.dumps(result, indent=1) + "\n")
    (results / "useless_points.md").write_text(tables(result))
    (images / "accvideo_1d.svg").write_text(figure(result))
    print(tables(result))


def measure(plan: Plan) -> dict:
    started, wall = time.process_time(), time.monotonic()
    counted = count_useless(plan)
    print(f"useless points counted, {time.process_time() - started:.0f} s", file=sys.stderr)
    teachers = train_teachers(plan)
    print(f"teachers trained, {time.process_time() - started:.0f} s", file=sys.stderr)
    errors = []
    for setting in SETTINGS:
        errors += generation_errors(plan, setting, teachers)
        print(f"{setting}, {time.process_time() - started:.0f} s", file=sys.stderr)
    return {
        "benchmark": "useless_points",
        "command": "python benchmarks/ablations/useless_points.py",
        "versions": versions(),
        "machine": machine(),
        "cpu_seconds": round(time.process_time() - started),
        "wall_seconds": round(time.monotonic() - wall),
        "plan": asdict(plan),
        "useless": counted,
        "teachers_at_50_steps": teacher_errors(plan, teachers),
        "errors": errors,
    }


def count_useless(plan: Plan) -> list[dict]:
    """Both shares of useless points among forward-diffused ones, for every seed."""
    rows = []
    for move, distance in product(toy1d.MOVES, (0, 0.5, 1, 1.5, 2, 3)):
        points = toy1d.moved(move, distance)
        rows.append({"move": move, "M": toy1d.mismatch(points), "off_trajectory": [], "wrong_mode": []})
        for seed in plan.seeds:
            off, wrong = useless(points, plan.points, teacher_paths(seed), torch.Generator().manual_seed(seed))
            rows[-1]["off_trajectory"].append(off)
            rows[-1]["wrong_mode"].append(wrong)
    return rows


def useless(points: tuple[float, float], count: int, paths: Tensor, draw: torch.Generator) -> tuple[float, float]:
    """Shares of forward-diffused points that are off every trajectory, and that are paired with the wrong mode."""
    noise = torch.randn(count, generator=draw, dtype=torch.float64)
    level = torch.randint(len(toy1d.LEVELS), (count,), generator=draw)
    up = torch.rand(count, generator=draw) < 0.5
    x = toy1d.forward_diffused(points, up, noise, toy1d.LEVELS[level])
    return toy1d.off_trajectory(x, level, paths), toy1d.wrong_mode(x, up)


@cache
def teacher_paths(seed: int) -> Tensor:
    draw = torch.Generator().manual_seed(TRAJECTORIES + seed)  # not the noise that is judged by them
    return toy1d.trajectories(torch.randn(TRAJECTORIES, generator=draw, dtype=torch.float64))


def train_teachers(plan: Plan) -> ResNets:
    """A.1: flow matching (Eq. 3), half of a batch -3, half 3, Adam."""
    networks, draws = ResNets(plan.seeds), Draws(plan.seeds)
    x0 = torch.tensor(TRAINING).repeat(plan.teacher_batch // 2 * len(plan.seeds))

    def loss() -> Tensor:
        x1, t = draws.normal(plan.teacher_batch), draws.uniform(plan.teacher_batch)
        error = networks(flow.mix(x0, x1, t), t) - flow.velocity(x0, x1)
        return error.square().view(len(plan.seeds), -1).mean(1)

    descend(networks, loss, [TEACHER_LR] * plan.teacher_steps)
    return networks.requires_grad_(False)


def integrate(v: Velocity, x: Tensor, start: Tensor, end: Tensor, steps: int) -> Tensor:
    """Euler steps from times `start` to times `end`, both (N,)."""
    times = [torch.lerp(start, end, i / steps) for i in range(steps + 1)]
    for t, t_next in pairwise(times):
        x = flow.step(x, v(x, t), t, t_next)
    return x


def start_points(plan: Plan, setting: Setting, teacher: Velocity, draws: Draws) -> tuple[Tensor, Tensor]:
    """Points at the beginnings of windows, and their times, (seeds * pairs,) each."""
    n = plan.pairs
    window = (draws.uniform(n) * WINDOWS).long()
    t = 1 - window / WINDOWS
    up, noise = draws.uniform(n) < 0.5, draws.normal(n)
    x = toy1d.forward_diffused(toy1d.moved(setting.move, setting.distance), up, noise, t)
    chosen, own_noise = draws.uniform(n) < setting.on_trajectory, draws.normal(n)
    if not chosen.any():
        return x, t
    path = trajectory(teacher, own_noise, SUBSTEPS)
    return torch.where(chosen, path[window, torch.arange(len(x))], x), t


def trajectory(v: Velocity, noise: Tensor, substeps: int) -> Tensor:
    """The points at the edges of the windows, from noise to data, (WINDOWS + 1, N)."""
    points = [noise]
    for window in range(WINDOWS):
        start, end = (torch.full_like(noise, 1 - edge / WINDOWS) for edge in (window, window + 1))
        points.append(integrate(v, points[-1], start, end, substeps))
    return torch.stack(points)


def generation_errors(plan: Plan, setting: Setting, teachers: ResNets) -> list[dict]:
    """A student of each teacher for every seed, and what it generates; one row for each kind of teacher."""
    seeds = len(plan.seeds)
    students, draws = ResNets(plan.seeds * 2), Draws(plan.seeds * 2)  # of the closed form, then of the networks
    with torch.no_grad():  # PeRFlow starts from its teacher; the closed form has no weights, its students do the same
        for student, teacher in zip(students.parameters(), teachers.parameters(), strict=True):
            student.copy_(teacher.repeat(2, 1, 1))

    def teacher(x: Tensor, t: Tensor) -> Tensor:
        (x_exact, x_learned), (t_exact, t_learned) = x.chunk(2), t.chunk(2)
        return torch.cat([toy1d.velocity(x_exact, t_exact), teachers(x_learned, t_learned)])

    perflow(plan, students, teacher, *start_points(plan, setting, teacher, draws), draws)
    with torch.no_grad():
        path = trajectory(students, toy1d.quantiles(plan.samples).float().repeat(2 * seeds), 1)
    halves = path.view(WINDOWS + 1, 2, seeds, -1).unbind(1)
    return [row(setting, kind, half) for kind, half in zip(("closed form", "ResNet"), halves, strict=True)]


def perflow(plan: Plan, students: ResNets, teacher: Velocity, x_s: Tensor, t_s: Tensor, draws: Draws) -> None:
    """Learn the straight line from each start point to where the teacher takes it over its window."""
    t_e = t_s - 1 / WINDOWS
    target = (integrate(teacher, x_s, t_s, t_e, SUBSTEPS) - x_s) / (t_e - t_s)
    first = torch.arange(len(draws.generators)).repeat_interleave(plan.student_batch) * plan.pairs

    def loss() -> Tensor:
        i = first + (draws.uniform(plan.student_batch) * plan.pairs).long()
        t = torch.lerp(t_s[i], t_e[i], draws.uniform(plan.student_batch))
        x = flow.step(x_s[i], target[i], t_s[i], t)
        return (students(x, t) - target[i]).square().view(len(draws.generators), -1).mean(1)

    descend(students, loss, [STUDENT_LR * (1 - step / plan.student_steps) for step in range(plan.student_steps)])


def row(setting: Setting, teacher: str, path: Tensor) -> dict:
    """What students of one kind of teacher do; path is (WINDOWS + 1, seeds, samples)."""
    points = toy1d.moved(setting.move, setting.distance)
    between, beyond = uncovered(path, points)
    on = {"on_trajectory": setting.on_trajectory}
    return {"teacher": teacher, "move": setting.move, "M": toy1d.mismatch(points), **on} | {
        "w1": toy1d.wasserstein(path[-1], TRAINING).tolist(),
        "near": ((path[-1].abs() - toy1d.DATA).abs() < 0.3).double().mean(-1).tolist(),
        "w1_to_distillation_data": toy1d.wasserstein(path[-1], points).tolist(),
        "between": between.tolist(),
        "beyond": beyond.tolist(),
    }


def uncovered(path: Tensor, points: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """Shares of a student's own points at window starts that forward diffusion of `points` does not reach, (seeds,).

    Not reached: more than 3 standard deviations from both, in the gap between them or outside of them.
    """
    lower, upper = sorted(points)
    t = 1 - torch.arange(1, WINDOWS).view(-1, 1, 1) / WINDOWS  # without pure noise, which is always reached
    x = path[1:WINDOWS]
    between = ((1 - t) * lower + 3 * t < x) & (x < (1 - t) * upper - 3 * t)
    beyond = (x < (1 - t) * lower - 3 * t) | (x > (1 - t) * upper + 3 * t)
    return between.double().mean((0, 2)), beyond.double().mean((0, 2))


def teacher_errors(plan: Plan, teachers: ResNets) -> dict[str, list[float]]:
    """W1 of the teachers' own samples, 50 Euler steps."""
    found = {}
    for kind, v, seeds in (("closed form", toy1d.velocity, 1), ("ResNet", teachers, len(plan.seeds))):
        noise = toy1d.quantiles(plan.samples).float().repeat(seeds)
        x = integrate(v, noise, torch.ones_like(noise), torch.zeros_like(noise), 50)
        found[kind] = toy1d.wasserstein(x.view(seeds, -1), TRAINING).tolist()
    return found


if __name__ == "__main__":
    main()
