"""The shipped GPD recipes: the paper's numbers, prompts that keep their promise, and the real command."""

import json
from pathlib import Path

import pytest

from distill import assemble, build, recipe
from distill.data import prompts
from distill.embedded import world
from tests import runs, tiny_wan

RECIPES = Path(__file__).parents[1] / "recipes"


@pytest.mark.parametrize("name", ["gpd_wan13b", "gpd_wan13b_720p"])
def test_the_wan_recipes_say_what_the_paper_prints(name):
    loaded = recipe.load(RECIPES / f"{name}.yaml")
    stages = assemble.method(loaded).stages()
    assert [(stage.k, sum(map(len, stage.trajectories))) for stage in stages] == [(k, 150) for k in range(2, 9)]
    assert [stage.guidance for stage in stages] == [6.0, 5.25, 4.5, 3.75, 3.0, 2.25, 1.5]
    student = loaded.optim["student"]
    assert (student.lr, student.weight_decay, loaded.train.batch_size) == (1e-6, 1e-2, 4)
    video = loaded.video
    assert (video.frames, video.height, video.width) == (81, *((720, 1280) if "720p" in name else (480, 832)))


def test_the_demo_is_evaluated_on_prompts_that_no_training_has_seen():
    loaded = recipe.load(RECIPES / "tiny_gpd.yaml")
    splits = {
        "train": prompts.read(loaded.data.prompts),
        "heldout": prompts.read(loaded.evaluation.prompts) + loaded.validation.prompts,
    }
    for split, listed in splits.items():
        assert {world.split_of(world.parse(prompt)) for prompt in listed} == {split}
        assert all(world.caption(world.parse(prompt)) == prompt for prompt in listed)


def test_the_wan_recipe_trains_two_stages_of_a_random_wan(tmp_path):
    """With Wan's own layer names, smaller and shallower, in bf16 with checkpointing as the recipe says."""
    changes = {
        "teacher.path": tiny_wan.build(tmp_path / "teacher"),
        "video.frames": 5,
        "video.height": 32,
        "video.width": 48,
        "method.teacher_steps": 6,
        "method.steps": 2,
        "method.iterations": 4,
        "checkpoint.every": 4,
        "validation.every": 4,
        "validation.teacher_steps": "[2]",
        "output": tmp_path / "run",
    }
    arguments = [f"{key}={value}" for key, value in changes.items()]
    process = runs.command("run", RECIPES / "gpd_wan13b.yaml", *arguments)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    updates = [line for line in lines if line["kind"] == "update"]
    assert [line["stage"] for line in updates] == [0] * 4 + [1] * 4
    assert ["high_frequency" in line["terms"] for line in updates] == [False] * 5 + [True, False, True]
    assert lines[-1]["kind"] == "done"


def test_the_wan_recipe_builds_at_full_size_without_weights(tmp_path):
    """What `distill check --build` says with the published 1.3B configuration: 1,418,996,800 parameters a network."""
    folder = tiny_wan.build(tmp_path / "wan")
    sizes = {"num_attention_heads": 12, "attention_head_dim": 128, "ffn_dim": 8960, "num_layers": 30}
    sizes |= {"text_dim": 4096, "freq_dim": 256, "in_channels": 16, "out_channels": 16, "rope_max_seq_len": 1024}
    for part, changes in (("transformer", sizes), ("vae", {"scale_factor_temporal": 4, "scale_factor_spatial": 8})):
        path = folder / part / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    lines = build.describe(recipe.load(RECIPES / "gpd_wan13b.yaml", [f"teacher.path={folder}"]))
    assert lines[0].startswith("latents   16 x 21 x 60 x 104")
    assert next(line for line in lines if "student" in line) == "network   student: Trained, 1419 M parameters"
    assert [line for line in lines if line.startswith("stage")] == [
        f"stage {i:3} 150 of student updates" for i in range(1, 8)
    ]
    assert lines[-1] == "sampling  6 evaluations per clip"
