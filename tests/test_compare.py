"""`distill compare` from recipes to compare.json, by the real command and in this process."""

import json
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from distill import recipe as recipes
from distill import teachers, video
from distill.compare import comparison
from distill.data.prompts import Embeddings
from distill.errors import UserError
from distill.evaluate import statistics

from . import runs, tiny_wan

EVALUATION = {
    "prompts": ["a red circle", "blue square", "a circle moves left", "red"],
    "samples": 8,
    "batch_size": 4,
    "guidance": 3.0,
    "teacher_steps": [2, 8],
}
METRICS = "rmse,psnr,saturation,motion,kernel"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("compare")


@pytest.fixture(scope="module")
def teacher(home):
    return tiny_wan.build(home / "teacher" / "pipeline")


def written(home, teacher, name, **more):
    made = runs.write(home / name, teacher, evaluation=EVALUATION, **more)
    return made.rename(made.with_name(f"{name}.yaml"))


@pytest.fixture(scope="module")
def compared(home, teacher):
    """GPD with two seeds, which are there, and another method, which the real command trains."""
    gpd = written(home, teacher, "gpd")
    runs.train(gpd)
    runs.train(gpd, "train.seed=4", f"output={home}/gpd/run_seed_4")
    written(home, teacher, "pair", method=runs.PAIR, networks=("student", "critic", "head"))
    before = [path.read_bytes() for path in home.glob("gpd/*/log.jsonl")]
    given = ("gpd/run", "gpd/run_seed_4", "pair/pair.yaml")
    done = runs.command("compare", *(home / name for name in given), *OPTIONS, "--out", home / "out")
    said, _ = done.communicate(timeout=300)
    assert done.returncode == 0, said
    assert [path.read_bytes() for path in home.glob("gpd/*/log.jsonl")] == before, "finished runs are left alone"
    return said


OPTIONS = ("--steps", "1,2", "--shown", "2", "--metrics", METRICS)


def again(home, out, given=("gpd/run", "gpd/run_seed_4", "pair/run"), **more):
    """The same comparison of finished runs, in this process."""
    changes = {"steps": (1, 2), "metrics": tuple(METRICS.split(","))} | more.pop("changes", {})
    options = comparison.Options(changes=changes, shown=2, **more)
    return comparison.compare([home / name for name in given], load, out, options, lambda line: None)


def load(path):
    return recipes.load(path / "recipe.yaml", [f"output={json.dumps(str(path))}"])


def read(out):
    return json.loads((out / "compare.json").read_text())


def test_the_columns_are_the_teacher_and_every_student(compared, home):
    made = read(home / "out")
    assert [(c["key"], c["label"], c["seeds"], c["runs"]) for c in made["columns"]] == [
        ("teacher", "teacher", [], []),
        ("gpd", "GPD", [3, 4], ["run", "run_seed_4"]),
        ("tests_plugins_pair", "Pair", [3], ["run"]),
    ]
    steps = {c["key"]: [(p["steps"], p["own"]) for p in c["points"]] for c in made["columns"]}
    assert steps["teacher"] == [(8, True), (2, False), (1, False)]
    assert steps["gpd"] == steps["tests_plugins_pair"] == [(1, False), (2, True)]
    assert made["command"] == f"distill compare run run_seed_4 pair.yaml {' '.join(OPTIONS)}"
    assert made["settings"]["method.teacher_steps"] == {"gpd": 6, "tests_plugins_pair": None}
    assert str(home) not in (home / "out" / "compare.json").read_text()


def test_means_are_those_of_every_clip_and_seed(compared, home):
    made = read(home / "out")
    (gpd,) = (c for c in made["columns"] if c["key"] == "gpd")
    found = np.array(
        [
            json.loads((home / f"out/evaluations/gpd_seed_{seed}/evaluation.json").read_text())["per_sample"]["student"]
            for seed in (3, 4)
        ]
    )
    rmse = np.array([each["rmse"] for each in found])
    said = gpd["points"][1]["metrics"]["rmse"]
    assert rmse.shape == (2, 8)
    assert said["mean"] == pytest.approx(rmse.mean()) and said["seeds"] == pytest.approx(rmse.mean(1).tolist())
    assert said["spread"] == pytest.approx(12.706 * rmse.mean(1).std(ddof=1) / 2**0.5)
    weights = statistics.resample(np.array([0, 1, 2, 3] * 2))  # eight clips of four prompts
    ends = np.percentile(weights @ rmse.mean(0) / weights.sum(1), [2.5, 97.5])
    assert [said["low"], said["high"]] == pytest.approx(ends.tolist())


def test_evaluations_and_flop_are_counted_alike_for_all(compared, home, teacher):
    made = read(home / "out")
    recipe = load(home / "gpd" / "run")
    opened = teachers.load(recipe.teacher, recipe.video)
    x, cond = torch.randn(1, *opened.latent_shape(5, 32, 48)), Embeddings(opened).get(["red"])
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        opened.network()(x, torch.ones(1), cond)
    once = counter.get_total_flops()
    points = {(c["key"], p["steps"]): p for c in made["columns"] for p in c["points"]}
    assert points["teacher", 8]["evaluations"] == 16 and points["gpd", 2]["evaluations"] == 2
    assert points["teacher", 8]["flop"] == 8 * points["gpd", 2]["flop"]
    assert once == points["gpd", 1]["flop"]
    said, log = made["columns"][1]["training"], (home / "gpd/run/log.jsonl").read_text().splitlines()
    updates = [line for line in map(json.loads, log) if line["kind"] == "update"]
    passes = sum(n for line in updates for n in line["evaluations"].values())
    assert said["updates"] == len(updates) and said["evaluations"]["student"] == 4 * len(updates)
    assert said["flop"] == once * (passes + 2 * 4 * len(updates))  # a student's pass and back for each of four samples


def test_every_clip_is_there_and_is_that_of_its_own_latents(compared, home):
    made = read(home / "out")
    clips = [clip for c in made["columns"] for p in c["points"] for clip in p["clips"]]
    assert len(clips) == len(set(clips)) == 2 * 7 and all((home / "out" / clip).is_file() for clip in clips)
    assert sorted(p.name for p in (home / "out/clips").glob("*.mp4")) == sorted(Path(clip).name for clip in clips)
    assert made["shown"]["prompts"] == ["a red circle", "a circle moves left"]
    many, few = (video.read(home / "out" / f"clips/teacher_{n}_00.mp4") for n in (8, 1))
    assert many.shape == few.shape and np.abs(many.astype(int) - few).mean() > 1


def test_a_repetition_gives_the_same_bytes_and_makes_nothing_anew(compared, home):
    before = {path: path.stat().st_mtime_ns for path in (home / "out/clips").glob("*.mp4")}
    first, logs = read(home / "out"), [path.read_bytes() for path in sorted(home.glob("*/*/log.jsonl"))]
    outcome = again(home, home / "out", command=first["command"])
    assert (outcome.failures, outcome.missing) == ([], 0)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert [path.read_bytes() for path in sorted(home.glob("*/*/log.jsonl"))] == logs
    once = (home / "out/compare.json").read_bytes()
    again(home, home / "elsewhere", command=first["command"])
    assert (home / "elsewhere/compare.json").read_bytes() == once
    first["columns"][2]["recipe"] = "run"  # now its folder was given
    assert json.loads(once) == first


def timeless(content):
    """Without what a clock said."""
    if isinstance(content, dict):
        return {k: timeless(v) for k, v in content.items() if k not in ("seconds", "days", "machine")}
    return [timeless(value) for value in content] if isinstance(content, list) else content


def test_a_comparison_that_was_killed_goes_on_and_ends_alike(compared, home, tmp_path, monkeypatch):
    whole = timeless(read(home / "out"))
    monkeypatch.setenv("DISTILL_CACHE", str(tmp_path / "cache"))
    given = [home / name for name in ("gpd/run", "gpd/run_seed_4", "pair/run")]
    begun = runs.command("compare", *given, *OPTIONS, "--out", tmp_path / "out")
    until(lambda: list(tmp_path.glob("out/clips/*.mp4")), begun)
    os.killpg(begun.pid, signal.SIGKILL)
    begun.wait()
    assert not (tmp_path / "out/compare.json").exists()
    kept = {path: path.stat().st_ino for path in tmp_path.glob("cache/**/clips/**/*.safetensors")}
    again(home, tmp_path / "out", command=whole["command"])
    assert kept and {path: path.stat().st_ino for path in kept} == kept, "what was sampled is not sampled again"
    whole["columns"][2]["recipe"] = "run"
    assert timeless(read(tmp_path / "out")) == whole


def until(happened, process):
    end = time.monotonic() + 240
    while not happened():
        assert process.poll() is None and time.monotonic() < end, process.communicate()[0]
        time.sleep(0.05)


def test_a_signal_while_training_is_one_line_and_loses_nothing(home, teacher, tmp_path):
    path = written(tmp_path, teacher, "gpd", method=runs.GPD.replace("[5, 4]", "[4000, 4]"))
    begun = runs.command("compare", path, "--out", tmp_path / "out")
    until(lambda: list(tmp_path.glob("gpd/run/checkpoints/update_*/manifest.json")), begun)
    begun.send_signal(signal.SIGINT)
    said, _ = begun.communicate(timeout=60)
    assert begun.returncode == 130 and "Traceback" not in said
    assert said.splitlines()[-1] == "SIGINT: what is done is kept; go on with the same command"
    assert "go on with `distill run" in (tmp_path / "out/logs/train_gpd_3.log").read_text()


def test_a_run_that_cannot_be_trained_leaves_the_others(compared, home, teacher, tmp_path):
    bad = written(
        tmp_path,
        teacher,
        "bad",
        method="{name: dmd, levels: [1.0, 0.5], guidance: 2.0, shift: 5.0}",
        networks=("student", "fake_score"),
    )
    bad.write_text(bad.read_text().replace("train: {", "train: {steps: 2, ").replace("lr: 1e-3", "lr: 1e-3, eps: 1e-8"))
    prompts = bad.parent / "prompts.txt"
    prompts.write_bytes(b"a red circle\n\xff\n")
    bad.write_text(bad.read_text().replace(str(teacher.parent / "prompts.txt"), str(prompts)))
    outcome = comparison.compare([home / "gpd/run", bad], anything, tmp_path / "out", small(), lambda line: None)
    assert outcome.missing == 1
    assert outcome.failures == [
        f"bad.yaml, seed 3 was not trained: {prompts}: not UTF-8 at byte 13; save the prompts as UTF-8 text"
    ]
    made = read(tmp_path / "out")
    assert [c["key"] for c in made["columns"]] == ["teacher", "gpd"]
    assert (
        made["failures"][0].startswith("bad.yaml, seed 3 was not trained: ")
        and str(tmp_path) not in made["failures"][0]
    )
    assert (tmp_path / "out/index.html").is_file()


def anything(path):
    return load(path) if path.is_dir() else recipes.load(path)


def small(**changes):
    return comparison.Options(changes={"samples": 3, "metrics": ("rmse",)} | changes, shown=1)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ("width: 48, width: 64", "their videos are {'frames': 5, 'height': 32, 'width': 48"),
        ("data: {, data: {negative_prompt: red, ", "their negative prompts are "),
        ("train: {, train: {precision: bf16, ", "their precisions (train.precision) are 'fp32' and 'bf16'"),
    ],
)
def test_students_of_different_conditions_are_refused_before_anything_is_trained(home, teacher, tmp_path, change, line):
    one, other = written(tmp_path, teacher, "one"), written(tmp_path, teacher, "other")
    before, after = change.split(", ", 1)
    other.write_text(other.read_text().replace(before, after))
    with pytest.raises(UserError) as caught:
        comparison.compare([one, other], recipes.load, tmp_path / "out", small(), print)
    assert line in str(caught.value) and len(str(caught.value).splitlines()) == 1
    assert f"{one} and {other} cannot be compared" in str(caught.value)
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob("*/run"))


def test_students_of_different_teachers_are_refused(home, teacher, tmp_path):
    another = tiny_wan.build(tmp_path / "another" / "pipeline", seed=1)
    one, other = written(tmp_path, teacher, "one"), written(tmp_path, another, "other")
    with pytest.raises(
        UserError, match=r"one.yaml and .*other.yaml cannot be compared: their teachers \(fingerprints\)"
    ):
        comparison.compare([one, other], recipes.load, tmp_path / "out", small(), print)


def test_an_unknown_metric_and_a_folder_of_something_else_are_one_line(home, teacher, tmp_path):
    path = written(tmp_path, teacher, "one")
    with pytest.raises(UserError, match="unknown metric 'rmze'.*did you mean 'rmse'"):
        comparison.compare([path], recipes.load, tmp_path / "out", small(metrics=("rmze",)), print)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("1")
    with pytest.raises(UserError, match="holds 'chapter.txt', and is not the folder of a comparison"):
        comparison.compare([path], recipes.load, tmp_path / "thesis", small(), print)
    assert not list(tmp_path.glob("*/run"))


def test_a_folder_that_holds_the_run_of_another_recipe_is_refused(compared, home, teacher, tmp_path):
    path = tmp_path / "changed.yaml"
    path.write_text((home / "gpd/gpd.yaml").read_text().replace("guidance: [3.0, 3.0]", "guidance: [2.0, 3.0]"))
    with pytest.raises(UserError, match=r"was started from another recipe: method.guidance was \[3.0, 3.0\]"):
        comparison.compare([path], recipes.load, tmp_path / "out", small(), print)


def test_settings_are_those_of_the_first_recipe_and_notes_say_in_what_others_differ(compared, home, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(home / "pair/run", other)
    text = (other / "recipe.yaml").read_text()
    (other / "recipe.yaml").write_text(text.replace("guidance: 3.0\n  samples: 8", "guidance: 4.0\n  samples: 5"))
    comparison.compare(
        [home / "gpd/run", other],
        load,
        tmp_path / "out",
        comparison.Options(changes={"metrics": ("rmse",), "seed": 5}, shown=1),
        print,
    )
    made = read(tmp_path / "out")
    assert (made["setting"]["samples"], made["setting"]["seed"], made["setting"]["guidance"]) == (8, 5, 3.0)
    assert "Pair: measured like the first column; the recipe has samples 5, guidance 4.0" in made["notes"]


def test_clips_that_are_not_asked_for_any_more_go(compared, home, tmp_path):
    again(home, tmp_path / "out", ["gpd/run"])
    before = len(list((tmp_path / "out/clips").glob("*.mp4")))
    again(home, tmp_path / "out", ["gpd/run"], changes={"steps": ()})
    assert before == 2 * 5 and len(list((tmp_path / "out/clips").glob("*.mp4"))) == 2 * 3
    (tmp_path / "out/clips/gpd_2_00.mp4").unlink()
    again(home, tmp_path / "out", ["gpd/run"], changes={"steps": ()})
    assert (tmp_path / "out/clips/gpd_2_00.mp4").is_file()


def test_jobs_sample_ahead_in_processes_of_their_own(compared, home, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("DISTILL_CACHE", str(tmp_path / "cache"))
    told, options = [], comparison.Options(changes={"samples": 3, "metrics": ("rmse",)}, shown=1, jobs=2)
    comparison.compare([home / "gpd/run"], load, tmp_path / "out", options, told.append)
    assert told == ["measuring run, seed 3"]
    assert "result: " in capfd.readouterr().out  # of `distill evaluate`
    alone = comparison.Options(changes=options.changes, shown=1)
    comparison.compare([home / "gpd/run"], load, tmp_path / "alone", alone, told.append)
    assert (tmp_path / "alone/compare.json").read_bytes() == (tmp_path / "out/compare.json").read_bytes()


def test_votes_of_a_blind_test_are_read_back_while_its_clips_are_the_same(compared, home, tmp_path):
    given = ["gpd/run", "pair/run"]
    again(home, tmp_path / "out", given, blind=True)
    key = json.loads((tmp_path / "out/blind_key.json").read_text())
    favoured = {name: "left" if pair["left"] == "gpd" else "right" for name, pair in key["pairs"].items()}
    ballot = {"voter": "a", "comparison": key["comparison"], "votes": favoured}
    (tmp_path / "votes.json").write_text(json.dumps(ballot))
    again(home, tmp_path / "out", given, votes=[tmp_path / "votes.json"])
    said = read(tmp_path / "out")["votes"]
    (duel,) = (pair for pair in said["pairs"] if {pair["a"], pair["b"]} == {"gpd", "tests_plugins_pair"})
    assert (duel["wins_a"], duel["wins_b"]) == ((2, 0) if duel["a"] == "gpd" else (0, 2))
    outcome = again(home, tmp_path / "out", given, votes=[tmp_path / "votes.json"], changes={"seed": 9})
    assert outcome.failures == [f"the votes are about other clips than those in {tmp_path}/out; ask again with --blind"]
    assert read(tmp_path / "out")["votes"] is None
    with pytest.raises(UserError, match="blind_key.json: no such file"):
        again(home, tmp_path / "other", given, votes=[tmp_path / "votes.json"])
