"""Trajectory stores: a teacher's latents at the key steps of its own denoising, recorded once (docs/trajectories.md).

A record's row is (K + 1, C, F, H, W), noise first.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .. import image_prompt
from . import shards, store
from .shards import (  # noqa: F401, what any store offers
    DTYPES,
    INDEX,
    PARTIAL,
    create,
    expect,
    file,
    is_store,
    others,
    recorded,
    samples_of,
    sweep,
)

VERSION = 1
KIND = shards.Kind(
    name="trajectory store",
    verb="record",
    participle="recorded",
    command="distill synthesize",
    section="data.trajectories",
    version=VERSION,
    keys={
        **dict.fromkeys(("teacher.family", "teacher.path", "teacher.fingerprint", "precision"), str),
        **dict.fromkeys(("version", "video.frames", "video.height", "video.width", "steps", "seed"), int),
        **dict.fromkeys(("shift", "guidance"), int | float),
        **dict.fromkeys(("latent_shape", "levels"), list),
    },
)


@dataclass(frozen=True)
class Shard(store.Shard):
    """The entry of one file.

    Attributes:
        images: the contents (image_prompt.content) of those that the prompts name.
    """

    prompts: tuple[str, ...]
    images: tuple[str | None, ...]


class Store(store.Store):
    """A store as its index describes it; latents stay on disk until `read`."""

    kind = KIND

    @property
    def record_shape(self) -> list[int]:
        """(K + 1, C, F, H, W)"""
        return record_shape(self.info)

    def _checked_index(self, info: dict) -> dict:
        try:
            return info | {"levels": [float(level) for level in info["levels"]]}
        except (ValueError, TypeError) as error:
            raise shards.damaged_index(self.path, self.kind, error) from error

    def _shard(self, said: dict) -> Shard:
        prompts, sums = ([record[key] for record in said["records"]] for key in ("prompt", "crc32"))
        images = tuple(record.get("image") for record in said["records"])
        crc32 = tuple(map(tuple, sums))
        if {len(row) for row in crc32} != {len(self.info["levels"])}:
            raise ValueError("not so many sums as it should name")
        return Shard(int(said["first"]), crc32, said["bytes"], said["sha256"], tuple(prompts), images)

    def prompt(self, sample: int) -> str:
        shard = self.holding(sample)
        return shard.prompts[sample - shard.first]

    def read(self, sample: int, places: Sequence[int]) -> Tensor:
        """A record's latents at these places among the stored levels, (len(places), C, F, H, W), float32.

        Raises:
            UserError: they are not what was written.
        """
        return torch.stack([self.latent(sample, place) for place in places])

    def describe(self) -> list[str]:
        """Lines for people."""
        info, shape = self.info, " x ".join(map(str, self.info["latent_shape"]))
        size = " x ".join(str(info["video"][side]) for side in ("frames", "height", "width"))
        levels = ", ".join(f"{level:.4g}" for level in info["levels"])
        return [
            f"teacher   {info['teacher']['family']} {info['teacher']['path']} ({info['teacher']['fingerprint']})",
            f"video     {size} (frames, height, width), latents {shape} (channels, frames, height, width)",
            f"recorder  {info['steps']} steps, shift {info['shift']}, guidance {info['guidance']}, seed {info['seed']}",
            f"levels    {levels}, in {info['precision']}",
            f"records   {self.count()}",
        ]

    def digest(self, records: int) -> str:
        """Changes with what training sees of so many records, not with where they lie."""
        info = self.info | {"teacher": self.info["teacher"]["fingerprint"]}
        info.pop("records", None)  # more may come
        prompts = [self.prompt(sample) for sample in range(records)]
        named = [image for shard in self.shards for image in zip(shard.samples, shard.images, strict=True)]
        images = [image for sample, image in named if image and sample < records]
        return hashlib.sha256(json.dumps([info, prompts, *images], sort_keys=True).encode()).hexdigest()


def add(path: Path, first: int, prompts: Sequence[str], latents: Tensor) -> None:
    """Write a shard and then its entry, each whole or not at all.

    Args:
        latents: (R, K + 1, C, F, H, W), in the store's precision.
    """
    shape = [len(prompts), *record_shape(shards.index(path, KIND))]
    rows = enumerate(zip(prompts, latents, strict=False), first)  # `write` refuses other numbers
    records = [
        {"sample": j, **_made_from(prompt), "crc32": [shards.crc32(x) for x in record]} for j, (prompt, record) in rows
    ]
    shards.write(path, first, records, latents, shape, KIND)


def record_shape(info: dict) -> list[int]:
    return [len(info["levels"]), *info["latent_shape"]]


def no_index(path: Path) -> str:
    """What to say of a folder without an index."""
    return shards.no_index(path, KIND)


def _made_from(prompt: str) -> dict[str, str]:
    image = image_prompt.content(prompt)
    return {"prompt": prompt} | ({"image": image} if image else {})
