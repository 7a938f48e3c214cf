"""`distill methods`: what a new user does, with the real commands, and what a broken plugin does to the others."""

import re
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
from typer.testing import CliRunner

from distill import cli, new_method, registry
from distill import recipe as recipes
from distill.errors import UserError
from distill.testing import command
from distill.testing.conformance import CHECKS

from .test_registry import installed, module  # noqa: F401, fixtures

METHOD = """
from distill.method import Frozen, Method, Trained

class Mine(Method):
    \"\"\"A method.\"\"\"
    networks = {"student": Trained()}
"""


def listed() -> list[str]:
    return CliRunner().invoke(cli.app, ["methods"]).stdout.splitlines()


@pytest.fixture(scope="module")
def python(tmp_path_factory) -> Path:
    """The interpreter of an environment of its own, which sees the packages of this one."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "outer.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")
    return folder / "bin/python"


@pytest.mark.slow
def test_a_new_method_is_installed_listed_trained_and_passes_its_tests(python, tmp_path):
    def said(*arguments) -> str:
        done = subprocess.run([python, "-m", *arguments], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    steps = said("distill", "methods", "new", "reverse_flow").splitlines()
    install = "pip install --no-deps --no-build-isolation -e reverse_flow"
    assert [line.strip() for line in steps[1:]] == [
        install,
        "distill methods check reverse_flow",
        "distill run reverse_flow/recipes/tiny.yaml",
        "pytest reverse_flow",
    ]
    said(*install.split())
    assert re.search(r"^reverse_flow +distill-reverse-flow 0.1.0 +Regression to", said("distill", "methods"), re.M)
    assert "guidance: PositiveFloat = 5.0" in said("distill", "methods", "describe", "reverse_flow")
    short = ["train.steps=2", "validation=null", "evaluation=null"]
    assert "page:" in said("distill", "run", "reverse_flow/recipes/tiny.yaml", *short)
    assert (tmp_path / "runs/reverse_flow/checkpoints/update_00000002").is_dir()
    assert re.search(r"\d+ passed", said("pytest", "-q", "-p", "no:cacheprovider", "reverse_flow"))


def test_the_recipe_of_a_new_method_trains_and_judges_as_ours_do(tmp_path, monkeypatch):
    """On prompts that the embedded teacher was trained on, and on others."""
    from distill.embedded import world

    new_method.write("mine_too", tmp_path / "made")
    splits = {}
    for name in ("train", "heldout"):
        lines = (tmp_path / f"made/recipes/{name}.txt").read_text().splitlines()
        splits[name] = {world.split_of(world.parse(line)) for line in lines}
        assert len(set(lines)) > 50
    assert splits == {"train": {"train"}, "heldout": {"heldout"}}
    monkeypatch.syspath_prepend(tmp_path / "made")
    checked = recipes.load(tmp_path / "made/recipes/tiny.yaml", ["method.name='distill_mine_too:MineToo'"])
    assert len(set(checked.validation.prompts)) == 2
    assert {world.split_of(world.parse(prompt)) for prompt in checked.validation.prompts} == {"heldout"}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("gpd", "method 'gpd' from distill .* is installed already"),
        ("My-Method", "'My-Method' is no name for a method: small letters"),
        ("class", "is no name"),
        ("methods", "there is a module distill_methods already"),
    ],
)
def test_a_name_that_is_taken_or_none_is_refused(name, text, tmp_path):
    with pytest.raises(UserError, match=text):
        new_method.write(name, tmp_path / "made")
    assert not (tmp_path / "made").exists()


def test_a_folder_with_something_in_it_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="is not empty; name another folder with --out"):
        new_method.write("mine", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("class Mine(:", "not Python"),
        ("", "defines no class Mine"),
        (METHOD.replace("class Mine(Method):", "class Mine(Method):\n    interface = 2"), "install a newer distill"),
        (METHOD.replace("class Mine(Method):", "class Mine(Method):\n    interface = 0"), "port it"),
        (None, "there is no module"),
    ],
)
def test_a_broken_plugin_breaks_its_own_line_and_no_other(text, said, module, installed):  # noqa: F811
    installed("strange", odd=f"{'nowhere' if text is None else module(text)}:Mine")
    lines = listed()
    (own,) = [line for line in lines if line.startswith("odd ")]
    assert "strange 0.1" in own and "broken: method 'odd' from strange 0.1" in own and said in own
    assert len(lines) == len(registry.methods()) and sum("broken" in line for line in lines) == 1
    with pytest.warns(UserWarning, match="method 'odd' from strange"):
        schema = recipes.schema()
    assert len(schema["$defs"]["MethodSpec"]["anyOf"]) == len(registry.methods()) - 1
    with pytest.raises(UserError, match="^method 'odd' from strange 0.1") as refused:
        registry.method_class("odd")
    assert said in str(refused.value) or text == ""
    assert registry.method_class("gpd").__name__ == "GPD"


def test_a_plugin_of_another_interface_is_told_so_before_anything_of_it_runs(module):  # noqa: F811
    name = module("raise SystemError\n" + METHOD.replace("    networks", "    interface = 7\n    networks"))
    with pytest.raises(UserError, match=r"written for interface 7 of distill, and this distill has 1: install a newer"):
        registry.method_class(f"{name}:Mine")


def test_whatever_a_plugin_raises_when_it_is_imported_is_one_line(module):  # noqa: F811
    name = module(METHOD + "nonsense\n")
    said = r"^method '.*:Mine' from plugin_\d+ failed to import: NameError: name 'nonsense'"
    with pytest.raises(UserError, match=said):
        registry.method_class(f"{name}:Mine")


def test_a_check_shows_what_fails_why_and_what_to_do():
    lines: list[str] = []
    assert command.check("tests.broken_methods:EndsEarly", {"steps": 4}, {"train.seed": 5}, lines.append) == 1
    at = next(i for i, line in enumerate(lines) if line.startswith("fail"))
    assert lines[at].split(maxsplit=2) == ["fail", "grid", "sample follows the grid that is exported"]
    assert lines[at + 1].strip() == "grid is [1, 0.938, 0.833, 0.625]"
    assert lines[at + 2].strip().startswith("-> it must fall from exactly 1")
    assert ["skip", "export", "says nothing while grid fails"] in [line.split(maxsplit=2) for line in lines]
    assert "  student (velocity): 2 teacher, 1 student (1 with gradients)" in lines
    assert lines[-1] == f"1 of {len(CHECKS)} checks failed"


def test_a_check_of_a_name_that_is_none_is_a_users_mistake():
    done = subprocess.run(
        [sys.executable, "-m", "distill", "methods", "check", "gdp"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (2, "unknown method 'gdp', did you mean 'gpd'?\n")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"step": 4}, "tests.broken_methods:Sound has no option 'step', did you mean 'steps'?"),
        ({"steps": 0}, "option steps of tests.broken_methods:Sound: Input should be greater than or equal to 1, is 0"),
    ],
)
def test_options_that_the_method_does_not_take_are_a_users_mistake(options, text):
    with pytest.raises(UserError) as refused:
        command.check("tests.broken_methods:Sound", options, {}, print)
    assert str(refused.value) == text
