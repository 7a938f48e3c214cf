"""The command line. Every command is a few lines; torch is imported inside those that need it."""

import json
import os
import sys
import warnings
from pathlib import Path
from typing import Annotated

import typer

from . import (
    INTERFACE,
    __version__,
    cli_evaluate,
    cli_methods,
    cli_plan,
    cli_vbench,
    image_prompt,
    launch,
    overlap,
    registry,
    summary,
)
from . import recipe as recipes
from .cli_common import Processes, checked_recipe, end, go, leave, trains_a_teacher
from .embedded.spec import TeacherRecipe
from .errors import Stopped, UserError, user_line
from .plan import planning
from .plan import report as plan_report

app = typer.Typer(
    name="distill",
    help="Distil video diffusion models into students of a few steps.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
)
teachers_app = typer.Typer(help="Teacher families; `train` makes the embedded teacher anew.", no_args_is_help=False)
app.add_typer(cli_methods.app, name="methods", invoke_without_command=True)
app.add_typer(teachers_app, name="teachers", invoke_without_command=True)
app.add_typer(cli_vbench.app, name="vbench")
app.add_typer(cli_evaluate.app)
app.add_typer(cli_plan.app)

RecipePath = Annotated[Path, typer.Argument(metavar="RECIPE", help="A YAML file.", show_default=False)]
RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder.", show_default=False)]
Overrides = Annotated[
    list[str], typer.Argument(metavar="[KEY=VALUE]...", help="As in optim.student.lr=1e-6.", show_default=False)
]


@app.callback(invoke_without_command=True)
def distill(version: Annotated[bool, typer.Option("--version", help="Say which this is.")] = False) -> None:
    if version:
        typer.echo(f"distill {__version__}, interface {INTERFACE}")
        raise typer.Exit


@app.command()
def run(
    recipe: Annotated[
        Path, typer.Argument(metavar="RECIPE|RUN", help="A YAML file, or the folder of a run to go on with.")
    ],
    overrides: Overrides = [],  # noqa: B006, typer reads it
    processes: Processes = 1,
    anyway: Annotated[bool, typer.Option("--anyway", help="Also where memory cannot suffice.")] = False,
) -> None:
    """Train a recipe, or go on with a run where it stopped."""
    checked = checked_recipe(recipe, overrides)
    if processes > 1:
        sys.exit(launch.launch(processes, ["run", str(recipe), *overrides, *(["--anyway"] if anyway else [])]))
    from .plan import gate

    for line in gate.check(checked, anyway) if launch.is_main() else ():
        typer.echo(f"note: {line}", err=True)
    from . import trainer

    folder = trainer.run(checked)
    end(f"page: {folder / 'index.html'}")


@app.command()
def synthesize(recipe: RecipePath, overrides: Overrides = [], processes: Processes = 1) -> None:  # noqa: B006
    """Record the teacher's trajectories that a recipe asks for, or go on; replace damaged shards."""
    checked = checked_recipe(recipe, overrides)
    if checked.data.trajectories is None:
        raise UserError(f"{recipe} has no section data.trajectories: there is nothing to record")
    recipes.check_output(checked.data.trajectories.path, "data.trajectories.path")
    if processes > 1:
        sys.exit(launch.launch(processes, ["synthesize", str(recipe), *overrides]))
    from . import synthesize as recording

    end(f"store: {recording.run(checked)}")


@app.command()
def prepare(
    recipe: RecipePath,
    overrides: Overrides = [],  # noqa: B006
    processes: Processes = 1,
    curate_only: Annotated[
        bool, typer.Option("--curate-only", help="Judge the videos, and encode none; needs no teacher.")
    ] = False,
) -> None:
    """Encode the real videos that a recipe asks for, or go on; replace damaged shards."""
    checked = checked_recipe(recipe, overrides)
    if checked.data.videos is None:
        raise UserError(f"{recipe} has no section data.videos: there is nothing to prepare")
    recipes.check_output(checked.data.videos.path, "data.videos.path")
    if curate_only and (checked.data.videos.curation is None or processes > 1):
        wrong = "one process does it" if processes > 1 else f"{recipe} has no section data.videos.curation"
        raise UserError(f"--curate-only: {wrong}")
    if processes > 1:
        sys.exit(launch.launch(processes, ["prepare", str(recipe), *overrides]))
    from . import prepare as preparing

    if curate_only:
        end(f"page: {preparing.curate(checked)}")
    else:
        end(f"store: {preparing.run(checked)}")


@app.command()
def check(
    recipe: Annotated[
        Path, typer.Argument(metavar="RECIPE|STORE", help="A YAML file, or a store.", show_default=False)
    ],
    overrides: Overrides = [],  # noqa: B006
    build: Annotated[
        bool, typer.Option("--build", help="Also build the networks, without weights, and count.")
    ] = False,
) -> None:
    """Check a recipe without running it, or every byte of a store of trajectories or videos."""
    if (recipe / "index.json").is_file() or (recipe / "shards").is_dir():
        _check_store(recipe, [*overrides, *(["--build"] if build else [])])
    elif trains_a_teacher(recipe):
        if build:
            raise UserError(f"--build: {recipe} trains a teacher, which has no method to build")
        recipes.load(recipe, overrides, model=TeacherRecipe)
    else:
        checked = checked_recipe(recipe, overrides)
        for line in summary.describe(checked):
            typer.echo(line)
        if checked.hardware:
            typer.echo(f"plan      {plan_report.verdict(planning.make(checked))}")
        for line in overlap.warnings(checked):
            typer.echo(f"warning: {line}", err=True)
        if build:
            from . import build as builder

            for line in builder.describe(checked):
                typer.echo(line)
    typer.echo(f"{recipe}: no faults")


@teachers_app.callback()
def teachers(context: typer.Context) -> None:
    """List the installed teacher families."""
    if context.invoked_subcommand is None:
        for entry in registry.teachers().values():
            typer.echo(f"{entry.name:12} {entry.package} {entry.version:8} {entry.value}")


@teachers_app.command("train")
def train_teacher(
    recipe: RecipePath,
    overrides: Overrides = [],  # noqa: B006
    output: Annotated[Path, typer.Option(help="The folder to train in.")] = Path("runs/teacher"),
) -> None:
    """Train the embedded teacher anew."""
    checked = recipes.load(recipe, overrides, model=TeacherRecipe)
    recipes.check_output(output.absolute())
    from .embedded import train

    typer.echo(train.train(checked, output))


@app.command()
def sample(
    source: Annotated[str, typer.Argument(help="A run, a pipeline's folder, or `embedded`.", show_default=False)],
    prompt: Annotated[list[str], typer.Option(help="Repeat it for several clips.")] = [],  # noqa: B006
    prompts: Annotated[Path | None, typer.Option(help="A file, one prompt per line.")] = None,
    image: Annotated[
        Path | None, typer.Option(help="What every --prompt starts from, for image-to-video.", show_default=False)
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Default: the student's own.", show_default=False)] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    guidance: Annotated[
        float | None, typer.Option(help="1 is off; default: 1 for a student.", show_default=False)
    ] = None,
    out: Annotated[Path, typer.Option(help="The folder for the clips.")] = Path("samples"),
    latents: Annotated[bool, typer.Option("--latents", help="Also write the latents, as safetensors.")] = False,
    half_rate: Annotated[
        int | None,
        typer.Option(min=1, help="So many of a student's steps at half the frame rate.", show_default=False),
    ] = None,
    interpolator: Annotated[
        Path | None,
        typer.Option(help="For --half-rate, a run or a folder; default: the student's.", show_default=False),
    ] = None,
) -> None:
    """Make clips with a student or a teacher."""
    if not prompt and prompts is None:
        raise UserError("nothing to sample: give --prompt TEXT or --prompts FILE")
    if image is not None:
        if not prompt:
            raise UserError(f"--image {image} has no --prompt TEXT; the prompts of a file name images of their own")
        prompt = [image_prompt.join(image, text) for text in prompt]
    from . import sample as sampling
    from .data.prompts import read

    texts = [*prompt, *(read(prompts) if prompts else [])]
    options = {"steps": steps, "guidance": guidance, "half_rate": half_rate, "interpolator": interpolator}
    made = sampling.sample(source, texts, seed=seed, out=out, latents=latents, **options)
    for path in made:
        typer.echo(path)


@app.command()
def export(
    run: RunPath,
    folder: Annotated[Path | None, typer.Argument(help="Default: RUN/student.", show_default=False)] = None,
    update: Annotated[
        int | None, typer.Option(min=1, help="Default: the newest checkpoint.", show_default=False)
    ] = None,
    lora: Annotated[
        bool, typer.Option("--lora", help="Its adapters alone, for diffusers and ComfyUI (docs/lora.md).")
    ] = False,
) -> None:
    """Write a run's student as a diffusers pipeline, reload it and compare."""
    from . import export as exporting

    typer.echo(exporting.export(run, folder or run / ("lora" if lora else "student"), update, lora))


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(metavar="FOLDER", help="Of a Wan 2.1 repository.", show_default=False)],
    folder: Annotated[Path, typer.Argument(metavar="OUT", help="A new folder.", show_default=False)],
) -> None:
    """Write Wan's original checkpoint as a folder in diffusers' layout, which teachers are read from."""
    recipes.check_output(folder.absolute(), "OUT")
    from .teachers import original

    typer.echo(original.convert(source, folder))


@app.command()
def report(run: RunPath) -> None:
    """Write a run's page anew."""
    from . import report as reporting

    typer.echo(reporting.write(run))


@app.command()
def watch(run: RunPath) -> None:
    """Follow a run that another terminal, or machine, is working on."""
    from . import watch as watching

    watching.watch(run)


@app.command()
def schema() -> None:
    """Print the JSON schema of recipes, for editors."""
    typer.echo(json.dumps(recipes.schema(), indent=2))


def main() -> None:
    """Run the command line: a user's mistake is one line and exit code 2; DISTILL_TRACEBACK=1 shows its origin."""
    warnings.formatwarning = lambda message, *_: f"warning: {message}\n"  # the line of code says nothing to its reader
    try:
        app()
    except SystemExit as ending:
        go(int(ending.code or 0))
        raise
    except Stopped as stop:
        leave(str(stop), stop.code)
    except Exception as error:
        line = user_line(error)
        if line is None or os.environ.get("DISTILL_TRACEBACK"):
            raise
        leave(line, 2)


def _check_store(path: Path, rest: list[str]) -> None:
    from .data import stores
    from .progress import Progress

    store = stores.open_store(path)
    if rest:
        raise UserError(f"{path} is a {store.kind.name}, to which {rest[0]} does not apply")
    for line in store.describe():
        typer.echo(line)
    with Progress("checking", "shard", len(store.shards)) as progress:
        damaged = store.damaged(thorough=True, show=progress.show)
    if damaged:
        raise UserError("\n".join(damaged))
