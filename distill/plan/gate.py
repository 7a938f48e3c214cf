"""Before a run: whether this machine has what the plan says."""

import os
from pathlib import Path

from ..errors import UserError
from ..places import Hardware
from ..recipe import Recipe
from . import planning, report
from .memory import GIB
from .planning import Assumptions, Plan


def check(recipe: Recipe, anyway: bool) -> list[str]:
    """Hold a recipe against this machine, of whose processes this is one; what is to be said, line by line.

    Raises:
        UserError: it cannot fit, and the user did not ask for it anyway.
    """
    try:
        plan, what = here(recipe)
    except UserError as error:
        return [f"memory was not planned: {error}"]
    said = [*_differing(recipe, plan)]
    if plan.fits_gpu and plan.fits_host:
        return said
    line = f"this run needs {_need(plan)}; {what}; {report.nearest(plan)}"
    if anyway:
        return [*said, f"--anyway: {line}"]
    raise UserError(f"{line}. `distill plan` says more; --anyway runs it nevertheless")


def here(recipe: Recipe) -> tuple[Plan, str]:
    """The plan on this machine, and what this has in words."""
    world, local = (int(os.environ.get(name, "1")) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    host, free = available(), _free_on_gpu()
    if free is not None:
        plan = planning.make(recipe, _hardware(world, local, free, host))
        away = f", and {report.gib(host)} of this machine's memory" if plan.memory.host else ""
        return plan, f"{report.gib(free)} of this GPU are free{away}"
    hardware = _hardware(world, local, host / local, host)
    plan = planning.make(recipe, hardware, Assumptions(overhead_gib=0.0))
    if plan.memory.host:  # what is offloaded stays in the same memory
        plan = planning.make(recipe, hardware, Assumptions(overhead_gib=plan.memory.host / world / GIB))
    of = f", for {local} processes" if local > 1 else ""
    return plan, f"{report.gib(host)} are available here{of}"


def available() -> int:
    """Bytes of this machine's memory that can be had now."""
    for line in Path("/proc/meminfo").read_text().splitlines() if Path("/proc/meminfo").is_file() else ():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _free_on_gpu() -> int | None:
    import torch

    if not torch.cuda.is_available():
        return None
    return torch.cuda.mem_get_info(int(os.environ.get("LOCAL_RANK", "0")))[0]


def _hardware(world: int, local: int, each: float, host: float) -> Hardware:
    sizes = {"memory_gib": max(each, 1) / GIB, "host_memory_gib": max(host, 1) / GIB}
    return Hardware(gpus=world, gpus_per_machine=local, **sizes)


def _need(plan: Plan) -> str:
    if plan.fits_gpu:
        return f"{report.gib(plan.host_per_machine)} of the host's memory, for what is offloaded"
    gpus = plan.hardware.gpus
    return f"{report.gib(plan.memory.per_gpu)}" + (f" in each of {gpus} processes" if gpus > 1 else "")


def _differing(recipe: Recipe, plan: Plan) -> list[str]:
    """Where the recipe was made for other hardware: what the plan says of that."""
    said = recipe.hardware
    if said is None or said.gpus == plan.hardware.gpus:
        return []
    return [
        f"the recipe's hardware is {said.gpus} GPUs, this run has {plan.hardware.gpus}; on the recipe's it "
        f"{report.verdict(planning.make(recipe))}"
    ]
