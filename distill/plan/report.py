"""A plan in words and tables, and as JSON."""

import dataclasses
from collections.abc import Iterator

from rich.console import Console
from rich.table import Table

from . import fit, planning
from .fit import Fix
from .kept import Kept
from .memory import GIB
from .planning import Plan

HOUR = 3600  # seconds


def show(plan: Plan, console: Console) -> None:
    """Print it; what does not fit comes with the nearest settings that do."""
    console.print(_memory(plan))
    for line in lines(plan):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def lines(plan: Plan) -> Iterator[str]:
    """All but the table."""
    yield f"parameters  {_parameters(plan)}"
    yield f"activations {_clip(plan)}"
    if plan.memory.host:
        yield f"host        {gib(plan.host_per_machine)} on each of {plan.machines} machines, for what is offloaded"
    yield f"checkpoint  {gib(plan.memory.checkpoint)}; {gib(plan.checkpoints)} of disk with those that are kept"
    yield f"time        {_time(plan)}"
    yield from (f"note        {note}" for note in _notes(plan))
    yield f"verdict     {verdict(plan)}"
    if not plan.fits:
        yield from (f"  fits      {each}" for each in map(_fix, fit.nearest(plan)))


def verdict(plan: Plan) -> str:
    """One line: need, have, and whether that is enough."""
    have, gpus = plan.hardware, plan.hardware.gpus
    said = f"{gib(plan.memory.per_gpu)} of {have.memory_gib:g} GiB on each of {gpus} GPU{'s' * (gpus > 1)}"
    if plan.memory.host:
        given = f" of {have.host_memory_gib:g} GiB" if have.host_memory_gib else ""
        said += f", {gib(plan.host_per_machine)}{given} on each host"
    if not plan.shares:
        train = plan.recipe.train
        said += f", and batches of {train.batch_size} are no whole number of {train.micro_batch_size} on each of them"
    return f"{'fits' if plan.fits else 'does not fit'}: {said}"


def nearest(plan: Plan) -> str:
    """The first change that helps, for a message of one line."""
    found = fit.nearest(plan)
    return f"nearest that fits: {_fix(found[0])}" if found else "no setting that the plan tries fits"


def as_json(plan: Plan) -> dict:
    memory, time = plan.memory, plan.duration
    return {
        "fits": plan.fits,
        "hardware": plan.hardware.model_dump(),
        "assumptions": dataclasses.asdict(plan.assumptions),
        "parameters": {net.name: net.parameters for net in memory.networks},
        "bytes_per_gpu": {
            "networks": {net.name: _row(net) for net in memory.networks},
            "updates": {
                each.network: {"gradients": each.gradients, "activations": each.activations, "buffers": each.buffers}
                for each in memory.updates
            },
            "overhead": memory.overhead,
            "total": memory.per_gpu,
        },
        "host_bytes_per_machine": plan.host_per_machine,
        "checkpoint_bytes": memory.checkpoint,
        "disk_bytes": plan.checkpoints,
        "time": time and dataclasses.asdict(time),
        "counted_with_other": list(plan.setting.costs.differing) if plan.setting.costs else None,
        "nearest": [] if plan.fits else [{"gpus": f.gpus, "overrides": list(f.changes)} for f in fit.nearest(plan)],
    }


def gib(n: float) -> str:
    """As 73.4 GiB; small networks in MiB."""
    return f"{n / GIB:.1f} GiB" if n >= GIB / 10 else f"{n / (1 << 20):.1f} MiB"


def _row(net: Kept) -> dict:
    keys = ("weights", "gradients", "optimizer")
    return {key: getattr(net, key) for key in keys} | {"sharding": net.place.sharding, "offload": net.place.offload}


def _memory(plan: Plan) -> Table:
    table = Table(title="memory of one GPU", title_justify="left", box=None, pad_edge=False)
    for name in ("network", "kept", "weights", "gradients", "optimizer"):
        table.add_column(name, justify="left" if name in ("network", "kept") else "right")
    fullest = plan.memory.fullest
    for net in plan.memory.networks:
        there = net.lasting or net.name == fullest.network
        cells = (net.weights, net.gradients if there else 0.0, net.optimizer)
        table.add_row(net.name, _place(net), *(gib(n) if n else "-" for n in cells))
    of = f"in the update of {fullest.network}"
    table.add_row("activations", of, gib(fullest.activations))
    table.add_row("buffers", "gathered or cast weights, gradients on their way", gib(fullest.buffers))
    table.add_row("overhead", "assumed", gib(plan.memory.overhead))
    table.add_row("all", "", gib(plan.memory.per_gpu))
    return table


def _place(net: Kept) -> str:
    away = f", {' and '.join(net.place.offload)} on the host" if net.place.offload else ""
    return f"{net.kind.lower()}, {net.place.sharding}{away}"


def _parameters(plan: Plan) -> str:
    net = plan.setting.sizes.network
    block = f"{net.largest_block / 1e6:.4g} million in its largest block"
    return f"{net.parameters / 1e9:.4g} billion in the teacher's network, {block}"


def _clip(plan: Plan) -> str:
    tokens, train = plan.setting.sizes.tokens, plan.recipe.train
    return (
        f"{tokens.video} tokens a clip, {train.micro_batch_size} at a time, {train.precision}, "
        f"checkpointing {train.activation_checkpointing}"
    )


def _time(plan: Plan) -> str:
    if plan.duration is None:
        return "unknown: what the method evaluates has not been counted (`distill plan RECIPE --count` does)"
    time, assumed = plan.duration, plan.assumptions
    recorded = f", {time.recording / 1e18:.3g} EFLOP of recording before" if time.recording else ""
    rate = f"{plan.hardware.gpus} {assumed.gpu} at {assumed.utilization:.0%} of their peak"
    return (
        f"{_span(time.seconds)} for {time.updates:.0f} updates, {time.flop / 1e18:.3g} EFLOP{recorded}; "
        f"{time.gpu_days:.3g} GPU-days in all, on {rate}"
    )


def _span(seconds: float) -> str:
    return f"{seconds / HOUR:.3g} hours" if seconds < 48 * HOUR else f"{seconds / HOUR / 24:.3g} days"


def _notes(plan: Plan) -> Iterator[str]:
    costs = plan.setting.costs
    if costs is None:
        yield "activations: each trained network is taken to see gradients once, through no other"
    elif costs.differing:
        yield f"evaluations were counted with other values of {', '.join(costs.differing)}; --count counts them anew"
    if not plan.decided:
        yield f"within {planning.MARGIN:.0%} of what there is: undecided, for no formula was held against a GPU"
    if any(net.kind == "Built" and not net.parameters for net in plan.memory.networks):
        yield "networks that the method builds itself are not counted"


def _fix(fix: Fix) -> str:
    quoted = " ".join(f"'{each}'" if " " in each else each for each in fix.changes)
    return f"{quoted}  ({gib(fix.plan.memory.per_gpu)} a GPU, {fix.gpus} of them)"
