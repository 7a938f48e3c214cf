"""The metrics' names, and those of frames and pairs of clips: closed forms and naive restatements."""

import math
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from distill import recipe
from distill.errors import UserError
from distill.evaluate import metrics, pixels, world
from distill.evaluate.metrics import METRICS, WEIGHT_FREE, absent, chosen, of_clip, of_pair

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs" / "metrics.md"
OF_CLIP = [name for name in WEIGHT_FREE if METRICS[name].kind == "clip"]
LATENTS = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def noise(seed: int = 0, size: tuple[int, ...] = (5, 32, 48, 3)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, size, np.uint8)


def flat(*colours: tuple[int, int, int], side: int = 16) -> np.ndarray:
    """A clip with one colour per frame."""
    return np.broadcast_to(np.array(colours, np.uint8)[:, None, None], (len(colours), side, side, 3)).copy()


def waves(x: float, y: float = 0.0, side: int = 64) -> np.ndarray:
    """A frame of waves with so many cycles per pixel."""
    i, j = np.mgrid[:side, :side]
    luma = 128 + 100 * np.sin(2 * math.pi * (x * j + y * i) + 0.3)
    return np.repeat(luma[None, ..., None], 3, -1).round().astype(np.uint8)


def names(*asked, world=False) -> list[str]:
    return [metric.name for metric in chosen(asked or None, world)]


def test_without_names_it_is_all_that_needs_no_weights():
    assert names() == list(WEIGHT_FREE) and "clip_score" not in names()
    assert names(world=True) == [*WEIGHT_FREE, *world.ATTRIBUTES, *world.BEHAVIOUR]


def test_names_are_taken_once_and_the_world_is_asked_for_apart():
    assert names("ssim", "flow", "ssim") == ["ssim", "flow"]
    assert names("count", "ssim", world=True)[:2] == ["count", "ssim"] and len(names("count", world=True)) == 12


@pytest.mark.parametrize(
    "name, said",
    [
        ("sim", "unknown metric 'sim', did you mean 'ssim'"),
        ("ssim=/weights", "metric 'ssim=/weights': ssim has no weights"),
        ("colour", "metric 'colour' needs captions of the embedded world; set evaluation.world: true"),
        ("no.such.module:f", "metrics: no.such.module:f failed to import: ModuleNotFoundError"),
    ],
)
def test_what_cannot_be_measured_is_said_before_anything_is_sampled(name, said):
    with pytest.raises(UserError) as error:
        chosen(["rmse", name], world=False)
    assert str(error.value).startswith(said)


def test_no_metric_at_all_is_an_error():
    with pytest.raises(UserError, match="metrics is empty"):
        chosen([], world=False)


def test_the_documents_table_has_every_metric_with_its_unit_and_direction():
    rows = [line.split(" | ") for line in DOCS.read_text().splitlines() if line.startswith("| `")]
    found = {row[0].strip("| `"): (row[2], row[3]) for row in rows}
    assert found == {m.name: (m.unit or "-", m.better) for m in METRICS.values()}


def test_a_clip_has_every_metric_of_a_clip():
    found = of_clip(OF_CLIP, noise(), fps=8)
    assert list(found) == OF_CLIP and all(math.isfinite(value) for value in found.values())


@pytest.mark.parametrize("name", OF_CLIP)
def test_a_single_picture_is_measured_or_refused_with_the_reason(name):
    if name in ("flicker", "smoothness"):
        with pytest.raises(ValueError, match=f"{name} needs . frames or more; the clip has 1"):
            of_clip([name], noise()[:1], fps=8)
    else:
        moves = name in ("motion", "flow", "dynamic_flow")
        assert (of_clip([name], noise()[:1], fps=8)[name] == 0) is moves


def test_saturation_is_the_known_one():
    assert of_clip(["saturation"], flat((51, 0, 0), (151, 100, 202)), 8)["saturation"] == pytest.approx(0.3)


def test_colourfulness_of_red_and_gray():
    red = 0.3 * math.hypot(255, 127.5)  # no spread, and the mean of red less green, and of yellow less blue
    assert pixels.colourfulness(flat((255, 0, 0), (90, 90, 90))) == pytest.approx(red / 2)


def test_sharpness_of_stripes_and_of_nothing():
    stripes = np.zeros((2, 16, 16, 3), np.uint8)
    stripes[0, :, ::2] = 255
    assert pixels.sharpness(stripes) == pytest.approx(510**2 / 2)  # second differences of +-510 in one frame of two


@pytest.mark.parametrize("x, y, share", [(0.2, 0, 0), (0.3, 0, 1), (0, 0.3, 1), (0.15, 0.15, 0), (0.2, 0.2, 1)])
def test_waves_are_high_or_low_by_their_frequency_in_any_direction(x, y, share):
    assert pixels.high_frequency(waves(x, y)) == pytest.approx(share, abs=0.01)


def test_high_frequencies_of_white_noise_are_their_share_of_the_plane():
    gray = np.repeat(noise(size=(8, 96, 96, 1)), 3, -1)
    assert pixels.high_frequency(gray) == pytest.approx(1 - math.pi / 16, abs=0.01)


def test_neither_flat_frames_nor_the_jump_at_the_border_are_detail():
    ramp = np.broadcast_to(np.linspace(0, 255, 64).astype(np.uint8)[None, None, :, None], (1, 64, 64, 3))
    assert pixels.high_frequency(flat((30, 90, 200))) == 0
    assert pixels.high_frequency(ramp.copy()) < 0.002


def pair(video, reference, *, x=LATENTS, y=LATENTS) -> dict[str, float]:
    return of_pair(["rmse", "cosine", "psnr", "ssim"], x, y, video, reference)


def test_a_clip_beside_itself():
    best = {"rmse": 0, "cosine": 1, "psnr": 10 * math.log10(12 * 255**2), "ssim": 1}  # psnr: the bound of rounding
    assert pair(noise(), noise()) == pytest.approx(best)


def test_latents_apart_by_a_known_step_and_turned_around():
    assert pair(noise(), noise(), x=LATENTS + 0.5)["rmse"] == pytest.approx(0.5)
    assert pair(noise(), noise(), x=-2 * LATENTS)["cosine"] == pytest.approx(-1)


def test_psnr_of_a_known_error():
    a = np.full((2, 16, 16, 3), 100, np.uint8)
    b = a.copy()
    b[0] += 10
    assert pair(a, b)["psnr"] == pytest.approx(20 * math.log10(255 / math.sqrt(50)))


def test_ssim_is_wangs():
    a = noise()
    b = (0.6 * a + 0.4 * noise(1)).astype(np.uint8)
    assert pair(a, b)["ssim"] == pytest.approx(naive_ssim(a, b), abs=1e-4)
    assert abs(pair(a, noise(1))["ssim"]) < 0.05  # independent noise


def naive_ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Wang et al. 2004, equation 13, where the window does not leave the frame."""

    def mean(x):
        return cv2.GaussianBlur(x, (11, 11), 1.5)[5:-5, 5:-5]

    c1, c2, found = (0.01 * 255) ** 2, (0.03 * 255) ** 2, []
    for x, y in zip(a.astype(float), b.astype(float), strict=True):
        mx, my = mean(x), mean(y)
        vx, vy, vxy = mean(x * x) - mx**2, mean(y * y) - my**2, mean(x * y) - mx * my
        found.append((2 * mx * my + c1) * (2 * vxy + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2)))
    return float(np.mean(found))


def test_frames_smaller_than_ssims_window_are_refused():
    with pytest.raises(ValueError, match="ssim needs frames of 11x11 or more; the clip has 48x10"):
        pair(noise()[:, :10], noise()[:, :10])


def test_clips_of_other_sizes_are_refused():
    with pytest.raises(ValueError, match=r"reference of another size: .*\(4, 32, 48, 3\).*\(5, 32, 48, 3\)"):
        pair(noise()[:4], noise())


def test_the_laptop_recipes_measure_the_same():
    """Compared with each other, none of them is measured otherwise than its recipe says."""
    recipes = [recipe.load(path) for path in sorted((ROOT / "recipes").glob("tiny_*.yaml"))]
    (asked,) = {tuple(each.evaluation.metrics) for each in recipes}
    found = chosen(asked, world=True)
    assert len(recipes) == 9 and [m.name for m in found] == [*asked, *metrics.WORLD]
    assert absent(found) == {} and "rmse" in asked  # the part of the gap that is closed needs it


def test_the_worlds_metrics_are_those_that_it_scores():
    assert (*world.ATTRIBUTES, *world.BEHAVIOUR) == metrics.WORLD
