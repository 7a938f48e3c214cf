"""A student whose first steps are at half the frame rate: finding the interpolator that it needs, and what must fit.

An interpolator is a run of a method that trains a network of that name, or a folder: config.json, safetensors, and a
distill.json that says which latents it was trained on (interpolation.py has the network).
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from . import assemble, checkpoint, disk, samplers, teachers
from . import recipe as recipes
from .errors import UserError
from .interpolation import Interpolator
from .teachers.base import Teacher

NETWORK = FOLDER = "interpolator"
FACTS, CONFIG, WEIGHTS = "distill.json", "config.json", "diffusion_pytorch_model.safetensors"
TRAIN = "train one with `distill run recipes/interpolator_tiny.yaml`, or another recipe of the method interpolator"


@dataclass(frozen=True)
class Found:
    """An interpolator, in evaluation mode.

    Attributes:
        facts: whose latents it was trained on: `family` and `teacher`, and `vae` (Teacher.vae_fingerprint).
    """

    path: Path
    network: Interpolator
    facts: dict


def of_recipe(recipe, method, teacher: Teacher) -> samplers.Half | None:
    """What the recipe's section half_rate asks for, or None; UserError if it does not fit the method or the teacher.

    Args:
        method: in the stage whose student is meant.
    """
    asked = recipe.half_rate
    if asked and method.ends:
        raise UserError(
            f"half_rate: a student of {recipe.method.name} knows its own steps alone; leave the section out"
        )
    return None if asked is None else half(asked.interpolator, asked.steps, method.grid(), teacher, "half_rate")


def half(path: Path, steps: int, sigmas: torch.Tensor, teacher: Teacher, where: str) -> samplers.Half:
    """The first `steps` steps at half the frame rate; UserError if the interpolator or the number does not fit.

    Args:
        path: a run that trains an interpolator, its folder, or an exported student that has one.
        sigmas: the student's noise levels.
        where: what the message calls the setting.
    """
    if teacher.takes_images:
        raise UserError(f"{where}: {teacher.family} starts from an image, whose condition is made for the full rate")
    channels, frames, *_ = teacher.latent_shape(teacher.video.frames, teacher.video.height, teacher.video.width)
    try:
        samplers.check_half(steps, len(sigmas) - 1, frames)
    except ValueError as error:
        raise UserError(f"{where}: {error}") from error
    found = load(path)
    _check(found, teacher, channels, where)
    return samplers.Half(steps, found.network.to(teacher.device))


def load(path: Path) -> Found:
    """UserError if there is none."""
    if (path / "recipe.yaml").is_file():
        return of_run(path)
    inner = path / FOLDER if (path / FOLDER).is_dir() else path
    if not (inner / CONFIG).is_file():
        raise UserError(f"{path} is neither a run (recipe.yaml) nor an interpolator's folder ({CONFIG}); {TRAIN}")
    return _of_folder(inner)


def save(found: Found, folder: Path) -> None:
    """Write a folder that `load` reads, and that diffusers' stock loader does."""
    found.network.save_pretrained(folder)
    (folder / FACTS).write_text(json.dumps(found.facts, indent=1) + "\n")
    for name in (CONFIG, WEIGHTS, FACTS):
        disk.sync(folder / name)


def trains_one(recipe) -> bool:
    """Whether a recipe's run is that of an interpolator."""
    networks = assemble.method(recipe).networks
    return NETWORK in networks and "student" not in networks


def of_run(run: Path, update: int | None = None) -> Found:
    """A run's interpolator after an update (None: the newest checkpoint)."""
    recipe = recipes.load(run / "recipe.yaml")
    method = assemble.method(recipe)
    if NETWORK not in method.networks:
        raise UserError(f"{run} is a run of {recipe.method.name}, which trains no interpolator; {TRAIN}")
    teacher = teachers.load(recipe.teacher, recipe.video)
    network = method.build_interpolator(teacher)
    if not isinstance(network, Interpolator):
        raise UserError(f"{run} trains a {type(network).__name__}; half rate needs distill.interpolation.Interpolator")
    network.load_state_dict(checkpoint.load_network(run, NETWORK, update))
    facts = {"family": teacher.family, "teacher": teacher.path, "vae": teacher.vae_fingerprint}
    return Found(run, network.eval(), facts)


def _of_folder(folder: Path) -> Found:
    try:
        facts = json.loads((folder / FACTS).read_text())
        network = Interpolator.from_config(json.loads((folder / CONFIG).read_text()))
        network.load_state_dict(load_file(folder / WEIGHTS))
        return Found(folder, network.eval(), {name: facts[name] for name in ("family", "teacher", "vae")})
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{folder} holds no whole interpolator ({reason}); export its run anew") from error


def _check(found: Found, teacher: Teacher, channels: int, where: str) -> None:
    """The VAE says it all: teachers of several sizes share one."""
    theirs, facts = found.network.config.channels, found.facts
    if facts["vae"] != teacher.vae_fingerprint or theirs != channels:
        raise UserError(
            f"{where}: {found.path} was trained on latents of {facts['teacher']} ({facts['family']}, {theirs} channels,"
            f" VAE {facts['vae']}); those of {teacher.path} are others ({teacher.family}, {channels} channels,"
            f" VAE {teacher.vae_fingerprint}); {TRAIN}"
        )
