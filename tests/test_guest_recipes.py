"""The guests' recipes and runs: PeRFlow, LCM, MeanFlow and LADD through the trainer, interrupted, exported."""

import json
from pathlib import Path

import pytest

from distill import assemble, export, recipe, trainer
from distill.data import prompts
from distill.embedded import world
from tests import films, runs, tiny_wan

RECIPES = Path(__file__).parents[1] / "recipes"
GUESTS = ("perflow", "lcm", "meanflow", "ladd")
SIZE = {"video.frames": 5, "video.height": 32, "video.width": 48}
TERMS = {
    "perflow": [("student", "velocity")],
    "lcm": [("student", "consistency")],
    "meanflow": [("student", "velocity")],
    "ladd": [("student", "adversarial"), ("heads", "real", "fake")],
}
EVALUATIONS = {  # of each network, by a step of a batch of 2: guided ones count twice
    "perflow": {"teacher": 2 * 2 * 8, "student": 2},
    "lcm": {"teacher": 2 * 2, "student": 2, "target": 2},
    "meanflow": {"teacher": 2 * 2, "student": 2 * 4},  # three of the difference quotient, one with gradients
    "ladd": {"teacher": 2 * 2, "student": 2, "heads": 2 * 3 * 3},  # a head for each of three blocks
}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return tiny_wan.build(tmp_path_factory.mktemp("teacher"), layers=3)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> dict[str, str]:
    """Overrides of what recipes learn from: a folder of four captioned clips, stores of their own."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "videos").mkdir()
    for i, words in enumerate(["a red circle", "a blue square", "a red square moves left", "a"]):
        films.write(folder / f"videos/{i}.mkv", films.noise(5, 32, 48, seed=i), 8)
        (folder / f"videos/{i}.txt").write_text(words)
    videos = {"source": folder / "videos", "path": folder / "videos_store", "curation": "null"}
    records = {"records": 4, "steps": 4, "keep": 4, "path": folder / "store"}
    return {f"data.videos.{k}": v for k, v in videos.items()} | {
        f"data.trajectories.{k}": v for k, v in records.items()
    }


def overrides(name: str, teacher: Path, data: dict, folder: Path, **more) -> list[str]:
    section = "data.trajectories." if name == "ladd" else "data.videos."
    changes = {"teacher.path": teacher, **SIZE, "video.fps": 8, "train.batch_size": 2, "output": folder}
    changes |= {key: value for key, value in data.items() if key.startswith(section)}
    changes |= {"validation": "null"} | more
    return [f"{key}={value}" for key, value in changes.items()]


def updates(run: Path) -> list[dict]:
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == "update"]


@pytest.mark.parametrize("name", GUESTS)
def test_the_wan_recipes_train_a_random_wan_at_the_stated_cost(name, teacher, data, tmp_path):
    """In bf16 with checkpointing, as the recipes say."""
    changes = overrides(name, teacher, data, tmp_path / "run", **{"train.steps": 2})
    run = runs.train(RECIPES / f"{name}_wan13b.yaml", *changes)
    lines = updates(run)
    assert [(line["network"], *line["terms"]) for line in lines] == TERMS[name] * 2
    spent = [sum(line["evaluations"].get(net, 0) for line in lines) for net in EVALUATIONS[name]]
    assert dict(zip(EVALUATIONS[name], spent, strict=True)) == {k: 2 * n for k, n in EVALUATIONS[name].items()}


class Killed(BaseException):
    """Stands for kill -9: nothing catches it, nothing is saved."""


@pytest.mark.parametrize("name", GUESTS)
def test_a_killed_run_goes_on_bit_for_bit_and_its_student_leaves_as_a_pipeline(
    name, teacher, data, tmp_path, monkeypatch
):
    more = {"train.steps": 4, "train.precision": "fp32", "checkpoint.every": 1}
    changes = overrides(name, teacher, data, tmp_path / "whole", **more)
    whole = runs.train(RECIPES / f"{name}_wan13b.yaml", *changes)
    changes, pause = overrides(name, teacher, data, tmp_path / "other", **more), trainer.Trainer._pause

    def kill(self, *now):
        if self.position.done == 2 * len(TERMS[name]) + 1:
            raise Killed
        pause(self, *now)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(trainer.Trainer, "_pause", kill)
        runs.train(RECIPES / f"{name}_wan13b.yaml", *changes)
    other = runs.train(RECIPES / f"{name}_wan13b.yaml", *changes)
    runs.assert_same(runs.final(other), runs.final(whole))
    folder = export.export(whole, tmp_path / "student")  # compares the reloaded pipeline with the run's sampler
    assert json.loads((folder / "distill.json").read_text())["difference"] <= export.TOLERANCE


@pytest.mark.parametrize("name", GUESTS)
def test_the_laptop_recipes_learn_the_world_and_are_judged_on_prompts_that_no_training_has_seen(name):
    loaded = recipe.load(RECIPES / f"tiny_{name}.yaml")
    judged = prompts.read(loaded.evaluation.prompts) + loaded.validation.prompts
    assert {world.split_of(world.parse(prompt)) for prompt in judged} == {"heldout"}
    assert len(assemble.method(loaded).grid()) - 1 in loaded.evaluation.teacher_steps
    assert loaded.evaluation.guidance == loaded.validation.guidance == 9.0
