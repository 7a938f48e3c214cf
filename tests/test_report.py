"""The page of a run."""

import html.parser
import json
import math
import platform
import re
import socket
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from distill import plot, report, validation
from distill.environment import environment
from distill.evaluate import summarize, world
from distill.evaluate.asked import Asked
from distill.recipe import Log
from distill.track import Tracker

from . import gaussian_teacher as gaussian

PROMPTS = ["a red circle", "a <b>blue</b> square & more"]
RECIPE = """\
teacher: {family: wan, path: embedded}
video: {frames: 5, height: 8, width: 8, fps: 8}
method: {name: gpd, steps: 6}
"""


class Page(html.parser.HTMLParser):
    """The elements of a page, its text, and tags that were left open."""

    EMPTY = ("meta", "input", "br", "line", "circle", "polyline", "polygon")

    def __init__(self, path: Path):
        super().__init__()
        self.elements, self.open, self.wrong, self.words = [], [], [], []
        self.feed(path.read_text())
        self.text = re.sub(r"\s+", " ", " ".join(self.words))

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag in self.EMPTY:
            return
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)

    def handle_data(self, data):
        if not self.open or self.open[-1] not in ("script", "style"):
            self.words.append(data)

    def all(self, tag):
        return [attrs for name, attrs in self.elements if name == tag]


def clips(folder, name, error, info):
    settings = {"prompts": PROMPTS, "seed": 1000, "fps": 8, "rmse": [error, error]}
    latents = [torch.randn(3, 5, 8, 8) for _ in PROMPTS]
    validation.store(folder / "samples" / name, latents, settings | info, gaussian.GaussianTeacher())


def begin(folder, updates, total=12):
    folder.mkdir(exist_ok=True)
    (folder / "recipe.yaml").write_text(RECIPE)
    environment(folder / "environment.json")
    running = Tracker(folder, SimpleNamespace(log=Log()), True, total)
    running.start("start", 0, world_size=1)
    for u in range(1, updates + 1):
        stage, terms = (u - 1) // 4, {"velocity": 1.0 / u} | ({"high_frequency": 0.1} if u > 8 else {})
        rest = {
            "loss": sum(terms.values()),
            "grad_norm": 0.8,
            "lr": 1e-4,
            "seconds": 0.5,
            "evaluations": {"teacher": 32},
        }
        at = {"update": u, "step": u, "stage": stage, "stages": 3, "network": "student", "terms": terms}
        running.update(at | rest)
    return running


MEASURED = ("rmse", "cosine", "psnr", "saturation", "motion", "ssim")


def evaluation(attributes=world.ATTRIBUTES):
    """Two samplers of the teacher and a student that is half as far away as the worse one."""
    rng = np.random.default_rng(0)
    error = rng.uniform(0.5, 1, 16)
    samplers = {}
    for name, scale, hits in (("teacher_6", 1, 4), ("teacher_48", 0, 16), ("student", 0.5, 12)):
        values = {"seconds": [0.1] * 16, "evaluations": [{"teacher_6": 12, "teacher_48": 96, "student": 6}[name]] * 16}
        values |= {"rmse": list(scale * error), "cosine": list(1 - scale * error / 4), "psnr": list(20 + 0 * error)}
        values |= {"saturation": [0.3125 + scale / 4] * 16, "motion": [0.0625] * 16, "ssim": [None] * 16}
        if attributes:
            values |= {a: [1.0] * hits + [0.0] * (16 - hits) for a in (*world.ATTRIBUTES, *world.BEHAVIOUR)}
        samplers[name] = {"values": values, "failures": [["ssim", 3, "the clip has 8x8"]]}
    part = {"prompt": list(range(16)), "samplers": samplers}
    asked = Asked(("p",) * 16, 16, 2000, 5.0, (6, 48), metrics=MEASURED, world=bool(attributes))
    flop, steps = (
        {"teacher_6": 12e9, "teacher_48": 96e9, "student": 6e9},
        {"teacher_6": 6, "teacher_48": 48, "student": 6},
    )
    return {"update": 12, "shift": 5.0, "clock": "cpu"} | summarize.summary([part], asked, flop, steps)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    running = begin(folder, 12)
    clips(folder, "teacher_48", 0.0, {"steps": 48, "guidance": 5.0})
    clips(folder, "teacher_6", 0.4, {"steps": 6, "guidance": 5.0})
    clips(folder, "update_00000004", 0.3, {"update": 4})
    clips(folder, "update_00000008", 0.2, {"update": 8})
    running.event("validation", update=8, seconds=30.0)
    (folder / "evaluation.json").write_text(json.dumps(evaluation()))
    running.event("done", update=12)
    return Page(report.write(folder))


def test_the_page_is_well_formed_and_needs_no_network(finished):
    assert finished.wrong == [] and finished.open == []
    links = [attrs[k] for _, attrs in finished.elements for k in ("src", "href") if k in attrs]
    assert links and all(link.startswith("samples/") for link in links)
    assert "http" not in finished.text


def test_every_clip_of_the_newest_update_stands_beside_the_teachers(finished):
    shown = [attrs["src"] for attrs in finished.all("video")]
    folders = ("teacher_48", "teacher_6", "update_00000008")
    assert shown == [f"samples/{folder}/{row:02d}.mp4" for row in range(2) for folder in folders]
    slider = next(attrs for attrs in finished.all("input") if attrs["id"] == "update")
    assert (slider["min"], slider["max"]) == ("0", "1")


def test_prompts_are_text_and_never_markup(finished):
    assert "a <b>blue</b> square & more" in finished.text
    assert finished.all("video")[3]["aria-label"] == "Teacher, 48 steps: a <b>blue</b> square & more"


def test_everything_to_see_has_words_and_everything_to_use_has_a_name(finished):
    assert all(attrs.get("aria-label") for attrs in finished.all("video") + finished.all("progress"))
    charts = [attrs["aria-label"] for attrs in finished.all("svg")]
    assert "Loss of student: student/velocity from 1 at update 1 to 0.0833 at update 12" in charts[1]
    assert len(charts) == 4


def test_the_figures_of_the_evaluation_are_on_the_page(finished):
    assert "50 % of the gap closed" in finished.text.replace("\u2009", " ")
    assert "6 network evaluations per clip" in finished.text
    assert "0.562" in finished.text and "0.438" in finished.text  # saturation: teacher_6, student
    assert "GFLOP 12 96 6" in finished.text
    assert "95 % interval 50 to 50 %" in finished.text.replace("\u2009", " ").replace("\xa0", " ")
    assert "75 % [51, 90]" in finished.text.replace("\u2009", " ")  # Wilson's for 12 of 16: 0.505 to 0.898


def test_the_cost_adds_up(finished):
    assert "training 6 s" in finished.text and "evaluations of teacher 384 samples" in finished.text
    assert (
        "clips of the student 30 s" in finished.text
        and "12 of 12 updates" in finished.text
        and "finished" in finished.text
    )


def test_an_evaluation_without_the_world_has_no_table_of_attributes(tmp_path):
    begin(tmp_path / "run", 12)
    (tmp_path / "run" / "evaluation.json").write_text(json.dumps(evaluation(attributes=())))
    page = Page(report.write(tmp_path / "run"))
    assert len(page.all("tbody")) == 3 and "measured against their captions" not in page.text


def test_what_could_not_be_measured_is_said(finished):
    assert (
        "3 values could not be measured" in finished.text
        and "ssim of student, sample 3: the clip has 8x8" in finished.text
    )


def test_an_evaluation_from_before_metrics_had_names_has_its_tables(tmp_path):
    begin(tmp_path / "run", 12)
    old = evaluation()
    for values in old["samplers"].values():
        for key in ("steps", "flop", "ssim"):
            values.pop(key)
    kept = {key: value for key, value in old.items() if key not in ("metrics", "failures", "texts", "batch_size")}
    (tmp_path / "run" / "evaluation.json").write_text(json.dumps(kept))
    page = Page(report.write(tmp_path / "run"))
    assert page.wrong == [] and "0.562" in page.text and "75 % [51, 90]" in page.text.replace("\u2009", " ")
    assert "GFLOP" not in page.text and "could not be measured" not in page.text


def test_a_run_that_has_done_nothing_has_a_page(tmp_path):
    begin(tmp_path / "new", 0)
    page = Page(report.write(tmp_path / "new"))
    assert page.wrong == [] and "No update is done yet" in page.text and "0 of 12 updates" in page.text


def test_the_page_of_an_interrupted_run_says_why_and_shows_what_there_is(tmp_path):
    running = begin(tmp_path / "run", 6)
    clips(tmp_path / "run", "teacher_48", 0.0, {"steps": 48, "guidance": 5.0})
    running.event("warning", message="update_00000004 is damaged")
    running.event("stop", message="SIGTERM: saved in <here>")
    page = Page(report.write(tmp_path / "run"))
    assert "stopped" in page.text and "SIGTERM: saved in <here>" in page.text and "is damaged" in page.text
    assert len(page.all("video")) == 2 and not [a for a in page.all("input") if a["id"] == "update"]


def test_a_run_that_went_on_is_no_longer_called_stopped(tmp_path):
    running = begin(tmp_path / "run", 6)
    running.event("stop", message="SIGTERM")
    running.start("resume", 6)
    assert report.content(tmp_path / "run")["state"] == {"name": "in progress", "done": 6, "total": 12}


def test_clips_of_other_prompts_do_not_stand_in_the_same_row(tmp_path):
    begin(tmp_path / "run", 6)
    clips(tmp_path / "run", "update_00000002", 0.3, {"update": 2, "prompts": ["another", "one"]})
    clips(tmp_path / "run", "update_00000004", 0.3, {"update": 4})
    found = report.clips(tmp_path / "run")
    assert [student["update"] for student in found["students"]] == [4] and found["prompts"] == PROMPTS


def test_costs_of_a_thinned_log_are_scaled_to_all_updates():
    lines = [{"update": u, "seconds": 0.5, "kind": "update", "evaluations": {"teacher": 32}} for u in (2, 4, 6, 8)]
    rows = dict(report.cost(lines, lines))
    assert rows["training"] == "4 s" and rows["evaluations of teacher"] == "256 samples"


def test_the_environment_names_no_host_and_no_folder(tmp_path, monkeypatch):
    for module, name in ((socket, "gethostname"), (platform, "node")):
        monkeypatch.setattr(module, name, lambda: "the-host")
    environment(tmp_path / "environment.json")
    text = (tmp_path / "environment.json").read_text()
    assert "the-host" not in text and str(Path.cwd()) not in text and str(Path.home()) not in text
    assert json.loads(text)["versions"]["torch"] == torch.__version__


def polyline(svg):
    points = re.search(r'<polyline points="([^"]*)"', svg).group(1)
    return [tuple(map(float, point.split(","))) for point in points.split()]


def test_a_curve_goes_through_its_points():
    """Linear axes from 0: height is proportional to the value, width to the update."""
    points = polyline(plot.svg(plot.Chart("t", {"a": [(1, 0.0), (2, 1.0), (5, 2.0)]})))
    (x0, y0), (x1, y1), (x2, y2) = points
    assert (x1 - x0) / (x2 - x0) == pytest.approx(0.25, abs=1e-3)
    assert (y1 - y0) / (y2 - y0) == pytest.approx(0.5, abs=1e-3) and y2 < y0
    assert y0 == plot.HEIGHT - plot.BOTTOM and plot.TOP < y2 < plot.TOP + 0.1 * plot.HEIGHT


def test_values_over_decades_are_equally_far_apart_for_equal_ratios():
    (_, y0), (_, y1), (_, y2) = polyline(plot.svg(plot.Chart("t", {"a": [(1, 1.0), (2, 0.1), (3, 0.01)]})))
    assert y1 - y0 == pytest.approx(y2 - y1, abs=0.2)


def test_values_that_are_not_finite_do_not_spoil_a_curve():
    svg = plot.svg(plot.Chart("t", {"a": [(1, 1.0), (2, math.nan), (3, 2.0)], "b": [(1, math.inf)]}))
    assert len(polyline(svg)) == 2 and "nan" not in svg and "inf" not in svg


def test_many_points_become_means_within_their_range():
    points = [(u, 10.0 + (-1) ** u) for u in range(1, 6001)]
    bins = plot.binned(points)
    assert len(bins) == plot.POINTS
    assert all(mean == pytest.approx(10, abs=1e-9) and (low, high) == (9, 11) for _, mean, low, high in bins)
