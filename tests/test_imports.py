"""Who may import whom (DESIGN), and that the quick commands stay quick: none of them imports torch."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from distill.testing import imports as rule

ROOT = Path(__file__).resolve().parent.parent
CORE = sorted((ROOT / "distill").rglob("*.py"))
METHODS = sorted((ROOT / "methods").glob("*.py"))
HEAVY = ("torch", "diffusers", "transformers", "accelerate", "peft", "numpy", "cv2")

WITHOUT_TORCH = (
    "recipe",
    "faults",
    "yaml_source",
    "registry",
    "signature",
    "options",
    "errors",
    "track",
    "watch",
    "cli",
    "cli_vbench",
    "overlap",
    "evaluate.vbench.table",
    "evaluate.metrics",
)
# who loads models of the hub, besides teachers
MODELS = ("engine", "export", "export_lora", "sample", "evaluate/weights", "testing/tiny_wan")
ONLY_TORCH = ("flow", "samplers", "method", "batch", "networks")


def imports(path: Path) -> set[str]:
    """Absolute names of the modules that a file imports."""
    return rule.imports(path, ".".join(path.relative_to(ROOT).with_suffix("").parts[:-1]))


def tops(names: set[str]) -> set[str]:
    return {name.split(".")[0] for name in names}


def ids(paths: list[Path]) -> list[str]:
    return [str(path.relative_to(ROOT)) for path in paths]


@pytest.mark.parametrize("path", CORE, ids=ids(CORE))
def test_the_core_knows_no_method(path):
    assert not tops(imports(path)) & {"distill_methods", "methods"}


@pytest.mark.parametrize("path", METHODS, ids=ids(METHODS))
def test_a_method_imports_mathematics_only(path):
    assert rule.forbidden(imports(path), own="distill_methods") == []


@pytest.mark.parametrize(
    ("line", "bad"),
    [
        ("import os.path", ["os", "os.path"]),
        ("from torch import distributed", ["torch.distributed"]),
        ("from distill import engine", ["distill.engine"]),
        ("from distill.teachers.wan import Wan", ["distill.teachers"]),
        ("import numpy", ["numpy"]),
        ("def loss():\n    import logging", ["logging"]),
        ("import math, torch.nn\nfrom distill import flow\nfrom .sibling import loss", []),
    ],
)
def test_what_a_method_may_not_import(line, bad, tmp_path):
    (tmp_path / "mine.py").write_text(line)
    found = rule.forbidden(rule.imports(tmp_path / "mine.py", "package"), own="package")
    assert bool(found) == bool(bad) and all(name.startswith(tuple(bad)) for name in found)


@pytest.mark.parametrize("path", CORE, ids=ids(CORE))
def test_libraries_have_one_owner(path):
    name = path.relative_to(ROOT / "distill").with_suffix("").as_posix()
    found = tops(imports(path))
    if name not in ("engine", "track"):  # track: other trackers are accelerate's
        assert "accelerate" not in found
    if not name.startswith("zero") and name != "testing/imported":
        assert "deepspeed" not in found
    travel = name.startswith("playback/") or name == "interpolation"  # files that go along with exported students
    if not travel and not name.startswith(("teachers/", "embedded/")) and name not in MODELS:
        assert not found & {"diffusers", "transformers", "peft"}
    if name != "yaml_source":
        assert "yaml" not in found
    if not name.startswith("curate/"):
        assert not found & ({"scenedetect"} if name == "evaluate/movement" else {"cv2", "scenedetect"})


@pytest.mark.parametrize("path", [*sorted((ROOT / "distill/playback").glob("*.py")), ROOT / "distill/interpolation.py"])
def test_what_travels_with_a_student_needs_nothing_of_ours(path):
    assert tops(imports(path)) <= {"torch", "diffusers", "transformers", *sys.stdlib_module_names}


@pytest.mark.parametrize("name", ONLY_TORCH)
def test_the_interface_needs_torch_only(name):
    third = tops(imports(ROOT / "distill" / f"{name}.py")) - set(sys.stdlib_module_names) - {"distill"}
    assert third <= {"torch"}


@pytest.mark.parametrize("name", WITHOUT_TORCH)
def test_recipes_and_commands_are_read_without_torch(name):
    code = f"import sys, distill.{name}; print(sorted(set(sys.modules) & {set(HEAVY)}))"
    assert python("-c", code).strip() == "[]"


@pytest.mark.parametrize(
    "command",
    [
        ["--help"],
        ["check", "recipes/tiny_gpd.yaml"],
        ["check", "recipes/gpd_wan14b.yaml"],
        ["plan", "recipes/dmd_wan14b.yaml", "--gpus", "8"],
        ["methods"],
        ["methods", "describe", "gpd"],
        ["teachers"],
        ["schema"],
    ],
)
def test_quick_commands_import_nothing_heavy(command, record_property):
    code = (
        "import sys, distill.cli\n"
        "try: distill.cli.main()\n"
        f"finally: print(sorted(set(sys.modules) & {set(HEAVY)}), file=sys.stderr)"
    )
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code, *command], cwd=ROOT, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - started
    record_property("seconds", seconds)
    print(f"distill {' '.join(command)}: {seconds:.2f} s")
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1] == "[]"


def python(*arguments: str) -> str:
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout
