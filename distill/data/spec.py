"""The recipe's section `data`."""

from typing import Annotated, Literal

import pydantic
from pydantic import Field

from ..options import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from ..sections import File, Folder, Relative, Section, Text, is_embedded

Share = Annotated[float, Field(gt=0, le=1)]
Scorer = Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")]


class Trajectories(Section):
    """The teacher's own denoising of data.prompts, recorded once (docs/trajectories.md)."""

    path: Folder
    """The store's folder."""
    records: PositiveInt
    """Record j has prompt j, counted round the prompts, and noise of its own."""
    steps: PositiveInt = 50
    """Of the recorder, n."""
    shift: PositiveFloat = 5.0
    """Of the recorder's noise levels."""
    guidance: PositiveFloat = 5.0
    """1 is off."""
    keep: PositiveInt | Literal["all"] = 5
    """Key steps m: every (n / m)-th latent is kept, m + 1 in all."""
    precision: Literal["fp16", "fp32"] = "fp16"
    """Of the stored latents; bf16 would lose the differences between them."""
    seed: NonNegativeInt = 0
    batch_size: PositiveInt = 1
    """Records made at once; results agree between sizes but for the last bits."""
    shard: PositiveInt = 16
    """Records per file."""
    clips: bool = False
    """Also decode the last latents."""


class Curation(Section):
    """What videos must measure up to, as in section 6.2 of adaptive video distillation (docs/curation.md): `{}` is the
    paper's. null leaves a filter out."""

    resolution: tuple[PositiveInt, PositiveInt] | None = (720, 1280)
    """Least shorter and longer side, in pixels."""
    short: Literal["clamp", "reject"] = "clamp"
    """Of a video without a 61st frame the last one is looked at, or it is dropped."""
    hue_entropy: NonNegativeFloat | None = 0.6
    """Least, of four frames, in nats; below, a frame is of one colour."""
    hue_mode: Literal["literal", "achromatic"] = "literal"
    """Whether pixels that are almost grey, whose hue is noise, are counted apart."""
    sharpness: NonNegativeFloat | None = 20.0
    """Least variance of the Laplacian, of four frames; below, a frame is blurred."""
    sharpness_at: Literal["480p", "native"] = "480p"
    """The size at which it is measured."""
    contrast: NonNegativeFloat | None = None
    """Least standard deviation of the luma, of 255, in any frame; black and flat ones have less than 2."""
    motion: NonNegativeFloat | None = 0.2
    """Least mean optical flow, in pixels per frame at 480p; below, the video stands still."""
    motion_at: Literal["training", "native"] = "training"
    """The frame rate at which it is measured: video.fps, or the video's own."""
    cuts: NonNegativeInt | None = None
    """Most cuts to another scene."""
    consistency: Share | None = 0.5
    """Share of the remaining videos that is kept, by temporal consistency."""
    consistency_by: Scorer | None = None
    """`package.module:function` that returns features of frames, (N, D); null compares thumbnails."""
    consistency_groups: PositiveInt = 1
    """Ranked inside so many groups of like motion; in one group still videos are favoured."""
    aesthetics: Share | None = 0.5
    """Share of the remaining videos that is kept, by looks."""
    aesthetics_by: Scorer | None = None
    """`package.module:function` that returns a score per frame, (N,); null: a formula of contrast, colour, exposure."""

    @pydantic.model_validator(mode="after")
    def _check_effect(self) -> "Curation":
        """Options of a filter that is left out would change nothing."""
        for name in ("hue_mode", "sharpness_at", "consistency_by", "consistency_groups", "aesthetics_by"):
            option = name.rsplit("_", 1)[0]
            off = self.hue_entropy is None if option == "hue" else getattr(self, option) is None
            if off and getattr(self, name) != type(self).model_fields[name].default:
                option = "hue_entropy" if option == "hue" else option
                raise ValueError(f"{name} has no effect without {option}")
        return self


OWN_DOMAIN = "own"


class Videos(Section):
    """Real videos with captions, encoded once by the teacher's VAE (docs/videos.md). Clips are of the size, length and
    frame rate that the section `video` says."""

    path: Folder
    """The store's folder."""
    source: Annotated[Text, Relative.VIDEOS]
    """A folder of videos with a text file beside each, a .csv or .jsonl of paths and captions, or the embedded
    teacher's world, rendered: `embedded`, or `embedded:DOMAIN` for one that its teacher has not seen."""
    clips: PositiveInt | None = None
    """How many the embedded world renders."""
    per_video: PositiveInt | Literal["all"] = 1
    """Clips cut from a video, one after the other."""
    short: Literal["reject", "hold"] = "reject"
    """A video shorter than a clip is dropped, or its last frame is held."""
    upscale: bool = False
    """Take videos that are smaller than a clip, too."""
    curation: Curation | None = None
    """What videos must measure up to; null takes all of them."""
    precision: Literal["fp16", "fp32"] = "fp16"
    """Of the stored latents."""
    shard: PositiveInt = 16
    """Clips per file."""

    @property
    def domain(self) -> str | None:
        """Of the embedded world, if that is the source."""
        return (self.source.partition(":")[2] or OWN_DOMAIN) if is_embedded(self.source) else None


class Data(Section):
    prompts: File | None = None
    """A text file, one prompt per line; methods that learn from nothing but real videos need none."""
    negative_prompt: str | None = None
    """null: the teacher family's own."""
    trajectories: Trajectories | None = None
    """For methods that learn from trajectories."""
    videos: Videos | None = None
    """For methods that learn from real videos."""
