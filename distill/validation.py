"""Clips to look at while training: the student's at fixed prompts and seeds, and the teacher's from the same noise."""

import json
import os
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from . import flow, health, image_prompt, samplers, video
from .batch import Batch, Condition, generator
from .data import prompts
from .networks import Net

Sampler = Callable[[Tensor, Condition], Tensor]
Judge = Callable[[Tensor, Batch], dict[str, Tensor]]  # Method.judge
Alone = Callable[
    [Callable[[], Any]], Any
]  # does work on one process, and hands its result to all that evaluate networks

CLIPS = "clips.json"  # in every complete folder of clips: prompts, seed, fps, distance to the teacher's of most steps
DRAWS = 4  # of noise, for critics that look at noisy clips


def clips(
    folder: Path,
    update: int,
    teacher,
    sample: Sampler,
    embeddings,
    recipe,
    device: torch.device | str,
    judge: Judge = lambda x, batch: {},
    alone: Alone = lambda work: work(),
) -> dict:
    """Write the student's clips to samples/update_<n>; the `validation` line for the log.

    Its `rmse` is the distance, in latents, to the teacher's result of most steps from the same noise.

    Args:
        judge: what the method's critics think of latents, asked of the student's and of the teacher's.
        alone: does what one process does, where several make the clips.
    """
    started = time.perf_counter()
    target = folder / "samples" / f"update_{update:08d}"
    latents = generate(sample, teacher, embeddings, recipe, device)
    reference = teacher_latents(folder, max(recipe.validation.teacher_steps))
    distance = distances(latents, reference)
    critics = verdicts(judge, {"student": latents, "teacher": reference}, teacher, embeddings, recipe, device)
    info = settings(recipe) | {"update": update, "rmse": distance}
    vitals = alone(lambda: store(target, latents, info, teacher))
    best = shown(folder / "samples" / f"teacher_{max(recipe.validation.teacher_steps)}")
    return {
        "update": update,
        "folder": target.relative_to(folder).as_posix(),
        "prompts": texts(recipe),
        "rmse": sum(distance) / len(distance),
        "health": health.ratios(vitals, best["vitals"]),
        "critics": critics,
        "seconds": time.perf_counter() - started,
    }


def teacher_clips(
    folder: Path,
    teacher,
    net: Net,
    embeddings,
    recipe,
    device: torch.device | str,
    shift: float,
    alone: Alone = lambda work: work(),
) -> None:
    """Write the teacher's clips to samples/teacher_<steps>, unless they are there."""
    guidance, best = recipe.validation.guidance, max(recipe.validation.teacher_steps)
    for steps in sorted(set(recipe.validation.teacher_steps), reverse=True):
        target = folder / "samples" / f"teacher_{steps}"
        info = settings(recipe) | {"steps": steps, "guidance": guidance, "shift": shift} | source(recipe, teacher)
        there = alone(partial(shown, target))
        if info.items() <= there.items() and "vitals" in there:  # clips made before there were vitals are made anew
            continue
        sample = teacher_sampler(net, steps, shift, guidance, negative(teacher, embeddings, recipe, device))
        latents = generate(sample, teacher, embeddings, recipe, device)
        distance = distances(latents, latents if steps == best else teacher_latents(folder, best))
        info |= {"rmse": distance}
        alone(partial(store, target, latents, info, teacher, keep=steps == best))


def texts(recipe) -> list[str]:
    return prompts.listed(recipe.validation.prompts)


def settings(recipe) -> dict:
    """What all clips of a run share."""
    images = image_prompt.contents(texts(recipe))
    said = {"prompts": texts(recipe), "seed": recipe.validation.seed, "fps": recipe.video.fps}
    return said | ({"images": images} if images else {})


def source(recipe, teacher) -> dict:
    """What the teacher's clips depend on besides: a recipe may still change before its first checkpoint."""
    size = recipe.video.model_dump()
    return {"teacher": teacher.fingerprint, "video": size, "negative_prompt": recipe.data.negative_prompt}


def shown(folder: Path) -> dict:
    """What a folder of clips says of itself; nothing if it is not complete."""
    path = folder / CLIPS
    return json.loads(path.read_text()) if path.exists() else {}


def negative(teacher, embeddings, recipe, device) -> Condition:
    """The encoded negative prompt, one row."""
    text = recipe.data.negative_prompt
    return embeddings.get([teacher.negative_prompt if text is None else text]).to(device)


def teacher_sampler(net: Net, steps: int, shift: float, guidance: float, negative: Condition) -> Sampler:
    """Euler with classifier-free guidance; `negative` is one row."""
    sigmas = flow.grid(steps, shift)
    return lambda noise, cond: samplers.euler(net, noise, sigmas, cond, negative.expand(len(noise)), guidance)


@torch.no_grad()
def generate(sample: Sampler, teacher, embeddings, recipe, device: torch.device | str) -> list[Tensor]:
    """Latents (C, F, H, W) on the CPU, clip j from the noise of (seed, j); one at a time, to spare memory."""
    size, seed = recipe.video, recipe.validation.seed
    shape = teacher.latent_shape(size.frames, size.height, size.width)
    latents = []
    for j, text in enumerate(texts(recipe)):
        noise = torch.randn(1, *shape, generator=generator("validation", seed, j)).to(device)
        latents.append(sample(noise, embeddings.get([text]).to(device))[0].float().cpu())
    return latents


@torch.no_grad()
def verdicts(
    judge: Judge, clips: dict[str, list[Tensor]], teacher, embeddings, recipe, device: torch.device | str
) -> dict[str, dict[str, float]]:
    """How sure each critic is that clips are the student's: critic -> whose clips they are -> mean.

    The same noise for all of them, at every validation; one clip at a time, to spare memory.
    """
    uncond, sums = negative(teacher, embeddings, recipe, device), {}
    for j, text in enumerate(texts(recipe)):
        cond = embeddings.get([text]).to(device)
        for draw in range(DRAWS):
            for whose, latents in clips.items():
                x = latents[j][None].to(device)
                batch = Batch([text], cond, uncond, [DRAWS * j + draw], x.shape[1:], recipe.validation.seed, x.device)
                for name, sure in judge(x, batch).items():
                    of = sums.setdefault(name, dict.fromkeys(clips, 0.0))
                    of[whose] += sure.item() / (DRAWS * len(latents))
    return sums


def store(target: Path, latents: list[Tensor], info: dict, teacher, keep: bool = False) -> dict[str, float]:
    """Write NN.mp4, a contact sheet and, last of all, clips.json; with `keep`, the latents too. Returns the vitals."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    decoded = [teacher.decode(x[None])[0] for x in latents]
    for j, clip in enumerate(decoded):
        video.write(target / f"{j:02d}.mp4", clip, info["fps"])
    video.sheet(target / "sheet.png", decoded)
    if keep:
        save_file({f"{j:02d}": x.contiguous() for j, x in enumerate(latents)}, target / "latents.safetensors")
    vitals = health.vitals([clip.numpy() for clip in decoded])
    partial = target / "clips.partial"
    partial.write_text(json.dumps(info | {"vitals": vitals}, indent=1))
    os.replace(partial, target / CLIPS)
    return vitals


def teacher_latents(folder: Path, steps: int) -> list[Tensor]:
    stored = load_file(folder / "samples" / f"teacher_{steps}" / "latents.safetensors")
    return [stored[name] for name in sorted(stored, key=int)]


def distances(latents: list[Tensor], reference: list[Tensor]) -> list[float]:
    """Root mean square difference, one per clip."""
    return [(x - y).square().mean().sqrt().item() for x, y in zip(latents, reference, strict=True)]
