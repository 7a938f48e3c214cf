"""Build what a recipe describes, without weights, and count: parameters, stages, updates, evaluations."""

import torch

from . import assemble, teachers
from .data import agreement, prompts
from .method import Built, Frozen, Method
from .recipe import Recipe


def describe(recipe: Recipe) -> list[str]:
    """Lines for people."""
    method = assemble.method(recipe)
    teacher = teachers.load(recipe.teacher, recipe.video)
    video = recipe.video
    shape = teacher.latent_shape(video.frames, video.height, video.width)
    lines = [
        f"latents   {' x '.join(map(str, shape))} (channels, frames, height, width)",
        *([f"prompts   {len(prompts.read(given))} in {given}"] if (given := recipe.data.prompts) else []),
    ]
    if recipe.data.trajectories:
        agreement.places(method.levels(), recipe, agreement.settings(recipe, teacher)["levels"], "the recipe")
    for name, count in parameters(method, teacher).items():
        kind = type(method.networks[name]).__name__
        own = _own(name, method, teacher, recipe)
        lines.append(f"network   {name}: {kind}, {count / 1e6:.4g} M parameters{own}")
    for i, counts in enumerate(assemble.updates(method, stage) for stage in assemble.stages(method, recipe)):
        said = ", ".join(f"{count} of {name}" for name, count in counts.items())
        lines.append(f"stage {i + 1:3} {said} updates")
    return [
        *lines,
        *([f"sampling  {len(method.grid()) - 1} evaluations per clip"] if "student" in method.networks else []),
    ]


def _own(name: str, method: Method, teacher, recipe: Recipe) -> str:
    """What of a network is its own, where it shares the rest."""
    if recipe.lora is None or isinstance(method.networks[name], Frozen | Built):
        return ""
    from .teachers.adapters import SharedBase  # imports peft

    base = SharedBase(teacher.network(device="meta"), recipe.lora, recipe.train.seed)
    role = base.role(name, adapted=True, ends=assemble.told_ends(method.networks, name), device="meta")
    return f", {sum(p.numel() for p in role.parameters) / 1e6:.4g} M of them its own"


def parameters(method: Method, teacher) -> dict[str, int]:
    """Network -> its number of parameters."""
    with torch.device("meta"):
        own = {
            n: getattr(method, f"build_{n}")(teacher) for n, kind in method.networks.items() if isinstance(kind, Built)
        }
    whole = teacher.network(device="meta")
    return {n: sum(p.numel() for p in own.get(n, whole).parameters()) for n in method.networks}
