"""Video files for tests: lossless ones of known frames, and odd ones, made with FFmpeg."""

import subprocess
from pathlib import Path

import imageio_ffmpeg
import numpy as np

LOSSLESS = ("-c:v", "ffv1", "-pix_fmt", "bgr0")


def ffmpeg(*arguments: str | Path, data: bytes | None = None) -> None:
    line = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", *map(str, arguments)]
    subprocess.run(line, input=data, check=True, stdin=None if data is not None else subprocess.DEVNULL)


def write(path: Path, clip: np.ndarray, fps: float = 8, *output: str, codec: tuple[str, ...] = LOSSLESS) -> Path:
    """A file (.mkv if lossless) of these frames, uint8 (N, H, W, 3)."""
    size = f"{clip.shape[2]}x{clip.shape[1]}"
    source = ("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", size, "-r", str(fps), "-i", "-")
    ffmpeg(*source, *codec, *output, path, data=np.ascontiguousarray(clip).tobytes())
    return path


def noise(frames: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (frames, height, width, 3), np.uint8)


def levels(frames: int, height: int = 32, width: int = 48) -> np.ndarray:
    """Frame i tells its number: one pixel in four is white, the others are of grey level 5 i."""
    clip = np.repeat(np.arange(frames, dtype=np.uint8) * 5, height * width * 3).reshape(frames, height, width, 3)
    clip[:, ::2, ::2] = 255
    return clip


def numbers(clip: np.ndarray) -> list[int]:
    """The numbers that the frames of `levels` tell, at any size."""
    return [round(float(np.median(frame)) / 5) for frame in clip]
