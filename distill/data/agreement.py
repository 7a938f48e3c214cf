"""What a recipe asks of a trajectory store, and in what a store differs from it."""

from collections.abc import Iterator, Sequence

from torch import Tensor

from .. import flow, image_prompt
from ..errors import UserError
from .trajectories import VERSION, Store

SAME_LEVEL = 1e-6
OPTIONS = ("seed", "steps", "shift", "guidance", "precision", "keep")
NOT_COMPARED = ("teacher.family", "teacher.path", "latent_shape", "levels")  # they follow from others, or may differ
OF_NEW_RECORDS = ("keep", "network_precision")  # compared where records are written
RECIPE_KEYS = {name: f"data.trajectories.{name}" for name in OPTIONS} | {
    "teacher.fingerprint": "a teacher of fingerprint",
    "negative_prompt": "data.negative_prompt",
    "max_sequence_length": "teacher.max_sequence_length",
    "network_precision": "train.precision",
}


def settings(recipe, teacher) -> dict:
    """What index.json says of the records that a recipe asks for."""
    said, video = recipe.data.trajectories, recipe.video
    grid = flow.grid(said.steps, said.shift).tolist()
    return {
        "version": VERSION,
        "teacher": {"family": recipe.teacher.family, "path": recipe.teacher.path, "fingerprint": teacher.fingerprint},
        "video": {"frames": video.frames, "height": video.height, "width": video.width},
        "latent_shape": list(teacher.latent_shape(video.frames, video.height, video.width)),
        "negative_prompt": negative_prompt(recipe, teacher),
        "max_sequence_length": teacher.max_sequence_length,
        "network_precision": recipe.train.precision,
        **{name: getattr(said, name) for name in OPTIONS},
        "levels": [grid[i] for i in kept(said.steps, said.keep)],
    }


def negative_prompt(recipe, teacher) -> str:
    said = recipe.data.negative_prompt
    if said is not None and teacher.guidance_embedded:
        raise UserError(
            f"data.negative_prompt has no effect: {teacher.family} is told the guidance scale; leave it out"
        )
    return teacher.negative_prompt if said is None else said


def kept(steps: int, keep: int | str) -> range:
    """The indices into the recorder's grid of the latents that are kept."""
    return range(0, steps + 1, 1 if keep == "all" else steps // keep)


def differences(store: Store, asked: dict, prompts: Sequence[str], records: int, writing: bool = False) -> list[str]:
    """A line for everything in which the store is not what a recipe asks for.

    Args:
        writing: records are about to be written, though none is missing.
    """
    was, now = dict(leaves("", store.info)), dict(leaves("", asked))
    skipped = NOT_COMPARED + (() if writing or store.missing(records, records) else OF_NEW_RECORDS)
    keys = [key for key in now if key not in skipped and was.get(key) != now[key]]
    found = [f"recorded with {RECIPE_KEYS.get(key, key)} {was.get(key)!r}, the recipe has {now[key]!r}" for key in keys]
    found += _other_prompt(store, prompts, records)
    remedy = "change the recipe back, or record another store with data.trajectories.path=NEW_FOLDER"
    return [f"{store.path}: {line}; {remedy}" for line in found]


def _other_prompt(store: Store, prompts: Sequence[str], records: int) -> list[str]:
    """A line for the first record of another prompt, or image."""
    for shard in store.shards:
        for sample, prompt, image in zip(shard.samples, shard.prompts, shard.images, strict=True):
            expected = prompts[sample % len(prompts)]
            if sample < records and prompt != expected:
                return [f"record {sample} was made from prompt {prompt!r}, data.prompts has {expected!r} there"]
            if sample < records and image != image_prompt.content(prompt):
                path, _ = image_prompt.split(prompt)
                return [f"record {sample} was made from what {path} showed before it was changed"]
    return []


def places(wanted: Tensor, recipe, stored: Sequence[float], where: str) -> list[int]:
    """The places of a method's noise levels among those that are stored.

    Raises:
        UserError: one is not stored; says what to change.
    """
    said = recipe.data.trajectories
    found = [min(range(len(stored)), key=lambda i: abs(stored[i] - level)) for level in wanted.tolist()]
    lost = [level for i, level in zip(found, wanted.tolist(), strict=True) if abs(stored[i] - level) > SAME_LEVEL]
    if not lost:
        return found
    on_grid = (flow.grid(said.steps, said.shift) - lost[0]).abs().min() <= SAME_LEVEL
    change = "keep=all" if on_grid else f"steps and shift, now {said.steps} and {said.shift:g}, to the method's"
    levels = ", ".join(f"{level:.4g}" for level in stored)
    raise UserError(
        f"{where} keeps the noise levels {levels}; the method {recipe.method.name} asks for {lost[0]:.4g}, too: "
        f"set data.trajectories.{change} (and a new path, if the store exists)"
    )


def leaves(prefix: str, value) -> Iterator[tuple[str, object]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(f"{prefix}.{key}" if prefix else key, inner)
    else:
        yield prefix, value
