"""What is to be measured, opened: a run; an exported student or another pipeline beside a teacher; a teacher alone.

opened = open_evaluation("runs/tiny_gpd", {"steps": (2, 4)}, engine)
result = opened.result()                            # nothing that is kept is sampled or measured again
latents = opened.latents("student_4", [0, 5])       # of samples 0 and 5; opened.setting.pipeline.decode(latents)
"""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .. import assemble, exported, flow, half_rate, sample, student, teachers
from .. import recipe as recipes
from ..data import agreement
from ..data.prompts import Embeddings
from ..engine import Engine, Role
from ..errors import UserError
from ..networks import Net
from ..recipe import TeacherSpec
from ..sample import Source
from . import fidelity, measuring, runs
from .asked import Asked, of_section
from .measuring import Setting


@dataclass
class Opened:
    """An evaluation that can begin.

    Attributes:
        facts: what its result says beside the numbers (runs.facts).
        folder: where its result goes unless told otherwise.
    """

    setting: Setting
    facts: dict
    folder: Path
    engine: Engine

    def result(self, show: Callable[[float], None] = lambda done: None) -> dict:
        """The contents of evaluation.json; every process takes its share."""
        return fidelity.evaluate(self.setting, self.engine, show=show, facts=self.facts)

    def latents(self, sampler: str, rows: Sequence[int]) -> Tensor:
        """(N, C, F, H, W), float32 on the CPU: what a sampler made of these samples."""
        (column,) = (column for column in self.setting.columns if column.name == sampler)
        return measuring.latents(self.setting, column, rows)

    def unload(self) -> None:
        """Let the teacher's text encoder and VAE leave memory."""
        self.setting.pipeline.unload()


def open_evaluation(source: str, changes: dict | Asked, engine: Engine, *, teacher: str | None = None) -> Opened:
    """A run, an exported student or another pipeline beside a teacher, or a teacher by itself.

    Args:
        changes: fields of Asked that are not those of the run's recipe; or all of it.
        teacher: what a pipeline is measured against; None for a run, and for a teacher by itself.
    """
    if (Path(source) / "recipe.yaml").is_file():
        if teacher is not None:
            raise UserError(f"--teacher {teacher}: {source} is a run, which is measured against its own; leave it out")
        return _of_run(Path(source), changes, engine)
    if teacher is not None and exported.is_student(Path(source)):
        return _of_export(source, teacher, changes, engine)
    return _of_pipeline(source, teacher, changes, engine)


def _of_run(run: Path, changes: dict | Asked, engine: Engine) -> Opened:
    recipe = recipes.load(run / "recipe.yaml")
    asked = _asked(recipe.evaluation, changes)
    found = student.load(run)
    found.method.student.role.precision = recipe.train.precision
    source = sample.of_method(found.method, found.teacher, recipe)
    embeddings = _encoded(found.teacher, asked, source.negative_prompt, engine)
    half = half_rate.of_recipe(recipe, found.method, found.teacher)
    role, updates = runs.teacher_role(recipe, found.teacher, engine.device), _updates(recipe)
    setting, facts = runs.setting(
        recipe, asked, found.teacher, role, embeddings, source, half, update=found.update, updates=updates
    )
    own = recipe.evaluation is not None and asked == of_section(recipe.evaluation) and found.update == updates
    return Opened(setting, facts, run if own else run / "evaluations" / facts["key"], engine)


def _updates(recipe) -> int:
    method = assemble.method(recipe)
    return sum(sum(assemble.updates(method, stage).values()) for stage in assemble.stages(method, recipe))


def _asked(section, changes: dict | Asked) -> Asked:
    return changes if isinstance(changes, Asked) else of_section(section, **changes)


def _of_export(path: str, teacher: str, changes: dict | Asked, engine: Engine) -> Opened:
    """As its run is measured: in that precision, beside the teacher as the run had it."""
    folder, source, asked = Path(path), sample.open_source(path), _asked(None, changes)
    said, recipe = exported.settings(folder), exported.recipe(folder)
    if teacher != recipe.teacher.path:
        spec = recipe.teacher.model_copy(update={"path": teacher, "revision": None})
        recipe = recipe.model_copy(update={"teacher": spec})
    found = _fitting(source, path, recipe.teacher)
    source.net.role.precision, source.shift = recipe.train.precision, export_shift(said, found)
    embeddings = _encoded(found, asked, agreement.negative_prompt(recipe, found), engine)
    half = None
    if said.get("half_rate"):
        half = half_rate.half(source.interpolator, said["half_rate"], source.levels, found, "half_rate")
    role, many = runs.teacher_role(recipe, found, engine.device), said["update"]
    setting, facts = runs.setting(recipe, asked, found, role, embeddings, source, half, update=many, updates=many)
    if lost := exported.lost_prompts(folder):
        facts["notes"].append(f"its training prompts ({lost}) are not here: whether they are among these is not known")
    return Opened(setting, facts, Path("evaluations") / f"{folder.name}-{facts['key']}", engine)


def _of_pipeline(path: str, teacher: str | None, changes: dict | Asked, engine: Engine) -> Opened:
    source = sample.open_source(path)
    asked = _asked(None, changes)
    student = source if teacher is not None else None
    if student is None and source.own is not None:
        raise UserError(f"{path} is a distilled student; name what it is measured against: --teacher PATH|embedded")
    if student is None and asked.steps:
        raise UserError(f"--steps is for a student, and {path} is measured by itself; use --teacher-steps")
    judge = source if student is None else _beside(source, path, teacher)
    fidelity.check(asked, judge.teacher)
    embeddings = _encoded(judge.teacher, asked, judge.negative_prompt, engine)
    shift = judge.shift if student is None else learned_shift(student.levels, judge.shift)
    found = fidelity.Judge(judge.teacher, judge.net, embeddings, source.video, judge.negative_prompt, shift)
    made_by = {"pipeline": source.teacher.fingerprint, "negative_prompt": source.negative_prompt}
    setting, notes = fidelity.setting(found, asked, student, made_by=made_by)
    facts = runs.facts(setting, judge.negative_prompt, teacher or path, notes)
    name = Path(path).name or "pipeline"
    return Opened(setting, facts, Path("evaluations") / f"{name}-{facts['key']}", engine)


def export_shift(said: dict, teacher: teachers.Teacher) -> float:
    """Of the levels at which the teacher is sampled beside an exported student; older exports do not say."""
    if "teacher_shift" in said:
        return said["teacher_shift"]
    return learned_shift(torch.tensor(said["sigmas"], dtype=torch.float64), teacher.shift)


def learned_shift(levels: Tensor | None, otherwise: float) -> float:
    """Of the teacher's noise levels that a student learned from, as its own levels have it, if they have one."""
    if levels is not None:
        with contextlib.suppress(ValueError):  # they are no shifted grid
            return flow.grid_shift(levels)
    return otherwise


def _beside(source: Source, path: str, name: str) -> Source:
    """The teacher of a pipeline, for videos of its size."""
    spec = TeacherSpec(family=source.teacher.family, path=name)
    teacher = _fitting(source, path, spec)
    net = Net(Role("teacher", teacher.network().eval(), device=teacher.device))
    return Source(teacher, net, teacher.shift, 1, 1.0, source.video, teacher.negative_prompt)


def _fitting(source: Source, path: str, spec: TeacherSpec) -> teachers.Teacher:
    """UserError if the latents of a teacher and of a pipeline are not alike."""
    teacher = teachers.load(spec, source.video)
    size = source.video.frames, source.video.height, source.video.width
    theirs, ours = source.teacher.latent_shape(*size), teacher.latent_shape(*size)
    if theirs != ours:
        raise UserError(f"--teacher {spec.path}: its latents are {list(ours)}, those of {path} are {list(theirs)}")
    if source.teacher.vae_fingerprint != teacher.vae_fingerprint:
        raise UserError(
            f"--teacher {spec.path}: its VAE is another than that of {path}; their latents cannot be compared"
        )
    return teacher


def _encoded(teacher, asked: Asked, negative: str, engine: Engine) -> Embeddings:
    fidelity.check(asked, teacher)
    embeddings = Embeddings(teacher)
    engine.main_first(lambda: embeddings.prepare(list(asked.prompts), negative))
    teacher.unload()
    return embeddings
