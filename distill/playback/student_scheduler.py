"""The steps that a distilled student was trained for: its own noise levels, and fresh noise between them or none.

Each step predicts the data and goes on from there. Fresh noise follows from the first noise alone, sample by sample,
so a clip follows from its first noise. A pipeline may take the first steps at half the frame rate (half_rate.py).
"""

import hashlib
from collections.abc import Callable

import torch
from diffusers import ConfigMixin, SchedulerMixin
from diffusers.configuration_utils import register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerOutput
from torch import Tensor


class StudentScheduler(SchedulerMixin, ConfigMixin):
    """A scheduler for pipelines that hand velocities and latents (B, C, F, H, W) to `step`, in order.

    Args:
        sigmas: the noise levels, from 1 down to 0.
        told: the levels that the network is told instead, one for each step; None is `sigmas`.
        renoises: fresh noise between steps; else they are Euler's.
        half_rate: of a pipeline that has an interpolator, so many steps at half the frame rate.
    """

    order = 1

    @register_to_config
    def __init__(
        self,
        sigmas: list[float] = (1.0, 0.0),
        told: list[float] | None = None,
        renoises: bool = True,
        half_rate: int = 0,
        num_train_timesteps: int = 1000,
    ):
        self.sigmas = torch.tensor(list(sigmas), dtype=torch.float32)
        told = self.sigmas[:-1] if told is None else torch.tensor(list(told), dtype=torch.float32)
        self.timesteps = num_train_timesteps * told
        self._start()

    def _start(self) -> None:
        self.index, self.noise, self.half, self.interpolate = 0, None, 0, None

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: torch.device | str | None = None,
        sigmas: list[float] | None = None,
    ) -> None:
        """ValueError for another number of steps than the student's; what values `sigmas` has does not matter."""
        asked, steps = len(sigmas) if sigmas is not None else num_inference_steps, len(self.timesteps)
        if asked != steps:
            raise ValueError(f"{asked} steps: this student takes {steps}; pass num_inference_steps={steps}")
        self.timesteps = self.timesteps.to(device)
        self._start()

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Pipelines call it before the first step."""
        if begin_index != 0:
            raise ValueError(f"begin_index is {begin_index}: this student starts from noise, at 0")

    def begin_half_rate(self, noise: Tensor, interpolate: Callable[[Tensor], Tensor]) -> Tensor:
        """The first latents of a clip that starts at half the frame rate; called after `set_timesteps`."""
        if noise.shape[2] % 2 == 0 or noise.shape[2] == 1:
            raise ValueError(f"{noise.shape[2]} latent frames cannot be halved: an odd number is needed, 3 or more")
        self.noise, self.half, self.interpolate = noise, self.config.half_rate, interpolate
        return noise[:, :, ::2]

    def step(
        self,
        model_output: Tensor,
        timestep: Tensor,
        sample: Tensor,
        generator: torch.Generator | None = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[Tensor]:
        """The latents of the next step, float32; `generator` is not used."""
        latents = self._next(sample.float(), model_output.float())
        return SchedulerOutput(prev_sample=latents) if return_dict else (latents,)

    def _next(self, x: Tensor, v: Tensor) -> Tensor:
        n, sigma, sigma_next = self.index, *self.sigmas[self.index : self.index + 2].tolist()
        self.index, self.noise = n + 1, x if self.noise is None else self.noise
        x0 = x - sigma * v
        if sigma_next == 0:
            return x0
        eps = more_noise(self.noise, n) if self.config.renoises else x + (1 - sigma) * v
        if n + 1 == self.half:
            x0, eps = self.interpolate(x0), eps if self.config.renoises else between(eps, self.noise[:, :, 1::2])
        elif n + 1 < self.half and self.config.renoises:
            eps = eps[:, :, ::2]
        return (1 - sigma_next) * x0 + sigma_next * eps


def between(frames: Tensor, others: Tensor) -> Tensor:
    """One of the others, (B, C, F - 1, H, W), between any two of F frames."""
    return torch.cat([torch.stack([frames[:, :, :-1], others], 3).flatten(2, 3), frames[:, :, -1:]], 2)


def more_noise(noise: Tensor, draw: int) -> Tensor:
    """Standard normal latents like `noise`, seeded by the content of each sample's noise and the number of the step."""
    return torch.stack([_fresh(row.float().cpu().contiguous(), draw) for row in noise]).to(noise.device)


def _fresh(row: Tensor, draw: int) -> Tensor:
    content = hashlib.blake2b(row.numpy().tobytes(), digest_size=16).hexdigest()
    seed = hashlib.blake2b(f"renoise/{content}/{draw}".encode(), digest_size=8).digest()
    return torch.randn(row.shape, generator=torch.Generator().manual_seed(int.from_bytes(seed, "little")))
