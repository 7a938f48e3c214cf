"""Video stores: latents of real clips with captions, encoded once by a teacher's VAE (docs/videos.md).

A record is a place that a clip may fill; one that was dropped has an entry with the reason, and no row. A row is
(C, F, H, W), clean. For teachers that start from an image, the first frame of each clip is kept, too.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .. import image_prompt
from . import shards, store
from .agreement import leaves

VERSION = 1
FRAMES = "first_frames"  # a folder, and what the index says of it
KIND = shards.Kind(
    name="video store",
    verb="prepare",
    participle="prepared",
    command="distill prepare",
    section="data.videos",
    version=VERSION,
    keys={
        **dict.fromkeys(("teacher.family", "teacher.path", "teacher.vae", "precision", "listing"), str),
        **dict.fromkeys(("version", "records", "video.frames", "video.height", "video.width", "video.fps"), int),
        "latent_shape": list,
    },
)
OPTIONS = ("per_video", "short", "upscale", "precision", "clips")
NOT_COMPARED = ("teacher.family", "teacher.path", "latent_shape")  # they follow from others, or may differ
RECIPE_KEYS = {name: f"data.videos.{name}" for name in OPTIONS} | {
    "embedded": "data.videos.source",
    "teacher.vae": "a VAE of fingerprint",
    FRAMES: "the clips' first frames",
}


@dataclass(frozen=True)
class Shard(store.Shard):
    """The entry of one file.

    Attributes:
        prompts: captions.
        origins: the video that each record is cut from, and which of its clips it is.
        dropped: why a record has no clip, or None.
    """

    prompts: tuple[str, ...]
    origins: tuple[tuple[str, int], ...]
    dropped: tuple[str | None, ...]


class Store(store.Store):
    """A store as its index describes it; latents stay on disk until `read`.

    Attributes:
        clips: the records that have one.
    """

    kind = KIND

    def __init__(self, path: Path):
        super().__init__(path)
        records = [zip(shard.samples, shard.dropped, strict=True) for shard in self.shards]
        self.clips = [sample for shard in records for sample, dropped in shard if dropped is None]

    @property
    def record_shape(self) -> list[int]:
        return self.info["latent_shape"]

    def _shard(self, said: dict) -> Shard:
        records = said["records"]
        crc32 = tuple((record["crc32"],) if "crc32" in record else () for record in records)
        dropped = tuple(record.get("dropped") for record in records)
        if any(bool(sums) == bool(reason) for sums, reason in zip(crc32, dropped, strict=True)):
            raise ValueError("a record has either a clip or a reason")
        prompts = tuple(record["prompt"] for record in records)
        origins = tuple((record["video"], record["clip"]) for record in records)
        return Shard(int(said["first"]), crc32, said["bytes"], said["sha256"], prompts, origins, dropped)

    @property
    def first_frames(self) -> bool:
        return self.info.get(FRAMES, False)

    @property
    def prompts(self) -> list[str]:
        """The captions of the clips; with their first frames, where those are kept."""
        return [self.prompt(clip) for clip in range(len(self.clips))]

    def prompt(self, clip: int) -> str:
        """The caption of a clip, counted over those that there are; with its first frame, where those are kept."""
        shard = self.holding(self.clips[clip])
        place = self.clips[clip] - shard.first
        if not self.first_frames:
            return shard.prompts[place]
        return image_prompt.join(first_frame(self.path, *shard.origins[place]), shard.prompts[place])

    def read(self, clip: int) -> Tensor:
        """A clip's latents (C, F, H, W), float32; UserError if they are not what was written."""
        return self.latent(self.clips[clip])

    def describe(self) -> list[str]:
        """Lines for people."""
        info, shape = self.info, " x ".join(map(str, self.info["latent_shape"]))
        size = " x ".join(str(info["video"][side]) for side in ("frames", "height", "width"))
        return [
            f"teacher   {info['teacher']['family']} {info['teacher']['path']} (VAE {info['teacher']['vae']})",
            f"video     {size} (frames, height, width), {info['video']['fps']} fps",
            f"latents   {shape} (channels, frames, height, width), in {info['precision']}",
            f"clips     {len(self.clips)}",
            f"records   {self.count()}",
        ]

    def digest(self) -> str:
        """Changes with what training sees, not with where it lies."""
        info = self.info | {"teacher": self.info["teacher"]["vae"]}
        records = [
            record for shard in self.shards for record in zip(shard.origins, shard.prompts, shard.dropped, strict=True)
        ]
        return hashlib.sha256(json.dumps([info, records], sort_keys=True).encode()).hexdigest()


def add(path: Path, first: int, records: Sequence[tuple[str, int, str]], clips: Sequence[Tensor | str]) -> None:
    """Write a shard and then its entry, each whole or not at all.

    Args:
        records: video, clip and caption of each.
        clips: latents (C, F, H, W) in the store's precision, or why there are none.
    """
    said = []
    for sample, ((video, clip, prompt), found) in enumerate(zip(records, clips, strict=True), first):
        outcome = {"dropped": found} if isinstance(found, str) else {"crc32": shards.crc32(found)}
        said.append({"sample": sample, "video": video, "clip": clip, "prompt": prompt} | outcome)
    info, rows = shards.index(path, KIND), [clip for clip in clips if not isinstance(clip, str)]
    none = torch.empty(0, *info["latent_shape"], dtype=shards.DTYPES[info["precision"]])
    latents = torch.stack(rows) if rows else none
    shards.write(path, first, said, latents, [len(rows), *info["latent_shape"]], KIND)


def first_frame(path: Path, video: str, clip: int) -> Path:
    """Where a store keeps the image that a clip starts from."""
    name = hashlib.sha256(f"{clip} {video}".encode()).hexdigest()[:32]
    return path / FRAMES / name[:2] / f"{name}.png"


def add_first_frame(path: Path, video: str, clip: int, frame: np.ndarray) -> None:
    """Write it, (H, W, 3), uint8, whole or not at all."""
    from PIL import Image

    file = first_frame(path, video, clip)
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(shards.PARTIAL)
    Image.fromarray(frame).save(partial, format="png")
    os.replace(partial, file)


def settings(recipe, teacher) -> dict:
    """What index.json says of the clips that a recipe asks for, whatever its source lists."""
    said, video = recipe.data.videos, recipe.video
    return {
        "version": VERSION,
        "teacher": {"family": recipe.teacher.family, "path": recipe.teacher.path, "vae": teacher.vae_fingerprint},
        "video": {"frames": video.frames, "height": video.height, "width": video.width, "fps": video.fps},
        "latent_shape": list(teacher.latent_shape(video.frames, video.height, video.width)),
        "embedded": said.domain,
        "curation": said.curation.model_dump(mode="json") if said.curation else None,
        **{name: getattr(said, name) for name in OPTIONS},
        **({FRAMES: True} if teacher.takes_images else {}),
    }


def differences(found: Store, asked: dict) -> list[str]:
    """A line for every setting in which a store is not what a recipe asks for."""
    was, now = dict(leaves("", found.info)), dict(leaves("", asked))
    keys = [key for key in {**was, **now} if _is_compared(key) and was.get(key) != now.get(key)]
    if FRAMES not in now and FRAMES in keys:  # then they are not looked at
        keys.remove(FRAMES)
    return [
        f"{found.path}: prepared with {_in_recipe(key)} {was.get(key)!r}, the recipe has {now.get(key)!r}; {OTHER}"
        for key in keys
    ]


OTHER = "change the recipe back, or prepare another store with data.videos.path=NEW_FOLDER"


def _is_compared(key: str) -> bool:
    return key not in NOT_COMPARED and key.partition(".")[0] not in ("records", "listing")


def _in_recipe(key: str) -> str:
    return RECIPE_KEYS.get(key, f"data.videos.{key}" if key.startswith("curation") else key)
