"""Measuring the runs of a comparison alike: from the same noise, beside the same clips of the teacher."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from ..engine import Engine
from ..errors import Stopped, UserError, user_line
from ..evaluate import fidelity, kept, opening
from ..evaluate.asked import Asked
from ..evaluate.opening import Opened
from ..progress import Progress
from ..signals import StopRequest
from . import children, content
from .children import Command
from .clips import Clips, rows
from .content import TEACHER
from .inputs import Column, Run
from .points import Result
from .setting import Common


class Measurer:
    """What the evaluations found, column by column.

    Attributes:
        results: of each column, one for each run that could be measured.
        clips: (column, steps) -> the shown clips, None where one is missing.
    """

    def __init__(self, asked: Asked, out: Path, shown: int, common: Common):
        self.asked, self.out, self.rows = asked, out, rows(asked, shown)
        self.common, self.fps = common, common.recipe.video.fps
        self.results: dict[str, list[Result]] = {}
        self.clips: dict[tuple[str, int], list[str | None]] = {}
        self.notes: list[str] = []
        self.failures: list[str] = list(asked.absent())

    def measure(self, columns: Sequence[Column]) -> None:
        """Take out the runs that cannot be measured. What is kept is neither sampled nor measured again.

        Raises:
            Stopped: a signal came.
        """
        kept.trim()
        engine = Engine()
        with StopRequest() as stop, Clips(self.out, self.fps) as clips:
            for column in columns:
                column.runs = [run for run in column.runs if self._measured(column, run, engine, stop, clips)]

    def _measured(self, column: Column, run: Run, engine: Engine, stop: StopRequest, clips: Clips) -> bool:
        try:
            with Progress(f"measuring {run}", "sample", self.asked.samples) as progress:
                opened = self._opened(run, engine)
                opened.setting.look_up = partial(_leave_if, stop)
                found = opened.result(progress.show)
            if column.key not in self.results:  # of several seeds the first is shown
                self._show(column.key, opened, found, clips)
            opened.unload()
        except fidelity.Interrupted as error:
            raise Stopped("stopped: what is done is kept; go on with the same command", children.INTERRUPTED) from error
        except Exception as error:
            if (line := user_line(error)) is None:
                raise
            self.failures.append(f"{run} was not measured: {line}")
            return False
        self._take(column, run, found)
        return True

    def _opened(self, run: Run, engine: Engine) -> Opened:
        path = self.common.recipe.teacher.path
        opened = opening.open_evaluation(str(run.folder), self.asked, engine, teacher=path if run.is_export else None)
        found, wanted = opened.setting.pipeline.fingerprint, self.common.teacher.fingerprint
        if found != wanted:
            raise UserError(f"the teacher at {path} has fingerprint {found} here, and the others' {wanted}")
        return opened

    def _take(self, column: Column, run: Run, found: Result) -> None:
        fidelity.write(found, folder(self.out, column, run))
        self.results.setdefault(column.key, []).append(found)
        self._say(self.notes, [f"{column.label}: {line}" for line in self._notes(found)])
        new = [line for line in found["failures"] if line not in self.asked.absent()]
        self._say(self.failures, [line if f" of {TEACHER}_" in line else f"{run}: {line}" for line in new])

    def _notes(self, found: Result) -> list[str]:
        """What there is no column for. Numbers of steps that a student does not know are one line."""
        lacking = [str(n) for n in self.asked.steps if n not in content.counts(found)]
        reasons = [line for line in found["notes"] if line.partition(":")[0] in lacking]
        others = [line for line in found["notes"] if line not in reasons]
        why = [line.partition(": ")[2] for line in reasons[:1]]
        return others + [f"not sampled with {', '.join(lacking)} steps: {line}" for line in why]

    def _say(self, lines: list[str], more: Sequence[str]) -> None:
        """Once: what is true of the teacher, or of a method, every run would say again."""
        lines += [line for line in dict.fromkeys(more) if line not in lines]

    def _show(self, key: str, opened: Opened, found: Result, clips: Clips) -> None:
        """Write the clips of a column; with the first one, the teacher's."""
        samplers = {(key, steps): name for steps, name in content.counts(found).items()}
        samplers |= {(content.halved(key), n): name for n, name in content.counts(found, content.HALF_RATE).items()}
        if not self.clips:
            samplers |= {(TEACHER, n): f"{TEACHER}_{n}" for n in self.asked.teacher_steps}
        for (column, steps), name in samplers.items():
            opened.setting.look_up()
            latents, made = opened.latents(name, self.rows), []
            for row, x in enumerate(latents):
                try:
                    made.append(clips.write(f"{column}_{steps}_{row:02d}", x, opened.setting.pipeline.decode))
                except ValueError as error:
                    made.append(None)
                    self.failures.append(f"clip {row} of {column} with {steps} steps: {error}")
            self.clips[column, steps] = made


def ahead(
    columns: Sequence[Column],
    asked: Asked,
    out: Path,
    teacher: str,
    *,
    processes: int,
    jobs: int,
    tell: Callable[[str], None],
) -> None:
    """Have several processes sample and measure what is not kept yet; what fails is said by `Measurer.measure`.

    Args:
        teacher: whom exported students are measured beside.
    """
    if processes * jobs == 1:
        return
    texts = out / "prompts.txt"
    texts.write_text("\n".join(asked.prompts) + "\n", encoding="utf-8")
    pairs = [(column, run) for column in columns for run in column.runs]
    for column, run in pairs:
        (folder(out, column, run) / fidelity.RESULT).unlink(missing_ok=True)
    commands = [
        Command(
            f"measuring {run}",
            [*_evaluation(run, asked, texts, folder(out, column, run), teacher), "--processes", str(processes)],
            out / "logs" / f"evaluate_{column.key}_{run.seed}.log",
        )
        for column, run in pairs
    ]
    first = commands[:1] if jobs > 1 else []  # it samples the teacher for all
    children.run(first, 1, tell)
    children.run(commands[len(first) :], jobs, tell)


def _evaluation(run: Run, asked: Asked, texts: Path, out: Path, teacher: str) -> list[str]:
    """The command that measures a run as `asked`."""
    numbers = {name: getattr(asked, name) for name in ("guidance", "shift", "samples", "seed", "batch_size")}
    lists = {name: getattr(asked, name) for name in ("steps", "teacher_steps", "metrics")}
    options = {name: str(value) for name, value in numbers.items() if value is not None}
    options |= {name: ",".join(map(str, value)) for name, value in lists.items() if value}
    options |= {"prompts": str(texts), "out": str(out)} | ({"teacher": teacher} if run.is_export else {})
    given = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", value)]
    return ["evaluate", str(run.folder), *given, "--world" if asked.world else "--no-world"]


def folder(out: Path, column: Column, run: Run) -> Path:
    """Of a run's own evaluation.json, with the value of every clip."""
    return out / "evaluations" / f"{column.key}_seed_{run.seed}"


def _leave_if(stop: StopRequest) -> None:
    if stop.signal:
        raise fidelity.Interrupted
