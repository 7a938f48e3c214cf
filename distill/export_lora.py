"""A run's student as LoRA files for its teacher's pipeline, with the scheduler of its steps; reloaded and compared."""

import json
import shutil
import tempfile
import warnings
from pathlib import Path

from diffusers import FlowMapEulerDiscreteScheduler

from . import assemble, checkpoint, image_prompt
from .errors import UserError
from .export import CARD, EXAMPLE, SETTINGS, card, cost, differences, settings, stock_shift, write_playback
from .student import Student
from .teachers.base import Teacher


def write(run: Path, found: Student, folder: Path, name: str) -> None:
    """Write adapters, scheduler, card and settings to a new folder.

    Raises:
        UserError: the student is more than adapters, or the stock pipeline with them does not make its latents.
    """
    from .teachers import lora_files  # imports peft

    _check(run, found)
    lora, pipeline = found.recipe.lora, found.teacher.pipeline
    which = assemble.EMA if found.recipe.train.ema is not None else "student"
    weights = checkpoint.load_network(run, which, found.update)
    folder.mkdir(parents=True)
    lora_files.save_diffusers(pipeline, folder, weights, lora)
    sizes = found.teacher.network(device="meta")
    if nameless := lora_files.save_comfyui(pipeline, folder, weights, lora, sizes):
        some = f"{nameless[0]} and {len(nameless) - 1} more" if len(nameless) > 1 else nameless[0]
        warnings.warn(f"no file for ComfyUI, which is not known to have {some}", stacklevel=2)
    if found.teacher.takes_images:
        image_prompt.draw_example(folder / EXAMPLE)
    shift = stock_shift(found)
    with tempfile.TemporaryDirectory(prefix=f"{name}_", dir=folder.parent) as stand:
        place_pipeline(Path(stand), found, shift)
        shutil.copytree(Path(stand) / "scheduler", folder / "scheduler")
        facts = settings(found, shift) | {"cost": cost(run, found.update)}
        facts |= differences(Path(stand), found, None, lora=folder)
    facts |= {"adapters": {"base": found.teacher.path, "comfyui": not nameless}}
    (folder / SETTINGS).write_text(json.dumps(facts, indent=1) + "\n")
    (folder / CARD).write_text(card(name, facts))


def _check(run: Path, found: Student) -> None:
    if found.recipe.lora is None:
        raise UserError(f"--lora: {run} trained whole networks, its recipe has no section lora; leave it out")
    if found.method.ends:
        raise UserError(
            f"--lora: the student of {run} is told where its steps end, which changes its embedding of time as a whole;"
            " leave it out for a whole pipeline"
        )
    if found.recipe.half_rate:
        raise UserError(f"--lora: {run} has a section half_rate, whose interpolator comes with a whole pipeline only")


def place_pipeline(folder: Path, found: Student, shift: float | None) -> None:
    """The teacher's pipeline, by links to its files, with the scheduler of the student's steps."""
    source = _source(found.teacher)
    for part in source.iterdir():
        if part.name not in ("scheduler", "model_index.json"):
            (folder / part.name).symlink_to(part.resolve())
    scheduler = {"scheduler": ["diffusers", "FlowMapEulerDiscreteScheduler"]}
    index = json.loads((source / "model_index.json").read_text()) | scheduler
    (folder / "model_index.json").write_text(json.dumps(index))
    FlowMapEulerDiscreteScheduler(shift=1.0 if shift is None else shift).save_pretrained(folder / "scheduler")
    if shift is None:
        write_playback(folder, found, None)
    if found.teacher.takes_images and not (folder / EXAMPLE).exists():
        image_prompt.draw_example(folder / EXAMPLE)


def _source(teacher: Teacher) -> Path:
    index = teacher.files.json("model_index.json")
    return teacher.files.folder(*(name for name in index if not name.startswith("_")))
