"""What validation clips say of a student's health: known clips, and a run made to fail."""

import numpy as np
import pytest

from distill import health, recipe, track
from distill.recipe import Health

from . import runs, tiny_wan

LIMITS = Health().model_dump()


def noise(seed, shape=(4, 8, 8, 3)):
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def test_a_clip_that_gets_brighter_by_a_level_per_frame_has_that_motion():
    clip = np.arange(5, dtype=np.uint8)[:, None, None, None] * np.full((1, 8, 8, 3), 51, np.uint8)
    assert health.vitals([clip])["motion"] == pytest.approx(51 / 255)
    assert health.vitals([clip])["saturation"] == 0


def test_saturation_is_the_span_of_the_channels():
    clip = np.zeros((2, 4, 4, 3), np.uint8) + np.array([200, 149, 98], np.uint8)
    assert health.vitals([clip])["saturation"] == pytest.approx(102 / 255)


def test_variety_is_the_distance_between_clips():
    black, white = np.zeros((2, 4, 4, 3), np.uint8), np.full((2, 4, 4, 3), 255, np.uint8)
    assert health.vitals([black, black])["variety"] == 0
    assert health.vitals([black, white, black])["variety"] == pytest.approx(2 / 3)


def test_a_student_like_its_teacher_is_healthy():
    vitals = health.vitals([noise(0), noise(1)])
    assert health.ratios(vitals, vitals) == {"motion": 1, "saturation": 1, "variety": 1}
    assert health.faults(health.ratios(vitals, vitals), LIMITS) == []


@pytest.mark.parametrize(
    ("clips", "said"),
    [
        ([np.repeat(noise(j)[:1], 4, 0) for j in (0, 1)], "the clips stand still: motion is 0.00"),
        ([noise(0), noise(0)], "clips of different prompts look alike: variety is 0.00"),
        ([noise(j) // 4 * 4 + np.array([0, 0, 0], np.uint8) for j in (0, 1)], None),
        ([np.repeat(noise(j)[..., :1], 3, -1) for j in (0, 1)], "the colours fade: saturation is 0.00"),
    ],
)
def test_what_is_wrong_is_named(clips, said):
    found = health.ratios(health.vitals(clips), health.vitals([noise(0), noise(1)]))
    lines = health.faults(found, LIMITS)
    assert [line.startswith(said) for line in lines] == [True] if said else lines == []


def test_a_teacher_without_motion_asks_for_none():
    still = health.vitals([np.repeat(noise(j)[:1], 4, 0) for j in (0, 1)])
    assert "motion" not in health.ratios(still, still)


def test_a_run_at_a_hundred_times_its_learning_rate_says_that_it_is_ill(tmp_path):
    teacher = tiny_wan.build(tmp_path / "teacher")
    clips = {"prompts": ["a red circle", "a blue square"], "every": 4, "teacher_steps": [6], "guidance": 3.0}
    path = runs.write(tmp_path, teacher, validation=clips, log={"every": 1})
    ill = runs.train(path, "optim.student.lr=0.5", f"output={tmp_path / 'ill'}")
    lines = track.read(ill)
    measured = {line["update"]: line["health"] for line in lines if line["kind"] == "validation"}
    said = [line for line in lines if line["kind"] == "health"]
    assert said
    for line in said:
        name = line["message"].split("health.")[1].split(")")[0]
        low, high = LIMITS[name]
        assert not low <= measured[line["update"]][name] <= high
    page = (ill / "index.html").read_text()
    assert "(health." in page and "over the teacher" in page


def test_limits_can_be_set():
    found = {"motion": 0.6, "saturation": 1.0, "variety": 1.0}
    assert health.faults(found, LIMITS) == []
    assert "health.motion" in health.faults(found, LIMITS | {"motion": (0.9, 1.1)})[0]


def test_limits_are_checked(tmp_path):
    path = runs.write(tmp_path, tiny_wan.build(tmp_path / "teacher"))
    with pytest.raises(recipe.RecipeError, match=r"health\.motion: .*the lower limit 2 is not below the upper one 0.5"):
        recipe.load(path, ["health.motion=[2.0, 0.5]"])
