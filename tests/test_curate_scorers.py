"""Scorers of the user's own in a curation (tests/scorers.py has them)."""

import numpy as np
import pytest

from distill.data import footage
from distill.data.spec import Curation
from distill.errors import UserError
from tests import test_curate
from tests.test_curate import judge, lines, probed
from tests.test_curate_verdicts import OFF

clips, counted = test_curate.clips, test_curate.counted  # fixtures


def scored(option, name, **more):
    return Curation(**OFF | {option: 0.5, f"{option}_by": f"tests.scorers:{name}"} | more)


def test_a_scorer_ranks_in_place_of_the_formula(clips, tmp_path, counted):
    videos = probed(clips)
    reasons = judge(videos, tmp_path, scored("aesthetics", "darkness"))
    dark = [-footage.frames(each.path).mean() for each in videos]
    order = sorted(range(4), key=lambda i: -dark[i])
    assert order[0] == 3  # the black clip, the last one by the formula
    assert [i for i in range(4) if reasons[i] is None] == sorted(order[:2]) and len(counted) == 4
    found = {each["video"]: each["values"] for each in lines(tmp_path) if "darkness" in each["by"]}
    assert [found[str(each.path)]["aesthetics"] for each in videos] == pytest.approx(dark, rel=0.05)


def test_features_of_a_scorer_are_compared_as_vbench_does(clips, tmp_path):
    videos = probed(clips)[:2]
    judge(videos, tmp_path, scored("consistency", "colours"))
    rows = footage.frames(videos[0].path).astype(float).mean((1, 2))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    naive = np.mean([(rows[t] @ rows[t - 1] + rows[t] @ rows[0]) / 2 for t in range(1, len(rows))])
    assert lines(tmp_path)[2]["values"]["consistency"] == pytest.approx(naive, abs=1e-9)


def test_scores_are_kept_like_measurements(clips, tmp_path, monkeypatch):
    judge(probed(clips), tmp_path, scored("aesthetics", "brightness"))
    monkeypatch.setattr("tests.scorers.brightness", lambda frames: 1 / 0)
    assert judge(probed(clips), tmp_path, scored("aesthetics", "brightness", aesthetics=1.0)) == [None] * 4


def test_a_scorer_that_fails_on_one_video_drops_it(clips, tmp_path):
    reasons = judge(probed(clips), tmp_path, scored("aesthetics", "picky", aesthetics=1.0))
    failed = "unscored: tests.scorers:picky failed: RuntimeError: too dark for me"
    assert reasons == [None, None, None, failed]


@pytest.mark.parametrize(
    "name, fault",
    [
        ("broken", "aesthetics_by: tests.scorers:broken failed: RuntimeError: no weights, with .*0.mp4"),
        ("one_number", r"returned shape \(\) for 8 frames, expected \(8,\)"),
        ("not_finite", "returned numbers that are not finite"),
        ("absent", "data.videos.curation.aesthetics_by: tests.scorers has no function absent"),
    ],
)
def test_a_scorer_that_never_works_is_an_error(clips, tmp_path, name, fault):
    with pytest.raises(UserError, match=fault):
        judge(probed(clips)[:2], tmp_path, scored("aesthetics", name))


def test_a_scorer_that_cannot_be_imported_is_named_before_anything_is_measured(clips, tmp_path, counted):
    curation = Curation(**OFF | {"consistency": 0.5, "consistency_by": "no.such.module:f"})
    with pytest.raises(UserError, match="consistency_by: no.such.module:f failed to import: ModuleNotFoundError"):
        judge(probed(clips), tmp_path, curation)
    assert counted == []
