"""The commands that measure: docs/evaluation.md, docs/compare.md."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from . import cli_vbench, launch
from .cli_common import Processes, checked_recipe, go
from .errors import UserError

app = typer.Typer()

Steps = Annotated[
    str | None, typer.Option(help="As in 2,4: students with other numbers of steps too.", show_default=False)
]
TeacherSteps = Annotated[str | None, typer.Option(help="As in 4,50; the most are the reference.", show_default=False)]
Guidance = Annotated[float | None, typer.Option(help="The teacher's scale.", show_default=False)]
Prompts = Annotated[Path | None, typer.Option(help="A file, one prompt per line.", show_default=False)]
Samples = Annotated[int | None, typer.Option(min=1, help="Clips of each sampler.", show_default=False)]
Seed = Annotated[int | None, typer.Option(min=0, help="Of the noise.", show_default=False)]
Metrics = Annotated[str | None, typer.Option(help="As in rmse,ssim; `distill metrics` lists them.", show_default=False)]
World = Annotated[
    bool | None, typer.Option(help="Whether captions of the embedded world are checked.", show_default=False)
]


@app.command()
def evaluate(
    source: Annotated[str, typer.Argument(help="A run, a pipeline's folder, or `embedded`.", show_default=False)],
    out: Annotated[
        Path | None, typer.Option(help="The folder for evaluation.json; docs/evaluation.md.", show_default=False)
    ] = None,
    teacher: Annotated[
        str | None, typer.Option(help="What a pipeline is measured against; of a run, its own.", show_default=False)
    ] = None,
    steps: Steps = None,
    teacher_steps: TeacherSteps = None,
    guidance: Guidance = None,
    shift: Annotated[float | None, typer.Option(help="Of the teacher's noise levels.", show_default=False)] = None,
    prompts: Prompts = None,
    samples: Samples = None,
    seed: Seed = None,
    batch_size: Annotated[int | None, typer.Option(min=1, show_default=False)] = None,
    metrics: Metrics = None,
    world: World = None,
    vbench: Annotated[
        Path | None,
        typer.Option(help="VBench_full_info.json or the like: VBench instead of all this.", show_default=False),
    ] = None,
    vbench_extended: Annotated[
        Path | None, typer.Option(help="As --extended of `distill vbench write`.", show_default=False)
    ] = None,
    vbench_python: Annotated[
        Path | None, typer.Option(help="As --python of `distill vbench run`.", show_default=False)
    ] = None,
    processes: Processes = 1,
) -> None:
    """Measure a student against its teacher, or a teacher by itself; settings that are not given are the recipe's."""
    given = {
        "steps": _counts("--steps", steps),
        "teacher_steps": _counts("--teacher-steps", teacher_steps),
        "guidance": guidance,
        "shift": shift,
        "prompts": prompts,
        "samples": samples,
        "seed": seed,
        "batch_size": batch_size,
        "metrics": _names("--metrics", metrics),
        "world": world,
    }
    changes = {name: value for name, value in given.items() if value is not None}
    own = {"vbench_extended": vbench_extended, "vbench_python": vbench_python}
    cli_vbench.check(vbench, own, changes | ({"teacher": teacher} if teacher else {}), out)
    if vbench is not None:
        cli_vbench.every(source, vbench, out, vbench_extended, vbench_python, seed or 0, processes)
        return
    if processes > 1 and not launch.is_launched():
        sys.exit(launch.launch(processes, sys.argv[1:]))
    from .evaluate import command

    for line in command.run(source, changes, teacher=teacher, out=out):
        typer.echo(line)
    go(0)


@app.command()
def compare(
    sources: Annotated[
        list[Path], typer.Argument(metavar="RECIPE|RUN|EXPORT...", help="At least one.", show_default=False)
    ],
    out: Annotated[Path, typer.Option(help="The folder for the page, compare.json and clips.")] = Path("comparison"),
    steps: Steps = None,
    teacher_steps: TeacherSteps = None,
    seeds: Annotated[
        str | None, typer.Option(help="As in 0,1,2: recipes are trained with each.", show_default=False)
    ] = None,
    prompts: Prompts = None,
    samples: Samples = None,
    seed: Seed = None,
    guidance: Guidance = None,
    metrics: Metrics = None,
    world: World = None,
    shown: Annotated[int, typer.Option(min=1, help="Prompts on the page.")] = 6,
    processes: Annotated[int, typer.Option(min=1, help="Of each training and evaluation, one per GPU.")] = 1,
    jobs: Annotated[int, typer.Option(min=1, help="Trainings and evaluations at a time.")] = 1,
    blind: Annotated[bool, typer.Option("--blind", help="Write a blind test, too: OUT/blind/vote.html.")] = False,
    votes: Annotated[
        list[Path] | None, typer.Option(help="A file of votes; repeat it for several.", show_default=False)
    ] = None,
) -> None:
    """Put students side by side on one page: trains what is missing, measures all alike."""
    given = {
        "steps": _counts("--steps", steps),
        "teacher_steps": _counts("--teacher-steps", teacher_steps),
        "guidance": guidance,
        "prompts": prompts,
        "samples": samples,
        "seed": seed,
        "metrics": _names("--metrics", metrics),
        "world": world,
    }
    from .compare import comparison

    options = comparison.Options(
        changes={name: value for name, value in given.items() if value is not None},
        seeds=_seeds(seeds),
        shown=shown,
        processes=processes,
        jobs=jobs,
        blind=blind,
        votes=votes or (),
        command=comparison.command(sys.argv[1:]),
    )
    outcome = comparison.compare(sources, lambda path: checked_recipe(path, []), out, options, typer.echo)
    for line in outcome.failures:
        typer.echo(f"failed: {line}", err=True)
    typer.echo(f"page: {out / 'index.html'}")
    if outcome.missing:
        sys.exit(1)


@app.command()
def metrics() -> None:
    """List what `distill evaluate` can measure."""
    from .evaluate.metrics import METRICS

    for metric in METRICS.values():
        typer.echo(f"{metric.name:18} {metric.kind:6} {metric.better:10} {metric.unit:9} {metric.about}")


def _counts(option: str, text: str | None) -> tuple[int, ...] | None:
    """Numbers of steps, as in 2,4."""
    if text is None:
        return None
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() and int(word) > 0 for word in words):
        raise UserError(f"{option} {text}: expected numbers of steps with commas between them, as in 2,4")
    return tuple(int(word) for word in words)


def _seeds(text: str | None) -> tuple[int, ...]:
    words = [] if text is None else [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() for word in words) or len(set(words)) < len(words):
        raise UserError(f"--seeds {text}: expected different whole numbers with commas between them, as in 0,1,2")
    return tuple(map(int, words))


def _names(option: str, text: str | None) -> tuple[str, ...] | None:
    names = None if text is None else tuple(word.strip() for word in text.split(","))
    if names is not None and not all(names):
        raise UserError(f"{option} {text!r}: expected names with commas between them, as in rmse,ssim")
    return names
