"""Training prompts among those that a student is measured with."""

import json
import time
from pathlib import Path

import pytest

from distill import overlap
from distill import recipe as recipes
from distill.embedded import world
from distill.errors import UserError
from tests.test_cli import RECIPES, distill

ROOT = Path(__file__).resolve().parent.parent
TINY = "recipes/tiny_gpd.yaml"
TRAINING = ["a red circle", "Don't look up!", "a cafe\u0301", "the blue-green sea", "a dog\truns"]


@pytest.mark.parametrize(
    ("prompt", "exact"),
    [
        ("a red circle", True),
        ("A  red, circle.", False),
        ("dont look up", False),
        ("don\u2019t look up", False),
        ("A CAF\u00c9", False),
        ("the blue \u2014 green sea", False),
        ("a \uff52ed circle", False),  # a full-width r
    ],
)
def test_the_same_words_are_the_same_prompt(prompt, exact):
    found = overlap.overlap(TRAINING, ["something else", prompt])
    assert (found.exact, found.alike) == (((prompt,), ()) if exact else ((), (prompt,)))
    assert found.share == 0.5


@pytest.mark.parametrize("prompt", ["a circle red", "a red circles", "ared circle", "!!!", "a red", "sea"])
def test_other_words_are_another_prompt(prompt):
    assert overlap.overlap([*TRAINING, "..."], [prompt]).line("evaluation") is None


def test_a_prompt_that_is_there_in_two_spellings_counts_as_both():
    found = overlap.overlap(["a red circle"], ["a red circle", "A red circle", "a red circle"])
    assert (found.prompts, found.exact, found.alike) == (2, ("a red circle",), ("A red circle",))


def test_images_are_not_looked_at():
    assert overlap.overlap(["/one.png\ta red circle"], ["/other.png\ta red circle"]).exact == ("a red circle",)


def test_the_line_has_the_share_and_three_examples():
    prompts = [f"prompt {i} {'x' * 100}" for i in range(8)]
    line = overlap.overlap(prompts[:4], [*prompts[1:], "PROMPT 0 " + "X" * 100]).line("evaluation")
    assert line.startswith("4 of 8 evaluation prompts (50.0%) are training prompts, 1 of them but for case")
    assert line.count("prompt 1 x") == line.count("prompt 3 x") == 1
    assert "PROMPT 0" not in line and "'..., ...;" not in line and ", ...; measure" in line
    assert "\n" not in line and len(line) < 500


def recipe(folder: Path, training: list[str], *overrides: str) -> Path:
    """The tiny GPD recipe on other training prompts."""
    (folder / "train.txt").write_text("\n".join(training), "utf-8")
    text = {"extends": str(ROOT / TINY), "data": {"prompts": "train.txt"}}
    (folder / "recipe.yaml").write_text(json.dumps(text))
    return folder / "recipe.yaml"


def test_check_warns_in_one_line_for_each_section(tmp_path):
    held_out = (ROOT / "recipes/prompts/shapes_heldout.txt").read_text().splitlines()
    done = distill("check", recipe(tmp_path, [*held_out[:32], "A blue striped triangle moves down fast on gray!"]))
    assert done.returncode == 0
    validation, evaluation = done.stderr.splitlines()
    assert validation.startswith("warning: 2 of 4 validation prompts (50.0%) are training prompts, 1 of them but for")
    assert evaluation.startswith(
        "warning: 33 of 128 evaluation prompts (25.8%) are training prompts, 1 of them but for"
    )
    assert all(repr(prompt) in evaluation for prompt in held_out[:3]) and repr(held_out[3]) not in evaluation


def test_captions_of_listed_videos_are_training_prompts(tmp_path):
    held_out = (ROOT / "recipes/prompts/shapes_heldout.txt").read_text().splitlines()
    (tmp_path / "list.csv").write_text(f"path,caption\nmissing.mp4,{held_out[0]}\n")
    options = [f"data.videos.source={tmp_path / 'list.csv'}", "data.videos.clips=null"]
    checked = recipes.load(ROOT / "recipes/tiny_avd.yaml", options)
    (line,) = overlap.warnings(checked)
    assert line.startswith("1 of 128 evaluation prompts (0.8%)") and held_out[0] in line
    (tmp_path / "list.csv").unlink()
    assert overlap.warnings(checked) == []


def test_a_prompt_file_that_cannot_be_read_is_one_line(tmp_path):
    path = recipe(tmp_path, ["a"])
    (tmp_path / "train.txt").write_bytes(b"caf\xe9")
    with pytest.raises(UserError, match=r"train\.txt: not UTF-8 at byte 3"):
        overlap.warnings(recipes.load(path))


def test_a_large_file_is_read_in_seconds(tmp_path):
    lines = [f"{i} cats, and a dog-like fox, run through the tall grass of a meadow at dawn" for i in range(250_000)]
    checked = recipes.load(recipe(tmp_path, lines))
    started = time.process_time()
    assert overlap.warnings(checked) == []
    assert time.process_time() - started < 6  # 1 s on an idle core


def shipped() -> list[recipes.Recipe]:
    found = [recipes.load(path) for path in RECIPES if path.name != "teacher_shapes.yaml"]
    return [each for each in found if each.evaluation or each.validation]


def test_no_shipped_recipe_is_measured_with_what_it_trains_on():
    assert len(shipped()) >= 12
    for each in shipped():
        assert overlap.warnings(each) == []


def test_the_worlds_evaluation_prompts_are_held_out_by_construction():
    """By the hash of their caption, which no training prompt and no rendered clip of the world can have."""
    measured = [each for each in shipped() if each.evaluation]
    assert len(measured) >= 5
    for each in measured:
        prompts = overlap.prompt_file.listed(each.evaluation.prompts) + each.validation.prompts
        assert {world.split_of(world.parse(text)) for text in prompts} == {"heldout"}
        assert {world.split_of(world.parse(text)) for text in overlap.training(each)} <= {"train"}
    assert all(world.split_of(scene) == "train" for scene in world.scenes("train", 0, 200))
