"""GPD: guided progressive distillation. arXiv:2602.01814.

In stages k = 2..K a student learns to cross k teacher steps at once. Its target is made online: the student of the
stage before crosses k - 1 steps, and the teacher refines the last one.
Departure: guidance on the frozen student ends with the first stage, where that student is the teacher; later it would
compound with what the student has absorbed. docs/methods/gpd.md has this and every point that the paper leaves open.
"""

import warnings
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from distill import flow, samplers
from distill.batch import Batch, Condition, generator
from distill.method import Copy, Frozen, Method, Stage, Trained, Update
from distill.networks import Net
from distill.options import NonNegativeFloat, PositiveFloat, PositiveInt


@dataclass(frozen=True, kw_only=True)
class StepSize(Stage):
    """The stage in which the student learns to cross k teacher steps.

    Args:
        guidance, prior_guidance: scales of the teacher and of the frozen student; None asks it as it was trained.
        trajectories: the indices i that each trajectory visits; the last one may be cut short.
    """

    k: int
    guidance: float
    prior_guidance: float | None
    trajectories: tuple[range, ...]


class GPD(Method):
    """Guided progressive distillation: in stages, learn ever longer steps that the teacher refines."""

    networks = {"teacher": Frozen(), "prior": Copy(of="student"), "student": Trained(init="teacher")}

    def __init__(
        self,
        teacher_steps: PositiveInt = 48,
        steps: PositiveInt = 6,
        shift: PositiveFloat = 5.0,
        iterations: PositiveInt | list[PositiveInt] = 150,
        guidance: tuple[PositiveFloat, PositiveFloat] = (6.0, 1.5),
        frozen_guidance: Literal["first_stage", "always"] = "first_stage",
        target: Literal["online", "constant"] = "online",
        progressive: bool = True,
        high_frequency: NonNegativeFloat = 0.5,
        high_frequency_gate: Literal["index", "always"] = "index",
        cutoff_t: PositiveFloat = 0.25,
        cutoff_s: PositiveFloat = 0.25,
        alpha: PositiveFloat = 1.0,
        random_start: bool = False,
        carry_optimizer: bool = False,
    ):
        """
        Args:
            teacher_steps: N, the teacher's steps from noise to data.
            steps: of the final student; K = teacher_steps / steps must be an integer.
            shift: of the time grid towards noise.
            iterations: updates per stage, one number or one per stage.
            guidance: scales in the first and in the last stage, linear between.
            frozen_guidance: stages in which the frozen student is guided like the teacher; always is the paper's text.
            target: online (eq. 5-7), or constant: the teacher's own k steps along its own path (eq. 4).
            progressive: stages k = 2..K; false goes straight to k = K.
            high_frequency: lambda_0, the weight of the high-frequency loss in the last stage.
            high_frequency_gate: at which indices that loss acts, i <= N/2 (Algorithm 1) or all (Table 4, "const").
            cutoff_t: sigma_t, cut-off frequency in time, cycles per latent frame (Nyquist is 0.5).
            cutoff_s: sigma_s, cut-off frequency in space, cycles per latent pixel.
            alpha: steepness of the high-pass filter.
            random_start: begin each trajectory 0 to k - 1 teacher steps late, so that students see every index.
            carry_optimizer: keep the optimizer's moments from stage to stage.
        """
        super().__init__()
        if target == "constant" and frozen_guidance == "always":
            raise ValueError("frozen_guidance: always has no effect on constant targets, which the teacher makes alone")
        self.N, self.K = teacher_steps, step_size(teacher_steps, steps)
        self.t = flow.grid(teacher_steps, shift).flip(0).tolist()  # t_0 = 0 to t_N = 1, Python floats
        self.iterations, self.guidance, self.frozen_guidance = iterations, guidance, frozen_guidance
        self.target, self.progressive = target, progressive
        self.high_frequency, self.high_frequency_gate = high_frequency, high_frequency_gate
        self.filter = partial(high_pass, cutoff_t=cutoff_t, cutoff_s=cutoff_s, alpha=alpha)
        self.register_buffer("spectrum", None, persistent=False)
        self.random_start, self.carry_optimizer = random_start, carry_optimizer
        self.stage = self.stages()[-1]  # outside training the student is the final one
        if frozen_guidance == "always":
            warnings.warn(
                "frozen_guidance: always guides a student that has absorbed its guidance already; the effective scale "
                "grows from stage to stage and runs have diverged (docs/methods/gpd.md)",
                stacklevel=2,
            )

    def stages(self) -> list[Stage]:
        ks = range(2, self.K + 1) if self.progressive else [self.K]
        iterations = self.iterations if isinstance(self.iterations, list) else [self.iterations] * len(ks)
        if len(iterations) != len(ks):
            raise ValueError(f"iterations has {len(iterations)} entries for {len(ks)} stages (k = {ks[0]}..{ks[-1]})")
        return [self._stage(n, k, iterations[n], n / max(len(ks) - 1, 1)) for n, k in enumerate(ks)]

    def _stage(self, n: int, k: int, iterations: int, progress: float) -> StepSize:
        first, last = self.guidance
        w = first + (last - first) * progress
        trajectories = self._trajectories(k, iterations)
        return StepSize(
            steps=len(trajectories),
            carry_optimizers=self.carry_optimizer,
            k=k,
            guidance=w,
            prior_guidance=w if n == 0 or self.frozen_guidance == "always" else None,
            trajectories=trajectories,
        )

    def _trajectories(self, k: int, iterations: int) -> tuple[range, ...]:
        """N, N - k, ... down to k, again and again, until there are so many updates."""
        found: list[range] = []
        while iterations > 0:
            found.append(range(self._first_index(k, step=len(found)), k - 1, -k)[:iterations])
            iterations -= len(found[-1])
        return tuple(found)

    def _first_index(self, k: int, step: int) -> int:
        """N, or at random up to k - 1 less: the same on every process."""
        late = min(k - 1, self.N - k) if self.random_start else 0
        return self.N - int(torch.randint(late + 1, (), generator=generator("gpd start", k, step)))

    def begin(self, stage: Stage) -> None:
        self.prior.copy_from(self.student)  # theta_{k-1}; at k = 2 the teacher

    def updates(self, step):
        for i in self.stage.trajectories[step]:
            yield Update("student", partial(self.loss, i=i))

    def loss(self, batch: Batch, i: int) -> dict[str, Tensor]:
        """One pass through the inner loop of Algorithm 1."""
        with torch.no_grad():
            z = batch.state["z"] if "z" in batch.state else self.start(batch, i)
            z_star = self.refine(z, i, batch)
        batch.state["z"] = z_star  # the rollout follows the refined point
        dt = self.t[i - self.stage.k] - self.t[i]
        v_target = (z_star - z) / dt  # eq. 7
        residual = self.student(z, self.level(i, batch), batch.cond) - v_target
        terms = {"velocity": residual.square().mean()}  # eq. 8
        if self.weighs_high_frequencies(i):  # eq. 11: z_theta - z* is dt times the same residual
            terms["high_frequency"] = self.high_frequency * dt**2 * self.high_frequency_energy(residual)
        return terms

    def refine(self, z: Tensor, i: int, batch: Batch) -> Tensor:
        """The target z*, k steps on: the frozen student crosses k - 1 (eq. 5), the teacher the last (eq. 6)."""
        end = i - self.stage.k
        if self.target == "online":
            z, i = self.solve(self.prior, z, i, end + 1, batch, self.stage.prior_guidance), end + 1
        return self.teach(z, i, end, batch)

    def teach(self, z: Tensor, i: int, end: int, batch: Batch) -> Tensor:
        """The teacher's single steps from t_i to t_end (eq. 3)."""
        for j in range(i, end, -1):
            z = self.solve(self.teacher, z, j, j - 1, batch, self.stage.guidance)
        return z

    def solve(self, net: Net, z: Tensor, i: int, j: int, batch: Batch, scale: float | None) -> Tensor:
        """One Euler step of the guided flow from t_i to t_j (eq. 2)."""
        level, cond = self.level(i, batch), batch.cond
        v = net(z, level, cond) if scale is None else net.guided(z, level, cond, batch.negative, scale)
        return z + (self.t[j] - self.t[i]) * v

    def start(self, batch: Batch, i: int) -> Tensor:
        """The first point of a trajectory: noise, or the teacher's point at t_i if it begins late."""
        return self.teach(batch.noise(), self.N, i, batch)

    def level(self, i: int, batch: Batch) -> Tensor:
        return torch.full((len(batch),), self.t[i])

    def weighs_high_frequencies(self, i: int) -> bool:
        """Whether lambda(t_i) > 0 (eq. 12, by index as in Algorithm 1)."""
        late = i <= self.N / 2 or self.high_frequency_gate == "always"
        return self.high_frequency > 0 and self.stage.k == self.K and late

    def high_frequency_energy(self, residual: Tensor) -> Tensor:
        """Mean of |F_high(residual)|^2 (eq. 10), in the frequency domain: Parseval saves the inverse transforms."""
        if self.spectrum is None:
            H = self.filter(residual.shape[-3:])
            self.spectrum = (conjugates(residual.shape[-1]) * H.square()).to(residual)
        amplitude = torch.fft.rfftn(residual, dim=(-3, -2, -1), norm="ortho")
        return (self.spectrum * torch.view_as_real(amplitude).square().sum(-1)).sum() / residual.numel()

    def sample(self, noise: Tensor, cond: Condition) -> Tensor:
        """The student of the current stage, unguided."""
        return samplers.euler(self.student, noise, self.grid(), cond)

    def grid(self) -> Tensor:
        """Every k-th level; where k does not divide N (only before the last stage) the last step is short."""
        indices = [*range(self.N, 0, -self.stage.k), 0]
        return torch.tensor([self.t[i] for i in indices], dtype=torch.float64)


def step_size(teacher_steps: int, steps: int) -> int:
    """K, the teacher steps that the final student crosses at once."""
    if steps >= teacher_steps or teacher_steps % steps:
        fitting = ", ".join(str(n) for n in range(1, teacher_steps) if teacher_steps % n == 0)
        raise ValueError(f"steps is {steps}; teacher_steps {teacher_steps} needs one of {fitting}")
    return teacher_steps // steps


def high_pass(shape: tuple[int, int, int], cutoff_t: float, cutoff_s: float, alpha: float) -> Tensor:
    """The filter H of eq. 9 for latents (..., F, H, W), on the half spectrum that rfftn keeps: (F, H, W // 2 + 1)."""
    F, H, W = shape
    f_t, f_h, f_w = torch.fft.fftfreq(F), torch.fft.fftfreq(H), torch.fft.rfftfreq(W)
    t, h, w = (f_t / cutoff_t) ** 2, (f_h / cutoff_s) ** 2, (f_w / cutoff_s) ** 2
    return 1 - torch.exp(-alpha * (t[:, None, None] + h[:, None] + w))


def conjugates(width: int) -> Tensor:
    """How many of a full spectrum's columns each column of rfftn stands for: (width // 2 + 1,)."""
    f = torch.arange(width // 2 + 1)
    return 2 - ((2 * f) % width == 0).float()
