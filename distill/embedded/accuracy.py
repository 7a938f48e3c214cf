"""How often the clips of a pipeline's folder show what their captions say, and what fewer steps cost.

    python -m distill.embedded.accuracy --steps 48 24 12 8 6 4 --guidance 5

prints the table of docs/teacher.md for the embedded teacher, on prompts held out from its training.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .. import embedded, flow, samplers
from ..batch import Condition, generator
from ..engine import Role
from ..evaluate import fidelity, statistics
from ..evaluate import world as measurement
from ..networks import Net
from ..teachers.wan import Wan
from . import world

BATCH = 16


def mean(pipeline: Path, *, prompts: int, steps: int, guidance: float, seed: int) -> dict[str, float]:
    """The share of held-out prompts whose clip is right, per attribute and in all."""
    captions, teacher = world.prompts("heldout", seed, prompts), Wan(pipeline)
    videos = teacher.decode(clips(teacher, captions, steps, guidance, seed)).numpy()
    return {name: float(np.mean(values)) for name, values in measurement.score(videos, captions).items()}


def clips(teacher: Wan, captions: list[str], steps: int, guidance: float, seed: int) -> Tensor:
    """Latents (B, C, F, H, W) of Euler steps with guidance; clip i starts from the noise of (seed, i)."""
    return torch.cat(list(batches(teacher, captions, steps, guidance, seed)))


@torch.no_grad()
def batches(teacher: Wan, captions: list[str], steps: int, guidance: float, seed: int) -> Iterator[Tensor]:
    net, negative = Net(Role("teacher", teacher.network().eval())), teacher.encode([teacher.negative_prompt])
    sigmas, shape = flow.grid(steps, teacher.shift), teacher.latent_shape(world.FRAMES, world.SIZE, world.SIZE)
    for start in range(0, len(captions), BATCH):
        cond = teacher.encode(captions[start : start + BATCH])
        draws = [generator("clip", seed, start + i) for i in range(cond.size)]
        noise = torch.stack([torch.randn(shape, generator=g) for g in draws])
        yield samplers.euler(net, noise, sigmas, cond, Condition.expand(negative, cond.size), guidance)


def degradation(pipeline: Path, prompts: int, steps: list[int], guidance: float, seed: int) -> Iterator[dict]:
    """One row per number of steps, most first: distances to the result of most steps, accuracies, statistics."""
    captions, teacher = world.prompts("heldout", seed, prompts), Wan(pipeline)
    best = best_video = None
    for count in sorted(steps, reverse=True):
        latents = clips(teacher, captions, count, guidance, seed)
        video = teacher.decode(latents).numpy()
        best, best_video = (latents, video) if best is None else (best, best_video)
        distance = fidelity.compared(latents, best, video, best_video)
        yield {
            "steps": count,
            "guidance": guidance,
            **{name: float(np.mean(values)) for name, values in distance.items()},
            "clipped": float(np.mean((video == 0) | (video == 255))),
            **{name: statistics.share(hits) for name, hits in measurement.score(video, captions).items()},
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pipeline", type=Path, default=embedded.PATH)
    parser.add_argument("--prompts", type=int, default=192)
    parser.add_argument("--steps", type=int, nargs="+", default=[48, 24, 12, 8, 6, 4])
    parser.add_argument("--guidance", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=31)
    options = parser.parse_args()
    names = ("rmse", "cosine", "psnr", "clipped", *measurement.ATTRIBUTES)
    print("| steps | " + " | ".join(names) + " |\n|" + "---|" * (len(names) + 1))
    for row in degradation(options.pipeline, options.prompts, options.steps, options.guidance, options.seed):
        print(f"| {row['steps']} | " + " | ".join(map(shown, (row[name] for name in names))) + " |", flush=True)


def shown(value: float | dict[str, float]) -> str:
    if isinstance(value, dict):
        return f"{value['mean']:.2f} ({value['low']:.2f}-{value['high']:.2f})"
    return f"{value:.3f}"


if __name__ == "__main__":
    main()
