"""What a method may import: mathematics, and nothing that touches devices, processes, files or logs."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

THIRD = ("torch", "einops", "distill", "distill_methods")
NOT_OF_PYTHON = ("logging", "os", "pathlib", "shutil", "subprocess", "multiprocessing", "threading", "random")
NOT_OF_OTHERS = (
    "torch.distributed",
    "distill.engine",
    "distill.trainer",
    "distill.checkpoint",
    "distill.recipe",
    "distill.teachers",
    "distill.cli",
)


def imports(path: Path, package: str, *, top_level: bool = False) -> set[str]:
    """Absolute names of the modules that a file of a package imports, anywhere or when it is loaded."""
    tree = ast.parse(path.read_text("utf-8"))
    found: set[str] = set()
    for node in tree.body if top_level else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= _from(node, package)
    return found


def _from(node: ast.ImportFrom, package: str) -> set[str]:
    parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
    module = ".".join([*parents, *([node.module] if node.module else [])])
    return {module, *(f"{module}.{alias.name}" for alias in node.names)}


def forbidden(names: set[str], own: str) -> list[str]:
    """Those of the imported modules that a method has no business with; `own` is its top-level package."""
    return sorted(_outermost(name for name in names if not _allowed(name, own)))


def _allowed(name: str, own: str) -> bool:
    top = name.partition(".")[0]
    of_python = top in sys.stdlib_module_names and top not in NOT_OF_PYTHON
    return (of_python or top in (*THIRD, own)) and not any(_within(name, other) for other in NOT_OF_OTHERS)


def _within(name: str, module: str) -> bool:
    return name == module or name.startswith(f"{module}.")


def _outermost(names: Iterator[str]) -> set[str]:
    """Without the names that lie in others: of `os` and `os.path`, os."""
    found = set(names)
    return {name for name in found if not any(name != other and _within(name, other) for other in found)}
