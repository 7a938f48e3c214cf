"""Ablations: what several seeds say together, and studies read from evaluations that are known."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from distill.evaluate import statistics

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "benchmarks" / "ablations"))

import accvideo  # noqa: E402
import study  # noqa: E402

PROMPTS = 200


@pytest.fixture
def weights():
    return statistics.resample(np.arange(PROMPTS))


def test_the_spread_over_seeds_is_students_t(weights):
    values = np.repeat([[1.0], [2.0], [6.0]], PROMPTS, 1)
    found = statistics.over_seeds(values, weights)
    assert found["mean"] == 3 and found["seeds"] == [1, 2, 6] and found["low"] == found["high"] == 3
    assert found["spread"] == pytest.approx(4.303 * np.sqrt(7 / 3))  # variance 7, of three
    assert np.isnan(statistics.over_seeds(values[:1], weights)["spread"])


@pytest.mark.parametrize(
    ("shift", "of_seeds", "beyond"),
    [(1.0, 0.01, True), (-1.0, 0.01, True), (1.0, 2.0, False), (0.0, 0.01, False)],
)
def test_a_difference_must_be_beyond_both_spreads(weights, shift, of_seeds, beyond):
    noise = np.random.default_rng(0).normal(size=PROMPTS)
    values = shift + noise - noise.mean() + of_seeds * np.array([[-1.0], [0.0], [1.0]])
    assert statistics.is_beyond(statistics.over_seeds(values, weights)) is beyond


def test_one_seed_is_never_beyond(weights):
    assert not statistics.is_beyond(statistics.over_seeds(np.full((1, PROMPTS), 9.0), weights))


def test_nearer_asks_how_far_and_not_on_which_side(weights):
    reference = np.zeros(PROMPTS)
    below, above = np.full((3, PROMPTS), -0.2), np.full((3, PROMPTS), 0.5)
    found = statistics.nearer(below, above, reference, weights)
    assert found["mean"] == pytest.approx(-0.3) and found["high"] == pytest.approx(-0.3)
    assert found["seeds"] == pytest.approx([-0.3] * 3) and statistics.is_beyond(found | {"spread": 0.0})
    assert statistics.nearer(below, -below, reference, weights)["mean"] == 0


def test_clips_on_both_sides_of_the_reference_cancel(weights):
    reference = np.zeros(PROMPTS)
    sides = np.tile([-1.0, 1.0], (2, PROMPTS // 2))
    assert statistics.nearer(sides, sides + 0.25, reference, weights)["mean"] == pytest.approx(-0.25)


def evaluation(student: float) -> str:
    def of(rmse):
        per_sample = {name: [0.5] * PROMPTS for name in study.MEASURES} | {"rmse": [rmse] * PROMPTS}
        return {"evaluations": 1.0} | per_sample

    samplers = {"teacher_5": of(1.0), "teacher_50": of(0.0), "student": of(student)}
    return json.dumps({"samplers": samplers, "per_sample": {"prompt": list(range(PROMPTS))} | samplers})


@pytest.fixture
def compared(tmp_path, monkeypatch):
    monkeypatch.setattr(study, "RUNS", tmp_path)
    heads = accvideo.STUDIES["losses"]
    for arm, rmse in zip(heads.arms, (0.5, 0.4, 0.3, 0.9), strict=True):
        for seed in (0, 1, 2):
            folder = heads.folder(arm, seed, [])
            folder.mkdir(parents=True)
            (folder / "evaluation.json").write_text(evaluation(rmse + 0.01 * seed))
    return study.compare(heads, [0, 1, 2], [])


def test_a_study_compares_clip_by_clip(compared):
    assert compared["difference"]["+ one head"]["rmse"]["mean"] == pytest.approx(-0.1)
    assert compared["difference_to_teacher"]["adversarial alone"]["rmse"]["mean"] == pytest.approx(-0.09)
    assert compared["gap_closed"]["+ one head per key step"]["mean"] == pytest.approx(1 - 0.31)
    assert compared["gap_closed"]["+ one head per key step"]["seeds"] == pytest.approx([0.7, 0.69, 0.68])
    assert compared["against_teacher"] == "teacher_5" and compared["reference"] == "teacher_50"
    assert compared["difference_to_reference"]["+ one head"]["rmse"]["mean"] == pytest.approx(0.41)


def test_an_arm_may_be_another_sampler_of_a_run(tmp_path, monkeypatch):
    monkeypatch.setattr(study, "RUNS", tmp_path)
    arms = {"full rate": (), "half rate": ()}
    rates = study.Study("?", accvideo.RECIPE, arms, "full rate", samplers={"half rate": "student_half_rate"})
    folder = rates.folder("full rate", 0, [])
    folder.mkdir(parents=True)
    result = json.loads(evaluation(0.5))
    for part in (result["samplers"], result["per_sample"]):
        part["student_half_rate"] = dict(result["samplers"]["student"], rmse=[0.75] * PROMPTS)
    (folder / "evaluation.json").write_text(json.dumps(result))
    found = study.compare(rates, [0], [])
    assert found["difference"]["half rate"]["rmse"]["mean"] == pytest.approx(0.25)
    assert set(found["teacher"]) == {"teacher_5", "teacher_50"}


def test_the_table_marks_what_is_beyond_the_spread(compared):
    rows = {line.split(" | ")[0].strip("| "): line for line in study.table(compared).splitlines()}
    assert "**-0.100 [-0.100, -0.100]" in rows["+ one head"]
    assert "+0.000 [+0.000, +0.000]" in rows["adversarial alone"].split(" | ")[-1]
    assert "**" not in rows["trajectory loss"]


def test_runs_are_found_by_what_made_them():
    losses, schedule = accvideo.STUDIES["losses"], accvideo.STUDIES["schedule"]
    assert losses.folder("+ one head per key step", 1, []) == schedule.folder("every 10th step", 1, [])
    folders = {losses.folder(arm, seed, []) for arm in losses.arms for seed in (0, 1)}
    assert len(folders) == 8
    assert losses.folder("+ one head", 0, ["train.steps=5"]) not in folders


def test_a_study_reads_null_as_nothing_measured():
    written = json.loads('{"per_sample": {"student": {"dynamic": [1, null, 0]}}}')
    found = study.stacked([written], "student", ("dynamic",))["dynamic"]
    assert found.shape == (1, 3) and np.isnan(found).tolist() == [[False, True, False]]
    described = study.described({"dynamic": found}, statistics.resample(np.arange(3)))["dynamic"]
    assert (described["mean"], described["seeds"]) == (0.5, [0.5])
