"""The final evaluation, on a teacher whose samples have a closed form."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from distill.batch import generator
from distill.evaluate import fidelity, statistics
from distill.recipe import Data, Evaluation, Video

from . import gaussian_teacher as gaussian

SHIFT = 5.0
SHAPE = (3, 5, 8, 8)


def recipe(**changes):
    options = {"prompts": ["a", "b", "c"], "samples": 8, "seed": 7, "batch_size": 3, "teacher_steps": [6, 48]}
    return SimpleNamespace(
        evaluation=Evaluation(**options | {"guidance": 4.0} | changes),
        video=Video(frames=5, height=8, width=8, fps=8),
        data=Data(prompts=Path("unused")),
    )


def student(factor, net):
    """Multiplies noise with a factor, after two evaluations that change nothing."""

    def sample(noise, cond):
        for _ in range(2):
            net(noise, torch.ones(len(noise)), cond)
        return factor * noise

    return sample


def evaluate(folder, *, sample=None, factor=0.3, options=None, teacher=None, told=None):
    net, other = gaussian.net(), gaussian.net()
    return fidelity.evaluate(
        folder,
        teacher or gaussian.GaussianTeacher(),
        net,
        sample or student(factor, other),
        gaussian.NoEmbeddings(),
        options or recipe(),
        SHIFT,
        update=12,
        roles=[net.role, other.role],
        tell=[].append if told is None else told.append,
    )


def result(folder):
    return json.loads((folder / "evaluation.json").read_text())


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    few, many = (gaussian.euler_factor(n, SHIFT) for n in (6, 48))
    evaluate(folder, factor=many + (few - many) / 4)
    return result(folder)


def test_distances_are_those_of_the_closed_form(finished):
    few, many = (gaussian.euler_factor(n, SHIFT) for n in (6, 48))
    for j in range(8):
        noise = torch.randn(SHAPE, generator=generator("evaluation", 7, j)).double()
        expected = abs(few - many) * noise.square().mean().sqrt().item()
        assert finished["per_sample"]["teacher_6"]["rmse"][j] == pytest.approx(expected, rel=1e-4)
        assert finished["per_sample"]["teacher_48"]["rmse"][j] == 0
    assert finished["samplers"]["teacher_6"]["cosine"]["mean"] == pytest.approx(1, abs=1e-6)


def test_a_student_at_a_quarter_of_the_gap_closes_three_quarters_of_it(finished):
    gap = finished["gap_closed"]["teacher_6"]
    assert [gap[k] for k in ("mean", "low", "high")] == pytest.approx([0.75] * 3, abs=1e-3)


def test_the_headline_is_the_gap_and_the_distances_it_comes_from(finished):
    said = fidelity.headline(finished)
    assert said["gap_teacher_6"] == pytest.approx(1 - said["rmse_student"] / said["rmse_teacher_6"])
    assert (said["update"], said["samples"]) == (12, 8) and "rmse_teacher_48" not in said


def test_evaluations_per_clip_are_counted(finished):
    assert {n: v["evaluations"] for n, v in finished["samplers"].items()} == {
        "teacher_6": 12,
        "teacher_48": 96,
        "student": 2,
    }


def test_psnr_is_that_of_the_shown_pixels():
    a = np.zeros((2, 1, 4, 4, 3), np.uint8)
    b = a.copy()
    b[0] = 10
    latents = torch.randn(2, 3, 1, 4, 4)
    psnr = fidelity.compared(latents, latents, a, b)["psnr"]
    assert psnr == pytest.approx([20 * math.log10(25.5), 10 * math.log10(12 * 255**2)])


def test_saturation_and_motion_are_shares_of_a_pixels_range():
    clip = np.zeros((1, 3, 2, 2, 3), np.uint8)
    clip[0, :, :, :, 0] = 51  # a channel at a fifth of the range
    clip[0, 1] = 255  # a white frame between two dark red ones
    found = fidelity.compared(torch.zeros(1, 4), torch.zeros(1, 4), clip, clip)
    assert found["saturation"] == pytest.approx([2 / 3 / 5])
    assert found["motion"] == pytest.approx([(204 + 255 + 255) / 3 / 255])


def test_an_interrupted_evaluation_computes_only_what_is_missing(tmp_path):
    class Killed(Exception):
        pass

    batches = []

    def dies(noise, cond):
        batches.append(noise)
        if len(batches) == 3:
            raise Killed
        return 0.3 * noise

    with pytest.raises(Killed):
        evaluate(tmp_path, sample=dies)
    teacher, told = gaussian.GaussianTeacher(), []
    evaluate(tmp_path, teacher=teacher, told=told)
    assert teacher.decoded == 3 * 2, "two batches of three were done; two samples by three samplers remain"
    assert told == ["3 of 8 samples", "6 of 8 samples", "8 of 8 samples"]
    evaluate(tmp_path / "whole")
    for name in ("rmse", "cosine", "psnr"):
        assert result(tmp_path)["samplers"]["student"][name] == result(tmp_path / "whole")["samplers"]["student"][name]


def test_other_settings_do_not_reuse_finished_batches(tmp_path):
    evaluate(tmp_path)
    teacher = gaussian.GaussianTeacher()
    evaluate(tmp_path, options=recipe(seed=8), teacher=teacher)
    assert teacher.decoded == 8 * 3


def test_the_noise_of_a_sample_does_not_depend_on_the_batch_size(tmp_path):
    evaluate(tmp_path / "a", options=recipe(batch_size=8))
    evaluate(tmp_path / "b", options=recipe(batch_size=1))
    one, other = (result(tmp_path / n)["per_sample"]["teacher_6"]["rmse"] for n in "ab")
    assert one == pytest.approx(other, rel=1e-5)


def test_captions_outside_the_world_are_refused_before_anything_is_sampled(tmp_path):
    teacher = gaussian.GaussianTeacher()
    with pytest.raises(ValueError, match="'a' is no caption of the world"):
        evaluate(tmp_path, options=recipe(world=True), teacher=teacher)
    assert teacher.decoded == 0


def test_the_bootstrap_of_a_mean_has_the_normal_interval():
    values = np.random.default_rng(1).normal(3, 2, 400)
    found = statistics.mean(values, statistics.resample(np.arange(400)))
    half = 1.96 * values.std() / math.sqrt(400)
    assert [found["low"], found["high"]] == pytest.approx([values.mean() - half, values.mean() + half], abs=0.02)


def test_samples_of_one_prompt_count_as_one_draw():
    """Ten copies of each of forty values say no more than the forty."""
    values = np.random.default_rng(1).normal(0, 1, 40)
    single = statistics.mean(values, statistics.resample(np.arange(40)))
    copied = statistics.mean(np.repeat(values, 10), statistics.resample(np.repeat(np.arange(40), 10)))
    assert copied == pytest.approx(single)


def test_pairing_removes_what_student_and_teacher_share():
    hard = np.random.default_rng(1).uniform(1, 20, 50)
    gap = statistics.gap_closed(0.6 * hard, hard, statistics.resample(np.arange(50)))
    assert list(gap.values()) == pytest.approx([0.4] * 3)


@pytest.mark.parametrize(
    ("hits", "n", "low", "high"), [(10, 10, 0.7225, 1.0), (0, 10, 0.0, 0.2775), (81, 263, 0.2553, 0.3662)]
)
def test_wilsons_interval(hits, n, low, high):
    """The third row: Newcombe 1998, table I, method 3."""
    found = statistics.share(np.repeat([1.0, 0.0], [hits, n - hits]))
    assert (found["low"], found["high"]) == pytest.approx((low, high), abs=6e-5)


def test_the_teacher_is_sampled_once_for_all_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("DISTILL_CACHE", str(tmp_path / "cache"))
    asked = []

    def counted(noise, cond):
        asked.append(len(noise))
        return 0.3 * noise

    first, second = gaussian.net(), gaussian.net()
    costs = []
    for run, net in (("one", first), ("two", second)):
        fidelity.evaluate(
            tmp_path / run,
            gaussian.GaussianTeacher(),
            net,
            counted,
            gaussian.NoEmbeddings(),
            recipe(),
            SHIFT,
            update=12,
            roles=[net.role],
            tell=[].append,
        )
        costs.append(result(tmp_path / run))
    assert first.role.evaluations > 0 and second.role.evaluations == 0
    assert asked == [3, 3, 2] * 2
    assert costs[0]["samplers"] | {"student": None} == costs[1]["samplers"] | {"student": None}
    assert costs[0]["samplers"]["teacher_48"]["evaluations"] == 96


@pytest.mark.parametrize("change", [{"guidance": 2.0}, {"seed": 8}, {"prompts": ["a", "b"]}])
def test_another_teacher_result_is_sampled_anew(tmp_path, monkeypatch, change):
    monkeypatch.setenv("DISTILL_CACHE", str(tmp_path / "cache"))
    evaluate(tmp_path / "one")
    evaluate(tmp_path / "two", options=recipe(**change))
    assert len(list((tmp_path / "cache" / "clips").iterdir())) == 2
