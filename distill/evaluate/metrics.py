"""What clips are measured by: the names, and which way is better (docs/metrics.md). Needs no torch until it measures.

A metric is of a clip by itself, of a pair (a clip beside the reference's from the same noise), of a set of clips beside
the reference's set, or of the world (a clip beside its caption). One that cannot measure a clip raises ValueError.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import UserError
from ..yaml_source import did_you_mean

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


@dataclass(frozen=True)
class Metric:
    """What a column of numbers is.

    Attributes:
        kind: "clip", "pair", "set" or "world".
        better: "higher", "lower", or "reference": near the reference's value is good, on whichever side.
    """

    name: str
    kind: str
    better: str
    unit: str
    about: str


KNOWN = (
    Metric("rmse", "pair", "lower", "", "root mean square difference of the latents to the reference's"),
    Metric("cosine", "pair", "higher", "", "cosine between the latents and the reference's"),
    Metric("psnr", "pair", "higher", "dB", "peak signal-to-noise ratio of the pixels to the reference's"),
    Metric("ssim", "pair", "higher", "", "structural similarity to the reference's frames (Wang et al. 2004)"),
    Metric("saturation", "clip", "reference", "", "largest less smallest channel, of 1"),
    Metric("motion", "clip", "reference", "", "change of a pixel from frame to frame, of 1"),
    Metric("colourfulness", "clip", "reference", "", "spread of the opponent colours (Hasler and Suesstrunk 2003)"),
    Metric("sharpness", "clip", "reference", "levels^2", "variance of the Laplacian of the luma"),
    Metric("high_frequency", "clip", "reference", "", "share of the luma's energy above 1/4 cycle per pixel"),
    Metric("flicker", "clip", "reference", "", "VBench's temporal flickering; 1 is still"),
    Metric("flow", "clip", "reference", "px/frame", "mean length of Farneback's optical flow"),
    Metric("dynamic_flow", "clip", "reference", "", "share of clips that move: VBench's dynamic degree on that flow"),
    Metric("smoothness", "clip", "reference", "", "odd frames beside the midpoint of their neighbours; 1 is smooth"),
    Metric("frechet", "set", "lower", "", "Frechet distance of Gaussians fitted to the clips' features"),
    Metric("kernel", "set", "lower", "", "kernel distance (unbiased, cubic) of the clips' features; 0 for equal sets"),
    Metric("colour", "world", "higher", "", "share of clips with the caption's colours"),
    Metric("shape", "world", "higher", "", "share of clips with the caption's shapes"),
    Metric("texture", "world", "higher", "", "share of clips with the caption's textures"),
    Metric("direction", "world", "higher", "", "share of clips that move as the caption says"),
    Metric("speed", "world", "higher", "", "share of clips that move as fast as the caption says"),
    Metric("background", "world", "higher", "", "share of clips with the caption's background"),
    Metric("count", "world", "higher", "", "share of clips with as many things as the caption"),
    Metric("relation", "world", "higher", "", "share of clips whose things stand as the caption says"),
    Metric("all", "world", "higher", "", "share of clips with everything that the caption says"),
    Metric("preserved", "world", "higher", "", "share of clips with as many things as the caption in every frame"),
    Metric("dynamic", "world", "higher", "", "share of clips that move, of those whose caption asks for it"),
    Metric("cloth", "world", "reference", "", "share of clips with a coloured ground"),
    Metric("clip_score", "clip", "higher", "", "cosine of frames and prompt in CLIP, times 100; needs its weights"),
    Metric("dino_consistency", "clip", "reference", "", "likeness of a clip's frames in DINOv2; needs its weights"),
    Metric("lpips", "pair", "lower", "", "learned distance to the reference's frames in AlexNet; needs its weights"),
    Metric("aesthetic", "clip", "higher", "", "LAION's aesthetic predictor on CLIP, about 1 to 10; needs its weights"),
)
METRICS = {metric.name: metric for metric in KNOWN}
PLUGS = ("clip_score", "dino_consistency", "lpips", "aesthetic")
WORLD = tuple(metric.name for metric in KNOWN if metric.kind == "world")
WEIGHT_FREE = tuple(metric.name for metric in KNOWN if metric.kind != "world" and metric.name not in PLUGS)


def chosen(names: Sequence[str] | None, world: bool) -> list[Metric]:
    """The metrics of these names, and the world's where its captions are asked for; None: all that need no weights.

    `clip_score=FOLDER` says where weights are (weights.py), and `package.module:function` is a metric of the user's
    (plugs.py).

    Raises:
        UserError: there is no such metric.
    """
    found = [_metric(name, world) for name in (WEIGHT_FREE if names is None else names)]
    found += [METRICS[name] for name in WORLD if world]
    if not found:
        raise UserError("metrics is empty: name at least one (`distill metrics` lists them)")
    return list({metric.name: metric for metric in found}.values())


def _metric(name: str, world: bool) -> Metric:
    plain, _, folder = name.partition("=")
    if ":" in plain or plain in PLUGS:
        from . import plugs, weights

        if ":" in plain:
            return plugs.own(name)
        if folder:
            weights.place(plain, folder)
        return METRICS[plain]
    if plain not in METRICS:
        raise UserError(f"unknown metric {name!r}{did_you_mean(plain, METRICS)} (`distill metrics` lists them)")
    if folder:
        raise UserError(f"metric {name!r}: {plain} has no weights; expected {plain}, or {PLUGS[0]}=FOLDER")
    if plain in WORLD and not world:
        raise UserError(f"metric {name!r} needs captions of the embedded world; set evaluation.world: true, or --world")
    return METRICS[plain]


def of_clip(names: Sequence[str], video: "np.ndarray", fps: float, prompt: str = "") -> dict[str, float]:
    """Metrics of kind "clip".

    Args:
        video: uint8 (F, H, W, 3).

    Raises:
        ValueError: one of them cannot measure this clip.
    """
    from .. import health
    from . import movement, pixels

    ours = health.MEASURES | pixels.MEASURES | movement.measures(fps)
    given = {"video": video, "fps": fps, "prompt": prompt}
    return {name: ours[name](video) if name in ours else _plugged(name, given) for name in names}


def of_pair(
    names: Sequence[str],
    x: "Tensor",
    y: "Tensor",
    video: "np.ndarray",
    video_reference: "np.ndarray",
    fps: float = 0.0,
    prompt: str = "",
) -> dict[str, float]:
    """Metrics of kind "pair".

    Args:
        x, y: latents (C, F, H, W), the reference's second; video, video_reference: uint8 (F, H, W, 3).

    Raises:
        ValueError: one of them cannot measure these clips.
    """
    from . import pairs

    if x.shape != y.shape or video.shape != video_reference.shape:
        sizes = f"latents {tuple(x.shape)} and video {video.shape}"
        other = f"{tuple(y.shape)} and {video_reference.shape}"
        raise ValueError(f"a clip is beside a reference of another size: {sizes}, the reference's are {other}")
    given = {"video": video, "reference": video_reference, "fps": fps, "prompt": prompt}
    found = {}
    for name in names:
        if name in pairs.OF_LATENTS:
            found[name] = pairs.OF_LATENTS[name](x, y)
        elif name in pairs.OF_VIDEOS:
            found[name] = pairs.OF_VIDEOS[name](video, video_reference)
        else:
            found[name] = _plugged(name, given)
    return found


def _plugged(name: str, given: dict) -> float:
    from . import plugs

    return plugs.measured(name, given)


def of_set(name: str, features: "np.ndarray", reference: "np.ndarray", weights: "np.ndarray") -> dict[str, float]:
    """A metric of kind "set" with its 95 % interval: `mean`, `low` and `high`.

    Args:
        features, reference: (N, D), a clip's and its reference's in the same row; rows with nan are left out.
        weights: (R, N), of statistics.resample.

    Raises:
        ValueError: the clips are too few.
    """
    from . import sets

    return sets.measured(sets.DISTANCES[name], features, reference, weights)


def absent(metrics: Sequence[Metric]) -> dict[str, str]:
    """Which of the metrics cannot be measured here since their weights are missing, and a line on how to get them."""
    wanted = [metric.name for metric in metrics if metric.name in PLUGS]
    if not wanted:
        return {}
    from . import weights

    return {name: line for name in wanted if (line := weights.missing(name))}


def weights_of(names: Sequence[str]) -> dict[str, str]:
    """Of those that need weights, digits that change with these; none of them may be absent."""
    wanted = [name for name in names if name in PLUGS]
    if not wanted:
        return {}
    from . import weights

    return {name: weights.identity(name) for name in wanted}
