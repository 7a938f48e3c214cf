"""Clips during training."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from distill import validation, video
from distill.batch import generator
from distill.recipe import Data, Validation, Video

from . import gaussian_teacher as gaussian

SHIFT = 5.0


def recipe(**changes):
    options = {"prompts": ["a red circle", "a blue square"], "teacher_steps": [6, 48], "guidance": 4.0}
    return SimpleNamespace(
        validation=Validation(**options | changes),
        video=Video(frames=5, height=8, width=8, fps=8),
        data=Data(prompts=Path("unused")),
    )


def teacher_clips(folder, options):
    teacher, net = gaussian.GaussianTeacher(), gaussian.net()
    validation.teacher_clips(folder, teacher, net, gaussian.NoEmbeddings(), options, "cpu", SHIFT)
    return net.role.evaluations


def clips(folder, factor, options):
    def sample(noise, cond):
        return factor * noise

    return validation.clips(folder, 20, gaussian.GaussianTeacher(), sample, gaussian.NoEmbeddings(), options, "cpu")


def test_student_and_teacher_start_from_the_same_noise(tmp_path):
    teacher_clips(tmp_path, recipe())
    many, few = (gaussian.euler_factor(n, SHIFT) for n in (48, 6))
    said = clips(tmp_path, many, recipe())
    assert said["rmse"] == pytest.approx(0, abs=1e-5)
    noise = [torch.randn(3, 5, 8, 8, generator=generator("validation", 1000, j)).square().mean().sqrt() for j in (0, 1)]
    told = json.loads((tmp_path / "samples/teacher_6/clips.json").read_text())
    assert told["rmse"] == pytest.approx([abs(many - few) * n.item() for n in noise], rel=1e-4)


def test_the_files_of_an_update(tmp_path):
    teacher_clips(tmp_path, recipe())
    said = clips(tmp_path, 0.3, recipe())
    assert said["folder"] == "samples/update_00000020" and said["prompts"] == ["a red circle", "a blue square"]
    folder = tmp_path / said["folder"]
    assert sorted(p.name for p in folder.iterdir()) == ["00.mp4", "01.mp4", "clips.json", "sheet.png"]
    assert len(video.read(folder / "01.mp4")) == 5


def test_the_teachers_clips_are_made_once(tmp_path):
    assert teacher_clips(tmp_path, recipe()) == 2 * 2 * (6 + 48)
    assert teacher_clips(tmp_path, recipe()) == 0


def test_the_teachers_clips_are_made_again_for_other_settings_or_if_they_are_not_whole(tmp_path):
    teacher_clips(tmp_path, recipe())
    assert teacher_clips(tmp_path, recipe(seed=1)) == 2 * 2 * (6 + 48)
    (tmp_path / "samples/teacher_6/clips.json").unlink()
    assert teacher_clips(tmp_path, recipe(seed=1)) == 2 * 2 * 6


@pytest.mark.parametrize(
    "change",
    [{"video": Video(frames=5, height=8, width=16, fps=8)}, {"data": Data(prompts=Path("x"), negative_prompt="b")}],
)
def test_the_teachers_clips_are_made_again_for_another_size_or_negative_prompt(tmp_path, change):
    teacher_clips(tmp_path, recipe())
    other = SimpleNamespace(**vars(recipe()) | change)
    assert teacher_clips(tmp_path, other) == 2 * 2 * (6 + 48)
