"""The real clips of the reference data against the signals that were measured there (docs/curation.md)."""

import csv
import dataclasses
import json
from pathlib import Path

import pytest

from distill import curate
from distill.curate import imaging, measure
from distill.data import footage
from distill.data.spec import Curation
from distill.progress import Progress
from tests.test_curate_verdicts import OFF

FPS = 16
COLUMNS = {  # ours -> the reference's
    "hue_entropy": "hue_entropy_min",
    "hue_entropy_achromatic": "hue_entropy_achromatic_min",
    "sharpness": "lapvar_480_min",
    "sharpness_native": "lapvar_native_min",
    "motion": "flow_fb480_16fps",
    "consistency": "tc_lab16",
    "colourfulness": "colorfulness",
    "saturation": "saturation",
}
VERDICTS = {  # the reference's -> the filter that makes it
    "res_ok": {"resolution": (720, 1280)},
    "pass_hue": {"hue_entropy": 0.6},
    "pass_hue_achromatic": {"hue_entropy": 0.6, "hue_mode": "achromatic"},
    "pass_blur": {"sharpness": 20.0},
    "pass_blur_native": {"sharpness": 20.0, "sharpness_at": "native"},
    "pass_flow_16fps": {"motion": 0.2},
}
TWO_STREAMS = "torchcodec_nasa_multistream.mp4"
SMALL = ("finetrainers_hiker_tiny.mp4", "fastvideo_wan_blurry_29f.mp4", "intel_bottles_static.mp4")


def close(value):
    """To the digits that the reference prints, and what another build of OpenCV may round otherwise."""
    return pytest.approx(value, rel=1e-3, abs=2e-4)


@pytest.fixture(scope="module")
def reference(shared):
    with (shared / "data" / "references" / "avd_signals.csv").open() as file:
        return {row["clip"]: row for row in csv.DictReader(file)}


@pytest.fixture(scope="module")
def videos(shared):
    return {path.name: footage.probe(path) for path in sorted((shared / "data" / "videos").glob("*.mp4"))}


@pytest.fixture(scope="module")
def judged(videos, tmp_path_factory):
    """Curation -> verdicts by name, and the signals; measured once."""
    folder = tmp_path_factory.mktemp("curation")

    def judge(**options):
        with Progress("measuring", "video", len(videos)) as progress:
            found = curate.judge(list(videos.values()), Curation(**OFF | options), folder, FPS, progress)
        return dict(zip(videos, found, strict=True))

    judge()
    lines = [json.loads(line) for line in (folder / "signals.jsonl").read_text().splitlines()]
    return judge, {Path(line["video"]).name: line["values"] for line in lines}


@pytest.mark.parametrize("name", SMALL)
def test_small_clips_measure_as_the_reference_says(videos, reference, name):
    values, row = measure.signals(measure.opening(videos[name], FPS)), reference[name]
    assert {key: values[key] for key in COLUMNS} == {key: close(float(row[c])) for key, c in COLUMNS.items()}


@pytest.mark.parametrize("name", SMALL)
def test_motion_at_the_videos_own_rate(videos, reference, name):
    found = imaging.motion(measure.opening(videos[name], None).moving)
    assert found == close(float(reference[name]["flow_fb480_native_fps"]))


@pytest.mark.slow
def test_every_clip_measures_as_the_reference_says(judged, videos, reference):
    """One number differs, for the reason below."""
    assert list(videos) == sorted(reference) and len(videos) == 23
    _, signals = judged
    different = [
        (name, key)
        for name, row in reference.items()
        for key, column in COLUMNS.items()
        if signals[name][key] != close(float(row[column]))
    ]
    assert different == [(TWO_STREAMS, "motion")]
    for name, row in reference.items():
        size = (videos[name].width, videos[name].height)
        assert size == (int(row["width"]), int(row["height"]))


def test_the_clip_of_two_streams_was_measured_at_the_frame_rate_of_the_other_one(videos, reference):
    """FFmpeg decodes the large stream, of 29.97 fps; the reference thinned it out as if it had the small one's 25."""
    video, row = videos[TWO_STREAMS], reference[TWO_STREAMS]
    assert video.fps == 29.97 and float(row["fps"]) == 25
    motion = imaging.motion(measure.opening(dataclasses.replace(video, fps=25.0), FPS).moving)
    assert motion == close(float(row["flow_fb480_16fps"]))


@pytest.mark.slow
@pytest.mark.parametrize("column", VERDICTS)
def test_every_verdict_is_the_references(judged, reference, column):
    judge, _ = judged
    passed = {name: reason is None for name, reason in judge(**VERDICTS[column]).items()}
    assert passed == {name: row[column] == "1" for name, row in reference.items()}
    assert True in passed.values() and False in passed.values()
