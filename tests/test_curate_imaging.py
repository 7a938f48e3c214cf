"""What is measured of frames: closed forms and naive restatements."""

import math

import cv2
import numpy as np
import pytest

from distill.curate import imaging

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def painted(*columns, height=8):
    """Columns of one colour each."""
    return np.array([columns] * height, np.uint8)


def texture(seed=0, size=(240, 320)):
    """Smooth noise, (H, W, 3), that optical flow can follow."""
    noise = np.random.default_rng(seed).normal(size=size)
    smooth = cv2.GaussianBlur(noise, (0, 0), 3)
    grey = ((smooth - smooth.min()) / np.ptp(smooth) * 255).astype(np.uint8)
    return np.repeat(grey[..., None], 3, 2)


def test_the_entropy_of_equal_hues_is_the_log_of_their_number():
    assert imaging.hue_entropy(painted(RED, GREEN, BLUE)) == pytest.approx(math.log(3))
    shares = np.array([3, 1]) / 4
    assert imaging.hue_entropy(painted(RED, RED, BLUE, RED)) == pytest.approx(-(shares * np.log(shares)).sum())


@pytest.mark.parametrize("colour", [(0, 0, 0), (255, 255, 255), (40, 90, 200)])
def test_one_colour_has_no_entropy(colour):
    assert imaging.hue_entropy(painted(colour)) == 0


def test_grey_pixels_have_a_bin_of_their_own_when_asked():
    half = painted(RED, (90, 90, 90))  # OpenCV gives grey the hue of red
    assert imaging.hue_entropy(half) == 0
    assert imaging.hue_entropy(half, achromatic=True) == pytest.approx(math.log(2))


@pytest.mark.parametrize("chroma, bins", [(6, 2), (10, 1)])
def test_a_pixel_is_grey_below_a_saturation_times_value_of_eight(chroma, bins):
    pale = painted(RED, (200, 200 - chroma, 200 - chroma))
    assert imaging.hue_entropy(pale, achromatic=True) == pytest.approx(math.log(bins))


def test_sharpness_of_stripes():
    stripes = painted(*[(0, 0, 0), (255, 255, 255)] * 8, height=16)
    assert imaging.sharpness(stripes) == pytest.approx(510**2)  # second differences of +-510
    assert imaging.sharpness(painted(GREEN, GREEN)) == 0


def test_sharpness_is_the_variance_of_four_neighbours_less_four_times_the_pixel():
    frame = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    g = np.pad(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY).astype(float), 1, mode="reflect")
    laplacian = g[:-2, 1:-1] + g[2:, 1:-1] + g[1:-1, :-2] + g[1:-1, 2:] - 4 * g[1:-1, 1:-1]
    assert imaging.sharpness(frame) == pytest.approx(laplacian.var())


def test_large_frames_shrink_to_480p_by_averaging_areas_and_small_ones_never_grow():
    frame = np.random.default_rng(0).integers(0, 256, (960, 1280, 3), np.uint8)
    means = frame.reshape(480, 2, 640, 2, 3).mean((1, 3))
    small = imaging.shrink(frame)
    assert small.shape == (480, 640, 3) and np.abs(small - means).max() <= 0.5
    assert imaging.shrink(np.zeros((1280, 720, 3), np.uint8)).shape == (853, 480, 3)
    assert imaging.shrink(frame[:400]).shape == (400, 1280, 3)


def test_motion_of_a_known_translation():
    world = texture(size=(160, 240))
    frames = [world[20 + i : 140 + i, 2 * i : 200 + 2 * i] for i in range(20)]
    assert imaging.motion(frames) == pytest.approx(math.sqrt(5), rel=0.05)


def test_a_still_video_does_not_move():
    still = texture(size=(120, 160))
    assert imaging.motion([still] * 20) == pytest.approx(0, abs=1e-3)
    assert imaging.motion([still]) == 0


def test_motion_is_the_mean_of_sixteen_pairs_from_the_first_to_the_last():
    world = texture(size=(96, 132))
    still, moved = world[:, :128], world[:, 4:]
    step = imaging.motion([still, moved])
    assert step > 2
    for at in (1, 80):  # the first pair, and the last
        assert imaging.motion([still] * at + [moved] * (81 - at)) == pytest.approx(step / 16, rel=0.01)
    assert imaging.motion([still] * 2 + [moved] * 79) == pytest.approx(0, abs=0.01)  # between two pairs


def test_consistency_is_vbenchs():
    rows = np.random.default_rng(0).normal(size=(9, 5))

    def cosine(a, b):
        return max(0.0, float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)))

    naive = [(cosine(rows[t], rows[t - 1]) + cosine(rows[t], rows[0])) / 2 for t in range(1, 9)]
    assert imaging.consistency(rows) == pytest.approx(np.mean(naive))


def test_consistency_of_frames_that_alternate():
    one, other = np.eye(2)
    assert imaging.consistency(np.stack([one, other, one])) == pytest.approx(0.25)  # 0, 0 then 0, 1
    assert imaging.consistency(np.stack([one, -one])) == 0
    assert imaging.consistency(np.stack([one] * 5)) == imaging.consistency(one[None]) == 1


def test_thumbnails_see_colours_drift():
    still = [painted(*[(128, 120, 130)] * 32, height=32)] * 4
    drift = [painted(*[(128 + 20 * i, 120, 130 - 20 * i)] * 32, height=32) for i in range(4)]
    assert imaging.thumbnails(still).shape == (4, 16 * 16 * 3)
    assert imaging.consistency(imaging.thumbnails(still)) == pytest.approx(1)
    assert imaging.consistency(imaging.thumbnails(drift)) < 0.9


def test_mid_grey_is_the_zero_of_thumbnails():
    lightness = cv2.cvtColor(np.full((1, 1, 3), 119, np.uint8), cv2.COLOR_RGB2LAB)[0, 0, 0]
    found = imaging.thumbnails([painted(*[(119, 119, 119)] * 16, height=16)]).reshape(-1, 3)
    assert (found == [int(lightness) - 128, 0, 0]).all()


def test_contrast_and_saturation():
    assert imaging.contrast(painted((0, 0, 0), (255, 255, 255))) == 127.5
    assert imaging.contrast(painted((7, 7, 7))) == 0
    assert imaging.saturation(painted(RED, (90, 90, 90), (255, 255, 255), (0, 0, 0))) == 0.25


def test_colourfulness_of_two_colours():
    spread = math.hypot(255 / 2, 127.5 / 2 + 127.5)  # rg 255 and 0, yb 127.5 and -255
    middle = math.hypot(127.5, (127.5 - 255) / 2)
    assert imaging.colourfulness(painted(RED, BLUE)) == pytest.approx(spread + 0.3 * middle)
    assert imaging.colourfulness(texture()) == 0


def test_the_formula_for_looks():
    """Restated for one column of another colour: detail, spread of the channels, exposure."""
    a, b = np.array([200, 120, 40]), np.array([100, 140, 60])
    frame = painted(a, b, height=4)
    luma = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)[0].astype(int)
    detail = 2 * abs(luma[0] - luma[1]) / 255  # a border mirrors the other column
    exposure = [np.exp(-((colour / 255 - 0.5) ** 2) / 0.08).prod() for colour in (a, b)]
    expected = 1000 * detail * np.mean([(c / 255).std() * e for c, e in zip((a, b), exposure, strict=True)])
    assert imaging.finish(frame) == pytest.approx(expected)


@pytest.mark.parametrize("plain", [painted(RED, RED), texture()], ids=["flat", "grey"])
def test_looks_need_detail_and_colour(plain):
    assert imaging.finish(plain) == 0


def test_a_cut_is_counted_and_motion_is_not():
    world, other = texture(size=(160, 300)), painted(*[GREEN] * 200, height=160)
    moving = [world[:, i : 200 + i] for i in range(10)]
    assert imaging.cuts(moving) == 0
    assert imaging.cuts([*moving, *[other] * 3]) == 1
    assert imaging.cuts([moving[0], other, moving[0]]) == 2
