"""A recipe in a few lines, as `distill check` shows it. Imports no torch."""

from . import recipe as recipes
from . import registry
from .data.spec import Trajectories, Videos
from .places import Lora


def describe(recipe: recipes.Recipe) -> list[str]:
    video, train = recipe.video, recipe.train
    return [
        f"teacher   {recipe.teacher.family} {recipe.teacher.path}",
        f"video     {video.frames} frames of {video.height} x {video.width} pixels, {video.fps} fps",
        *([f"records   {recorded(recipe.data.trajectories)}"] if recipe.data.trajectories else []),
        *([f"videos    {real(recipe.data.videos)}"] if recipe.data.videos else []),
        f"method    {recipe.method.name}: {changed(recipe.method)}",
        *(f"optim     {name}: lr {o.lr:g}, {o.schedule}" for name, o in recipe.optim.items()),
        f"train     {train.batch_size} samples per update, {train.micro_batch_size} at a time, {train.precision}",
        *([f"lora      {adapters(recipe.lora)}"] if recipe.lora else []),
        f"output    {recipe.output}",
    ]


def adapters(lora: Lora) -> str:
    where = ", ".join(lora.targets) if lora.targets else "every linear layer of the blocks"
    return f"rank {lora.rank}, alpha {lora.rank if lora.alpha is None else lora.alpha:g}, on {where}"


def recorded(asked: Trajectories) -> str:
    sampler = f"{asked.steps} steps, shift {asked.shift:g}, guidance {asked.guidance:g}"
    return f"{asked.records} trajectories of {sampler}; keep {asked.keep} in {asked.precision}; {asked.path}"


def real(asked: Videos) -> str:
    rendered = f", {asked.clips} clips" if asked.clips else ""
    taken = "curated" if asked.curation else "as they are"
    return f"of {asked.source}{rendered}, {taken}; {asked.precision}; {asked.path}"


def changed(method: recipes.MethodSpec) -> str:
    """The options that differ from the constructor's defaults."""
    defaults = {name: field.default for name, field in registry.options(method.name).model_fields.items()}
    said = [f"{name} {value}" for name, value in method.options.items() if value != defaults[name]]
    return ", ".join(said) or "all defaults"
