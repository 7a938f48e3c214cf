"""Clips as files: H.264 that browsers play, and contact sheets. A clip is uint8 (F, H, W, 3), RGB."""

import os
from collections.abc import Sequence
from pathlib import Path

import imageio_ffmpeg
import numpy as np
from numpy.typing import ArrayLike
from PIL import Image

LEAST_SIDE = 192  # pixels; smaller clips are enlarged, or nobody sees what they show
SHEET_FRAMES = 6
SHEET_GAP = 4  # pixels

BT709 = ["-colorspace", "bt709", "-color_primaries", "bt709", "-color_trc", "bt709", "-color_range", "tv"]
H264 = ["-crf", "18", "-preset", "medium", "-movflags", "+faststart", "-vf", "scale=out_color_matrix=bt709", *BT709]
ONE_THREAD = ["-threads", "1"]  # the number of threads changes the file's bytes


def write(path: Path, clip: ArrayLike, fps: float) -> Path:
    """Write a clip as H.264, whole or not at all, enlarged to at least LEAST_SIDE pixels."""
    frames = np.ascontiguousarray(enlarge(checked(clip)))
    height, width = frames.shape[1:3]
    if height % 2 or width % 2:
        raise ValueError(f"a clip of {width}x{height} pixels; H.264 needs an even width and height")
    partial = path.with_name(f"{path.stem}.partial{path.suffix}")
    writer = imageio_ffmpeg.write_frames(
        str(partial),
        (width, height),
        fps=fps,
        codec="libx264",
        quality=None,
        macro_block_size=1,
        ffmpeg_log_level="error",
        output_params=H264 + ONE_THREAD,
    )
    writer.send(None)
    for frame in frames:
        writer.send(frame)
    writer.close()
    os.replace(partial, path)
    return path


def read(path: Path) -> np.ndarray:
    """The frames of a file, as stored (clips that `write` enlarged stay large)."""
    frames = imageio_ffmpeg.read_frames(str(path))
    width, height = next(frames)["size"]
    return np.stack([np.frombuffer(frame, np.uint8).reshape(height, width, 3) for frame in frames])


def sheet(path: Path, clips: Sequence[ArrayLike], frames: int = SHEET_FRAMES) -> Path:
    """Write a PNG with one row per clip and evenly spaced frames, the first and the last among them."""
    rows = [row(enlarge(checked(clip)), frames) for clip in clips]
    between = np.full((SHEET_GAP, rows[0].shape[1], 3), 255, np.uint8)
    image = np.concatenate([part for r in rows for part in (between, r)][1:])
    Image.fromarray(image).save(path, optimize=True)
    return path


def row(clip: np.ndarray, frames: int) -> np.ndarray:
    shown = clip[np.unique(np.linspace(0, len(clip) - 1, frames).round().astype(int))]
    between = np.full((clip.shape[1], SHEET_GAP, 3), 255, np.uint8)
    return np.concatenate([part for frame in shown for part in (between, frame)][1:], 1)


def enlarge(clip: np.ndarray) -> np.ndarray:
    """Repeat pixels by the smallest whole factor that makes the shorter side LEAST_SIDE pixels."""
    factor = -(-LEAST_SIDE // min(clip.shape[1:3]))
    return clip.repeat(factor, 1).repeat(factor, 2) if factor > 1 else clip


def checked(clip: ArrayLike) -> np.ndarray:
    frames = np.asarray(clip)
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3:
        raise ValueError(f"a clip is {frames.dtype} {frames.shape}; expected uint8 (F, H, W, 3)")
    return frames
