"""LPIPS and LAION's aesthetic predictor on weights drawn by chance, or made by hand for a known answer."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torchmetrics
import transformers
from torchmetrics.functional.image import lpips as theirs

from distill.errors import UserError
from distill.evaluate import weights
from distill.evaluate.asked import Asked
from distill.evaluate.metrics import absent, chosen, of_clip, of_pair, weights_of

from . import tiny_clip

LATENTS = torch.zeros(1, 1, 1, 1)
RNG = np.random.default_rng(0)
CLIP, OTHER = RNG.integers(0, 256, (2, 3, 40, 48, 3), np.uint8)
SMALL = RNG.integers(0, 256, (5, tiny_clip.SIDE, tiny_clip.SIDE, 3), np.uint8)
SHAPES = {0: (64, 3, 11), 3: (192, 64, 5), 6: (384, 192, 3), 8: (256, 384, 3), 10: (256, 256, 3)}  # of convolutions
WIDTHS = (1024, 128, 64, 16, 1)  # of the aesthetic head's layers 0, 2, 4, 6, 7


@pytest.fixture(autouse=True)
def machine(monkeypatch, tmp_path):
    with tiny_clip.nothing_at_hand(monkeypatch, tmp_path):
        yield


def alexnet(seed: int = 0) -> dict[str, torch.Tensor]:
    """As torchvision's file, classifier and all; weights of a size that keeps signals alive."""
    generator, found = torch.Generator().manual_seed(seed), {"classifier.1.weight": torch.zeros(2, 2)}
    for i, (out, inside, side) in SHAPES.items():
        scale = (2 / (inside * side * side)) ** 0.5
        found[f"features.{i}.weight"] = scale * torch.randn(out, inside, side, side, generator=generator)
        found[f"features.{i}.bias"] = 0.1 * torch.randn(out, generator=generator)
    return found


def stored(folder: Path, name: str, content: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(content, folder / name)
    return folder


def lpips(video: np.ndarray, reference: np.ndarray) -> float:
    return of_pair(["lpips"], LATENTS, LATENTS, video, reference)["lpips"]


def frames(video: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(video).movedim(-1, 1).float() / 127.5 - 1


def test_lpips_is_that_of_torchmetrics_with_the_same_weights(tmp_path, monkeypatch):
    """Theirs gets its backbone from torchvision; here it gets ours. It adds 1e-8 to squared lengths."""
    chosen([f"lpips={stored(tmp_path / 'weights', weights.ALEXNET, alexnet())}"], world=False)
    plain = [torch.nn.Conv2d(3, 64, 11, 4, 2), torch.nn.ReLU(), torch.nn.MaxPool2d(3, 2)]
    plain += [torch.nn.Conv2d(64, 192, 5, 1, 2), torch.nn.ReLU(), torch.nn.MaxPool2d(3, 2)]
    for inside, out in ((192, 384), (384, 256), (256, 256)):
        plain += [torch.nn.Conv2d(inside, out, 3, 1, 1), torch.nn.ReLU()]
    backbone = torch.nn.Sequential(*plain)
    backbone.load_state_dict({key[9:]: value for key, value in alexnet().items() if key.startswith("features.")})
    monkeypatch.setattr(theirs, "_get_tv_model_features", lambda name, pretrained: backbone)
    expected = theirs._LPIPS(net="alex")(frames(CLIP), frames(OTHER))
    assert lpips(CLIP, OTHER) == pytest.approx(expected.mean().item(), rel=1e-5)
    assert expected.std() > 1e-4, "frames differ, so that a mean is not any of them"


def test_lpips_of_a_clip_and_itself_is_none_and_sides_do_not_matter(tmp_path):
    chosen([f"lpips={stored(tmp_path / 'weights', weights.ALEXNET, alexnet())}"], world=False)
    assert lpips(CLIP, CLIP) == 0
    assert lpips(CLIP, OTHER) == pytest.approx(lpips(OTHER, CLIP), rel=1e-6) and lpips(CLIP, OTHER) > 0.01
    long = np.repeat(CLIP[:1], 40, 0)  # more than a batch
    assert lpips(long, np.repeat(OTHER[:1], 40, 0)) == pytest.approx(lpips(CLIP[:1], OTHER[:1]), rel=1e-5)


def test_lpips_by_hand(tmp_path):
    """The first layer sees white as channel 0 and black as channel 1, the others see nothing: unit vectors at right
    angles at every place, so the distance is the sum of the two channels' weights."""
    made = {key: torch.zeros_like(value) for key, value in alexnet().items()}
    made["features.0.weight"][0, :, 5, 5], made["features.0.weight"][1, :, 5, 5] = 1.0, -1.0
    folder = stored(tmp_path / "weights", weights.ALEXNET, made)
    chosen([f"lpips={folder}"], world=False)
    white = np.full((2, 33, 33, 3), 255, np.uint8)
    heads = Path(torchmetrics.__file__).parent / weights.LPIPS_HEADS
    first = torch.load(heads, map_location="cpu", weights_only=True)["lin0.model.1.weight"].flatten()
    assert lpips(white, 255 - white) == pytest.approx((first[0] + first[1]).item(), rel=1e-6)
    half = np.concatenate([white[:1], 255 - white[:1]])  # one frame of two is another
    assert lpips(white, half) == pytest.approx((first[0] + first[1]).item() / 2, rel=1e-6)


def test_frames_that_are_too_small_are_said_so(tmp_path):
    chosen([f"lpips={stored(tmp_path / 'weights', weights.ALEXNET, alexnet())}"], world=False)
    assert lpips(CLIP[:, :31, :31], CLIP[:, :31, :31]) == 0
    with pytest.raises(ValueError, match=re.escape("lpips: frames of 30x40 pixels; expected 31x31 or more")):
        lpips(CLIP[:, :, :30], CLIP[:, :, :30])


def chain(scale: float = 1.0) -> dict[str, torch.Tensor]:
    """As sac+logos+ava1-l14-linearMSE.pth, on few features."""
    generator, found, inside = torch.Generator().manual_seed(1), {}, tiny_clip.WIDTH
    for i, out in zip((0, 2, 4, 6, 7), WIDTHS, strict=True):
        found[f"layers.{i}.weight"] = scale * torch.randn(out, inside, generator=generator) / inside**0.5
        found[f"layers.{i}.bias"], inside = torch.randn(out, generator=generator), out
    return found


def linear() -> dict[str, torch.Tensor]:
    """As sa_0_4_vit_l_14_linear.pth."""
    generator = torch.Generator().manual_seed(2)
    return {"weight": torch.randn(1, tiny_clip.WIDTH, generator=generator), "bias": torch.tensor([5.0])}


@pytest.mark.parametrize(("file", "state"), zip(weights.AESTHETIC_HEADS, (chain(), linear()), strict=True))
def test_the_aesthetic_score_is_a_head_on_unit_embeddings(tmp_path, file, state):
    folder = stored(tiny_clip.build(tmp_path / "clip"), file, state)
    chosen([f"aesthetic={folder}"], world=False)
    model = transformers.CLIPModel.from_pretrained(folder).eval()
    with torch.no_grad():
        x = model.get_image_features(tiny_clip.prepared(SMALL)).pooler_output
        x = x / x.square().sum(1, keepdim=True).sqrt()
        for key in [key for key in state if key.endswith("weight")]:
            x = x @ state[key].T + state[key.replace("weight", "bias")]
    assert of_clip(["aesthetic"], SMALL, 8)["aesthetic"] == pytest.approx(x.mean().item(), rel=1e-5)
    assert x.std() > 1e-4


def test_the_first_head_is_taken_where_both_are_there(tmp_path):
    folder = tiny_clip.build(tmp_path / "clip")
    found = []
    for file, state in reversed(list(zip(weights.AESTHETIC_HEADS, (chain(), linear()), strict=True))):
        stored(folder, file, state)
        chosen([f"aesthetic={folder}"], world=False)
        tiny_clip.forget()
        found.append(of_clip(["aesthetic"], SMALL, 8)["aesthetic"])
    (folder / weights.AESTHETIC_HEADS[1]).unlink()
    tiny_clip.forget()
    assert of_clip(["aesthetic"], SMALL, 8)["aesthetic"] == found[1] != found[0]


def test_without_weights_a_line_says_what_is_missing_and_where_to_put_it(tmp_path):
    lines = absent(chosen(["ssim", "lpips", "aesthetic"], world=False))
    assert lines == {
        "lpips": "lpips: alexnet-owt-7be5be79.pth is not in hub/checkpoints of torch's cache ($TORCH_HOME, or "
        "~/.cache/torch); put it there, or say where it is with lpips=FOLDER",
        "aesthetic": "aesthetic: the weights of openai/clip-vit-large-patch14 are not in the hub's cache; get them "
        "with `hf download openai/clip-vit-large-patch14`, or say where they are with aesthetic=FOLDER",
    }
    folder = tiny_clip.build(tmp_path / "clip")
    (line,) = absent(chosen([f"aesthetic={folder}"], world=False)).values()
    assert line == (
        f"aesthetic: sac+logos+ava1-l14-linearMSE.pth or sa_0_4_vit_l_14_linear.pth is not in {folder}; put it there, "
        "or say where it is with aesthetic=FOLDER"
    )


def test_weights_in_the_cache_of_torch_are_found(tmp_path):
    stored(tmp_path / "torch" / "checkpoints", weights.ALEXNET, alexnet())
    assert absent(chosen(["lpips"], world=False)) == {} and lpips(CLIP, CLIP) == 0


@pytest.mark.parametrize(
    ("name", "file", "content", "said"),
    [
        (
            "lpips",
            weights.ALEXNET,
            {"features.0.weight": torch.zeros(1)},
            "features.0.weight is of shape (1,), expected",
        ),
        (
            "lpips",
            weights.ALEXNET,
            alexnet() | {"features.12.weight": torch.zeros(1)},
            "features.12.weight is of shape",
        ),
        ("lpips", weights.ALEXNET, [1, 2], "holds list, expected tensors by name; get it again"),
        ("lpips", weights.ALEXNET, UserError("code"), "cannot be read as weights (UnpicklingError); get it again"),
        (
            "aesthetic",
            weights.AESTHETIC_HEADS[0],
            {"layers.0.weight": torch.zeros(1)},
            "layers.0.weight is of shape (1,)",
        ),
        ("aesthetic", weights.AESTHETIC_HEADS[1], {"weight": torch.zeros(1, 768), "bias": torch.zeros(1)}, "(1, 768)"),
        ("aesthetic", weights.AESTHETIC_HEADS[0], chain() | {"layers.9.weight": torch.zeros(1)}, "expected absent"),
    ],
)
def test_a_file_of_something_else_is_one_line(tmp_path, name, file, content, said):
    """Nothing of a file is run: an object of another kind than tensors is refused."""
    folder = stored(tiny_clip.build(tmp_path / "clip"), file, content)
    (line,) = absent(chosen([f"{name}={folder}"], world=False)).values()
    assert line.startswith(f"{name}: {file}") and said in line and "\n" not in line


def test_a_torn_file_is_one_line(tmp_path):
    folder = stored(tmp_path / "weights", weights.ALEXNET, alexnet())
    whole = (folder / weights.ALEXNET).read_bytes()
    for torn in (whole[: len(whole) // 2], b""):
        (folder / weights.ALEXNET).write_bytes(torn)
        tiny_clip.forget()
        (line,) = absent(chosen([f"lpips={folder}"], world=False)).values()
        assert line.startswith("lpips: alexnet-owt-7be5be79.pth cannot be read as weights (")


def test_what_a_metric_says_is_of_its_weights(tmp_path):
    """Values that are kept are found by these digits, and a result holds them."""
    folder, found = tmp_path / "weights", []
    for seed in (0, 1, 0):
        stored(folder, weights.ALEXNET, alexnet(seed))
        tiny_clip.forget()
        chosen([f"lpips={folder}"], world=False)
        found.append(weights_of(["rmse", "lpips"]))
    assert found[0] == found[2] != found[1] and list(found[0]) == ["lpips"]


def test_an_evaluation_goes_on_without_what_is_missing():
    asked = Asked(("red",), 1, 0, 3.0, (2,), metrics=("rmse", "lpips"))
    assert [metric.name for metric in asked.measures()] == ["rmse"] and len(asked.absent()) == 1
    with pytest.raises(UserError, match="lpips: alexnet-owt-7be5be79.pth is not in"):
        Asked(("red",), 1, 0, 3.0, (2,), metrics=("lpips",))
