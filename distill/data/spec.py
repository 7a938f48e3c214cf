"""The recipe's section `data`."""

from typing import Annotated, Literal

from ..options import NonNegativeInt, PositiveFloat, PositiveInt
from ..sections import File, Folder, Relative, Section, Text


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
    """Thresholds of adaptive video distillation's section 6 (docs/curation.md); null leaves a filter out."""


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


class Data(Section):
    prompts: File
    """A text file, one prompt per line."""
    negative_prompt: str | None = None
    """null: the teacher family's own."""
    trajectories: Trajectories | None = None
    """For methods that learn from trajectories."""
    videos: Videos | None = None
    """For methods that learn from real videos."""
