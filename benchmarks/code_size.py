"""How long functions and files are, in lines of code: no blank lines, comments or docstrings.

    python benchmarks/code_size.py

Reports; nothing depends on it. A function with functions inside counts its own lines only.
"""

import ast
import io
import statistics
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SILENT = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
Function = ast.FunctionDef | ast.AsyncFunctionDef


def code(source: str, tree: ast.Module) -> set[int]:
    """The numbers of the lines that hold code."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    lines = {n for token in tokens if token.type not in SILENT for n in range(token.start[0], token.end[0] + 1)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | Function) and ast.get_docstring(node) is not None:
            lines -= span(node.body[0])
    return lines


def span(node: ast.stmt) -> set[int]:
    return set(range(node.lineno, node.end_lineno + 1))


def functions(tree: ast.Module, lines: set[int]) -> Iterator[tuple[str, int]]:
    """Name and lines of code of every function and method, the line of `def` included."""
    for node in ast.walk(tree):
        if isinstance(node, Function):
            inner = set().union(
                *(span(each) for each in ast.walk(node) if each is not node and isinstance(each, Function))
            )
            yield node.name, len((span(node) & lines) - inner)


def main() -> None:
    sizes: dict[str, list[tuple[int, str]]] = {}
    for folder in ("distill", "methods", "benchmarks", "tests"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            source = path.read_text("utf-8")
            tree = ast.parse(source)
            lines, name = code(source, tree), path.relative_to(ROOT).as_posix()
            sizes.setdefault(f"files of {folder}", []).append((len(lines), name))
            found = [(size, f"{name}: {function}") for function, size in functions(tree, lines)]
            sizes.setdefault(f"functions of {folder}", []).extend(found)
    for what, found in sizes.items():
        largest = ", ".join(f"{name} ({size})" for size, name in sorted(found, reverse=True)[:3])
        median = statistics.median(size for size, _ in found)
        print(f"{what:22} {len(found):5}   median {median:5g}   largest: {largest}")
    print("\nmethods, lines of code")
    for size, name in sorted(sizes["files of methods"], reverse=True):
        print(f"{size:6} {name}")


if __name__ == "__main__":
    main()
