"""A run's student as a pipeline's folder that diffusers runs, with a model card; reloaded and compared.

Euler steps on a shifted grid are those of a stock scheduler (FlowMapEulerDiscreteScheduler;
FlowMatchEulerDiscreteScheduler would shift them twice). Any other student brings its scheduler along, and one with a
section half_rate its interpolator and a pipeline besides (distill/playback).
"""

import json
import shutil
from collections import Counter
from importlib import metadata
from pathlib import Path

import jinja2
import torch
from torch import nn

from . import environment, flow, half_rate, image_prompt, interpolation, playback, student, teachers, track, yaml_source
from . import recipe as recipes
from .errors import UserError
from .method import Method
from .playback.student_scheduler import StudentScheduler
from .samplers import Half
from .student import Student

CARD, SETTINGS = "README.md", "distill.json"
EXAMPLE = "example.png"  # of families that start from an image
TOLERANCE = 1e-5
PROMPT = "a red circle moves right on a white background"  # compared on this and a clip of at most these sizes
SMALL = {"frames": 9, "height": 64, "width": 64}
PLAYBACK = Path(playback.__file__).parent
HALF_RATE = "half_rate"  # the file of the pipeline that plays it


def export(run: Path, folder: Path, update: int | None = None, lora: bool = False) -> Path:
    """Write the student after an update (None: the newest checkpoint) to a folder; an earlier export is replaced.

    Of a run that trains an interpolator, the interpolator.

    Args:
        lora: the student's adapters alone (export_lora.py).

    Raises:
        UserError: no checkpoint, the folder holds something else, or the reloaded pipeline does not make the student's
            latents.
    """
    if folder.exists() and not (folder / SETTINGS).is_file():
        raise UserError(f"{folder} exists and is no earlier export; name another folder")
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    if half_rate.trains_one(recipes.load(run / "recipe.yaml")):
        if lora:
            raise UserError(f"--lora: {run} trains an interpolator, which has no adapters; leave it out")
        half_rate.save(half_rate.of_run(run, update), partial)
    elif lora:
        from . import export_lora  # imports this file

        export_lora.write(run, student.load(run, update), partial, folder.name)
    else:
        _write(run, student.load(run, update), partial, folder.name)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    return folder


def _write(run: Path, found: Student, folder: Path, name: str) -> None:
    shift, half = stock_shift(found), half_rate.of_recipe(found.recipe, found.method, found.teacher)
    folder.mkdir(parents=True)
    found.teacher.save(folder, _stock(found.method), 1.0 if shift is None else shift)
    if shift is None:
        write_playback(folder, found, half)
    if found.teacher.takes_images:
        image_prompt.draw_example(folder / EXAMPLE)
    facts = settings(found, shift) | {"cost": cost(run, found.update)} | differences(folder, found, half)
    (folder / SETTINGS).write_text(json.dumps(facts, indent=1) + "\n")
    (folder / CARD).write_text(card(name, facts))


def _stock(method: Method) -> nn.Module:
    """The student's network as diffusers knows it."""
    network = method.student.role.module
    return network.folded(method.grid().tolist()) if method.ends else network


def stock_shift(found: Student) -> float | None:
    """Of the stock scheduler that takes the student's steps; None if none does."""
    if found.method.renoises or found.recipe.half_rate:
        return None
    try:
        return flow.grid_shift(found.method.grid())
    except ValueError:
        return None


def write_playback(folder: Path, found: Student, half: Half | None) -> None:
    """Put the student's own scheduler in a pipeline's folder and, for half rate, its interpolator and the pipeline."""
    shutil.rmtree(folder / "scheduler")
    levels = {"sigmas": found.method.grid().tolist(), "told": found.method.told_grid()[:-1].tolist()}
    scheduler = StudentScheduler(**levels, renoises=found.method.renoises, half_rate=half.steps if half else 0)
    scheduler.save_pretrained(folder / "scheduler")
    shutil.copy(PLAYBACK / "student_scheduler.py", folder / "scheduler")
    parts = {"scheduler": ["student_scheduler", "StudentScheduler"]}
    if half:
        half_rate.save(half_rate.load(found.recipe.half_rate.interpolator), folder / half_rate.FOLDER)
        shutil.copy(interpolation.__file__, folder / half_rate.FOLDER)
        shutil.copy(PLAYBACK / f"half_rate_{found.teacher.family}.py", folder / f"{HALF_RATE}.py")
        parts[half_rate.FOLDER] = ["interpolation", "Interpolator"]
    index = json.loads((folder / "model_index.json").read_text()) | parts
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")


@torch.no_grad()
def differences(folder: Path, found: Student, half: Half | None, lora: Path | None = None) -> dict[str, float]:
    """The largest difference between the student's latents and those of the reloaded folder, and the same at half
    rate; UserError if it is not rounding. Takes the student's weights away: the folder's are another copy.

    Args:
        lora: a folder with adapters for the pipeline.
    """
    size = {name: min(getattr(found.recipe.video, name), most) for name, most in SMALL.items()}
    teacher = teachers.load(found.recipe.teacher, found.recipe.video.model_copy(update=size))
    prompt = image_prompt.join(folder / EXAMPLE, PROMPT) if teacher.takes_images else PROMPT
    channels, frames, *sides = teacher.latent_shape(**size)
    noise = torch.randn(1, channels, 3 if half else frames, *sides, generator=torch.Generator().manual_seed(0))
    noise, cond = noise.to(teacher.device), teacher.encode([prompt]).to(teacher.device)
    teacher.unload()
    method, steps = found.method, len(found.method.grid()) - 1
    ours = {"difference": method.sample(noise, cond)}
    if half:
        ours["difference_half_rate"] = method.sample_half_rate(noise, cond, half)
    method.student.role.module.to("meta")
    pipelines = {"difference": None, "difference_half_rate": HALF_RATE}
    return {
        name: _largest(folder, made, teacher.sample_saved(folder, prompt, noise, steps, pipelines[name], lora))
        for name, made in ours.items()
    }


def _largest(folder: Path, ours: torch.Tensor, theirs: torch.Tensor) -> float:
    largest = (ours - theirs).abs().max().item()
    if not largest <= TOLERANCE:
        raise UserError(f"{folder}: the stock pipeline's latents differ by {largest:.2g} from the student's")
    return largest


def settings(found: Student, shift: float | None) -> dict:
    """What one must know to use the student, and where it comes from."""
    recipe, grid = found.recipe, found.method.grid()
    return {
        "family": recipe.teacher.family,
        "pipeline": found.teacher.pipeline,
        "steps": len(grid) - 1,
        "guidance": found.teacher.own_guidance,
        "shift": shift,
        "teacher_shift": found.method.teacher_shift(),
        "sigmas": grid.tolist(),
        "told": found.method.told_grid().tolist(),
        "renoises": found.method.renoises,
        "ends": found.method.ends,
        "half_rate": recipe.half_rate.steps if recipe.half_rate else None,
        "video": recipe.video.model_dump(),
        "max_sequence_length": found.teacher.max_sequence_length,
        "example": EXAMPLE if found.teacher.takes_images else None,
        "update": found.update,
        "teacher": {"path": recipe.teacher.path, "fingerprint": found.teacher.fingerprint},
        "recipe": recipe.model_dump(mode="json"),
        "versions": environment.versions(),
    }


def cost(run: Path, update: int) -> dict:
    """Seconds and network evaluations of a run's first updates; where not all were logged, scaled up."""
    lines = [line for line in track.read(run) if line["kind"] == "update" and line["update"] <= update]
    logged: Counter[str] = Counter()
    for line in lines:
        logged.update(line["evaluations"])
    scale = update / max(len(lines), 1)
    seconds = sum(line["seconds"] for line in lines)
    return {"seconds": seconds * scale, "evaluations": {name: round(n * scale) for name, n in logged.items()}}


def card(name: str, facts: dict) -> str:
    """The model card."""
    loader = jinja2.PackageLoader("distill", "templates")
    template = jinja2.Environment(loader=loader, undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    shown = {key: facts["recipe"][key] for key in ("method", "optim", "train", "lora") if facts["recipe"][key]}
    return template.get_template("model_card.md.j2").render(
        {"adapters": None} | facts,
        name=name,
        method=facts["recipe"]["method"]["name"],
        dtype="bfloat16" if facts["recipe"]["train"]["precision"] == "bf16" else "float32",
        options=yaml_source.dump(shown),
        diffusers=metadata.version("diffusers"),
    )
