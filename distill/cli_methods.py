"""The commands of `distill methods`: docs/plugins.md. Listing and describing import no method, and no torch."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from . import registry, yaml_source
from .errors import UserError
from .signature import Signature

app = typer.Typer(help="Distillation methods: those that are installed, and new ones.")

Name = Annotated[
    str, typer.Argument(metavar="METHOD", help="Of an installed one, or package.module:Class.", show_default=False)
]


@app.callback(invoke_without_command=True)
def methods(context: typer.Context) -> None:
    """List the installed methods."""
    if context.invoked_subcommand is None:
        for entry in registry.methods().values():
            typer.echo(f"{entry.name:14} {entry.package} {entry.version:8} {_one_line(entry.name)}")


@app.command()
def describe(
    name: Name,
    cost: Annotated[bool, typer.Option("--cost", help="Also count what an update costs; takes seconds.")] = False,
) -> None:
    """Show a method's networks, data, options and cost."""
    found = registry.describe(name)
    typer.echo(f"{registry.method(name)}\n{found.description}\n\nnetworks")
    for network, kind in found.networks.items():
        typer.echo(f"  {network}: {kind}")
    typer.echo(f"\ndata: {', '.join(found.data)}\n\noptions")
    for line in _options(found):
        typer.echo(line)
    typer.echo("\nevaluations of each network by an update, per sample")
    if not cost:
        typer.echo(f"  `distill methods describe {name} --cost` counts them on tiny networks, in seconds")
        return
    from .testing import cost as counting

    for line in counting.count(name):
        typer.echo(line)


@app.command()
def new(
    name: Annotated[str, typer.Argument(help="Of the method, as recipes will name it.", show_default=False)],
    out: Annotated[Path | None, typer.Option(help="The new folder; default: NAME.", show_default=False)] = None,
) -> None:
    """Write a package with a small method that trains as it stands: change it into yours."""
    from . import new_method

    for line in new_method.write(name, out or Path(name)):
        typer.echo(line)


@app.command()
def check(
    name: Name,
    changes: Annotated[
        list[str],
        typer.Argument(metavar="[KEY=VALUE]...", help="Options of the method; with dots, keys of the recipe."),
    ] = [],  # noqa: B006, typer reads it
) -> None:
    """Try whether a method holds what every method must: tiny networks, on the CPU, in seconds."""
    given = dict(yaml_source.assignment(change) for change in changes)
    options = {key: value for key, value in given.items() if "." not in key}
    registry.method(name)
    from .testing import command

    failed = command.check(name, options, {k: v for k, v in given.items() if k not in options}, typer.echo)
    if failed:
        sys.exit(1)


def _one_line(name: str) -> str:
    """What a method says about itself; a broken one says what is wrong with it, and the others stay as they are."""
    try:
        return registry.describe(name).description
    except UserError as error:
        return f"broken: {error}"


def _options(found: Signature) -> list[str]:
    lines = []
    for option, field in found.options.model_fields.items():
        default = "" if field.is_required() else f" = {field.default!r}"
        lines.append(f"  {option}: {found.hints[option]}{default}")
        if field.description:
            lines.append(f"      {field.description}")
    return lines or ["  none"]
