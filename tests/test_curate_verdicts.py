"""Measurements -> verdicts, and the section of a recipe that sets the thresholds."""

import json
import re
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from distill.curate import verdicts
from distill.curate.verdicts import Measured
from distill.data.footage import Footage
from distill.data.spec import Curation

GOOD = {
    "frames": 81,
    "hue_entropy": 3.0,
    "hue_entropy_achromatic": 2.0,
    "sharpness": 100.0,
    "sharpness_native": 50.0,
    "contrast": 40.0,
    "motion": 1.0,
    "cuts": 0,
    "consistency": 0.9,
    "aesthetics": 0.5,
}
FILTERS = ("resolution", "hue_entropy", "sharpness", "motion", "consistency", "aesthetics")
OFF = dict.fromkeys(FILTERS)
PAPER = Curation()


def video(name="a", size=(1280, 720), bad=None, unscored=None, **values):
    footage = Footage(Path(name), *size, 24.0, 5.0)
    return Measured(footage, {} if bad else GOOD | values, bad, unscored=unscored or {})


def verdict(curation, *args, **values):
    """Of a video that competes with none."""
    return verdicts.judge([video(*args, **values)], curation)[0]


def kept(videos, curation):
    return [v.video.path.name for v, reason in zip(videos, verdicts.judge(videos, curation), strict=True) if not reason]


def test_the_defaults_are_the_papers():
    """Section 6.2: 1280x720, hue entropy 0.60, Laplacian variance 20.0, flow 0.2, the better half twice."""
    assert (PAPER.resolution, PAPER.hue_entropy, PAPER.sharpness, PAPER.motion) == ((720, 1280), 0.6, 20.0, 0.2)
    assert (PAPER.consistency, PAPER.aesthetics) == (0.5, 0.5)
    assert PAPER.contrast is PAPER.cuts is None and PAPER.consistency_groups == 1


@pytest.mark.parametrize(
    "key, least, kind",
    [("hue_entropy", 0.6, "monochrome"), ("sharpness", 20.0, "blurred"), ("motion", 0.2, "still")],
)
def test_what_equals_a_threshold_passes_and_what_is_below_is_dropped(key, least, kind):
    assert verdict(PAPER, **{key: least}) is None
    reason = verdict(PAPER, **{key: least - 0.05})
    assert reason.startswith(f"{kind}: ") and reason.endswith(f" {least - 0.05:.4g}, needs at least {least:.4g}")


@pytest.mark.parametrize("size, passes", [((1280, 720), 1), ((720, 1280), 1), ((1279, 720), 0), ((1920, 719), 0)])
def test_resolution_counts_either_way_up(size, passes):
    reason = verdict(PAPER, size=size)
    assert (reason is None) == passes and (passes or reason.startswith(f"resolution: {size[0]}x{size[1]}, "))


@pytest.mark.parametrize(
    "option, values, kind",
    [
        ({"contrast": 2.0}, {"contrast": 1.9}, "flat"),
        ({"cuts": 0}, {"cuts": 1}, "cuts"),
        ({"short": "reject"}, {"frames": 60}, "short"),
        ({"hue_mode": "achromatic"}, {"hue_entropy_achromatic": 0.5}, "monochrome"),
        ({"sharpness_at": "native"}, {"sharpness_native": 19.0}, "blurred"),
    ],
)
def test_what_the_paper_does_not_ask_for_is_judged_when_asked(option, values, kind):
    assert verdict(PAPER, **values) is None
    assert verdict(Curation(**option), **values).startswith(f"{kind}: ")
    assert verdict(Curation(**option)) is None


def test_the_first_fault_in_the_papers_order_is_the_reason():
    worst = {"hue_entropy": 0.0, "sharpness": 0.0, "motion": 0.0}
    order = [{"size": (64, 64)}, {}, {"hue_entropy": 1.0}, {"hue_entropy": 1.0, "sharpness": 50.0}]
    found = [verdict(PAPER, **worst | each).partition(":")[0] for each in order]
    assert found == ["resolution", "monochrome", "blurred", "still"]


def test_null_leaves_every_filter_out():
    assert verdict(Curation(**OFF), size=(8, 8), hue_entropy=0.0, sharpness=0.0, motion=0.0) is None


def test_a_video_without_measurements_says_why_and_competes_with_none():
    videos = [video("a", bad="damaged"), video("b"), video("c", consistency=0.8)]
    assert verdicts.judge(videos, PAPER)[0] == "unreadable: damaged"
    assert kept(videos, PAPER) == ["b"]


@pytest.mark.parametrize("count, stay", [(1, 1), (2, 1), (5, 3), (10, 5)])
def test_half_of_an_odd_number_is_rounded_up(count, stay):
    videos = [video(f"{i}", consistency=i / 10) for i in range(count)]
    half = Curation(**OFF | {"consistency": 0.5})
    assert kept(videos, half) == [f"{i}" for i in range(count - stay, count)]
    if count > 1:
        assert verdicts.judge(videos, half)[0] == f"consistency: rank {count} of {count}, the first {stay} stay"


def test_ties_go_by_path_whatever_the_order():
    videos = [video(name) for name in ("d", "b", "a", "c")]
    half = Curation(**OFF | {"aesthetics": 0.5})
    assert kept(videos, half) == ["b", "a"] and kept(videos[::-1], half) == ["a", "b"]


def test_only_what_passed_the_thresholds_is_ranked_and_looks_come_after_consistency():
    still = [video(f"still{i}", motion=0.1, consistency=1.0, aesthetics=1.0) for i in range(4)]
    rest = [video(f"{i}", consistency=0.5 + i / 10, aesthetics=1 - i / 10) for i in range(4)]
    assert kept(still + rest, PAPER) == ["2"]  # 2 and 3 by consistency, of these 2 by looks
    assert kept(rest, Curation(**OFF | {"aesthetics": 0.5})) == ["0", "1"]


def test_in_groups_of_like_motion_a_lively_video_competes_with_its_like():
    videos = [video(f"{i}", motion=1.0 + i, consistency=1 - i / 10) for i in range(8)]
    assert kept(videos, Curation(**OFF | {"consistency": 0.5})) == ["0", "1", "2", "3"]
    assert kept(videos, Curation(**OFF | {"consistency": 0.5, "consistency_groups": 4})) == ["0", "2", "4", "6"]
    assert kept(videos, Curation(**OFF | {"consistency": 0.5, "consistency_groups": 100})) == [f"{i}" for i in range(8)]


def test_what_a_scorer_could_not_score_is_dropped_with_its_words():
    videos = [video("a"), video("b", unscored={"aesthetics": "x:y failed: out of memory"})]
    assert verdicts.judge(videos, Curation(**OFF | {"aesthetics": 1.0})) == [
        None,
        "unscored: x:y failed: out of memory",
    ]
    assert verdicts.judge(videos, Curation(**OFF)) == [None, None]
    still = video("c", motion=0.1, unscored={"aesthetics": "x:y failed: full"})
    assert verdicts.judge([still], PAPER)[0].startswith("still: ")


@pytest.mark.parametrize(
    "options, fault",
    [
        ({"hue_entropy": None, "hue_mode": "achromatic"}, "hue_mode has no effect without hue_entropy"),
        ({"sharpness": None, "sharpness_at": "native"}, "sharpness_at has no effect without sharpness"),
        ({"consistency": None, "consistency_by": "a:b"}, "consistency_by has no effect without consistency"),
        ({"consistency": None, "consistency_groups": 2}, "consistency_groups has no effect without consistency"),
        ({"aesthetics": None, "aesthetics_by": "a:b"}, "aesthetics_by has no effect without aesthetics"),
        ({"aesthetics_by": "no_function"}, "String should match pattern"),
        ({"consistency": 0.0}, "greater than 0"),
        ({"resolution": (720,)}, "Field required"),
    ],
)
def test_options_that_cannot_work_are_refused(options, fault):
    with pytest.raises(ValidationError, match=fault):
        Curation(**options)


def test_the_document_states_the_defaults():
    text = (Path(__file__).parent.parent / "docs" / "curation.md").read_text("utf-8")
    told = {key: yaml.safe_load(value) for key, value in re.findall(r"\| `(\w+): ([^`]+)` \|", text)}
    assert told == json.loads(PAPER.model_dump_json(include=set(told))) and set(FILTERS) < set(told)


def test_a_resolved_section_reads_back():
    """Every option is written down with a run, also those of filters that are off."""
    assert Curation.model_validate_json(Curation(**OFF).model_dump_json()) == Curation(**OFF)
