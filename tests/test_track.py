"""What a run says: the log, the lines for people, and other trackers."""

import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from distill import track
from distill.errors import UserError
from distill.recipe import Log, TeacherSpec
from distill.track import Tracker


def recipe(**changes):
    return SimpleNamespace(log=Log(**changes))


def line(update, network="student", **changes):
    terms = {"velocity": 1.0 / update, "high_frequency": 0.5}
    whole = {"update": update, "step": update - 1, "stage": 0, "stages": 1, "network": network, "terms": terms}
    return whole | {"loss": sum(terms.values()), "grad_norm": 0.8, "lr": 1e-4, "seconds": 0.25} | changes


def tracker(folder, total=100, main=True, **changes):
    return Tracker(folder, recipe(**changes), main, total)


def updates(folder):
    return [(entry["update"], entry["network"]) for entry in track.read(folder) if entry["kind"] == "update"]


def test_a_line_is_in_the_file_as_soon_as_it_is_said(tmp_path):
    with tracker(tmp_path) as running:
        running.start("start", 0, world_size=2)
        running.update(line(1))
        said = [json.loads(text) for text in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [next(iter(entry.items())) for entry in said] == [("kind", "start"), ("kind", "update")]
    assert said[0]["world_size"] == 2 and said[0]["updates"] == 100
    assert said[1] == {"kind": "update", **line(1)}


def test_only_the_main_process_speaks(tmp_path, capsys):
    with tracker(tmp_path, main=False) as running:
        running.start("start", 0)
        running.update(line(1))
        running.event("checkpoint", update=1)
        running.say("something")
    assert not list(tmp_path.iterdir()) and capsys.readouterr().out == ""


def test_every_network_is_logged_once_in_every_so_many_updates(tmp_path):
    """Five critic updates to one of the student: thinning by number alone would lose one of them."""
    networks = (["critic"] * 5 + ["student"]) * 4
    with tracker(tmp_path, every=6) as running:
        for i, network in enumerate(networks, start=1):
            running.update(line(i, network))
    assert updates(tmp_path) == [(u, n) for k in range(4) for u, n in ((6 * k + 1, "critic"), (6 * k + 6, "student"))]


def test_after_a_kill_the_log_reads_as_if_the_lost_updates_had_never_been(tmp_path):
    with tracker(tmp_path) as running:
        running.start("start", 0)
        for update in range(1, 8):
            running.update(line(update, seconds=1.0))
        running.event("validation", update=6)
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"kind": "update", "upd')  # killed while writing
    with tracker(tmp_path) as running:
        running.start("resume", 5)
        running.update(line(6, seconds=2.0))
    log = track.read(tmp_path)
    assert [entry["update"] for entry in log if entry["kind"] == "update"] == [1, 2, 3, 4, 5, 6]
    assert log[-1]["seconds"] == 2.0
    assert [entry["kind"] for entry in log if entry["kind"] != "update"] == ["start", "resume"]


def test_of_several_lines_for_one_update_the_last_counts(tmp_path):
    for seconds in (1.0, 2.0):
        with tracker(tmp_path) as running:
            running.update(line(3, seconds=seconds))
    assert [entry["seconds"] for entry in track.read(tmp_path)] == [2.0]


def test_pipes_get_plain_lines_now_and_then_and_the_last_one(tmp_path, capsys, monkeypatch):
    now = iter(range(0, 1000, 4))  # seconds; each update takes four
    monkeypatch.setattr(track.time, "monotonic", lambda: next(now))
    with tracker(tmp_path, total=12) as running:
        for update in range(1, 13):
            running.update(line(update, stage=1, stages=7))
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == "update 1/12  stage 2/7  student loss 1.5  0.25 s/update  3 s left"
    assert 3 <= len(shown) <= 7 and shown[-1].startswith("update 12/12") and shown[-1].endswith("0 s left")


def test_a_terminal_gets_a_bar_with_rate_and_time_left_and_events_above_it(tmp_path, monkeypatch):
    screen = io.StringIO()
    screen.isatty = lambda: True
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with tracker(tmp_path, total=8) as running:
        running.start("resume", 4)
        running.update(line(5))
        running.event("warning", message="[bold] is not markup")
    seen = screen.getvalue()
    assert "5/8" in seen and "0.25 s/update  1 s left" in seen and "student loss 0.7" in seen
    assert "warning: [bold] is not markup" in seen


def test_events_are_one_readable_line_each(tmp_path, capsys):
    with tracker(tmp_path) as running:
        running.event("validation", update=20, folder="samples/update_00000020", prompts=["a"], rmse=0.123456)
        running.event("stop", message="SIGINT: saved")
        running.say("16 of 128 samples")
    assert capsys.readouterr().out.splitlines() == [
        "validation at update 20: folder samples/update_00000020  rmse 0.1235",
        "stop: SIGINT: saved",
        "16 of 128 samples",
    ]
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("seconds", "words"), [(7.2, "7 s"), (99, "99 s"), (130, "2 min"), (3570, "1 h 00 min"), (11100, "3 h 05 min")]
)
def test_durations(seconds, words):
    assert track.duration(seconds) == words


class Recorded:
    requires_logging_directory = True

    def __init__(self, name, logging_dir):
        self.name, self.folder, self.calls = name, logging_dir, []

    def start(self):
        self.calls.append("start")

    def store_init_configuration(self, values):
        self.options = values

    def log(self, values, step):
        self.calls.append((step, values))

    def finish(self):
        self.calls.append("finish")


@pytest.fixture
def accelerate_tracking(monkeypatch):
    from accelerate import tracking

    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "tensorboard", Recorded)
    monkeypatch.setattr(tracking, "_available_trackers", ["tensorboard"])


def test_named_trackers_get_terms_distances_and_the_options(tmp_path, accelerate_tracking):
    made = TeacherSpec(family="wan", path="embedded").model_copy(update={"log": Log(trackers=["tensorboard"])})
    with Tracker(tmp_path, made, True, 100) as running:
        running.update(line(2))
        running.event("validation", update=2, folder="x", rmse=0.5)
        other = running.stores[1].tracker
    assert other.options["path"] == "embedded" and Path(other.folder) == tmp_path
    values = {"velocity": 0.5, "high_frequency": 0.5, "loss": 1.0, "grad_norm": 0.8, "lr": 1e-4, "seconds": 0.25}
    student = {f"student/{name}": value for name, value in values.items()}
    assert other.calls == ["start", (2, student), (2, {"validation/rmse": 0.5}), "finish"]


def test_a_tracker_that_is_not_installed_is_one_clear_line(tmp_path, accelerate_tracking):
    with pytest.raises(UserError, match="log.trackers: wandb is not installed; pip install wandb, or leave it out"):
        tracker(tmp_path, trackers=["wandb"])
