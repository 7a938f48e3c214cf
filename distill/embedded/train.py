"""Train the embedded teacher: the autoencoder, then transformer and text encoder, then a pipeline's folder.

A training resumes from its folder, which belongs to one recipe.
"""

import socket
from pathlib import Path

import torch
import torch.distributed as dist
from diffusers import AutoencoderKLWan
from torch import Tensor

from .. import recipe as recipes
from ..batch import generator
from ..errors import UserError
from . import cache, diffusion, vae
from .loop import Training, Workers, fit
from .optim import KernelMuon, adamw
from .spec import TeacherRecipe

PIPELINE = "wan_shapes"  # in the training's folder
WARMUP = 30  # steps
ADAMW_LR = 2e-3


def train(recipe: TeacherRecipe, folder: Path) -> Path:
    """Train in the folder, or go on there; returns the pipeline's folder."""
    claim(recipe, folder)
    if recipe.processes == 1:
        work(0, recipe, folder, "")
    else:
        torch.multiprocessing.spawn(work, (recipe, folder, f"tcp://127.0.0.1:{free_port()}"), recipe.processes)
    return folder / PIPELINE


def claim(recipe: TeacherRecipe, folder: Path) -> None:
    """Write the recipe into the folder, or find the same one there."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "recipe.yaml"
    if path.exists():
        old, new = (recipes.flatten(r) for r in (recipes.load(path, model=TeacherRecipe), recipe))
        changed = [f"{key} {old.get(key)} -> {new.get(key)}" for key in {**old, **new} if old.get(key) != new.get(key)]
        if changed:
            raise UserError(f"{path} is of another training ({', '.join(changed)}); choose another --output")
    recipes.save(recipe, path)


def work(rank: int, recipe: TeacherRecipe, folder: Path, address: str) -> None:
    """One process's part."""
    torch.set_num_threads(1)
    workers = Workers(rank, recipe.processes)
    if workers.count > 1:
        dist.init_process_group("gloo", init_method=address, rank=rank, world_size=workers.count)
    torch.manual_seed(recipe.seed)  # the same first weights in every process
    autoencoder = train_vae(recipe, folder, workers)
    diffusion.train(recipe, folder, workers, autoencoder, folder / PIPELINE)
    if workers.count > 1:
        dist.destroy_process_group()


def train_vae(recipe: TeacherRecipe, folder: Path, workers: Workers) -> AutoencoderKLWan:
    spec = recipe.vae
    network = vae.whole_clip(vae.build(spec.base_dim, spec.res_blocks, spec.z_dim))
    for index, phase in enumerate(spec.phases):
        inner, outer = vae.kernels(network)

        def loss(step: int, index: int = index, kl: float = phase.kl) -> Tensor:
            clips = cache.draw(("vae", recipe.seed, index, step, workers.rank), spec.batch_size)[1]
            draws = generator("vae", recipe.seed, index, step, workers.rank)
            with torch.autocast("cpu", torch.bfloat16):
                return vae.loss(network, clips, kl, draws)

        training = Training(
            f"vae_{index}",
            network,
            [KernelMuon(inner, phase.lr, momentum=0.9), adamw(outer, ADAMW_LR, (0.9, 0.95))],
            phase.steps,
            loss,
            factor=lambda step, steps=phase.steps: min(1, (step + 1) / WARMUP, 1 - step / steps),
        )
        fit(training, folder, workers)
    return network.eval().requires_grad_(False)


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]
