"""What a comparison is made of: its columns, its winners, its costs."""

import json
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from distill import fill
from distill import recipe as recipes
from distill.compare import content, cost, inputs, points, training
from distill.errors import UserError
from distill.evaluate import statistics
from distill.evaluate.metrics import Metric

from . import runs, tiny_wan

ROOT = Path(__file__).resolve().parent.parent
PROMPTS = 40
WEIGHTS = statistics.resample(np.arange(PROMPTS))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return tiny_wan.build(tmp_path_factory.mktemp("teacher") / "pipeline")


def written(folder, teacher, name, **more):
    """A recipe file NAME.yaml whose run goes to folder/name/run."""
    made = runs.write(folder / name, teacher, **more)
    return made.rename(made.with_name(f"{name}.yaml"))


# Columns


def test_seeds_of_a_recipe_are_one_column_and_go_to_folders_of_their_own(tmp_path, teacher):
    path = written(tmp_path, teacher, "gpd")  # its own seed is 3
    found, notes = inputs.runs([path], recipes.load, [3, 0])
    (column,) = inputs.columns(found)
    assert notes == [] and (column.key, column.label) == ("gpd", "GPD")
    assert [(run.seed, run.folder.name) for run in column.runs] == [(0, "run_seed_0"), (3, "run")]


def labels(*paths):
    return [column.label for column in inputs.columns(inputs.runs(paths, recipes.load, [])[0])]


def test_columns_of_one_method_are_told_apart_by_what_differs(tmp_path, teacher):
    one = written(tmp_path, teacher, "slow")
    other = written(tmp_path, teacher, "quick", method=runs.GPD.replace("steps: 2", "steps: 3"))
    columns = inputs.columns(inputs.runs([one, other], recipes.load, [])[0])
    assert [(c.key, c.label) for c in columns] == [("slow", "GPD (method.steps 2)"), ("quick", "GPD (method.steps 3)")]
    assert inputs.differing([c.recipe for c in columns], inputs.OWN) == {"method.steps": [2, 3]}


def test_a_label_names_as_few_settings_as_tell_all_apart_and_the_methods_first(tmp_path, teacher):
    def other(name, steps, guidance, lr="1e-3"):
        method = runs.GPD.replace("steps: 2", f"steps: {steps}").replace("[3.0, 3.0]", f"[3.0, {guidance}]")
        path = written(tmp_path, teacher, name, method=method)
        path.write_text(path.read_text().replace("lr: 1e-3", f"lr: {lr}"))
        return path

    by_rate = other("a", 2, 3.0), other("b", 2, 3.0, "2e-3")
    assert labels(*by_rate) == ["GPD (optim.student.lr 0.001)", "GPD (optim.student.lr 0.002)"]
    assert labels(by_rate[0], other("c", 3, 3.0, "2e-3")) == ["GPD (method.steps 2)", "GPD (method.steps 3)"]
    crossed = [other(f"d{steps}{g:.0f}", steps, g) for steps in (2, 3) for g in (3.0, 4.0)]
    assert labels(*crossed)[2] == "GPD (method.guidance [3.0, 3.0], method.steps 3)"
    assert len(set(labels(*crossed))) == 4


def test_settings_that_one_of_them_alone_has_are_said_to_lack(tmp_path, teacher):
    plain, averaged = written(tmp_path, teacher, "plain"), written(tmp_path, teacher, "averaged")
    averaged.write_text(averaged.read_text().replace("train: {", "train: {ema: 0.99, "))
    assert labels(plain, averaged) == ["GPD (no train.ema)", "GPD (train.ema 0.99)"]


def test_another_evaluation_makes_no_other_column(tmp_path, teacher):
    section = {"prompts": ["a red circle"], "samples": 4}
    one, other = written(tmp_path, teacher, "one"), written(tmp_path, teacher, "other", evaluation=section)
    seeds, _ = inputs.runs([one], recipes.load, [0])
    again, _ = inputs.runs([other], recipes.load, [1])
    (column,) = inputs.columns(seeds + again)
    assert [run.seed for run in column.runs] == [0, 1]


def test_what_cannot_be_compared_is_one_line(tmp_path, teacher):
    one, other = written(tmp_path, teacher, "one"), written(tmp_path, teacher, "other")
    found, _ = inputs.runs([one, other], recipes.load, [])
    with pytest.raises(UserError, match="repeats seed 3 of the same student"):
        inputs.columns(found)
    changed = written(tmp_path, teacher, "changed", method=runs.GPD.replace("steps: 2", "steps: 3"))
    text = changed.read_text().replace(str(tmp_path / "changed/run"), str(tmp_path / "one/run"))
    changed.write_text(text)
    with pytest.raises(UserError, match=r"both go to .*one/run, and differ in method.steps"):
        inputs.runs([one, changed], recipes.load, [])
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="--seeds 1,2 is for recipes"):
        inputs.runs([tmp_path / "folder"], lambda path: recipes.load(one), [1, 2])


def test_recipes_that_train_no_student_are_left_out_with_a_note(tmp_path, teacher):
    one, path = written(tmp_path, teacher, "one"), ROOT / "recipes" / "interpolator_tiny.yaml"
    found, notes = inputs.runs([path, one], recipes.load, [])
    assert len(found) == 1 and notes == ["interpolator_tiny.yaml: interpolator trains no student; left out"]
    with pytest.raises(UserError, match="nothing to compare; interpolator_tiny.yaml"):
        inputs.runs([path], recipes.load, [])


def test_values_on_the_page_name_no_folder_of_this_machine(tmp_path):
    assert inputs.plain(str(tmp_path / "deep" / "store")) == "store"
    assert [inputs.plain(value) for value in (0.5, "embedded", None, [1, 2])] == [0.5, "embedded", None, [1, 2]]


# Training


def log(folder, *lines, gpus=()):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "environment.json").write_text(json.dumps({"machine": {"gpus": list(gpus)}}))
    return folder


def test_a_run_is_finished_when_its_last_word_is_done(tmp_path):
    start, done = {"kind": "start", "update": 0}, {"kind": "done", "update": 2}
    assert training.finished(log(tmp_path / "a", start, done))
    assert not training.finished(log(tmp_path / "b", start))
    assert not training.finished(log(tmp_path / "c", start, done, {"kind": "resume", "update": 2}))
    assert not training.finished(tmp_path / "nowhere")


# Winners


def draws(*means, seeds=1, noise=0.1, shared=1.0):
    """(seeds, PROMPTS) around each mean; what prompts have in common is paired away."""
    rng = np.random.default_rng(0)
    common = shared * rng.normal(size=PROMPTS)
    return [mean + common + noise * rng.normal(size=(seeds, PROMPTS)) for mean in means]


def naive_lead(better, mine, theirs, reference):
    """Point and interval of how far ahead `mine` is, resample by resample."""

    def ahead(a, b, r):
        if better == "reference":
            return abs(b.mean() - r.mean()) - abs(a.mean() - r.mean())
        return (a.mean() - b.mean()) * (1 if better == "higher" else -1)

    rng = np.random.default_rng(1)
    rows = [rng.integers(0, PROMPTS, PROMPTS) for _ in range(4000)]
    resampled = [ahead(mine[:, r], theirs[:, r], reference[r]) for r in rows]
    return ahead(mine, theirs, reference), np.percentile(resampled, [2.5, 97.5])


@pytest.mark.parametrize("better", ["higher", "lower", "reference"])
def test_a_lead_is_that_of_a_naive_bootstrap(better):
    (reference,), (mine, theirs) = draws(0.0), draws(0.30, 0.45, seeds=3)
    said = points.lead(better, mine, theirs, reference[0], WEIGHTS)
    mean, ends = naive_lead(better, mine, theirs, reference[0])
    assert said["mean"] == pytest.approx(mean)
    assert [said["low"], said["high"]] == pytest.approx(ends, abs=0.004)
    assert points.is_ahead(said) == (better != "higher")


def test_the_winner_is_ahead_of_every_other_student():
    metric = Metric("psnr", "pair", "higher", "dB", "")
    (reference,), (a, b, c) = draws(0.0), draws(0.3, 0.5, 0.52)
    assert points.winner(metric, {"a": a, "b": b}, reference[0], WEIGHTS) == "b"
    assert points.winner(metric, {"a": a, "b": b, "c": c}, reference[0], WEIGHTS) is None  # b and c are too near
    assert points.winner(metric, {"a": a}, reference[0], WEIGHTS) is None  # nobody to be better than


def test_pairing_by_prompt_finds_a_winner_where_intervals_overlap():
    metric = Metric("psnr", "pair", "higher", "dB", "")
    (reference,), (a, b) = draws(0.0), draws(0.3, 0.4, noise=0.05, shared=3.0)
    apart = [statistics.mean(each.mean(0), WEIGHTS) for each in (a, b)]
    assert apart[0]["high"] > apart[1]["low"]
    assert points.winner(metric, {"a": a, "b": b}, reference[0], WEIGHTS) == "b"


def test_near_the_reference_wins_on_whichever_side():
    metric = Metric("saturation", "clip", "reference", "", "")
    (reference,), (below, above) = draws(0.5), draws(0.1, 0.6)
    assert points.winner(metric, {"below": below, "above": above}, reference[0], WEIGHTS) == "above"
    (below, above) = draws(0.4, 0.9)
    assert points.winner(metric, {"below": below, "above": above}, reference[0], WEIGHTS) == "below"


def test_a_lead_within_the_spread_over_training_seeds_is_none():
    metric = Metric("psnr", "pair", "higher", "dB", "")
    (reference,), (a, b) = draws(0.0), draws(0.0, 0.0, seeds=2, noise=0.01)
    a, b = a + np.array([[0.0], [0.6]]), b + np.array([[0.5], [0.9]])  # means 0.3 and 0.7, each seed far from the other
    said = points.lead("higher", b, a, reference[0], WEIGHTS)
    assert said["low"] > 0.3 and said["spread"] == pytest.approx(12.706 * np.hypot(0.3, 0.2), rel=0.05)
    assert points.winner(metric, {"a": a, "b": b}, reference[0], WEIGHTS) is None
    assert points.winner(metric, {"a": a[:1], "b": b[:1]}, reference[0], WEIGHTS) == "b"  # one seed has no spread


def test_a_column_is_judged_by_its_own_sampler():
    """Half rate has values of its own in the same results; here they are the better ones."""
    (reference,), (full, half) = draws(0.0), draws(0.5, 0.3)
    found = {"student": {"rmse": full[0].tolist()}, "student_half_rate": {"rmse": half[0].tolist()}}
    results = [{"per_sample": {"prompt": list(range(PROMPTS)), **found}}]
    metric = Metric("rmse", "pair", "lower", "", "")
    made = [{"key": key, "points": [{"own": True, "metrics": {"rmse": {}}}]} for key in ("a", "a__half_rate")]
    samplers = {"a": "student", "a__half_rate": "student_half_rate"}
    content.mark([metric], made, dict.fromkeys(samplers, results), samplers, {"rmse": reference[0]}, WEIGHTS)
    assert [each["points"][0]["metrics"]["rmse"]["best"] for each in made] == [False, True]


def test_sets_are_told_apart_by_intervals_that_do_not_meet():
    metric = Metric("frechet", "set", "lower", "", "")
    near, far, between = ({"mean": m, "low": m - 1, "high": m + 1, "spread": np.nan} for m in (3.0, 6.0, 4.5))
    assert points.winner_of_sets(metric, {"a": far, "b": near}) == "b"
    assert points.winner_of_sets(metric, {"a": far, "b": near, "c": between}) is None
    assert points.winner_of_sets(metric, {"b": near}) is None


def result(student, reference, prompts):
    return {
        "per_sample": {"prompt": prompts, "student": student, "teacher_8": reference},
        "samplers": {"student": {"kernel": {"mean": 1.0, "low": 0.5, "high": 2.0}}, "teacher_8": {}},
    }


def test_means_are_over_clips_and_seeds_and_leave_out_clips_without_a_value():
    found = [
        result({"flow": [1.0, 2.0, None, 4.0], "all": [1.0, 0.0, 1.0, 1.0]}, {}, [0, 1, 2, 3]),
        result({"flow": [2.0, 3.0, 9.0, 5.0], "all": [1.0, 0.0, 1.0, 1.0]}, {}, [0, 1, 2, 3]),
    ]
    measured = [Metric("flow", "clip", "reference", "", ""), Metric("all", "world", "higher", "", "")]
    measured.append(Metric("kernel", "set", "lower", "", ""))
    reference = {"flow": np.array([1.0, 1.0, 1.0, 1.0]), "all": np.ones(4)}
    weights = statistics.resample(np.arange(4))
    said = points.metrics(measured, found, "student", reference, weights)
    flow = said["flow"]
    assert flow["mean"] == pytest.approx(17 / 6) and flow["seeds"] == pytest.approx([7 / 3, 10 / 3])
    assert flow["spread"] == pytest.approx(12.706 / 2) and flow["difference"]["mean"] == pytest.approx(11 / 6)
    assert said["kernel"] == {"mean": 1, "low": 0.5, "high": 2, "seeds": [1, 1], "spread": 0, "difference": None}
    one = points.metrics(measured, found[:1], "student", reference, weights)
    assert one["all"]["low"] == pytest.approx(statistics.share(np.array([1, 0, 1, 1.0]))["low"])  # Wilson's
    missing = [result({"flow": [None] * 4}, {}, [0, 1, 2, 3])]
    assert points.metrics(measured[:2], missing, "student", reference, weights) == {}


# Costs

UNIT = cost.Unit(flop=100.0, guided=2)


def asked(tmp_path, method="gpd", checkpointing="none", trajectories=None, videos=None):
    return SimpleNamespace(
        method=SimpleNamespace(name=method),
        train=SimpleNamespace(activation_checkpointing=checkpointing),
        data=SimpleNamespace(trajectories=trajectories, videos=videos),
    )


def line(update, network, evaluations, differentiated, seconds=2.0):
    named = {"network": network, "evaluations": evaluations, "differentiated": differentiated}
    return {"kind": "update", "update": update, "seconds": seconds, "terms": {}, **named}


def test_passes_are_counted_by_hand(tmp_path):
    """8 forward through the teacher, 4 + 2 through the student, of which 4 go back through all of it: 14 + 2 * 4."""
    update = line(1, "student", {"teacher": 8, "student": 6}, {"student": 4})
    assert cost.flop(update, asked(tmp_path), UNIT) == 100 * (14 + 2 * 4)
    assert cost.flop(update, asked(tmp_path, checkpointing="full"), UNIT) == 100 * (14 + 3 * 4)
    through = line(
        1, "student", {"fake_score": 4, "student": 4, "heads": 4}, {"fake_score": 4, "student": 4, "heads": 4}
    )
    assert cost.flop(through, asked(tmp_path, "dmd2"), UNIT) == 100 * (8 + 4 * 1 + 4 * 2)  # heads are not counted
    del update["differentiated"]
    assert cost.flop(update, asked(tmp_path), UNIT) == 100 * (14 + 2 * 6)


def test_a_run_on_two_devices_costs_two_device_days_a_day(tmp_path):
    """In the first two updates; what the log counts is of all processes already."""
    updates = [line(u, "student", {"student": 4}, {"student": 4}, seconds=43200.0) for u in (1, 2, 3)]
    start, resume = {"kind": "start", "update": 0, "world_size": 2}, {"kind": "resume", "update": 2, "world_size": 1}
    folder = log(tmp_path / "run", start, *updates[:2], resume, updates[2], gpus=["H200, 139 GiB"])
    said = cost.of_run(SimpleNamespace(folder=folder, recipe=asked(tmp_path)), UNIT)
    assert (said["updates"], said["evaluations"], said["flop"]) == (3, {"student": 12}, 100 * 12 * 3)
    assert (said["seconds"], said["days"], said["device"]) == (3 * 43200, 2.5, "H200, 139 GiB")
    assert said["data"] is None


def test_a_thinned_log_is_scaled_to_all_updates(tmp_path):
    updates = [line(u, "student", {"student": 4}, {"student": 4}) for u in (2, 4)]
    folder = log(tmp_path / "run", {"kind": "start", "update": 0, "world_size": 1}, *updates)
    said = cost.of_run(SimpleNamespace(folder=folder, recipe=asked(tmp_path)), UNIT)
    assert (said["updates"], said["evaluations"], said["seconds"], said["flop"]) == (4, {"student": 16}, 8.0, 4800)


def store(folder, *shards, logged=True):
    (folder / "shards").mkdir(parents=True)
    for first, last in pairwise([0, *shards]):
        (folder / "shards" / f"{first:08d}-{last - 1:08d}.json").write_text("{}")
        if logged:
            with (folder / fill.LOG).open("a") as file:
                file.write(json.dumps({"first": first, "last": last - 1, "seconds": 30.0}) + "\n")
    return str(folder)


def recorded(path, records, guidance=5.0):
    return SimpleNamespace(path=path, records=records, steps=50, guidance=guidance)


def test_recorded_trajectories_count_two_evaluations_a_step(tmp_path):
    path = store(tmp_path / "store", 4, 8, 12)
    said = cost.of_data(asked(tmp_path, trajectories=recorded(path, 8)), UNIT)
    assert said == {"what": "trajectories", "evaluations": 800, "flop": 80_000, "seconds": 60.0}  # not the last shard
    assert cost.of_data(asked(tmp_path, trajectories=recorded(path, 8, guidance=1)), UNIT)["evaluations"] == 400
    silent = store(tmp_path / "silent", 4, 8, logged=False)
    assert cost.of_data(asked(tmp_path, trajectories=recorded(silent, 8)), UNIT)["seconds"] is None


def test_data_count_in_device_days(tmp_path):
    path = store(tmp_path / "store", 4)
    folder = log(tmp_path / "run", {"kind": "start", "update": 0, "world_size": 1}, line(1, "student", {}, {}, 13.2))
    videos = SimpleNamespace(path=path)
    said = cost.of_run(SimpleNamespace(folder=folder, recipe=asked(tmp_path, videos=videos)), UNIT)
    assert said["data"] == {"what": "videos", "evaluations": 0, "flop": 0, "seconds": 30.0}
    assert said["days"] == pytest.approx(43.2 / 86400)
