"""`distill evaluate`: opens what is to be measured, and says what was found. `distill compare` opens its columns here.

opened = open_evaluation("runs/tiny_gpd", {"steps": (2, 4)}, engine)
result = opened.result()                            # nothing that is kept is sampled or measured again
latents = opened.latents("student_4", [0, 5])       # of samples 0 and 5; opened.setting.pipeline.decode(latents)
"""

import contextlib
import json
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from .. import assemble, flow, half_rate, report, sample, student, teachers, track
from .. import recipe as recipes
from ..data.prompts import Embeddings
from ..engine import Engine, Role
from ..errors import Stopped, UserError
from ..networks import Net
from ..progress import Progress
from ..recipe import TeacherSpec
from ..sample import Source
from ..signals import StopRequest
from . import fidelity, kept, measuring, runs
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


def run(source: str, changes: dict, *, teacher: str | None = None, out: Path | None = None) -> Iterator[str]:
    """Evaluate, write evaluation.json, and say what it holds, line by line.

    Args:
        changes: fields of Asked that are not the recipe's.
    """
    engine = Engine()
    try:
        with StopRequest() as stop:
            opened = open_evaluation(source, changes, engine, teacher=teacher)
            result, path = _evaluated(opened, out, stop)
    finally:
        engine.close()
    if engine.main:
        yield from described(result)
        yield f"result: {path}"


def _evaluated(opened: Opened, out: Path | None, stop: StopRequest) -> tuple[dict, Path]:
    engine, folder, total = opened.engine, out or opened.folder, opened.setting.asked.samples
    engine.main_first(lambda: refuse(folder, opened.facts["key"]) if out else recipes.check_output(folder, "--out"))
    engine.main_first(kept.trim)
    opened.setting.look_up = lambda: _leave_if(stop)
    with Progress("evaluating", "sample", total, silent=not engine.main) as progress:
        for line in opened.facts["notes"] + opened.setting.asked.absent():
            progress.say(f"note: {line}")
        try:
            result = opened.result(progress.show)
        except fidelity.Interrupted as error:
            name = signal.Signals(stop.signal or signal.SIGTERM).name
            raise Stopped(f"{name}: what is done is kept; go on with the same command", 130) from error
    return result, engine.main_first(lambda: _written(result, folder))


def _written(result: dict, folder: Path) -> Path:
    """The file; a run's page shows it, too."""
    path = fidelity.write(result, folder)
    if (folder / track.LOG).exists():
        report.write(folder)
    return path


def _leave_if(stop: StopRequest) -> None:
    if stop.signal:
        raise fidelity.Interrupted


def refuse(folder: Path, key: str) -> None:
    """UserError if the folder holds another evaluation, or cannot be written."""
    recipes.check_output(folder.absolute(), "--out")
    path = folder / fidelity.RESULT
    if path.exists():
        try:
            other = json.loads(path.read_text()).get("key")
        except ValueError:  # torn; it is made anew
            return
        if other != key:
            raise UserError(f"{path} is an evaluation of something else, or with other settings; give another --out")


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
    shift = _shift(judge if student is None else student, judge)
    found = fidelity.Judge(judge.teacher, judge.net, embeddings, source.video, judge.negative_prompt, shift)
    made_by = {"pipeline": source.teacher.fingerprint, "negative_prompt": source.negative_prompt}
    setting, notes = fidelity.setting(found, asked, student, made_by=made_by)
    facts = runs.facts(setting, judge.negative_prompt, teacher or path, notes)
    name = Path(path).name or "pipeline"
    return Opened(setting, facts, Path("evaluations") / f"{name}-{facts['key']}", engine)


def _shift(source: Source, judge: Source) -> float:
    """Of the noise levels that a student was made for, as its run has it; else the teacher's own."""
    if source.levels is not None:
        with contextlib.suppress(ValueError):  # they are no shifted grid
            return flow.grid_shift(source.levels)
    return judge.shift


def _beside(source: Source, path: str, name: str) -> Source:
    """The teacher of a pipeline, for videos of its size; UserError if their latents are not alike."""
    files = teachers.locate(name)
    family = source.teacher.family
    teacher = teachers.load(TeacherSpec(family=family, path=str(files)), source.video)
    size = source.video.frames, source.video.height, source.video.width
    theirs, ours = source.teacher.latent_shape(*size), teacher.latent_shape(*size)
    if theirs != ours:
        raise UserError(f"--teacher {name}: its latents are {list(ours)}, those of {path} are {list(theirs)}")
    if source.teacher.vae_fingerprint != teacher.vae_fingerprint:
        raise UserError(f"--teacher {name}: its VAE is another than that of {path}; their latents cannot be compared")
    net = Net(Role("teacher", teacher.network().eval(), device=teacher.device))
    return Source(teacher, net, teacher.shift, 1, 1.0, source.video, teacher.negative_prompt)


def _encoded(teacher, asked: Asked, negative: str, engine: Engine) -> Embeddings:
    fidelity.check(asked, teacher)
    embeddings = Embeddings(teacher)
    engine.main_first(lambda: embeddings.prepare(list(asked.prompts), negative))
    teacher.unload()
    return embeddings


def described(result: dict) -> Iterator[str]:
    """A table for the console: a line per metric, a column per sampler."""
    names = list(result["samplers"])
    width = max(len(name) for name in names) + 2
    rows = [("evaluations", [f"{v['evaluations']:g}" for v in result["samplers"].values()])]
    for metric in result["metrics"]:
        found = [v.get("world", {}).get(metric["name"], v.get(metric["name"])) for v in result["samplers"].values()]
        rows.append((metric["name"], [_cell(value) for value in found]))
    yield f"{'':18}" + "".join(f"{name:>{width}}" for name in names)
    for name, cells in rows:
        yield f"{name:18}" + "".join(f"{cell:>{width}}" for cell in cells)
    for name, gap in result["gap_closed"].items():
        mean, low, high = (f"{100 * gap[key]:.0f}" for key in ("mean", "low", "high"))
        yield f"the student closes {mean} % [{low}, {high}] of the gap of {name}"
    for line in result["failures"][:5]:
        yield f"failed: {line}"
    if len(result["failures"]) > 5:
        yield f"failed: {len(result['failures']) - 5} more are listed in the result"


def _cell(value: dict | None) -> str:
    return "" if value is None or value["mean"] is None else f"{value['mean']:.4g}"
