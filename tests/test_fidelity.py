"""The final evaluation, on a teacher whose samples have a closed form."""

import json
import math
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from distill import flow, samplers
from distill.batch import generator
from distill.engine import Engine
from distill.errors import UserError
from distill.evaluate import fidelity, kept, measuring, metrics, statistics
from distill.evaluate.asked import Asked, of_section
from distill.recipe import Evaluation, Video
from distill.sample import Source

from . import gaussian_teacher as gaussian

SHIFT, STEPS = 5.0, 2
SHAPE = (3, 5, 12, 12)
VIDEO = Video(frames=5, height=12, width=12, fps=8)
ASKED = Asked(
    ("a", "b", "c"),
    samples=8,
    seed=7,
    guidance=4.0,
    teacher_steps=(48, 6),
    batch_size=3,
    metrics=("rmse", "cosine", "psnr", "motion"),
)
ALL = replace(ASKED, metrics=None)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """What one test samples is not there for the next."""
    monkeypatch.setenv("DISTILL_CACHE", str(tmp_path / "cache"))


def student(factor, net):
    """Multiplies noise with a factor, after two evaluations that change nothing."""

    def sample(noise, cond):
        for _ in range(STEPS):
            net(noise, torch.ones(len(noise)), cond)
        return factor * noise

    return sample


def setting(asked=ASKED, *, factor=0.3, sample=None, teacher=None, nets=None, **source):
    """Samplers of a student that is known by its factor."""
    net, other = nets or (gaussian.net(), gaussian.net())
    teacher = teacher or gaussian.GaussianTeacher()
    judge = fidelity.Judge(teacher, net, gaussian.NoEmbeddings(), VIDEO, "", SHIFT)
    own = {"own": sample or student(factor, other), "levels": flow.grid(STEPS, SHIFT)} | source
    found = Source(teacher, other, SHIFT, STEPS, 1.0, VIDEO, "", **own)
    return fidelity.setting(judge, asked, found, made_by={"factor": factor})


def evaluate(asked=ASKED, told=None, **options):
    made, notes = setting(asked, **options)
    facts = {"update": 12, "notes": notes}
    return fidelity.evaluate(made, Engine(), show=[].append if told is None else told.append, facts=facts)


@pytest.fixture(scope="module")
def finished():
    few, many = (gaussian.euler_factor(n, SHIFT) for n in (6, 48))
    return evaluate(ALL, factor=many + (few - many) / 4)


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


def test_every_sampler_says_its_steps_and_its_operations(finished):
    assert {n: v["steps"] for n, v in finished["samplers"].items()} == {"teacher_6": 6, "teacher_48": 48, "student": 2}
    assert all(v["flop"] == 0 for v in finished["samplers"].values()), "this network multiplies no matrices"


def test_every_measure_has_a_mean_within_its_interval(finished):
    assert [m["name"] for m in finished["metrics"]] == list(metrics.WEIGHT_FREE)
    for name in metrics.WEIGHT_FREE:
        found = finished["samplers"]["student"][name]
        assert found["low"] <= found["mean"] <= found["high"], name
    assert finished["failures"] == []


def test_a_student_with_other_numbers_of_steps_takes_eulers_steps_on_its_grid():
    found = evaluate(replace(ASKED, steps=(4, 2)))
    assert list(found["samplers"]) == ["teacher_6", "teacher_48", "student", "student_4"]
    apart = abs(gaussian.euler_factor(4, SHIFT) - gaussian.euler_factor(48, SHIFT))
    noise = torch.randn(SHAPE, generator=generator("evaluation", 7, 5)).double()
    expected = apart * noise.square().mean().sqrt().item()
    assert found["per_sample"]["student_4"]["rmse"][5] == pytest.approx(expected, rel=1e-4)
    assert found["samplers"]["student_4"]["evaluations"] == found["samplers"]["student_4"]["steps"] == 4
    difference = found["difference"]["student_4"]["rmse"]["mean"]
    assert difference == pytest.approx(np.mean(found["per_sample"]["student"]["rmse"]) - expected, rel=0.05)


def test_a_student_that_renoises_does_so_with_other_numbers_of_steps():
    made, _ = setting(replace(ASKED, steps=(3,)), renoises=True)
    latents = measuring.latents(made, made.columns[-1], [4, 1])
    noise = torch.stack([torch.randn(SHAPE, generator=generator("evaluation", 7, j)) for j in (4, 1)])
    expected = samplers.renoise(gaussian.net(), noise, flow.grid(3, SHIFT), gaussian.NoEmbeddings().get(["a"]))
    torch.testing.assert_close(latents, expected)


@pytest.mark.parametrize(
    "known", [{"levels": torch.tensor([1.0, 0.9, 0.3, 0.0])}, {"alone": "it is told other noise levels"}]
)
def test_a_student_of_levels_of_its_own_is_left_out_with_other_steps_and_a_note_says_so(known):
    made, notes = setting(replace(ASKED, steps=(4,)), **known)
    assert [column.name for column in made.columns] == ["teacher_6", "teacher_48", "student"]
    assert len(notes) == 1 and notes[0].startswith("4: this student knows 2 alone")


def test_an_interrupted_evaluation_computes_only_what_is_missing():
    class Killed(Exception):
        pass

    calls = []

    def dies(noise, cond):
        calls.append(len(noise))
        if len(calls) == 3:
            raise Killed
        return 0.3 * noise

    with pytest.raises(Killed):
        evaluate(sample=dies)
    teacher, told, again = gaussian.GaussianTeacher(), [], []
    resumed = evaluate(teacher=teacher, told=told, sample=lambda noise, cond: again.append(len(noise)) or 0.3 * noise)
    assert again == [2, 1], "two batches of three were sampled: two samples, and one to count operations, remain"
    assert teacher.decoded == 2 * 2, "the student's last two clips, and the reference's beside them"
    assert told == [3, 6, 8]
    assert resumed["samplers"]["student"]["rmse"] == evaluate(factor=0.3)["samplers"]["student"]["rmse"]


def test_processes_share_the_batches_and_the_counting(monkeypatch):
    """All of it is done, and nothing twice."""
    taken, counted = [], []
    monkeypatch.setattr(fidelity, "parts", lambda found, batches: taken.extend(batches) or iter(()))
    monkeypatch.setattr(fidelity, "_result", lambda *what: {})
    asked = SimpleNamespace(batches=lambda: list("abcdefg"), samples=7)
    found = SimpleNamespace(roles=[], columns=list("wxyz"), asked=asked, flop=counted.append)
    for rank in range(3):
        engine = SimpleNamespace(rank=rank, world=3, first=lambda said: said, main_first=lambda work: work())
        fidelity.evaluate(found, engine, show=print)
    assert "".join(taken) == "adgbecf" and "".join(counted) == "wzxy"


def test_what_was_done_before_is_neither_sampled_nor_measured_again():
    nets, teacher = (gaussian.net(), gaussian.net()), gaussian.GaussianTeacher()
    first, again = evaluate(ALL), evaluate(ALL, nets=nets, teacher=teacher)
    assert first == again, "seconds too"
    assert teacher.decoded == 0 and [net.role.evaluations for net in nets] == [0, 0]


def test_the_teacher_is_sampled_once_for_all_students():
    evaluate(ALL, factor=0.3)
    nets = gaussian.net(), gaussian.net()
    found = evaluate(ALL, factor=0.4, nets=nets)
    assert nets[0].role.evaluations == 8, "features of the other student's clips, for sets"
    assert found["samplers"]["teacher_48"]["evaluations"] == 96


def test_more_samples_or_prompts_sample_only_the_batches_that_are_new():
    sampled = []

    def counted(noise, cond):
        sampled.append(len(noise))
        return 0.3 * noise

    evaluate(replace(ASKED, samples=6), sample=counted)
    evaluate(replace(ASKED, samples=9), sample=counted)
    assert sampled == [3, 3, 1, 3], "the one is to count operations"
    evaluate(replace(ASKED, prompts=("a", "b", "c", "d")), sample=counted)
    assert sampled[4:] == [3, 2], "a b c as before; d a b; c d"


@pytest.mark.parametrize(
    "change", [{"seed": 8}, {"guidance": 2.0}, {"prompts": ("x", "y", "z")}, {"batch_size": 4}, {"shift": 3.0}]
)
def test_other_settings_sample_the_teacher_anew(change):
    evaluate()
    nets = gaussian.net(), gaussian.net()
    evaluate(replace(ASKED, **change), nets=nets)
    counted = 0 if change.keys() <= {"prompts", "batch_size"} else 1  # a clip more, whose operations are counted
    assert nets[0].role.evaluations == (8 + counted) * (12 + 96)


@pytest.mark.parametrize("other", ["factor", "weights", "levels"])
def test_another_student_is_sampled_anew(other):
    first, nets = evaluate(), (gaussian.net(), gaussian.net())
    if other == "weights":
        nets[1].role.module.unused.data += 1
    options = {"factor": 0.4} if other == "factor" else {"levels": flow.grid(STEPS, 2.0)} if other == "levels" else {}
    second = evaluate(nets=nets, **options)
    assert nets[1].role.evaluations == 2 * 8 + 2
    assert (first["samplers"]["student"]["rmse"] == second["samplers"]["student"]["rmse"]) == (other != "factor")


@pytest.mark.parametrize("kind", ["clips/*/*.safetensors", "values/*/*.json"])
def test_a_damaged_file_is_made_anew(kind):
    first = evaluate()
    for path in kept.folder().glob(kind):
        path.write_bytes(path.read_bytes()[:100])
    if "clips" in kind:
        shutil.rmtree(kept.folder() / "values")  # which are measured again, of the clips
    again = evaluate()
    for found in (first, again):
        for values in [*found["samplers"].values(), *list(found["per_sample"].values())[1:]]:
            values.pop("seconds")
    assert first == again


def test_what_was_not_used_for_longest_goes_first():
    evaluate(replace(ASKED, seed=1))
    old = set(kept.folder().rglob("*.*"))
    evaluate(replace(ASKED, seed=2))
    new = set(kept.folder().rglob("*.*")) - old
    size = sum(path.stat().st_size for path in new if path.is_file())
    kept.trim(limit=size)
    left = {path for path in kept.folder().rglob("*.*") if path.is_file()}
    assert left and left == {path for path in new if path.is_file()}


def test_the_noise_of_a_sample_does_not_depend_on_the_batch_size():
    one, other = (evaluate(replace(ASKED, batch_size=n))["per_sample"]["teacher_6"]["rmse"] for n in (8, 1))
    assert one == pytest.approx(other, rel=1e-5)


def test_features_are_the_teachers_states_of_lightly_noised_latents_after_two_thirds_of_its_blocks():
    made, _ = setting()
    found = measuring.Batch(made, range(3, 6)).features(made.columns[-1])
    assert found.shape == (3, 3)
    for j in range(3):
        noise = torch.randn(SHAPE, generator=generator("evaluation", 7, 3 + j))
        more = torch.randn(SHAPE, generator=generator("evaluation features", 7, 3 + j))
        expected = 2 * (0.9 * 0.3 * noise + 0.1 * more).mean((1, 2, 3))
        torch.testing.assert_close(found[j], expected)


def test_sets_are_compared_by_the_features_of_all_batches():
    found, (made, _) = evaluate(ALL), setting()
    columns = {column.name: column for column in made.columns}
    features = [
        torch.cat([measuring.Batch(made, rows).features(columns[name]) for rows in ASKED.batches()]).double().numpy()
        for name in ("student", "teacher_48")
    ]
    weights = statistics.resample(np.arange(8) % 3)
    assert found["samplers"]["student"]["frechet"] == metrics.of_set("frechet", *features, weights)
    assert "frechet" not in found["samplers"]["teacher_48"], "the reference beside itself"


def picky(video):
    """Mean level of a clip whose first pixel is bright."""
    if video[0, 0, 0, 0] < 128:
        raise ValueError("the first pixel is dark")
    return video.mean()


def test_a_metric_that_fails_on_some_clips_is_a_line_each_and_the_rest_goes_on():
    name = "tests.test_fidelity:picky"
    found = evaluate(replace(ASKED, metrics=("rmse", name)))
    values = found["per_sample"]["student"][name]
    dark = [j for j in range(8) if torch.randn(SHAPE, generator=generator("evaluation", 7, j))[0, 0, 0, 0] < 0]
    assert 0 < len(dark) < 8 and [j for j, value in enumerate(values) if value is None] == dark
    mean = found["samplers"]["student"][name]["mean"]
    assert mean == pytest.approx(np.mean([value for value in values if value is not None]))
    lines = [line for line in found["failures"] if " of student, " in line]
    assert len(lines) == len(dark) and f"sample {dark[0]}: " in lines[0] and "the first pixel is dark" in lines[0]
    assert None not in found["per_sample"]["student"]["rmse"]
    json.dumps(found, allow_nan=False)


def test_a_metric_that_fails_on_every_clip_has_no_mean():
    small = Video(frames=5, height=8, width=8, fps=8)
    made, _ = setting(replace(ASKED, metrics=("rmse", "ssim")))
    made.video = small
    found = fidelity.evaluate(made, Engine(), show=[].append)
    assert found["samplers"]["student"]["ssim"] == {"mean": None, "low": None, "high": None}
    assert len([line for line in found["failures"] if line.startswith("ssim of student, ")]) == 8


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metrics": ("rmse", "smim")}, "unknown metric 'smim', did you mean 'ssim'"),
        ({"metrics": ("colour",)}, "metric 'colour' needs captions of the embedded world"),
        ({"teacher_steps": ()}, "needs prompts, and numbers of steps"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        replace(ASKED, **changes)


def test_a_recipes_section_says_what_is_asked_and_some_of_it_can_be_changed(tmp_path):
    (tmp_path / "prompts.txt").write_text("x\ny\n")
    section = Evaluation(prompts=["a"], guidance=4.0, teacher_steps=[2, 4], samples=3, metrics=["rmse"])
    assert of_section(section) == Asked(("a",), 3, 2000, 4.0, (2, 4), metrics=("rmse",))
    changed = of_section(section, prompts=tmp_path / "prompts.txt", steps=(2,))
    assert (changed.prompts, changed.steps, changed.samples) == (("x", "y"), (2,), 3)
    with pytest.raises(UserError, match="give --prompts, --guidance, --teacher-steps"):
        of_section(None, samples=2)


def test_captions_outside_the_world_are_refused_before_anything_is_sampled():
    with pytest.raises(ValueError, match="'a' is no caption of the world"):
        fidelity.check(replace(ASKED, world=True), gaussian.GaussianTeacher())


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
