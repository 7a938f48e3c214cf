"""The commands of `distill vbench`: docs/vbench.md."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from . import launch
from .errors import UserError

app = typer.Typer(help="VBench and VBench-2.0 as they are: videos, the official package, scores.", no_args_is_help=True)

Dimensions = Annotated[list[str], typer.Option("--dimension", help="Some of them; repeat it.", show_default=False)]
Folder = Annotated[Path, typer.Argument(metavar="FOLDER", help="Of `distill vbench write`.", show_default=False)]


@app.command()
def write(
    source: Annotated[str, typer.Argument(help="A run, a pipeline's folder, or `embedded`.", show_default=False)],
    info: Annotated[
        Path,
        typer.Option(help="VBench_full_info.json, VBench2_full_info.json or a list like them.", show_default=False),
    ],
    out: Annotated[Path, typer.Option(help="The folder for videos and results.", show_default=False)],
    extended: Annotated[
        Path | None, typer.Option(help="Longer prompts, line by line; files keep the short names.", show_default=False)
    ] = None,
    short: Annotated[
        Path | None, typer.Option(help="What the lines of --extended extend, if not --info's.", show_default=False)
    ] = None,
    dimension: Dimensions = [],  # noqa: B006
    steps: Annotated[int | None, typer.Option(min=1, help="Default: the source's own.", show_default=False)] = None,
    guidance: Annotated[float | None, typer.Option(help="Default: the source's own.", show_default=False)] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the first video; each has its own.")] = 0,
    processes: Annotated[int, typer.Option(min=1, help="On this machine, one per GPU.")] = 1,
) -> None:
    """Make the suite's videos, or go on."""
    if processes > 1 and not launch.is_launched():
        sys.exit(launch.launch(processes, sys.argv[1:]))
    from .evaluate.vbench import videos

    options = {"extended": extended, "short": short, "dimensions": dimension}
    faults = videos.write(source, info, out, steps=steps, guidance=guidance, seed=seed, **options)
    if launch.is_main():
        for line in faults:
            typer.echo(f"warning: {line}", err=True)
        typer.echo(f"videos: {out / 'videos'}")


@app.command()
def run(
    folder: Folder,
    python: Annotated[
        Path, typer.Option(help="That of the environment with the official package.", show_default=False)
    ],
    dimension: Dimensions = [],  # noqa: B006
    device: Annotated[str, typer.Option(help="As torch names it; auto: a GPU if there is one.")] = "auto",
) -> None:
    """Measure the videos with the official package, or go on, and show the scores."""
    from .evaluate.vbench import external, table

    faults = external.run(folder, python, dimension, device, tell=typer.echo)
    for line in table.lines(table.of_folder(folder)):
        typer.echo(line)
    if faults:
        raise typer.Exit(2)


@app.command()
def scores(
    places: Annotated[
        list[Path],
        typer.Argument(metavar="FOLDER|FILE...", help="Of videos; or *_eval_results.json.", show_default=False),
    ],
) -> None:
    """Show the means and scores of a folder of videos, or of result files from elsewhere."""
    from .evaluate.vbench import made, table

    is_ours = len(places) == 1 and (places[0] / made.SETTINGS).is_file()
    content = table.of_folder(places[0]) if is_ours else table.of_files(places)
    for line in table.lines(content):
        typer.echo(line)


def check(info: Path | None, own: dict, others: dict, out: Path | None) -> None:
    """UserError if options of `distill evaluate` would have no effect, or one is missing.

    Args:
        own: those that go with --vbench.
        others: those that were given, whatever they are.
    """
    if info is None:
        useless = [name for name, value in own.items() if value is not None]
        without, instead = "without --vbench INFO", ""
    else:
        useless = [name for name in others if name != "seed"]
        without, instead = "with --vbench", "; distill vbench write has more"
    if useless:
        raise UserError(f"--{useless[0].replace('_', '-')} has no effect {without}{instead}")
    if info is not None and out is None:
        raise UserError("--vbench needs --out FOLDER, for thousands of videos")


def every(
    source: str, info: Path, out: Path, extended: Path | None, python: Path | None, seed: int, processes: int
) -> None:
    """Videos, measurements where there is an official package, and scores, one after the other."""
    if processes > 1:
        words = ["vbench", "write", source, "--info", info, "--out", out, "--seed", seed]
        words += ["--extended", extended] if extended else []
        if code := launch.launch(processes, list(map(str, words))):
            sys.exit(code)
    else:
        write(source, info, out, extended, seed=seed)
    if not launch.is_main():
        return
    if python is not None:
        run(out, python, device="auto")
    else:
        scores([out])
