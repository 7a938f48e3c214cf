"""A clip's first frame beside it: what is seen before it plays, in print and without scripts."""

import os
from pathlib import Path

import imageio_ffmpeg
from PIL import Image

QUALITY = 88


def write(clip: Path) -> Path:
    """The clip's first frame; made anew where the clip is newer.

    Raises:
        OSError: the clip is missing or cannot be decoded.
    """
    if not clip.is_file():
        raise OSError(f"{clip.name}: no such clip")
    path = clip.with_suffix(".webp")
    if path.exists() and path.stat().st_mtime >= clip.stat().st_mtime:
        return path
    partial = path.with_suffix(".partial")
    first(clip).save(partial, "WEBP", quality=QUALITY)
    os.replace(partial, path)
    return path


def first(clip: Path) -> Image.Image:
    frames = imageio_ffmpeg.read_frames(str(clip))
    try:
        size = next(frames)["size"]
        return Image.frombytes("RGB", size, next(frames))
    except (OSError, RuntimeError, StopIteration):
        raise OSError(f"{clip.name}: cannot be decoded") from None
    finally:
        frames.close()
