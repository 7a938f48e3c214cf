"""Clips of a run's student, of a pipeline's folder, or of the embedded teacher.

Noise is drawn as diffusers' pipelines draw it from `torch.Generator().manual_seed(seed)`, so they make the same clip.
"""

import json
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from safetensors.torch import save_file
from torch import Tensor

from . import flow, image_prompt, samplers, student, teachers, video
from . import half_rate as interpolators
from .batch import Condition
from .data import agreement
from .engine import Role
from .errors import UserError
from .method import Method
from .networks import Net
from .recipe import TeacherSpec, Video
from .samplers import Half
from .teachers.base import Teacher
from .teachers.files import PipelineFiles
from .validation import Sampler

WAN = {"frames": 81, "height": 480, "width": 832, "fps": 16}
HUNYUAN = {"frames": 129, "height": 720, "width": 1280, "fps": 24}
SETTINGS = {  # of pipelines that do not say, as diffusers has them
    "WanPipeline": {"family": "wan", "steps": 50, "guidance": 5.0, "video": WAN},
    "WanImageToVideoPipeline": {"family": "wan_i2v", "steps": 50, "guidance": 5.0, "video": WAN},
    "HunyuanVideoPipeline": {"family": "hunyuan_video", "steps": 50, "guidance": 6.0, "video": HUNYUAN},
}


@dataclass
class Source:
    """A network that makes clips, and how it makes them unless told otherwise.

    Attributes:
        own: the sampler of a distilled student, which takes `steps` steps without guidance; None is Euler.
        levels: the noise levels of those steps; None is the grid of `shift`.
        alone: why it can take no other number of steps, if it cannot.
        renoises: its steps add noise anew (samplers.renoise).
        ends: it is told where each step ends (teachers/ends.py).
        at_half_rate: `own` with its first steps at half the frame rate.
        interpolator: where the one is that it needs, unless told otherwise.
    """

    teacher: Teacher
    net: Net
    shift: float
    steps: int
    guidance: float
    video: Video
    negative_prompt: str
    own: Sampler | None = None
    levels: Tensor | None = None
    alone: str | None = None
    renoises: bool = False
    ends: bool = False
    at_half_rate: Callable[[Tensor, Condition, Half], Tensor] | None = None
    interpolator: Path | None = None

    def sampler(self, steps: int | None, guidance: float | None) -> Sampler:
        """Steps and guidance as asked for, or as this source has them."""
        steps, guidance = steps or self.steps, self.guidance if guidance is None else guidance
        unguided = guidance == self.teacher.own_guidance
        if self.own is not None and unguided and steps == self.steps:
            return self.own
        sigmas = self.sigmas(steps)
        if unguided and self.renoises:
            return lambda noise, cond: samplers.renoise(self.net, noise, sigmas, cond)
        if unguided:
            return lambda noise, cond: samplers.euler(self.net, noise, sigmas, cond, ends=self.ends)
        if self.renoises or self.ends:
            raise UserError(
                f"--guidance {guidance:g}: the steps of this student are made without guidance; leave it out"
            )
        negative = self.teacher.encode([self.negative_prompt]).to(self.teacher.device)
        return lambda noise, cond: samplers.euler(self.net, noise, sigmas, cond, negative.expand(len(noise)), guidance)

    def half_sampler(
        self, half_steps: int, interpolator: Path | None, steps: int | None, guidance: float | None
    ) -> Sampler:
        """Its own sampler, so many steps of it at half the frame rate."""
        if self.at_half_rate is None:
            raise UserError("--half-rate: that is for students; a teacher's steps are not made for it")
        if steps not in (None, self.steps) or guidance not in (None, self.teacher.own_guidance):
            raise UserError("--half-rate goes with the student's own steps and guidance; leave out --steps, --guidance")
        path = interpolator or self.interpolator
        if path is None:
            raise UserError(f"--half-rate needs --interpolator RUN|FOLDER; {interpolators.TRAIN}")
        half = interpolators.half(path, half_steps, self.levels, self.teacher, "--half-rate")
        return lambda noise, cond: self.at_half_rate(noise, cond, half)

    def sigmas(self, steps: int) -> Tensor:
        """So many levels; UserError if this source was made for levels of its own that no shift gives."""
        if self.levels is None:
            return flow.grid(steps, self.shift)
        if steps == self.steps:
            return self.levels
        try:
            if self.alone:
                raise ValueError(self.alone)
            return flow.grid(steps, flow.grid_shift(self.levels))
        except ValueError as error:
            raise UserError(f"--steps {steps}: this student knows {self.steps} alone; {error}") from error

    def noise(self, seed: int) -> Tensor:
        """(1, C, F, H, W)."""
        shape = self.teacher.latent_shape(self.video.frames, self.video.height, self.video.width)
        return torch.randn(1, *shape, generator=torch.Generator().manual_seed(seed)).to(self.teacher.device)


def sample(
    source: str,
    prompts: Sequence[str],
    *,
    steps: int | None = None,
    seed: int = 0,
    guidance: float | None = None,
    out: Path = Path("samples"),
    latents: bool = False,
    half_rate: int | None = None,
    interpolator: Path | None = None,
) -> list[Path]:
    """Write one clip per prompt, the first from `seed`, the next from `seed + 1`, and so on; returns the files.

    Args:
        source: a run, a pipeline's folder or hub id, or `embedded`.
        steps, guidance: None is what a student was distilled for, or what a teacher's pipeline does.
        latents: write them too, as safetensors beside the clips.
        half_rate: so many of a student's steps at half the frame rate.
        interpolator: a run or a folder; None is the one that the student's recipe names, or its export carries.
    """
    if interpolator is not None and half_rate is None:
        raise UserError(f"--interpolator {interpolator} has no effect without --half-rate N")
    opened = open_source(source)
    if half_rate is None:
        sampler = opened.sampler(steps, guidance)
    else:
        sampler = opened.half_sampler(half_rate, interpolator, steps, guidance)
    image_prompt.check(prompts, opened.teacher)
    cond = opened.teacher.encode(list(prompts))
    opened.teacher.unload()
    out.mkdir(parents=True, exist_ok=True)
    jobs = track(range(len(prompts)), "sampling", console=Console(stderr=True), disable=not sys.stderr.isatty())
    return [_clip(opened, sampler, cond.rows([j]), out / _name(prompts[j], seed + j), seed + j, latents) for j in jobs]


def open_source(source: str) -> Source:
    folder = Path(source)
    if (folder / "recipe.yaml").is_file():
        return _of_run(folder)
    if folder.is_dir() and not (folder / "model_index.json").is_file():
        raise UserError(f"{source} is neither a run (recipe.yaml) nor a pipeline's folder (model_index.json)")
    return _of_pipeline(source)


def _of_run(run: Path) -> Source:
    found = student.load(run)
    return of_method(found.method, found.teacher, found.recipe)


def of_method(method: Method, teacher: Teacher, recipe) -> Source:
    """The student of a method, in the stage that it is in."""
    levels = method.grid()
    return Source(
        teacher=teacher,
        net=method.student,
        shift=method.teacher_shift(),
        steps=len(levels) - 1,
        guidance=teacher.own_guidance,
        video=recipe.video,
        negative_prompt=agreement.negative_prompt(recipe, teacher),
        own=method.sample,
        levels=levels,
        alone=_told_others(method.told_grid(), levels),
        renoises=method.renoises,
        ends=method.ends,
        at_half_rate=method.sample_half_rate,
        interpolator=recipe.half_rate.interpolator if recipe.half_rate else None,
    )


def _told_others(told: Tensor, levels: Tensor) -> str | None:
    """None where a network is told the levels as they are, but for rounding."""
    same = torch.allclose(told.double(), levels.double(), rtol=0, atol=1e-6)
    return None if same else f"it is told other noise levels, {[round(x, 4) for x in told.tolist()]}"


def _of_pipeline(path: str) -> Source:
    """Exported students, and the embedded teacher, have a distill.json that says how they are used."""
    files = PipelineFiles(teachers.locate(path))
    name, card = files.json("model_index.json").get("_class_name"), files.folder() / "distill.json"
    said = SETTINGS.get(name, SETTINGS["WanPipeline"]) | (json.loads(card.read_text()) if card.is_file() else {})
    spec = TeacherSpec(family=said["family"], path=path, max_sequence_length=said.get("max_sequence_length"))
    size = Video(**said["video"])
    teacher = teachers.load(spec, size)
    net = Net(Role("network", teacher.network().eval(), device=teacher.device))
    return Source(
        teacher=teacher,
        net=net,
        shift=teacher.shift,
        steps=said["steps"],
        guidance=said["guidance"],
        video=size,
        negative_prompt=said.get("negative_prompt", teacher.negative_prompt),
        **(_exported(net, said, files) if "sigmas" in said else {}),
    )


def _exported(net: Net, said: dict, files: PipelineFiles) -> dict:
    """How an exported student samples (export.settings)."""
    levels = torch.tensor(said["sigmas"], dtype=torch.float64)
    told, renoises = torch.tensor(said.get("told", said["sigmas"])), said.get("renoises", False)

    def own(noise: Tensor, cond: Condition) -> Tensor:
        if renoises:
            return samplers.renoise(net, noise, levels, cond, told)
        return samplers.euler(net, noise, levels, cond)

    def at_half_rate(noise: Tensor, cond: Condition, half: Half) -> Tensor:
        return samplers.half_rate(net, noise, levels, cond, half, renoises=renoises, told=told)

    carried = interpolators.FOLDER in files.json("model_index.json")
    interpolator = files.folder(interpolators.FOLDER) / interpolators.FOLDER if carried else None
    return {
        "own": own,
        "levels": levels,
        "alone": "its export has their ends built in" if said.get("ends") else _told_others(told, levels),
        "renoises": renoises,
        "at_half_rate": at_half_rate,
        "interpolator": interpolator,
    }


@torch.no_grad()
def _clip(source: Source, sampler: Sampler, cond: Condition, path: Path, seed: int, keep: bool) -> Path:
    x = sampler(source.noise(seed), cond.to(source.teacher.device))
    if keep:
        save_file({"latents": x.cpu()}, path.with_suffix(".safetensors"))
    return video.write(path, source.teacher.decode(x)[0], source.video.fps)


def _name(prompt: str, seed: int) -> str:
    words = re.sub(r"[^a-z0-9]+", "_", image_prompt.text(prompt).lower()).strip("_")
    return f"{words[:60].rstrip('_') or 'clip'}_{seed}.mp4"
