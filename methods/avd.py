"""AVD: adaptive video distillation, on top of DMD. The paper's text, and the official code as METHODS describe it.

To distribution matching it adds two terms for the student: a regression to real videos, weighed down where it is worse
than usual at its noise level, and a loss on clips that stand still.
Departures: the regression is in velocity, as in the official code, where eq. 5 is in noise (which says nothing at level
1); running means begin with the first loss, not 0, and belong to the global batch. docs/methods/avd.md.
"""

import warnings
from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

from distill import flow, losses
from distill.batch import Batch
from distill.memory import RunningMean
from distill.options import Fraction, NonNegativeFloat, PositiveFloat, PositiveInt
from distill_methods.dmd import DMD

PRESETS = {  # docs/methods/avd.md has the source of each
    "paper": {
        "guidance": 5.0,
        "regression": 2.0,
        "threshold": 0.6,
        "mean": "before",
        "weighed": "sample",
        "sigmas": "exact",
        "score_draw": "continuous",
    },
    "official_code": {
        "guidance": 6.0,  # printed as 5.0, of cond + s (cond - uncond)
        "regression": 1.0,
        "threshold": 0.8,
        "mean": "after",
        "weighed": "micro_batch",
        "sigmas": "table",
        "score_draw": "thousandths",
    },
}


class AVD(DMD):
    """Adaptive video distillation: DMD with adaptively weighted regression to real videos and a loss on still clips."""

    data = ("prompts", "videos")
    whole_micro_batches = True  # eq. 8 is of a batch, not of a sample

    def __init__(
        self,
        preset: Literal["paper", "official_code"] = "paper",
        guidance: PositiveFloat | None = None,
        regression: NonNegativeFloat | None = None,
        threshold: float | None = None,
        mean: Literal["before", "after"] | None = None,
        weighed: Literal["sample", "micro_batch"] | None = None,
        sigmas: Literal["exact", "table"] | None = None,
        score_draw: Literal["continuous", "thousandths"] | None = None,
        adaptive: bool = True,
        steepness: PositiveFloat = 3.0,
        history: Fraction = 0.95,
        temporal: NonNegativeFloat = 0.05,
        levels: PositiveInt | tuple[PositiveFloat, ...] = (1.0, 0.9, 0.757, 0.522),
        student_every: PositiveInt = 5,
        shift: PositiveFloat = 5.0,
        score_range: tuple[Fraction, Fraction] = (0.02, 0.98),
        drawn: Literal["sample", "shared"] = "sample",
        reuse: bool = False,
    ):
        """
        Args:
            preset: what the options after it are where they are null; one that is set otherwise is warned of.
            regression: w_reg, the weight of the regression; 0 is none.
            threshold: tau; below it the temporal loss is cut off.
            mean: a loss is compared with the running mean before it (eq. 7), or after it has been taken in.
            weighed: each sample by itself, or a micro-batch as one at the level of its first sample.
            adaptive: false is the plain regression, w_{t,s} = 1 (the ablation).
            steepness: k.
            history: alpha, the share of the old running mean.
            temporal: w_temp, the weight of the temporal loss; 0 is none.
        """
        given = {"guidance": guidance, "regression": regression, "threshold": threshold, "mean": mean}
        given |= {"weighed": weighed, "sigmas": sigmas, "score_draw": score_draw}
        chosen = choose(preset, {name: value for name, value in given.items() if value is not None})
        for_scores = {"shift": shift, "score_range": score_range, "score_draw": chosen["score_draw"]}
        super().__init__(
            levels=levels,
            guidance=chosen["guidance"],
            student_every=student_every,
            sigmas=chosen["sigmas"],
            drawn=drawn,
            reuse=reuse,
            **for_scores,
        )
        check_effect(given, chosen, adaptive, steepness, history, temporal)
        self.w_reg, self.tau, self.adaptive = chosen["regression"], chosen["threshold"], adaptive
        self.taken_in, self.as_one = chosen["mean"] == "after", chosen["weighed"] == "micro_batch"
        self.k, self.w_temp = steepness, temporal
        self.usual = RunningMean(len(self.levels_told), history)

    def terms(self, x: Tensor, batch: Batch) -> dict[str, Tensor]:
        """The loss of DMD and, of the same samples, the temporal loss (eq. 8)."""
        return super().terms(x, batch) | ({"temporal": self.temporal_loss(x)} if self.w_temp > 0 else {})

    def temporal_loss(self, x: Tensor) -> Tensor:
        """w_temp L_temp, cut off below tau, where it is 0 and so is its gradient."""
        L_temp = losses.stillness(x)
        return self.w_temp * L_temp * (L_temp >= self.tau)

    def student_loss(self, batch: Batch, step: int) -> Iterator[dict[str, Tensor]]:
        """L_G (eq. 9), in parts."""
        yield from super().student_loss(batch, step)
        if self.w_reg > 0:
            yield {"regression": self.regression_loss(batch)}

    def regression_loss(self, batch: Batch) -> Tensor:
        """w_reg w_{t,s} L_reg, of real videos at one of the student's levels each (eq. 5)."""
        index, eps, y = batch.integers(0, len(self.levels_told)).tolist(), batch.noise(), batch.video.latents
        t = self.told(index)
        v = self.student(flow.mix(y, eps, self.sigma(t)), t, batch.video.cond)
        L_reg = losses.per_sample(v - flow.velocity(y, eps))
        if self.as_one:
            L_reg, index = L_reg.mean(0, keepdim=True), index[:1]
        return self.w_reg * (self.weight(L_reg, index) * L_reg).mean()

    @torch.no_grad()
    def weight(self, L_reg: Tensor, index: list[int]) -> Tensor:
        """w_{t,s} (eq. 7); takes the losses into the running means (eq. 6) once the update is done."""
        if not self.adaptive:
            return torch.ones_like(L_reg)
        usual = (self.usual.after if self.taken_in else self.usual.before)(L_reg, index)
        self.usual.gather(L_reg, index)
        return torch.sigmoid(-self.k * (L_reg - usual))  # 1 - sigmoid(z), without cancellation


def choose(preset: str, given: dict) -> dict:
    """A preset's values with those that are given in their place; each that differs is warned of."""
    values = PRESETS[preset]
    for name, value in given.items():
        if value != values[name]:
            warnings.warn(f"{name} is {value}; preset {preset} has {values[name]}", stacklevel=3)
    return values | given


def check_effect(given: dict, chosen: dict, adaptive: bool, steepness: float, history: float, temporal: float) -> None:
    """ValueError for options that would have no effect."""
    plain = not adaptive or chosen["regression"] == 0
    if plain and (steepness, history) != (3.0, 0.95) or plain and given["mean"] is not None:
        raise ValueError("the regression is not adaptive: steepness, history and mean have no effect; leave them out")
    if chosen["regression"] == 0 and (not adaptive or given["weighed"] is not None):
        raise ValueError("regression is 0: adaptive and weighed have no effect; leave them out")
    if temporal == 0 and given["threshold"] is not None:
        raise ValueError("temporal is 0: threshold has no effect; leave it out")
