"""Counts what every recipe's method evaluates, with that recipe's options, and writes methods/costs.json.

    python benchmarks/costs.py [RECIPE ...]

Without arguments all recipes; with some, their entries are counted anew or added. Minutes on two cores.
"""

import json
import sys
from pathlib import Path

from distill import recipe as recipes
from distill.cli_common import trains_a_teacher
from distill.plan import costs, teacher
from distill.testing import counts

ROOT = Path(__file__).resolve().parent.parent
TABLE = ROOT / "methods" / costs.FILE


def main(paths: list[Path]) -> None:
    table = json.loads(TABLE.read_text("utf-8")) if TABLE.is_file() and paths else {}
    done: set[str] = set()
    for path in paths or sorted((ROOT / "recipes").glob("*.yaml")):
        if trains_a_teacher(path):
            continue
        recipe = recipes.load(path)
        guided = teacher.guided(recipe.teacher.family)
        options = counts.options(recipe.method.name, recipe.method.options)
        key = json.dumps([recipe.method.name, guided, options], sort_keys=True)
        if key in done:
            continue
        done.add(key)
        print(path.name, flush=True)
        put(table, recipe.method.name, counts.count(recipe.method.name, recipe.method.options, guided))
        TABLE.write_text(text(table))


def put(table: dict, method: str, entry: dict) -> None:
    name = counts.class_name(method)
    others = [each for each in table.get(name, []) if any(each[key] != entry[key] for key in ("options", "guided"))]
    table[name] = [*others, entry]


def text(table: dict) -> str:
    """One entry per line, in the order of names: what changes can be read in a diff."""
    lines = [
        f" {json.dumps(name)}: [\n" + ",\n".join(f"  {json.dumps(each)}" for each in entries) + "\n ]"
        for name, entries in sorted(table.items())
    ]
    return "{\n" + ",\n".join(lines) + "\n}\n"


if __name__ == "__main__":
    main([Path(path) for path in sys.argv[1:]])
