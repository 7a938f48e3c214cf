"""Metrics that are not ours: the user's own (tests/own_metrics.py), and those of networks with weights, tiny here."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from distill.errors import UserError
from distill.evaluate import metrics
from distill.evaluate.metrics import Metric, absent, chosen, of_clip, of_pair

from . import tiny_clip

DOCS = Path(__file__).resolve().parent.parent / "docs" / "metrics.md"
SIDE = tiny_clip.SIDE
VIDEO = np.random.default_rng(0).integers(0, 256, (5, SIDE, SIDE, 3), np.uint8)
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean and deviation of pixels
LATENTS = torch.zeros(1, 1, 1, 1)


def own(name: str) -> str:
    return f"tests.own_metrics:{name}"


@pytest.fixture(autouse=True)
def machine(monkeypatch, tmp_path):
    with tiny_clip.nothing_at_hand(monkeypatch, tmp_path):
        yield


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Folders of CLIP and DINOv2 with weights drawn by chance."""
    folder = tmp_path_factory.mktemp("weights")
    tiny_clip.build(folder / "clip")
    torch.manual_seed(0)
    config = transformers.Dinov2Config(**tiny_clip.TINY, image_size=SIDE, patch_size=8)
    transformers.Dinov2Model(config).save_pretrained(folder / "dino")
    sizes = {"size": {"shortest_edge": SIDE}, "crop_size": SIDE}
    mean, deviation = IMAGENET
    transformers.BitImageProcessor(**sizes, image_mean=mean, image_std=deviation).save_pretrained(folder / "dino")
    return folder


def test_a_users_metric_is_a_function_of_what_it_names():
    assert of_clip([own("brightness")], VIDEO, 8)[own("brightness")] == pytest.approx(VIDEO.mean())
    assert of_clip([own("told")], VIDEO, 8, "a red circle")[own("told")] == 20
    assert of_pair([own("off")], LATENTS, LATENTS, VIDEO, 255 - VIDEO)[own("off")] == pytest.approx(
        2 * np.abs(255 - 2.0 * VIDEO).mean()
    )


def test_the_metric_of_the_documents_is_one(tmp_path, monkeypatch):
    (code,) = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    (tmp_path / "my_metrics.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    name = "my_metrics:worst_frame"
    (metric,) = chosen([name], world=False)
    assert (metric.kind, metric.better, metric.unit) == ("pair", "higher", "dB")
    torn = VIDEO.copy()
    torn[2] = 255 - torn[2]
    found = of_pair([name, "psnr"], LATENTS, LATENTS, torn, VIDEO)
    assert found[name] == pytest.approx(found["psnr"] - 10 * np.log10(5))  # one frame of five has all of the error


def test_a_users_metric_says_what_it_is():
    assert chosen([own("brightness"), own("off")], world=False) == [
        Metric(own("brightness"), "clip", "higher", "levels", "Mean of all channels."),
        Metric(own("off"), "pair", "reference", "", "a metric of the user's"),
    ]


@pytest.mark.parametrize(
    "name, said",
    [
        ("absent", "metrics: tests.own_metrics has no function absent"),
        ("hungry", "takes 'weights'; expected video, reference, fps, prompt, or a default value"),
        ("misled", "has better = 'larger'; expected higher, lower, reference"),
    ],
)
def test_what_cannot_be_a_metric_is_said_at_once(name, said):
    with pytest.raises(UserError, match=said):
        chosen([own(name)], world=False)


@pytest.mark.parametrize(
    "name, said",
    [("fails", "failed: RuntimeError: no weights"), ("infinite", "returned inf; expected a finite number")],
)
def test_a_users_metric_that_fails_on_a_clip_says_so(name, said):
    with pytest.raises(ValueError, match=f"{own(name)} {said}"):
        of_clip([own(name)], VIDEO, 8)


@pytest.mark.parametrize(
    "name, model", [("clip_score", "openai/clip-vit-base-patch32"), ("dino_consistency", "facebook/dinov2-base")]
)
def test_without_weights_a_line_says_what_is_missing(name, model):
    expected = (
        f"{name}: the weights of {model} are not in the hub's cache; get them with `hf download {model}`, or say where "
        f"they are with {name}=FOLDER"
    )
    assert absent(chosen(["ssim", name], world=False)) == {name: expected}
    with pytest.raises(ValueError) as error:
        of_clip([name], VIDEO, 8)
    assert str(error.value) == expected


def test_the_weights_of_something_else_are_refused(weights, tmp_path):
    lines = absent(chosen([f"clip_score={weights / 'dino'}", f"dino_consistency={tmp_path}"], world=False))
    assert "it holds a model of type 'dinov2', expected 'clip'" in lines["clip_score"]
    assert lines["dino_consistency"].startswith(f"dino_consistency: {tmp_path} has no model that can be loaded")


def test_weights_that_are_not_whole_are_refused(weights, tmp_path):
    """A library that draws what is missing by chance would still give a number."""
    model = transformers.Dinov2Model.from_pretrained(weights / "dino")
    torn = {name: value for name, value in model.state_dict().items() if name != "layernorm.weight"}
    model.save_pretrained(tmp_path, state_dict=torn)
    assert (
        "its weights lack layernorm.weight"
        in absent(chosen([f"dino_consistency={tmp_path}"], False))["dino_consistency"]
    )


def test_clip_score_is_the_cosine_of_frames_and_prompt(weights):
    (metric,) = chosen([f"clip_score={weights / 'clip'}"], world=False)
    assert metric is metrics.METRICS["clip_score"] and absent([metric]) == {}
    model = transformers.CLIPModel.from_pretrained(weights / "clip").eval()
    text = model.get_text_features(torch.tensor([[0, 2, 3, 4, 1]])).pooler_output
    cosines = torch.cosine_similarity(model.get_image_features(tiny_clip.prepared(VIDEO)).pooler_output, text)
    assert of_clip(["clip_score"], VIDEO, 8, "a b c") == {
        "clip_score": pytest.approx(100 * cosines.clip(min=0).mean().item(), rel=1e-5)
    }
    assert cosines.std() > 0


def test_dino_consistency_has_vbenchs_form(weights):
    chosen([f"dino_consistency={weights / 'dino'}"], world=False)
    model = transformers.Dinov2Model.from_pretrained(weights / "dino").eval()
    rows = (
        torch.nn.functional.normalize(model(tiny_clip.prepared(VIDEO, *IMAGENET)).last_hidden_state[:, 0])
        .detach()
        .numpy()
    )
    naive = np.mean([(max(0, rows[t] @ rows[t - 1]) + max(0, rows[t] @ rows[0])) / 2 for t in range(1, 5)])
    assert of_clip(["dino_consistency"], VIDEO, 8)["dino_consistency"] == pytest.approx(naive, rel=1e-5)
    still = np.repeat(VIDEO[:1], 40, 0)  # more than a batch
    assert of_clip(["dino_consistency"], still, 8)["dino_consistency"] == pytest.approx(1)
