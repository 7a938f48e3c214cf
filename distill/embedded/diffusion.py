"""The training of transformer and text encoder: rectified flow on the autoencoder's latents."""

from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from torch import Tensor, nn
from torch.optim import Optimizer

from .. import flow
from ..batch import generator
from . import accuracy, cache, export, text, transformer
from .loop import Training, Workers, fit
from .optim import KernelMuon, adamw
from .spec import TeacherRecipe

IMAGES_PER_CLIP = 5
EARLY_IMAGES, LATE_IMAGES = 0.75, 0.2  # share of the steps that see first frames only
MUON_LR, PLACES_LR, ADAMW_LR = 0.02, 0.005, 2e-3  # slower queries and keys keep the places they start with
WARMUP = 100  # steps
EMPTY = 0.2  # standard deviation below which the autoencoder left a channel unused
MEASURED = 8192  # clips, per process, for the latents' mean and standard deviation


def train(recipe: TeacherRecipe, folder: Path, workers: Workers, vae: AutoencoderKLWan, pipeline: Path) -> None:
    """Train, or go on in the folder, and write the pipeline's folder at every evaluation."""
    spec = recipe.transformer
    data = Clips(*cache.fill(vae, folder, spec.clips, recipe.seed, workers), vae, recipe, workers)
    network = transformer.build(spec.layers, spec.dim, spec.heads, spec.ffn_dim, recipe.vae.z_dim)
    model = nn.ModuleDict({"transformer": network, "text": text.encoder(len(text.tokenizer()))})

    def evaluate(averaged: nn.ModuleDict) -> dict[str, float]:
        export.write(pipeline, vae, averaged["transformer"], averaged["text"])
        return accuracy.mean(pipeline, **recipe.evaluation.model_dump(exclude={"every"}))

    fast = torch.compile(network, dynamic=False) if spec.compile else network
    training = Training(
        "transformer",
        model,
        optimizers(model),
        spec.steps,
        loss=lambda step: loss(fast, model["text"], *data.batch(step)),
        factor=lambda step: min(1, (step + 1) / WARMUP, (1 - step / spec.steps) / spec.decay),
        average=spec.average,
        evaluate=evaluate,
        evaluate_every=recipe.evaluation.every,
    )
    fit(training, folder, workers)


def loss(network, encoder, x0: Tensor, eps: Tensor, sigma: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    cond = text.embed(encoder, ids, mask)
    v = network(flow.mix(x0, eps, sigma), 1000 * sigma, cond, return_dict=False)[0]
    return F.mse_loss(v, flow.velocity(x0, eps))


class Clips:
    """A process's encoded clips, and the batches drawn from them.

    Args:
        latents: (N, C, F, H, W), not normalised.
    """

    def __init__(
        self, latents: np.ndarray, captions: list[str], vae: AutoencoderKLWan, recipe: TeacherRecipe, workers: Workers
    ):
        normalise(vae, latents, workers)
        self.latents, self.recipe, self.rank = latents, recipe, workers.rank
        self.mean, self.std = (torch.tensor(vae.config[f"latents_{m}"]).view(-1, 1, 1, 1) for m in ("mean", "std"))
        self.ids, self.mask = text.tokenize(text.tokenizer(), [*captions, ""])  # "" for a dropped caption

    def batch(self, step: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Data, noise, noise levels (n,), and ids and mask (n, TOKENS) of a step."""
        spec = self.recipe.transformer
        draws = generator("transformer", self.recipe.seed, step, self.rank)
        images = self.only_images(step)
        n = spec.batch_size * (IMAGES_PER_CLIP if images else 1)
        index = torch.randint(len(self.latents), (n,), generator=draws)
        x0 = torch.from_numpy(self.latents[index.numpy(), :, : 1 if images else None].astype(np.float32))
        u = (torch.arange(n) + torch.rand(n, generator=draws)) / n  # stratified
        said = torch.where(torch.rand(n, generator=draws) < spec.dropout, len(self.ids) - 1, index)
        eps = torch.randn(x0.shape, generator=draws)
        return (x0 - self.mean) / self.std, eps, flow.shift(u, spec.shift), self.ids[said], self.mask[said]

    def only_images(self, step: int) -> bool:
        """Whether a step sees first frames only; the same in all processes."""
        share = EARLY_IMAGES if step < self.recipe.transformer.image_steps else LATE_IMAGES
        return torch.rand((), generator=generator("images", self.recipe.seed, step)).item() < share


def normalise(vae: AutoencoderKLWan, latents: np.ndarray, workers: Workers) -> None:
    """Note the latents' mean and scale per channel in the autoencoder's configuration.

    The scale is the standard deviation, but 1 for channels that carry nothing: they are not to be blown up.
    """
    x = torch.from_numpy(latents[:MEASURED].astype(np.float64))
    moments = torch.stack([x.mean((0, 2, 3, 4)), x.square().mean((0, 2, 3, 4))])
    if workers.count > 1:
        dist.all_reduce(moments)
    mean, square = moments / workers.count
    std = (square - mean**2).sqrt()
    std[std < EMPTY] = 1
    vae.register_to_config(
        latents_mean=[round(m, 6) for m in mean.tolist()], latents_std=[round(s, 6) for s in std.tolist()]
    )


def optimizers(model: nn.ModuleDict) -> list[Optimizer]:
    matrices = {n: p for n, p in model["transformer"].blocks.named_parameters() if p.ndim == 2}
    places = [p for n, p in matrices.items() if "attn1.to_q" in n or "attn1.to_k" in n]
    others = [p for n, p in matrices.items() if "attn1.to_q" not in n and "attn1.to_k" not in n]
    chosen = {id(p) for p in matrices.values()}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    return [
        KernelMuon(others, MUON_LR, momentum=0.95),
        KernelMuon(places, PLACES_LR, momentum=0.95),
        adamw(rest, ADAMW_LR, (0.9, 0.98)),
    ]
