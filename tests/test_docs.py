"""The documentation: what it shows is run, what it links to is there, what it generates is complete."""

import importlib.util
import os
import re
import shlex
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

from distill import recipe, registry, teachers, yaml_source
from distill.recipe import TeacherSpec, Video
from distill.testing import tiny_wan

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(page for page in DOCS.rglob("*.md") if "_build" not in page.parts)
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?:|mailto:|#)([^)\s#]+)[^)]*\)")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page; `before` is the last line of the paragraph before it."""

    before: str
    language: str
    text: str

    @property
    def file(self) -> str | None:
        """The file that the paragraph before it names last, if it ends with it, or with "these sections instead"."""
        found = re.search(r"`([\w/.]+)`(?:, these sections instead)?:$", self.before)
        return found and found[1]


def blocks(page: str, language: str | None = None) -> list[Block]:
    text = (DOCS / page).read_text("utf-8")
    fences = [(text[: fence.start()].strip(), *fence.groups()) for fence in FENCE.finditer(text)]
    found = [Block(before.rpartition("\n")[2], *rest) for before, *rest in fences]
    return [block for block in found if language in (None, block.language)]


def commands(block: Block) -> Iterator[tuple[str, str]]:
    """(command, what the page says that it prints)."""
    for entry in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
        command, _, printed = entry.partition("\n")
        yield command, printed


# What makes the tutorial small: sections of its recipes and of the one that it compares with, arguments of commands.
SMALL = {
    "train": {"steps": 2, "batch_size": 2, "micro_batch_size": 2},
    "validation": None,
    "evaluation": {"samples": 2, "teacher_steps": [1, 2]},
}
FEWER = {"distill compare": "--shown 1 --metrics rmse,psnr", "pip install": "--quiet --disable-pip-version-check"}


class Reader:
    """Someone who follows a page to the letter, in a folder and a Python environment of their own."""

    def __init__(self, folder: Path):
        self.folder = folder
        venv.create(folder / "venv", with_pip=False)
        self.bin = folder / "venv/bin"
        ours = f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n"
        next((folder / "venv").glob("lib/python*/site-packages")).joinpath("ours.pth").write_text(ours)
        for name, module in (("distill", "distill"), ("pip", "pip"), ("pytest", "pytest")):
            self._script(name, f'exec "{self.bin}/python" -m {module} "$@"')

    def _script(self, name: str, line: str) -> None:
        (self.bin / name).write_text(f"#!/bin/sh\n{line}\n")
        (self.bin / name).chmod(0o755)

    def run(self, command: str, clone: Path) -> str:
        more = next((extra for start, extra in FEWER.items() if command.startswith(start)), "")
        path = f"{self.bin}{os.pathsep}{os.environ['PATH']}"
        environment = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", "DISTILL": str(clone), "PYTHONPATH": ""}
        done = subprocess.run(
            f"{command} {more}", shell=True, cwd=self.folder, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, f"$ {command} {more}\n{done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def write(self, block: Block) -> None:
        """A whole file, or, in YAML, sections in the place of a file's own."""
        path = self.folder / block.file
        assert path.is_file(), f"the tutorial changes {block.file}, which `distill methods new` does not write"
        if block.language == "yaml":
            (self.folder / "sections.yaml").write_text(block.text)
            old, new = (yaml_source.read(each).data for each in (path, self.folder / "sections.yaml"))
            path.write_text(yaml_source.dump(small(old | new)))
        else:
            path.write_text(block.text)


def small(data: dict) -> dict:
    """A recipe that takes seconds."""
    return data | {key: value and data[key] | value for key, value in SMALL.items()}


@pytest.mark.slow
def test_the_tutorial_works_to_the_letter(tmp_path):
    """Every file is written and every command is run, in the order of the page; only sizes are smaller."""
    reader, clone = Reader(tmp_path), tmp_path / "clone"
    (clone / "recipes").mkdir(parents=True)
    other = {"extends": str(ROOT / "recipes/tiny_dmd.yaml")} | SMALL
    (clone / "recipes/tiny_dmd.yaml").write_text(yaml_source.dump(other))
    printed = {}
    for block in blocks("write_a_method.md"):
        if block.language == "console":
            printed |= {command: reader.run(command, clone) for command, _ in commands(block)}
        elif block.file:
            reader.write(block)
    assert len(printed) == 10, "commands of the tutorial were added or left out"
    assert "sid            distill-sid 0.1.0    Regression" in printed["distill methods"]
    assert "sid holds what a method must" in printed["distill methods check sid steps=2"]
    assert re.search(r"\d\d passed", printed["pytest -q sid"])
    assert (tmp_path / "runs/sid/index.html").is_file()
    page = (tmp_path / "comparison/index.html").read_text("utf-8")
    assert "sid" in page and "dmd" in page


def test_the_tutorials_recipe_for_wan_has_no_faults(tmp_path, monkeypatch):
    *_, block = [block for block in blocks("write_a_method.md", "yaml") if "extends" in block.text]
    (tmp_path / "distill_sid.py").write_text(next(b.text for b in blocks("write_a_method.md", "python")))
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "prompts.txt").write_text("a fox in the snow\n")
    text = block.text.replace("$DISTILL", str(ROOT)).replace("name: sid,", "name: 'distill_sid:Sid',")
    (tmp_path / "wan.yaml").write_text(text)
    checked = recipe.load(tmp_path / "wan.yaml")
    assert checked.optim["fake_score"].lr == 1e-6 and checked.video.frames == 81


def test_the_quickstarts_checks_print_what_it_says():
    checks = [pair for block in blocks("quickstart.md", "console") for pair in commands(block)]
    checks = [(command, said) for command, said in checks if command.startswith("distill check recipes/tiny_gpd")]
    assert len(checks) == 2
    for command, said in checks:
        line = [sys.executable, "-m", *shlex.split(command)]
        done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == (2 if said else 0)
        assert said in done.stderr


def test_recipes_that_pages_name_have_no_faults():
    named = {name for page in PAGES for name in re.findall(r"\brecipes/(\w+)\.yaml", page.read_text("utf-8"))}
    assert {"tiny_gpd", "gpd_wan13b", "tiny_dmd"} <= named
    for name in named - {"tiny", "x", "teacher_shapes"}:  # the tutorial's own, a placeholder, one of another kind
        recipe.load(ROOT / f"recipes/{name}.yaml")


def test_the_velocity_of_add_a_teacher_is_the_stock_transformers(tmp_path):
    folder = tiny_wan.build(tmp_path / "teacher")
    teacher = teachers.load(TeacherSpec(family="wan", path=str(folder)), Video(**tiny_wan.VIDEO, fps=8))
    known = {"nn": nn}
    exec(blocks("add_a_teacher.md", "python")[0].text, known)
    ours = teacher.network().eval()
    shown = known["MyVelocity"](ours.transformer)
    x = torch.randn(2, *teacher.latent_shape(5, 32, 48), generator=torch.Generator().manual_seed(0))
    inputs = x, torch.tensor([0.9, 0.3]), teacher.encode(["a red circle", "a blue square"])
    with torch.no_grad():
        assert torch.equal(shown(*inputs), ours(*inputs))
    shown.enable_checkpointing()
    assert ours.transformer.gradient_checkpointing


@pytest.mark.parametrize("page", [str(page.relative_to(ROOT)) for page in [*PAGES, ROOT / "README.md"]])
def test_links_lead_to_files(page):
    folder = (ROOT / page).parent
    broken = [link for link in LINK.findall((ROOT / page).read_text("utf-8")) if not (folder / link).exists()]
    assert not broken


@pytest.fixture(scope="module")
def generated():
    pytest.importorskip("sphinx", reason="the extra `docs` is not installed")
    spec = importlib.util.spec_from_file_location("recipe_reference", DOCS / "ext/recipe_reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reference_of_recipes_has_every_key_of_the_schema(generated):
    """The schema that editors use is made by pydantic: an independent list of sections and keys."""
    text = generated.reference()
    definitions = recipe.Recipe.model_json_schema()["$defs"]
    sections = dict(re.findall(r"^## `([\w.]+)`\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL))
    tables = [set(re.findall(r"^\| `(\w+)` \|", body, re.MULTILINE)) for body in sections.values()]
    for name, definition in definitions.items():
        keys = set(definition["properties"])
        assert keys in tables or name == "MethodSpec", f"section {name} is missing, or keys of it"
    assert len(sections) == len(definitions)
    assert "| `every` | integer >= 1 | `100` | Updates. |" in sections["checkpoint"]
    assert "| `lr` | number > 0 and < 1 | required |  |" in sections["optim.NAME"]


def test_the_reference_says_a_new_option_by_itself(generated):
    class Demo(recipe.Section):
        colours: tuple[int, ...] | None = (1, 2)
        """How many
        there are (docs/health.md)."""

    row = "| `colours` | list of integer or `null` | `[1, 2]` | How many there are ([health](health.md)). |"
    assert row in generated._section("demo", Demo).splitlines()


def test_the_options_of_every_built_in_method_are_there(generated):
    text = generated.method_options()
    own = [entry.name for entry in registry.methods().values() if entry.package == "distill"]
    assert re.findall(r"^### `method.name: (\w+)`$", text, re.MULTILINE) == sorted(own)
    assert "| `guidance` | number > 0 | `5.0` | the teacher's scale. |" in text


def test_every_method_has_a_page():
    table = (DOCS / "methods/index.md").read_text("utf-8")
    rows = re.findall(r"^\| \[([\w, ]+)\]\((\w+\.md)\) \|", table, re.MULTILINE)
    there = [names.split(", ") for names, page in rows if (DOCS / "methods" / page).is_file()]
    own = {entry.name for entry in registry.methods().values() if entry.package == "distill"}
    assert {name.lower() for names in there for name in names} == own - {"interpolator"}  # docs/interpolation.md
