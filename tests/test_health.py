"""What validation clips say of a student's health: known clips, and a run made to fail."""

import re

import numpy as np
import pytest

from distill import health, recipe, track
from distill.recipe import Health

from . import runs, tiny_wan

LIMITS = Health()
CLIPS = {"prompts": ["a red circle", "a blue square"], "every": 4, "teacher_steps": [6], "guidance": 3.0}


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
    assert health.of_clips(health.ratios(vitals, vitals), LIMITS) == []


@pytest.mark.parametrize(
    ("clips", "guard", "said"),
    [
        ([np.repeat(noise(j)[:1], 4, 0) for j in (0, 1)], "motion", "the clips stand still: motion is 0.00"),
        ([noise(0), noise(0)], "variety", "clips of different prompts look alike: variety is 0.00"),
        ([noise(j) // 4 * 4 for j in (0, 1)], None, ""),
        ([np.repeat(noise(j)[..., :1], 3, -1) for j in (0, 1)], "saturation", "the colours fade: saturation is 0.00"),
    ],
)
def test_what_is_wrong_is_named(clips, guard, said):
    found = health.ratios(health.vitals(clips), health.vitals([noise(0), noise(1)]))
    alarms = health.of_clips(found, LIMITS)
    assert [alarm.guard for alarm in alarms] == ([guard] if guard else [])
    assert all(alarm.message.startswith(said) for alarm in alarms)


def test_every_symptom_has_advice_of_its_own():
    sides = [dict.fromkeys(health.CLIPS, ratio) for ratio in (0.01, 100.0)]
    advice = [alarm.message.split("); ")[1] for side in sides for alarm in health.of_clips(side, LIMITS)]
    assert len(advice) == len(set(advice)) == 6


def test_a_teacher_without_motion_asks_for_none():
    still = health.vitals([np.repeat(noise(j)[:1], 4, 0) for j in (0, 1)])
    assert "motion" not in health.ratios(still, still)


def critic(student, teacher, alarmed=False, limits=LIMITS):
    return [
        alarm.message
        for alarm in health.of_critics({"fake": {"student": student, "teacher": teacher}}, alarmed, limits)
    ]


def test_a_critic_that_tells_is_healthy_whatever_the_clips():
    assert critic(0.56, 0.49) == critic(0.56, 0.49, alarmed=True) == []


def test_a_critic_that_cannot_tell_has_vanished_only_where_the_clips_are_not_alike():
    assert critic(0.5, 0.5) == []
    (said,) = critic(0.5, 0.5, alarmed=True)
    assert said.startswith("fake has vanished") and "raise optim.fake.lr" in said and "(health.critic)" in said


def test_a_critic_that_takes_the_teacher_for_the_student_has_diverged():
    for alarmed in (False, True):
        (said,) = critic(0.4, 0.5, alarmed)
        assert said.startswith("fake has diverged") and "0.400 sure of the student's clips, 0.500" in said


def test_a_critic_that_is_always_right_has_won():
    (said,) = critic(0.97, 0.02)
    assert said.startswith("fake has won") and "lower optim.fake.lr" in said
    assert critic(0.97, 0.02, limits=Health(critic=(0.02, 0.99))) == []


@pytest.fixture(scope="module")
def ill(tmp_path_factory):
    """A run at hundreds of times its learning rate, which may not stop for it: (folder, log)."""
    folder = tmp_path_factory.mktemp("ill")
    path = runs.write(folder, tiny_wan.build(folder / "teacher"), validation=CLIPS)
    return runs.train(path, "optim.student.lr=0.5"), path


def test_a_run_at_a_hundred_times_its_learning_rate_says_that_it_is_ill(ill):
    lines = track.read(ill[0])
    measured = {line["update"]: line["health"] for line in lines if line["kind"] == "validation"}
    said = [line for line in lines if line["kind"] == "health"]
    assert said
    for line in said:
        low, high = getattr(LIMITS, line["guard"])
        assert not low <= measured[line["update"]][line["curve"]] <= high
        assert f"(health.{line['guard']})" in line["message"]


def test_the_page_rings_the_curve_that_an_alarm_is_about(ill):
    lines = track.read(ill[0])
    fired = {(line["curve"], line["update"]) for line in lines if line["kind"] == "health"}
    page = (ill[0] / "index.html").read_text()
    assert page.count('class="flag"') == len(fired) and "(health." in page
    for curve, update in fired:
        assert re.search(f"{curve} out of its limits at updates [^;]*{update}", page)


def test_a_guard_may_stop_the_run_at_a_saved_state_and_the_run_goes_on_from_there(ill, tmp_path):
    """Where it is told not to stop, it then does what the run did that never stopped."""
    whole, path = ill
    first = next(line for line in track.read(whole) if line["kind"] == "health")
    options = ["optim.student.lr=0.5", f"output={tmp_path / 'run'}"]
    process = runs.command("run", path, *options, f"health.stop=[{first['guard']}]")
    said, _ = process.communicate()
    assert process.returncode == 1 and "Traceback" not in said, said
    assert f"health.stop names {first['guard']}" in said and f"update_{first['update']:08d}" in said
    runs.assert_same(runs.final(runs.train(path, *options)), runs.final(whole))


def test_limits_can_be_set():
    found = {"motion": 0.6, "saturation": 1.0, "variety": 1.0}
    assert health.of_clips(found, LIMITS) == []
    assert "health.motion" in health.of_clips(found, Health(motion=(0.9, 1.1)))[0].message


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("motion=[2.0, 0.5]", r"health\.motion: .*the lower limit 2 is not below the upper one 0.5"),
        ("stop=[motoin]", r"health\.stop"),
        ("window=1", r"health\.window"),
    ],
)
def test_the_section_is_checked(tmp_path, change, said):
    path = runs.write(tmp_path, tiny_wan.build(tmp_path / "teacher"))
    with pytest.raises(recipe.RecipeError, match=said):
        recipe.load(path, [f"health.{change}"])
