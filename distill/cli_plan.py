"""The command `distill plan`: docs/plan.md. Imports no torch, unless it is asked to count."""

import json
import re
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from . import recipe as recipes
from .cli_common import checked_recipe
from .errors import UserError
from .places import Hardware
from .plan import duration, memory, planning, report
from .plan.planning import Assumptions, Plan
from .yaml_source import did_you_mean

app = typer.Typer()

GIB_PER = {"": 1.0, "GiB": 1.0, "TiB": 1024.0, "MiB": 1 / 1024, "GB": 1e9 / 2**30, "TB": 1e12 / 2**30}


@app.command()
def plan(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A YAML file.", show_default=False)],
    overrides: Annotated[
        list[str], typer.Argument(metavar="[KEY=VALUE]...", help="As in engine=zero3.", show_default=False)
    ] = [],  # noqa: B006, typer reads it
    gpus: Annotated[int | None, typer.Option(min=1, help="Default: the recipe's.", show_default=False)] = None,
    memory_: Annotated[
        str | None, typer.Option("--memory", help="Of one GPU, as in 79GiB. Default: the recipe's.", show_default=False)
    ] = None,
    host_memory: Annotated[str | None, typer.Option(help="Of one machine.", show_default=False)] = None,
    gpu: Annotated[str, typer.Option(help=f"For the time: {', '.join(duration.DEVICES)}.")] = "h100",
    utilization: Annotated[float, typer.Option(help="Of the GPU's peak; assumed.")] = duration.UTILIZATION,
    overhead: Annotated[
        str, typer.Option(help="Memory of a GPU that no formula has; assumed.")
    ] = f"{memory.OVERHEAD_GIB:g}GiB",
    count: Annotated[
        bool, typer.Option("--count", help="Count what the method evaluates with these options; imports torch.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="For programs, not for people.")] = False,
) -> None:
    """Say what a recipe needs: memory, disk, time; and, where it does not fit, the nearest settings that do."""
    checked = checked_recipe(recipe, overrides)
    assumed = Assumptions(_known(gpu), _share(utilization), gib("--overhead", overhead, least=0))
    given = {
        "gpus": gpus,
        "memory_gib": memory_ and gib("--memory", memory_),
        "host_memory_gib": host_memory and gib("--host-memory", host_memory),
    }
    own = planning.own(checked, assumed)
    hardware = Hardware(**own.model_dump() | {key: value for key, value in given.items() if value is not None})
    made = planning.make(checked, hardware, assumed)
    made = _counted(made) if count else made
    if as_json:
        typer.echo(json.dumps(report.as_json(made), indent=1))
    else:
        report.show(made, Console())


def gib(option: str, text: str, least: float = 1e-6) -> float:
    """A size in GiB."""
    found = re.fullmatch(r"([0-9.]+)\s*([A-Za-z]*)", text)
    unit = found and next((unit for unit in GIB_PER if unit.lower() == found[2].lower()), None)
    try:
        size = float(found[1]) * GIB_PER[unit]
    except (TypeError, ValueError, KeyError):
        size = -1.0
    if size < least:
        raise UserError(f"{option}: {text!r} is no size; write it as 79GiB, or 80GB")
    return size


def _known(gpu: str) -> str:
    if gpu not in duration.DEVICES:
        hint = did_you_mean(gpu, duration.DEVICES) or f"; known are {', '.join(duration.DEVICES)}"
        raise UserError(f"--gpu: {gpu!r} is not in the plan's table{hint}")
    return gpu


def _share(utilization: float) -> float:
    if not 0 < utilization <= 1:
        raise UserError(f"--utilization: {utilization:g} is no share of a peak; it is above 0 and at most 1, as 0.4")
    return utilization


def _counted(made: Plan) -> Plan:
    """The plan with counts of its own method's runs on tiny networks."""
    from .plan import costs
    from .testing import counts  # imports torch

    setting = made.setting
    method: recipes.MethodSpec = made.recipe.method
    entry = counts.count(method.name, method.options, setting.sizes.guided)
    setting = planning.counted(setting, costs.parse(entry))
    return planning.on(setting, made.hardware, made.assumptions)
