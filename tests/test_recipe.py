"""Recipes: YAML 1.2, every fault with its place, bases, overrides, and a file that says what was run."""

import json
from pathlib import Path

import pytest
import yaml

from distill import recipe as recipes
from distill import yaml_source

RECIPES = Path(__file__).resolve().parent.parent / "recipes"

GOOD = """\
teacher: {family: wan, path: embedded}
video: {frames: 9, height: 32, width: 32, fps: 8}
data: {prompts: prompts.txt}
method:
  name: gpd
  iterations: 10
optim:
  student:
    lr: 1e-4
train:
  batch_size: 8
  micro_batch_size: 4
validation: {prompts: [a red circle]}
output: run
"""


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write files into a folder of their own, the working directory too; GOOD with replacements if a pair is given."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.txt").write_text("a red circle\n")

    def _write(*changes: tuple[str, str], name: str = "x.yaml", text: str = GOOD) -> Path:
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(text)
        return Path(name)

    return _write


def faults(path: Path, *overrides: str) -> list[str]:
    with pytest.raises(recipes.RecipeError) as caught:
        recipes.load(path, overrides)
    return str(caught.value).splitlines()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-6", 1e-6),
        ("1E6", 1e6),
        ("-.5", -0.5),
        ("5.", 5.0),
        ("010", 10),
        ("0x1F", 31),
        ("0o17", 15),
        ("-3", -3),
        ("16:9", "16:9"),
        ("12:30", "12:30"),
        ("on", "on"),
        ("no", "no"),
        ("1_000", "1_000"),
        ("2026-01-01", "2026-01-01"),
        ("true", True),
        ("~", None),
        ("", None),
        ("-.inf", float("-inf")),
        ("'1e-6'", "1e-6"),
        ("!!str 5", "5"),
        ("[1, 1e-3, x]", [1, 1e-3, "x"]),
    ],
)
def test_values_are_those_of_yaml_1_2(write, text, value):
    found = yaml_source.read(write(text=f"key: {text}\n")).data["key"]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    "value", ["1e-6", "16:9", "010", "no", "true", "", "~", "a: b", "kr\u00e4uter", 1e-6, 5.0, None, [1, ["x"]]]
)
def test_what_is_dumped_is_read_back(write, value):
    assert yaml_source.read(write(text=yaml_source.dump({"key": value}))).data == {"key": value}


def test_a_recipe_is_typed_and_complete(write):
    recipe = recipes.load(write())
    assert recipe.optim["student"].lr == 1e-4
    assert recipe.optim["student"].betas == (0.9, 0.999)
    assert recipe.method.options["iterations"] == 10
    assert recipe.method.options["teacher_steps"] == 48  # the constructor's default
    assert recipe.evaluation is None


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (
            ("lr: 1e-4", "lr: 1e-4\n    learning_rat: 1"),
            "x.yaml:10:5: optim.student.learning_rat: unknown key; known are lr,",
        ),
        (("fps: 8}", "fp: 8}"), "x.yaml:2:43: video.fp: unknown key, did you mean 'fps'?"),
        (("batch_size: 8", "batch_size: many"), 'x.yaml:11:3: train.batch_size: should be a valid integer, is "many"'),
        (("batch_size: 8", "batch_size: '8'"), 'x.yaml:11:3: train.batch_size: should be a valid integer, is "8"'),
        (("batch_size: 8", "batch_size: true"), "x.yaml:11:3: train.batch_size: should be a valid integer, is true"),
        (("lr: 1e-4", "lr: 5"), "x.yaml:9:5: optim.student.lr: should be less than 1, is 5"),
        (("lr: 1e-4", "lr: .nan"), "x.yaml:9:5: optim.student.lr: should be a finite number, is NaN"),
        (("lr: 1e-4", "lr: 1e-4\n    lr: 1e-5"), "x.yaml:10:5: optim.student.lr: duplicate key, first given on line 9"),
        (("iterations: 10", "iteration: 10"), "x.yaml:6:3: method.iteration: unknown key, did you mean 'iterations'?"),
        (
            ("iterations: 10", "iterations: [3, 0]"),
            "x.yaml:6:19: method.iterations.1: should be greater than or equal to 1",
        ),
        (
            ("iterations: 10", "target: onlin"),
            "x.yaml:6:3: method.target: should be 'online' or 'constant', is \"onlin\"",
        ),
        (("name: gpd", "name: gdp"), "x.yaml:5:3: method.name: unknown method 'gdp', did you mean 'gpd'?"),
        (("name: gpd", "name: nowhere.at:All"), "x.yaml:5:3: method.name: method 'nowhere.at:All' from nowhere"),
        (("family: wan", "family: wam"), "x.yaml:1:11: teacher.family: unknown teacher 'wam', did you mean 'wan'?"),
        (("path: embedded", "path: ./no"), "x.yaml:1:24: teacher.path: no such file: no, nor is it a hub id"),
        (("path: embedded", "path: embedded, revision: main"), "x.yaml:1:40: teacher.revision: embedded is no hub id"),
        (
            ("  student:", "  studnet:"),
            "x.yaml:8:3: optim.studnet: the method trains no such network, did you mean 'student'?",
        ),
        (("  student:", "  studnet:"), "x.yaml:7:1: optim.student: required, but missing: the method trains student"),
        (
            ("batch_size: 8", "batch_size: 6"),
            "x.yaml:11:3: train.batch_size: 6 is not a multiple of micro_batch_size 4",
        ),
        (("lr: 1e-4", "lr: 1e-4\n    warmup: 5"), "x.yaml:10:5: optim.student.warmup: schedule constant has none"),
        (
            ("prompts.txt", "prompt.txt"),
            "x.yaml:3:8: data.prompts: no such file: prompt.txt, did you mean 'prompts.txt'?",
        ),
        (("[a red circle]", "[]"), "x.yaml:13:14: validation.prompts: List should have at least 1 item"),
        (("[a red circle]", "[a, 3]"), "x.yaml:13:27: validation.prompts.1: should be a valid string, is 3"),
        (("output: run", ""), "x.yaml: output: required, but missing"),
        (("output: run", "output: {a: b"), "x.yaml:15:1: not YAML:"),
        (("output: run", "output: !!python/object:os.system {}"), "x.yaml:14:1: output: should"),
        (("1e-4", "1e-4\n    betas: [0.9]"), "x.yaml:10:5: optim.student.betas: needs 2 entries or more, is [0.9]"),
        (("output: run", "output: &a [*a]"), "x.yaml:14:9: an alias inside its own anchor"),
    ],
)
def test_a_fault_says_where_what_and_what_next(write, change, line):
    found = faults(write(change))
    assert any(text.startswith(line) for text in found), found


def test_a_method_without_stages_needs_a_number_of_steps(write, monkeypatch):
    write(name="plain.py", text=PLAIN)
    monkeypatch.syspath_prepend(".")
    change = ("name: gpd\n  iterations: 10", "name: plain:Plain")
    assert faults(write(change)) == [
        "x.yaml:9:1: train.steps: required, but missing: the method has no stages of its own"
    ]
    assert recipes.load(write(change), ["train.steps=5"]).train.steps == 5


PLAIN = """
from distill.method import Method, Trained

class Plain(Method):
    networks = {"student": Trained()}
"""


def test_all_faults_are_found_at_once_and_in_order(write):
    found = faults(
        write(("fps: 8", "fps: x"), ("iterations: 10", "iterations: x"), ("batch_size: 8", "batch_size: 7")), "a=1"
    )
    assert [text.partition(": ")[0] for text in found] == [
        "command line 'a=1'",
        "x.yaml:2:43",
        "x.yaml:6:3",
        "x.yaml:11:3",
    ]


def test_the_branches_of_a_union_are_one_fault(write):
    assert faults(write(("iterations: 10", "iterations: [3, 0]"))) == [
        "x.yaml:6:19: method.iterations.1: should be greater than or equal to 1, is 0"
    ]
    assert faults(write(("iterations: 10", "iterations: x"))) == [
        'x.yaml:6:3: method.iterations: should be a valid integer or should be a valid array, is "x"'
    ]


def test_a_missing_recipe_names_its_neighbour(write):
    write(name="base.yaml")
    with pytest.raises(ValueError, match=r"^no such file: bas.yaml, did you mean 'base.yaml'\?$"):
        recipes.load("bas.yaml")


def test_a_file_that_is_no_mapping_or_no_utf_8_is_one_fault(write):
    assert faults(write(text="- a\n")) == ["x.yaml: a recipe is a mapping of sections"]
    Path("x.yaml").write_bytes(b"a: \xff\n")
    assert faults(Path("x.yaml")) == ["x.yaml: not UTF-8: byte 0xff at position 3"]


def test_a_child_changes_its_base_key_by_key(write):
    write(name="bases/base.yaml")
    write(name="bases/prompts.txt", text="a\n")
    child = write(name="child.yaml", text="extends: bases/base.yaml\noptim: {student: {weight_decay: 0}}\n")
    recipe = recipes.load(child)
    assert (recipe.optim["student"].lr, recipe.optim["student"].weight_decay) == (1e-4, 0)
    assert recipe.data.prompts == Path("bases/prompts.txt").absolute()  # from the file that wrote it
    assert recipe.output == Path("run").absolute()  # from the working directory


def test_later_bases_and_the_child_win(write):
    write(name="a.yaml")
    write(name="b.yaml", text="train: {seed: 1, micro_batch_size: 2}\n")
    child = write(name="c.yaml", text="extends: [a.yaml, b.yaml]\ntrain: {seed: 2}\n")
    train = recipes.load(child).train
    assert (train.batch_size, train.micro_batch_size, train.seed) == (8, 2, 2)


def test_a_fault_of_a_base_names_the_base(write):
    write(("lr: 1e-4", "lr: 3"), name="base.yaml")
    child = write(name="child.yaml", text="extends: base.yaml\ntrain: {seed: x}\n")
    assert [text.partition(": ")[0] for text in faults(child)] == ["base.yaml:9:5", "child.yaml:2:9"]


def test_a_base_that_is_missing_or_extends_itself_is_a_fault(write):
    write(name="base.yaml", text="extends: x.yaml\n")
    assert "x.yaml:1:1: extends: no such file: bas.yaml, did you mean 'base.yaml'?" in faults(
        write(text="extends: bas.yaml\n")
    )
    assert "base.yaml:1:1: extends: x.yaml extends itself" in faults(write(text="extends: base.yaml\n"))


def test_an_override_has_the_last_word_and_is_named_by_its_fault(write):
    recipe = recipes.load(
        write(), ["optim.student.lr=1e-6", "method.guidance=[3, 2.5]", "validation=null", "optim.student.lr=1e-5"]
    )
    assert recipe.optim["student"].lr == 1e-5
    assert recipe.method.options["guidance"] == (3.0, 2.5)
    assert recipe.validation is None
    assert faults(write(), "train.stepz=4") == [
        "command line 'train.stepz=4': train.stepz: unknown key, did you mean 'steps'?"
    ]
    assert faults(write(), "train") == ["command line 'train': expected KEY=VALUE, as in optim.student.lr=1e-6"]


def test_a_saved_recipe_is_the_recipe(write):
    recipe = recipes.load(write(), ["method.guidance=[3, 2.5]"])
    recipes.save(recipe, Path("saved.yaml"))
    assert recipes.load("saved.yaml") == recipe
    assert recipes.flatten(recipes.load("saved.yaml")) == recipes.flatten(recipe)
    assert recipes.flatten(recipe)["optim.student.lr"] == 1e-4


def test_the_schema_knows_the_options_of_methods(write):
    schema = json.loads(json.dumps(recipes.schema()))
    gpd = next(m for m in schema["$defs"]["MethodSpec"]["anyOf"] if m["properties"]["name"]["const"] == "gpd")
    assert gpd["properties"]["teacher_steps"]["default"] == 48
    assert set(yaml.safe_load(GOOD)) <= set(schema["properties"])
    assert schema["additionalProperties"] is False
