"""A run's student as a pipeline's folder that stock diffusers runs, with a model card; reloaded and compared.

The folder's scheduler takes Euler steps on the levels that the student was trained on (FlowMapEulerDiscreteScheduler;
FlowMatchEulerDiscreteScheduler would shift them twice).
"""

import json
import shutil
from collections import Counter
from importlib import metadata
from pathlib import Path

import jinja2
import torch

from . import environment, flow, image_prompt, student, teachers, track, yaml_source
from .errors import UserError
from .student import Student

CARD, SETTINGS = "README.md", "distill.json"
EXAMPLE = "example.png"  # of families that start from an image
TOLERANCE = 1e-5
PROMPT = "a red circle moves right on a white background"  # compared on this and a clip of at most these sizes
SMALL = {"frames": 9, "height": 64, "width": 64}


def export(run: Path, folder: Path, update: int | None = None) -> Path:
    """Write the student after an update (None: the newest checkpoint) to a folder; an earlier export is replaced.

    Raises:
        UserError: no checkpoint, no scheduler has the student's levels, the folder holds something else, or the
            stock pipeline does not make the student's latents.
    """
    if folder.exists() and not (folder / SETTINGS).is_file():
        raise UserError(f"{folder} exists and is no earlier export; name another folder")
    found = student.load(run, update)
    shift = _shift(run, found)
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    found.teacher.save(partial, found.method.student.role.module, shift)
    if found.teacher.takes_images:
        image_prompt.draw_example(partial / EXAMPLE)
    facts = settings(found, shift) | {"difference": difference(partial, found), "cost": cost(run, found.update)}
    (partial / SETTINGS).write_text(json.dumps(facts, indent=1) + "\n")
    (partial / CARD).write_text(card(folder.name, facts))
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    return folder


def _shift(run: Path, found: Student) -> float:
    if found.method.renoises:
        name = found.recipe.method.name
        raise UserError(
            f"{run}: students of {name} add noise anew between their steps, and stock schedulers take Euler steps; "
            f"such a student is not exported, only sampled: distill sample {run}"
        )
    try:
        return flow.grid_shift(found.method.grid())
    except ValueError as error:
        raise UserError(f"{run}: no scheduler reproduces the student of update {found.update}: {error}") from error


@torch.no_grad()
def difference(folder: Path, found: Student) -> float:
    """The largest difference between the student's latents and those of the folder's stock pipeline; UserError if it
    is not rounding."""
    method, video = found.method, found.recipe.video
    size = {name: min(getattr(video, name), most) for name, most in SMALL.items()}
    teacher = teachers.load(found.recipe.teacher, video.model_copy(update=size))
    prompt = image_prompt.join(folder / EXAMPLE, PROMPT) if teacher.takes_images else PROMPT
    noise = torch.randn(1, *teacher.latent_shape(**size), generator=torch.Generator().manual_seed(0)).to(teacher.device)
    ours = method.sample(noise, teacher.encode([prompt]).to(teacher.device))
    teacher.unload()
    theirs = teacher.sample_saved(folder, prompt, noise, steps=len(method.grid()) - 1)
    largest = (ours - theirs).abs().max().item()
    if not largest <= TOLERANCE:
        raise UserError(f"{folder}: the stock pipeline's latents differ by {largest:.2g} from the student's")
    return largest


def settings(found: Student, shift: float) -> dict:
    """What one must know to use the student, and where it comes from."""
    recipe, grid = found.recipe, found.method.grid()
    return {
        "family": recipe.teacher.family,
        "pipeline": found.teacher.pipeline,
        "steps": len(grid) - 1,
        "guidance": found.teacher.own_guidance,
        "shift": shift,
        "sigmas": grid.tolist(),
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
    shown = {key: facts["recipe"][key] for key in ("method", "optim", "train")}
    return template.get_template("model_card.md.j2").render(
        facts,
        name=name,
        method=facts["recipe"]["method"]["name"],
        dtype="bfloat16" if facts["recipe"]["train"]["precision"] == "bf16" else "float32",
        options=yaml_source.dump(shown),
        diffusers=metadata.version("diffusers"),
    )
