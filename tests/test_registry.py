"""Methods are found by entry point, and read from their source without being imported."""

import itertools
import sys
import typing

import pydantic
import pytest

from distill import registry
from distill.errors import UserError

METHOD = '''
"""A module."""
import nonexistent_package  # reading the source must not import anything
from typing import Literal
from distill.method import Copy, Frozen, Method, Trained
from distill.options import PositiveFloat, PositiveInt

Mode = Literal["fast", "slow"]
SCALE = 2.5

class Base(Method):
    """The first line.

    Not this one.
    """

    networks = {"teacher": Frozen(), "student": Trained(init="teacher"), "prior": Copy(of="student")}

    def __init__(
        self,
        steps: PositiveInt,
        *,
        mode: Mode = "fast",
        scale: "PositiveFloat" = SCALE,
        pair: tuple[int, int] = (1, 2),
    ):
        """
        Args:
            steps: how many.
            mode, scale: two that
                go together: always.
        """

    def stages(self):
        return []

class Child(Base):
    """A variant."""
'''

numbers = itertools.count()


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Write a module under a name of its own, importable by it; the name."""
    monkeypatch.syspath_prepend(tmp_path)

    def _module(text: str) -> str:
        name = f"plugin_{next(numbers)}"
        (tmp_path / f"{name}.py").write_text(text)
        return name

    return _module


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Install a distribution that offers methods, in a folder of its own."""
    monkeypatch.syspath_prepend(tmp_path)
    registry._entries.cache_clear()

    def _installed(package: str, **methods: str) -> None:
        info = tmp_path / f"{package}-0.1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 0.1\n")
        lines = [f"{name} = {value}" for name, value in methods.items()]
        (info / "entry_points.txt").write_text("\n".join(["[distill.methods]", *lines]))

    yield _installed
    registry._entries.cache_clear()


def test_the_built_in_method_and_teacher_are_entry_points():
    assert registry.methods()["gpd"].value == "distill_methods.gpd:GPD"
    assert registry.teachers()["wan"].value == "distill.teachers.wan:Wan"


def test_a_strangers_method_is_listed_and_checked_without_being_imported(module, installed):
    name = module(METHOD)
    installed("stranger", odd=f"{name}:Base")
    entry = registry.methods()["odd"]
    assert (entry.package, entry.version) == ("stranger", "0.1")
    assert registry.trained("odd") == ["student"]
    assert registry.describe("odd").description == "The first line."
    assert name not in sys.modules


def test_options_are_those_of_the_constructor(module):
    model = registry.options(module(METHOD) + ":Base")
    made = model(steps=3)
    assert (made.mode, made.scale, made.pair) == ("fast", 2.5, (1, 2))
    assert typing.get_args(model.model_fields["mode"].annotation) == ("fast", "slow")
    for wrong in (
        {},
        {"steps": 0},
        {"steps": "3"},
        {"steps": 3, "mode": "x"},
        {"steps": 3, "scale": -1.0},
        {"steps": 3, "a": 1},
    ):
        with pytest.raises(pydantic.ValidationError):
            model(**wrong)


def test_options_are_explained_by_their_docstring_lines(module):
    fields = registry.options(module(METHOD) + ":Base").model_fields
    assert fields["steps"].description == "how many."
    assert fields["mode"].description == fields["scale"].description == "two that go together: always."
    assert fields["pair"].description is None


def test_a_subclass_inherits_options_networks_and_stages_from_another_module(module):
    parent = module(METHOD)
    child = registry.describe(module(f"from {parent} import Child as C\nclass Grand(C):\n    pass\n") + ":Grand")
    assert list(child.options.model_fields) == ["steps", "mode", "scale", "pair"]
    assert child.networks == {"teacher": "Frozen", "student": "Trained", "prior": "Copy"}
    assert child.has_stages
    assert child.hints["scale"] == "'PositiveFloat'"


@pytest.mark.parametrize(
    ("signature", "text"),
    [
        ("steps", "option steps of Plain has no annotation"),
        ("**options: int", "must name its options, without"),
        ("steps: Tensor", "the annotation of steps, Tensor, may use built-in types, typing and distill.options only"),
        ("steps: int = len('a')", "the default of steps, len('a'), is no literal"),
    ],
)
def test_a_constructor_that_cannot_be_read_is_one_line_with_its_place(module, signature, text):
    name = module(f"class Plain:\n    networks = {{'student': Trained()}}\n    def __init__(self, {signature}): ...\n")
    with pytest.raises(UserError) as caught:
        registry.options(f"{name}:Plain")
    assert text in str(caught.value)
    assert f"{name}.py:3" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("networks", ["", "networks = make()", "networks = {}", "networks = {'student': 3}"])
def test_networks_that_cannot_be_read_are_one_line(module, networks):
    name = module(f"class Plain:\n    {networks}\n    def __init__(self): ...\n")
    with pytest.raises(UserError, match="networks"):
        registry.describe(f"{name}:Plain")


def test_unknown_names_are_one_line(module):
    with pytest.raises(UserError, match=r"^unknown method 'gdp', did you mean 'gpd'\?$"):
        registry.method("gdp")
    with pytest.raises(UserError, match=r"^unknown teacher 'zzz': installed are hunyuan_video, wan(, \w+)*$"):
        registry.teacher("zzz")
    with pytest.raises(UserError, match="there is no module nowhere.at"):
        registry.options("nowhere.at:All")
    with pytest.raises(UserError, match="defines no class All"):
        registry.options(module("") + ":All")


def test_a_method_that_two_packages_offer_is_refused(installed):
    installed("one", odd="a:A")
    installed("two", odd="b:B")
    with pytest.raises(UserError, match="two packages offer a method 'odd'"):
        registry.methods()


def test_a_broken_plugin_names_itself_and_leaves_the_others_alone(module, installed):
    name = module("import nonexistent_package\n")
    installed("broken", odd=f"{name}:Base")
    assert registry.method_class("gpd").__name__ == "GPD"
    with pytest.raises(
        UserError, match=r"^method 'odd' from broken 0.1 \(.*\) failed to import: ModuleNotFoundError: "
    ):
        registry.method_class("odd")


def test_a_class_that_is_no_method_is_refused(module):
    with pytest.raises(UserError, match=r"is not a distill.method.Method$"):
        registry.method_class(module("class Plain: ...") + ":Plain")
