"""The benchmark of runs made to fail: its recipes still load, and its table says when each guard fired first."""

import sys
from pathlib import Path

import pytest

from distill import recipe
from distill.recipe import Health, Log
from distill.track import Tracker

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))
import failures  # noqa: E402


@pytest.mark.parametrize("name", failures.CASES)
def test_every_run_is_a_recipe_at_the_default_limits(name):
    case = failures.CASES[name]
    loaded = recipe.load(ROOT / "recipes" / case.recipe, [*failures.STORES.get(case.recipe, ()), *case.changes])
    assert loaded.health == Health() and case.healthy != ("fail" in failures_of(case))


def failures_of(case) -> str:
    """A healthy run is cut short and nothing else."""
    return "" if all(c.startswith(("train.steps", "method.iterations")) for c in case.changes) else "fail"


def test_the_table_has_the_first_alarm_of_each_kind(tmp_path, monkeypatch):
    monkeypatch.setattr(failures, "RUNS", tmp_path)
    folder = failures.folder("DMD", 0)
    folder.mkdir()
    options = type("Recipe", (), {"log": Log()})()
    with Tracker(folder, options, True, 40) as log:
        log.start("start", 0)
        log.update({"update": 40, "network": "student", "terms": {}, "loss": 1.0, "stages": 1, "seconds": 1.0})
        log.event("validation", update=20, rmse=0.5, health={"motion": 3.0}, critics={})
        for update, what in ((20, "the clips flicker"), (30, "the colours fade"), (40, "the clips flicker")):
            log.event("health", update=update, guard="motion", curve="motion", message=f"{what}: figures; advice")
        log.event("done", update=40)
    told = failures.described("DMD", [0])
    assert failures.table({"DMD": told}).endswith("| DMD | 0 | 40 | the clips flicker: 20; the colours fade: 30 |")
    assert told["seeds"][0]["validations"] == [{"update": 20, "rmse": 0.5, "health": {"motion": 3.0}, "critics": {}}]
    assert failures.train("DMD", 0) is None  # it is done
