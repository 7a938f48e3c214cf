"""Videos of the procedural world with captions, as files: real video for the embedded teacher's students.

Own scenes of the training split, as the embedded teacher saw them; or of a domain that it has never seen (world.Look).
"""

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from .. import video
from ..errors import UserError
from . import world

CAPTIONS = "captions.jsonl"
SEED = 4000  # of the scenes; the teacher's training has others


def write(folder: Path, domain: str, count: int, show: Callable[[int], None] = lambda done: None) -> Path:
    """Render so many videos, those that are there excepted; returns the list of captions, which is written last.

    Args:
        domain: a key of world.DOMAINS.
        show: is told how many videos are there.
    """
    look = named(domain)
    folder.mkdir(parents=True, exist_ok=True)
    shown = [scene for scene in world.scenes("train", SEED, 4 * count) if look.shows(scene)][:count]
    for i, scene in enumerate(shown):
        path = folder / name(i)
        if not path.exists():
            video.write(path, world.render(scene, np.random.default_rng((SEED, i)), look), world.FPS)
        show(i + 1)
    lines = [json.dumps({"path": name(i), "caption": world.caption(scene)}) for i, scene in enumerate(shown)]
    partial = folder / f"{CAPTIONS}.partial"
    partial.write_text("\n".join(lines) + "\n")
    os.replace(partial, folder / CAPTIONS)
    return folder / CAPTIONS


def named(domain: str) -> world.Look:
    if domain not in world.DOMAINS:
        raise UserError(f"the embedded world has no domain {domain!r}; it has {', '.join(world.DOMAINS)}")
    return world.DOMAINS[domain]


def name(clip: int) -> str:
    return f"{clip:05d}.mp4"
