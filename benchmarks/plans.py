"""Writes the table of docs/plan.md: what the plan says of every recipe that names its hardware.

python benchmarks/plans.py
"""

from pathlib import Path

from distill import recipe as recipes
from distill.cli_common import trains_a_teacher
from distill.plan import planning
from distill.plan.memory import GIB

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "plan.md"
HEAD = (
    "| recipe | GPUs | GiB on each | host, GiB | checkpoint, GiB | hours | GPU-days |\n|---|---|---|---|---|---|---|\n"
)


def table() -> str:
    paths = [path for path in sorted((ROOT / "recipes").glob("*.yaml")) if not trains_a_teacher(path)]
    return HEAD + "".join(row(path.stem, checked) for path in paths if (checked := recipes.load(path)).hardware)


def row(name: str, recipe: recipes.Recipe) -> str:
    plan = planning.make(recipe)
    time = plan.duration
    hours, days = (f"{time.seconds / 3600:.3g}", f"{time.gpu_days:.3g}") if time else ("?", "?")
    need, host, disk = (f"{n / GIB:.0f}" for n in (plan.memory.per_gpu, plan.host_per_machine, plan.memory.checkpoint))
    return f"| `{name}` | {plan.hardware.gpus} | {need} | {host} | {disk} | {hours} | {days} |\n"


if __name__ == "__main__":
    before, _, _ = PAGE.read_text("utf-8").partition("| recipe | GPUs")
    PAGE.write_text(before + table(), "utf-8")
