"""Metrics of movement: still videos, known translations, and VBench's own numbers."""

import json

import cv2
import numpy as np
import pytest

from distill.curate import imaging
from distill.evaluate import movement
from distill.evaluate.metrics import of_clip


def moving(pixels_per_frame: int, frames: int = 9, side: int = 64, seed: int = 0) -> np.ndarray:
    """Smooth noise that moves to the right, (F, side, side, 3)."""
    wide = np.random.default_rng(seed).normal(size=(side, side + pixels_per_frame * frames))
    smooth = cv2.GaussianBlur(wide, (0, 0), 3)
    gray = ((smooth - smooth.min()) / np.ptp(smooth) * 255).astype(np.uint8)
    starts = [pixels_per_frame * (frames - i) for i in range(frames)]
    return np.stack([np.repeat(gray[:, s : s + side, None], 3, 2) for s in starts])


def video(path, frames: int | None = None) -> np.ndarray:
    """As VBench reads it, but for the order of the channels."""
    opened, found = cv2.VideoCapture(str(path)), []
    while len(found) != frames and (read := opened.read())[0]:
        found.append(read[1][..., ::-1])
    return np.stack(found)


def test_a_still_video_does_not_move():
    still = np.repeat(moving(0, 1), 9, 0)
    assert of_clip(["motion", "flicker", "flow", "dynamic_flow", "smoothness"], still, 8) == {
        "motion": 0,
        "flicker": 1,
        "flow": pytest.approx(0, abs=5e-3),
        "dynamic_flow": 0,
        "smoothness": 1,
    }


@pytest.mark.parametrize("pixels", [1, 2, 4])
def test_flow_reads_the_pixels_per_frame(pixels):
    assert of_clip(["flow"], moving(pixels, side=128), 8)["flow"] == pytest.approx(pixels, rel=0.06)


def test_flow_points_where_things_go():
    field = imaging.flow(*moving(2)[:2])[16:-16, 16:-16]
    assert field.mean((0, 1)) == pytest.approx([2, 0], abs=0.1)


def test_flicker_of_a_known_change():
    clip = np.zeros((4, 8, 8, 3), np.uint8)
    clip[1::2] = 51  # a fifth of the range, up and down
    assert movement.flicker(clip) == pytest.approx(0.8)
    assert movement.flicker(clip[:3]) == movement.flicker(clip)  # a mean over pairs


@pytest.fixture(scope="session")
def vbench(shared) -> dict[str, float]:
    """What the official package measured of each clip."""
    return json.loads((shared / "data/references/vbench_temporal_flickering.json").read_text())["videos"]


SMALL = ("finetrainers_hiker_tiny", "torchcodec_nasa_multistream", "moviepy_sintel_snow", "moviepy_dog_shaky")


@pytest.mark.parametrize("name", SMALL)
def test_flicker_is_vbenchs(shared, vbench, name):
    clip = video(shared / "data/videos" / f"{name}.mp4")
    assert of_clip(["flicker"], clip, 16)["flicker"] == pytest.approx(vbench[f"{name}.mp4"], abs=1e-6)


@pytest.mark.slow
def test_flicker_is_vbenchs_on_all_clips(shared, vbench):
    found = {name: movement.flicker(video(shared / "data/videos" / name)) for name in vbench}
    assert len(found) == 23 and found == pytest.approx(vbench, abs=1e-6)


@pytest.mark.parametrize("pixels, fps, expected", [(1, 8, 0), (2, 8, 1), (1, 16, 1), (1, 15, 1), (2, 30, 1)])
def test_a_clip_is_dynamic_beyond_six_pixels_in_256_at_eight_frames_per_second(pixels, fps, expected):
    """The threshold of 64 pixels is 1.5."""
    assert movement.dynamic_flow(moving(pixels, 17), fps) == expected


def vbench_says(speeds: list[float], frames: int, side: int) -> bool:
    """`check_move` of VBench's dynamic_degree.py, restated."""
    return sum(speed > 6.0 * (side / 256.0) for speed in speeds) >= round(4 * (frames / 16.0))


@pytest.mark.parametrize("fast_pairs", range(6))
@pytest.mark.parametrize("share, speed", [(0.05, 1.51), (0.05, 1.49), (0.04, 1.51)])
def test_dynamic_is_vbenchs_rule(monkeypatch, fast_pairs, share, speed):
    """The fastest twentieth of the pixels, in a quarter of the pairs."""
    fields = [np.zeros((64, 100, 2), np.float32) for _ in range(15)]
    for field in fields[:fast_pairs]:
        field[..., 0].flat[: round(share * 6400)] = speed
    given = iter(fields)
    monkeypatch.setattr(imaging, "flow", lambda first, second: next(given))
    fastest = [speed * min(1, share / 0.05)] * fast_pairs + [0.0] * (15 - fast_pairs)
    clip = np.zeros((16, 64, 100, 3), np.uint8)
    assert movement.dynamic_flow(clip, 8) == vbench_says(fastest, 16, 64)


def test_two_frames_are_not_dynamic_unless_they_move():
    """VBench asks for none of one pair, so that every such clip is."""
    assert movement.dynamic_flow(np.repeat(moving(0, 1), 2, 0), 8) == 0
    assert movement.dynamic_flow(moving(3, 2), 8) == 1


def test_a_steady_translation_is_smooth_and_a_jump_is_not():
    steady = moving(2)
    jumpy = steady.copy()
    jumpy[3] = steady[2]  # one of the four frames that are compared stands still
    assert movement.smoothness(steady) > 0.995
    assert movement.smoothness(jumpy) < movement.smoothness(steady) - 0.005


def test_smoothness_of_a_known_jump():
    clip = np.full((5, 32, 32, 3), 100, np.uint8)
    clip[1] += 51  # of two frames that are compared, one is a fifth of the range off
    assert movement.smoothness(clip) == pytest.approx(0.9)
    clip = np.full((5, 32, 32, 3), 100, np.uint8)
    clip[2] += 50  # a neighbour of both, and compared with neither: each is 25 off their midpoint
    assert movement.smoothness(clip) == pytest.approx(1 - 25 / 255)


def test_the_midpoint_is_where_the_frame_between_is():
    first, between, last = moving(3, 3, side=128)
    apart = np.abs(movement.midpoint(first, last) - between)[16:-16, 16:-16].mean()
    unmoved = np.abs((first.astype(float) + last) / 2 - between)[16:-16, 16:-16].mean()
    assert apart < 0.1 * unmoved


def test_smoothness_is_near_vbenchs_on_a_real_clip(shared):
    """VBench interpolates with AMT, a network."""
    recorded = json.loads((shared / "data/references/fastvideo_ltx2_vbench_scores.json").read_text())["scores"]
    clip = video(shared / "data/videos/fastvideo_ltx2_dialogue.mp4", 61)
    found = movement.smoothness(np.stack([cv2.resize(f, None, fx=0.5, fy=0.5) for f in clip]))
    assert found == pytest.approx(recorded["motion_smoothness"], abs=0.003)


def test_frames_too_small_for_optical_flow_are_refused():
    with pytest.raises(ValueError, match="smoothness: no optical flow for frames of 9x8"):
        movement.smoothness(moving(1)[:, :8, :9])
