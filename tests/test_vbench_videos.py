"""Videos for VBench, and its official package: of the embedded teacher at one step, by the real commands."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from distill import sample, video
from distill.errors import UserError
from distill.evaluate.vbench import driver, layout, made, results, table, videos
from tests import fake_vbench, runs
from tests.test_cli import ROOT, distill

FAST = {"steps": 1, "guidance": 1.0}
STILL, MOVING = "a blue plain square stays still on black", "a red plain circle moves left fast on gray"


def entry(prompt: str, *dimensions: str) -> dict:
    return {"prompt_en": prompt, "dimension": list(dimensions)}


SUITE = [
    entry(MOVING, "color"),
    entry(STILL, "scene", "background_consistency"),
    entry(MOVING, "overall_consistency", "imaging_quality"),
]


def suite(folder: Path, *entries: dict) -> Path:
    (folder / "info.json").write_text(json.dumps(entries or SUITE))
    return folder / "info.json"


def files(folder: Path) -> dict[str, bytes]:
    """Everything among the videos."""
    paths = sorted((folder / "videos").rglob("*"))
    return {str(path.relative_to(folder / "videos")): path.read_bytes() for path in paths if not path.is_dir()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A folder with all videos of the small suite."""
    folder = tmp_path_factory.mktemp("vbench")
    assert videos.write("embedded", suite(folder), folder / "out", **FAST) == ()
    return folder / "out"


def test_videos_have_official_names_and_nothing_lies_beside_them(whole):
    expected = [f"{d}/{p}-{i}.mp4" for d, p in (("color", MOVING), ("overall_consistency", MOVING)) for i in range(5)]
    assert sorted(files(whole)) == [*expected, *(f"scene/{STILL}-{i}.mp4" for i in range(5))]
    assert {p.name for p in whole.iterdir()} == {"lock", "made", "prompts.json", "settings.json", "videos"}
    assert [p.name for p in (whole / "made").iterdir()] == ["000.jsonl"]


def test_a_video_is_what_sample_makes_of_its_text_and_seed(whole, tmp_path):
    known = made.records(whole)
    for file in (f"color/{MOVING}-3.mp4", f"scene/{STILL}-0.mp4"):
        record = known[file]
        (path,) = sample.sample("embedded", [record["text"]], seed=record["seed"], out=tmp_path, **FAST)
        assert path.read_bytes() == files(whole)[file]
    assert len({record["seed"] for record in known.values()}) == 10  # one prompt is there twice
    assert files(whole)[f"color/{MOVING}-3.mp4"] == files(whole)[f"overall_consistency/{MOVING}-3.mp4"]
    assert len(set(files(whole).values())) == 10


def test_what_is_there_whole_is_not_made_again(tmp_path, monkeypatch):
    info, out, written = suite(tmp_path, entry(STILL, "Composition"), entry(MOVING, "Material")), tmp_path / "out", []
    write = video.write
    monkeypatch.setattr(video, "write", lambda path, *rest: written.append(path) or write(path, *rest))
    videos.write("embedded", info, out, dimensions=["Composition"], **FAST)
    before = files(out)
    assert len(before) == len(written) == 3
    (out / "made/000.jsonl").rename(out / "made/001.jsonl")  # as if another process had made them
    videos.write("embedded", info, out, **FAST)
    assert len(files(out)) == len(written) == 6 and before.items() <= files(out).items()
    assert [path.name for path in (out / "made").iterdir()] == ["000.jsonl"]
    torn, gone = (out / "videos" / file for file in list(before)[:2])
    torn.write_bytes(torn.read_bytes()[:-1])
    gone.unlink()
    with (out / "made/000.jsonl").open("a") as file:
        file.write('{"file": "torn by a ki')
    videos.write("embedded", info, out, **FAST)
    assert len(written) == 8 and before.items() <= files(out).items()
    videos.write("embedded", info, out, **FAST)
    assert len(written) == 8


def test_the_latest_record_of_a_video_counts_whichever_process_wrote_it(tmp_path):
    wanted = layout.Wanted("color/a-0.mp4", "a", "a", 0)
    (tmp_path / "video.mp4").write_bytes(b"old")
    made.Records(tmp_path, 3).take(tmp_path / "video.mp4", [wanted], {})
    made.gather(tmp_path)
    assert made.Records(tmp_path, 0).is_whole(wanted)
    (tmp_path / "video.mp4").write_bytes(b"new")
    made.Records(tmp_path, 1).take(tmp_path / "video.mp4", [wanted], {})
    for _ in range(2):
        assert made.Records(tmp_path, 0).is_whole(wanted)
        made.gather(tmp_path)
    assert [path.name for path in (tmp_path / "made").iterdir()] == ["000.jsonl"]


def test_a_killed_command_goes_on(whole, tmp_path):
    options = ["embedded", "--info", suite(tmp_path), "--out", tmp_path / "out", "--steps", 1, "--guidance", 1]
    first = runs.command("vbench", "write", *options)
    while len(list((tmp_path / "out").rglob("*-*.mp4"))) < 3 and first.poll() is None:
        time.sleep(0.02)
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    assert 3 <= len(files(tmp_path / "out")) < 15
    second = runs.command("vbench", "write", *options)
    said, _ = second.communicate(timeout=120)
    assert second.returncode == 0, said
    assert files(tmp_path / "out") == files(whole)


def test_ctrl_c_leaves_whole_videos_and_says_how_to_go_on(tmp_path):
    options = ["embedded", "--info", suite(tmp_path), "--out", tmp_path / "out", "--steps", 1, "--guidance", 1]
    first = runs.command("vbench", "write", *options)
    while len(list((tmp_path / "out").rglob("*-*.mp4"))) < 3 and first.poll() is None:
        time.sleep(0.02)
    first.send_signal(signal.SIGINT)
    said, _ = first.communicate(timeout=60)
    assert first.returncode == 130
    assert said.splitlines()[-1] == f"stopped; the same command goes on in {tmp_path / 'out'}"
    known = made.records(tmp_path / "out")
    assert 3 <= len(files(tmp_path / "out")) < 15 and files(tmp_path / "out").keys() == known.keys()


@pytest.mark.slow
def test_two_processes_make_what_one_makes(whole, tmp_path):
    options = ["--info", suite(tmp_path), "--out", tmp_path / "out", "--steps", 1, "--guidance", 1]
    done = distill("vbench", "write", "embedded", *options, "--processes", "2", OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    assert files(tmp_path / "out") == files(whole)
    assert made.records(tmp_path / "out") == made.records(whole)
    lines = [len((tmp_path / f"out/made/{rank:03d}.jsonl").read_text().splitlines()) for rank in (0, 1)]
    assert sorted(lines) == [7, 8] and done.stdout.count("videos: ") == 1


def test_a_prompt_that_fails_does_not_stop_the_rest(tmp_path, monkeypatch):
    info = suite(tmp_path, entry(STILL, "Composition"), entry("a/b", "Composition"), entry(MOVING, "Composition"))
    decode, calls = videos.open_source("embedded").teacher.__class__.decode, []

    def fail(self, latents):
        calls.append(latents)
        if len(calls) == 2:
            raise RuntimeError("out of memory\nat length")
        return decode(self, latents)

    monkeypatch.setattr(videos.open_source("embedded").teacher.__class__, "decode", fail)
    with pytest.raises(UserError) as error:
        videos.write("embedded", info, tmp_path / "out", **FAST)
    title, line = str(error.value).splitlines()
    assert title == f"{tmp_path / 'out'}: 1 of 6 videos are missing; the same command goes on with them"
    assert line == f"Composition/{STILL}-1.mp4: RuntimeError: out of memory"
    assert len(files(tmp_path / "out")) == 5
    (fault,) = videos.write("embedded", info, tmp_path / "out", **FAST)
    assert fault.startswith("no videos of 'a/b': '/' cannot") and len(files(tmp_path / "out")) == 6
    assert made.missing(tmp_path / "out", made.suite_of(tmp_path / "out").wanted(["Composition"])) == []


def test_a_prompt_that_cannot_be_encoded_does_not_stop_the_rest(tmp_path, monkeypatch):
    info = suite(tmp_path, entry("an unheard-of prompt", "Composition"), entry("another one", "Composition"))
    teacher = videos.open_source("embedded").teacher.__class__
    encode = teacher.encode

    def fail(self, prompts):
        if "another one" in prompts:
            raise ValueError("no such word")
        return encode(self, prompts)

    monkeypatch.setattr(teacher, "encode", fail)
    with pytest.raises(UserError, match="3 of 6 videos are missing"):
        videos.write("embedded", info, tmp_path / "out", **FAST)
    assert len(files(tmp_path / "out")) == 3
    faults = {record["prompt"]: record.get("fault") for record in made.records(tmp_path / "out").values()}
    assert faults == {"an unheard-of prompt": None, "another one": "ValueError: no such word"}


def test_extended_prompts_are_what_is_sampled_and_recorded(tmp_path):
    (tmp_path / "longer.txt").write_text(f"{MOVING}\n{STILL}\n{MOVING}\n")
    info = suite(tmp_path, entry("one", "Composition"), entry("two", "Composition"), entry("three", "Composition"))
    videos.write("embedded", info, tmp_path / "out", extended=tmp_path / "longer.txt", **FAST)
    known = made.records(tmp_path / "out")
    assert [known[f"Composition/{name}-0.mp4"]["text"] for name in ("one", "two", "three")] == [MOVING, STILL, MOVING]
    assert known["Composition/one-0.mp4"]["prompt"] == "one"
    assert known["Composition/one-2.mp4"]["sha256"] == known["Composition/three-2.mp4"]["sha256"]
    assert made.settings(tmp_path / "out")["extended"] is True
    with pytest.raises(
        UserError, match="holds videos of other settings: prompts '.*', now '.*'; extended True, now False"
    ):
        videos.write("embedded", info, tmp_path / "out", **FAST)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"steps": 2, "guidance": 1.0}, "steps 1, now 2"),
        ({"steps": 1, "guidance": 3.0}, "guidance 1.0, now 3.0"),
        ({"steps": 1, "guidance": 1.0, "seed": 5}, "seed 0, now 5"),
    ],
)
def test_a_folder_holds_videos_of_one_setting(whole, options, line):
    with pytest.raises(UserError) as error:
        videos.write("embedded", whole.parent / "info.json", whole, **options)
    assert str(error.value) == f"{whole} holds videos of other settings: {line}; give another --out"


def test_two_commands_do_not_write_into_one_folder(whole):
    with (
        made.hold(whole),
        pytest.raises(UserError, match=r"is in use by process \d+ .*; wait for it, or give another --out"),
    ):
        videos.write("embedded", whole.parent / "info.json", whole, **FAST)


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.txt").write_text("mine")
    with pytest.raises(UserError, match=r"holds 'thesis.txt' but no settings.json"):
        videos.write("embedded", suite(tmp_path), tmp_path / "out", **FAST)
    assert [p.name for p in (tmp_path / "out").iterdir() if p.name != "lock"] == ["thesis.txt"]


# The official package


@pytest.fixture(scope="module")
def flickering(tmp_path_factory) -> Path:
    """The 25 videos of a prompt of temporal flickering."""
    folder = tmp_path_factory.mktemp("flickering")
    videos.write("embedded", suite(folder, entry(MOVING, "temporal_flickering")), folder / "out", **FAST)
    return folder / "out"


def naive_flickering(path: Path) -> float:
    frames = video.read(path).astype(np.float64)
    return 1 - np.abs(frames[1:] - frames[:-1]).mean() / 255


def test_our_flickering_is_of_the_written_files_and_in_no_score(flickering):
    paths = sorted((flickering / "videos/temporal_flickering").iterdir())
    content = table.of_folder(flickering)
    assert content["ours"]["temporal_flickering"]["videos"] == len(paths) == 25
    mean = np.mean([naive_flickering(path) for path in paths])
    assert content["ours"]["temporal_flickering"]["mean"] == pytest.approx(mean, abs=1e-6)
    assert content["dimensions"] == {} and "temporal_flickering" in content["scores"]["partial"]
    (line,) = [line for line in table.lines(content) if "ours" in line]
    assert f"{100 * mean:.2f}" in line and "without the official static filter" in line


def test_the_official_package_measures_the_videos(whole, flickering, tmp_path):
    python = fake_vbench.build(tmp_path / "its own environment")
    done = distill("vbench", "run", whole, "--python", os.path.relpath(python, ROOT))
    assert done.returncode == 0, done.stderr
    content = json.loads((whole / "vbench.json").read_text())
    means = {name: each["mean"] for name, each in content["dimensions"].items()}
    length = {"moving": (len(MOVING) + 2) / 100, "still": (len(STILL) + 2) / 100}
    by_hand = dict.fromkeys(("imaging_quality", "color", "overall_consistency"), length["moving"])
    assert means == pytest.approx(by_hand | dict.fromkeys(("background_consistency", "scene"), length["still"]))
    assert content["per_video"]["scene"][f"{STILL}-4.mp4"] == pytest.approx(length["still"])
    assert len(content["scores"]["partial"]) == 11 and content["scores"]["total"] is None and content["notes"] == []
    assert str(whole) not in (whole / "vbench.json").read_text()
    before = fake_vbench.calls(python)
    assert sorted(before) == sorted(means)
    assert distill("vbench", "run", whole, "--python", python).returncode == 0
    assert fake_vbench.calls(python) == before  # nothing was measured again
    distill("vbench", "run", flickering, "--python", python)
    said = json.loads((flickering / "vbench.json").read_text())["dimensions"]["temporal_flickering"]
    assert json.loads((flickering / "vbench.json").read_text())["notes"] == []
    assert said["videos"] == 5 and len(list((flickering / "results").rglob("filtered_videos/*.mp4"))) == 5


def test_videos_that_were_made_anew_are_measured_anew(tmp_path):
    info, python = suite(tmp_path, entry(STILL, "Composition")), fake_vbench.build(tmp_path / "env")
    videos.write("embedded", info, tmp_path / "out", **FAST)
    assert distill("vbench", "run", tmp_path / "out", "--python", python).returncode == 0
    record = tmp_path / "out/made/000.jsonl"
    record.write_text(record.read_text().replace('"sha256": "', '"sha256": "0'))
    content = table.of_folder(tmp_path / "out")
    assert content["dimensions"] == {} and content["notes"][0].startswith("Composition was measured on other videos")
    assert distill("vbench", "run", tmp_path / "out", "--python", python).returncode == 0
    assert fake_vbench.calls(python, "vbench2") == ["Composition"] * 2


def test_a_mean_over_fewer_videos_is_noted(whole):
    few = results.Measured(0.5, {"a-0.mp4": 0.5}, "x")
    asked = made.suite_of(whole)
    assert table._fewer(asked, {"color": few}) == ["color is the mean of 1 videos, of 5 at most"]
    assert table._fewer(asked, {"color": results.Measured(0.5, {str(i): 0.5 for i in range(5)}, "x")}) == []


def test_a_dimension_that_fails_does_not_stop_the_rest(tmp_path):
    dimensions = ["Composition", "Diversity", "Mechanics", "Material"]
    info = suite(tmp_path, *(entry(STILL, name) for name in dimensions))
    python = fake_vbench.build(tmp_path / "env", failing=("Mechanics",))
    videos.write("embedded", info, tmp_path / "out", dimensions=["Mechanics", "Material", "Composition"], **FAST)
    (tmp_path / "out/videos/Composition/notes.json").write_text("{}")
    done = distill("vbench", "run", tmp_path / "out", "--python", python)
    assert done.returncode == 2
    lines = {line.split(": ")[0]: line for line in done.stdout.splitlines() if ": " in line}
    assert lines["Diversity"].endswith("20 of 20 videos are missing; distill vbench write goes on with them")
    assert lines["Composition"].endswith("'notes.json' is among the videos and would be taken for one; remove it")
    assert "vbench2 failed (RuntimeError: no weights of Mechanics); see " in lines["Mechanics"]
    assert lines["Material"] == f"Material: {(len(STILL) + 2) / 100:.4f} (vbench2 0.0, 3 videos)"
    assert len(table.of_folder(tmp_path / "out")["scores"]["partial"]) == 17


@pytest.mark.parametrize(
    ("python", "line"),
    [
        (
            sys.executable,
            "lacks vbench (ModuleNotFoundError: No module named 'vbench'); install it into an environment",
        ),
        ("nowhere/python", "--python nowhere/python: no such program; expected the python of VBench's environment"),
    ],
)
def test_without_the_official_package_there_is_one_line(whole, python, line):
    done = distill("vbench", "run", whole, "--python", python)
    assert done.returncode == 2 and line in done.stderr and len(done.stderr.splitlines()) == 1 and not done.stdout


def test_a_folder_without_videos_is_one_line(tmp_path):
    done = distill("vbench", "run", tmp_path, "--python", sys.executable)
    assert (done.returncode, done.stderr) == (
        2,
        f"{tmp_path} holds no videos of VBench; make them with distill vbench write\n",
    )


def test_evaluate_does_all_of_it(tmp_path):
    python = fake_vbench.build(tmp_path / "env")
    options = ["--vbench", suite(tmp_path, entry(STILL, "Composition")), "--out", tmp_path / "out"]
    done = distill("evaluate", "embedded", *options, "--vbench-python", python, "--seed", "3")
    assert done.returncode == 0, done.stderr
    assert f"Composition: {(len(STILL) + 2) / 100:.4f} (vbench2 0.0, 3 videos)" in done.stdout.splitlines()
    assert made.settings(tmp_path / "out")["seed"] == 3 and len(files(tmp_path / "out")) == 3


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--vbench", "x.json", "--metrics", "rmse"], "--metrics has no effect with --vbench; distill vbench write"),
        (["--vbench-python", "x"], "--vbench-python has no effect without --vbench INFO"),
        (["--vbench", "x.json"], "--vbench needs --out FOLDER"),
        (["--vbench", "x.json", "--out", "{tmp}/out"], "x.json: cannot be read (No such file or directory)"),
    ],
)
def test_options_without_effect_are_refused(tmp_path, options, line):
    done = distill("evaluate", "embedded", *(option.format(tmp=tmp_path) for option in options))
    assert done.returncode == 2 and line in done.stderr and len(done.stderr.splitlines()) == 1


def test_the_real_package_agrees(flickering, tmp_path):
    """The first five videos, without the filter, whose weights few have."""
    python = os.environ.get("DISTILL_VBENCH_PYTHON")
    if not python:
        pytest.skip("no environment with the official package; set DISTILL_VBENCH_PYTHON")
    places = {"videos": flickering / "videos/temporal_flickering", "info": flickering / "prompts.json", "out": tmp_path}
    options = {"package": "vbench", "main": "VBench", "dimension": "temporal_flickering", "device": "auto"} | places
    command = [python, driver.__file__, *(word for name, value in options.items() for word in (f"--{name}", value))]
    subprocess.run(list(map(str, command)), check=True, capture_output=True)
    found = table.of_files([tmp_path])["per_video"]["temporal_flickering"]
    known = made.records(flickering)
    assert len(found) == 5
    for name, value in found.items():
        assert known[f"temporal_flickering/{name}"]["flicker"] == pytest.approx(value, abs=1e-6)
