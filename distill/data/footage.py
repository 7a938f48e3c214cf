"""Video files as frames, through FFmpeg: it turns what is filmed upright, chooses among streams, and keeps time.

An error anywhere in what is read is an error of the whole: a picture that is patched up by guessing never becomes data.
"""

import re
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import imageio_ffmpeg
import numpy as np

from ..errors import UserError

SIZE = re.compile(r", (\d+)x(\d+)")
SHAPE = re.compile(r"SAR (\d+):(\d+)")  # of a pixel
RATE = re.compile(r"([\d.]+)(k?) (?:fps|tbr)")  # tbr, a guess, behind fps
LENGTH = re.compile(r"Duration: (\d+):(\d+):([\d.]+)")
REACHED = re.compile(r"time=(\d+):(\d+):([\d.]+)")
COUNT = re.compile(r"frame= *(\d+)")
CHOSEN = re.compile(r"Stream mapping:\s+Stream (#\d+:\d+) ->")
INPUT = re.compile(r"Input #0, (\S+), from")
ORIGIN = re.compile(r"^\[[^\]]*\] ")  # of a message, e.g. [h264 @ 0x55f4]
CRASHES = (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL)
ENDED = 255  # FFmpeg's own code when it was told to leave
STRICT = ["-xerror", "-err_detect", "explode"]
MARGIN = 1.0  # seconds that are read behind the last frame that is wanted; frames are not stored in their order
VIDEO_ALONE = ["-an", "-sn", "-dn"]
EXACT = "accurate_rnd+full_chroma_int+full_chroma_inp"


class BadVideo(ValueError):
    """Why a file cannot be used, without its path."""


@dataclass(frozen=True)
class Footage:
    """A video as it is displayed: turned upright, its pixels square.

    Attributes:
        fps: on average, where the frame rate varies.
        seconds: of the longest stream, sound included, if the container says how long it is.
        pixel: width over height of a pixel as it is stored.
    """

    path: Path
    width: int
    height: int
    fps: float
    seconds: float
    pixel: float = 1.0


def probe(path: Path) -> Footage:
    """What a file shows; its first frame is decoded.

    Raises:
        BadVideo: it has no frame, or is no video at all.
    """
    if not path.stat().st_size:
        raise BadVideo("it is empty (0 bytes)")
    said = _inspect(path, "-frames:v", "1")
    if (chosen := CHOSEN.search(said)) is None:
        raise BadVideo("no video stream" if INPUT.search(said) else f"not a video ({_cause(said)})")
    source, shown = _streams(said, chosen[1])
    if INPUT.search(said)[1].endswith("_pipe") or "(attached pic)" in source:
        raise BadVideo("a picture, not a video")
    decoded = COUNT.findall(said)[-1:]  # it may also say 0 before its first frame
    if not (size := SIZE.search(shown)) or decoded == ["0"]:
        raise BadVideo(f"no frame can be decoded ({_cause(said)})")
    width, height = int(size[1]), int(size[2])
    pixel = _pixel(shown)
    return Footage(path, max(1, round(width * pixel)), height, _rate(source), _seconds(path, said), pixel)


def stream(
    path: Path,
    *,
    fps: float | None = None,
    first: int = 0,
    count: int | None = None,
    size: tuple[int, int] | None = None,
) -> Iterator[np.ndarray]:
    """A video's frames one by one, uint8 (H, W, 3), RGB.

    Args:
        fps: frames are repeated or left out to this rate; None takes them as they are stored.
        first: so many frames, at that rate, are skipped.
        count: of frames, at most; at a rate, what lies MARGIN behind them is not read.
        size: (width, height) in pixels to scale to; shrinking averages over areas.

    Raises:
        BadVideo: the file is damaged somewhere in what is read, or has no frames. Frames may come before it is known.
    """
    footage = probe(path)
    width, height = size or (footage.width, footage.height)
    filters = [f"fps={fps:.9g}"] if fps else []
    filters += [f"trim=start_frame={first}"] if first else []
    filters += [_scale(footage, width, height)] if size or footage.pixel != 1 else []
    chosen = ["-vf", ",".join(filters)] if filters else []
    limit = []
    if count is not None:  # a rate tells when to stop, so that damage behind that never matters, and before it always
        limit = ["-t", f"{(first + count) / fps + MARGIN:.6f}"] if fps else []
        chosen += [] if fps else ["-frames:v", str(count)]
    found = 0
    for data in _read(path, limit, [*chosen, "-fps_mode", "passthrough"], width * height * 3):
        if count is None or found < count:
            yield np.frombuffer(data, np.uint8).reshape(height, width, 3)
        found += 1
    if not found and not first:
        raise BadVideo("no frame can be decoded")


def frames(
    path: Path,
    *,
    fps: float | None = None,
    first: int = 0,
    count: int | None = None,
    size: tuple[int, int] | None = None,
) -> np.ndarray:
    """All that `stream` yields, uint8 (N, H, W, 3)."""
    found = list(stream(path, fps=fps, first=first, count=count, size=size))
    return np.stack(found) if found else np.zeros((0, *(size or (0, 0))[::-1], 3), np.uint8)


def _command(path: Path, before: list[str], after: list[str]) -> list[str]:
    """FFmpeg's; a path is one of a file, whatever it looks like, and what a file refers to elsewhere is not fetched."""
    source = [*before, "-i", f"file:{path}", *VIDEO_ALONE]
    return [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-nostdin", *source, *after]


def _inspect(path: Path, *arguments: str) -> str:
    """What FFmpeg says of a file that it decodes for nobody."""
    command = _command(path, [], [*arguments, "-f", "null", "-"])
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)
    _check_lived(path, done.returncode)
    return done.stderr.decode("utf-8", "replace")


def _read(path: Path, limit: list[str], arguments: list[str], size: int) -> Iterator[bytes]:
    """So many bytes at a time of the pictures that FFmpeg makes of a file."""
    output = [*arguments, "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    command = _command(path, ["-v", "error", *STRICT, *limit], output)
    with tempfile.TemporaryFile() as said:
        # a session of its own: Ctrl-C must not look like a damaged file
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=said, start_new_session=True)
        try:
            while len(data := process.stdout.read(size)) == size:
                yield data
            _check_ended(path, process.wait(), said)
        finally:
            process.kill()
            process.stdout.close()
            process.wait()


def _check_ended(path: Path, code: int, said: IO[bytes]) -> None:
    _check_lived(path, code)
    if code:
        said.seek(0)
        raise BadVideo(f"damaged ({_cause(said.read().decode('utf-8', 'replace'))})")


def _check_lived(path: Path, code: int) -> None:
    if -code in CRASHES:
        raise BadVideo(f"FFmpeg crashed ({signal.Signals(-code).name})")
    if code < 0 or code == ENDED:  # says nothing about the file
        how = f"killed by signal {-code} (9: perhaps for want of memory)" if code < 0 else "told to end"
        raise UserError(f"{path}: FFmpeg was {how}; try again")


def _cause(said: str) -> str:
    """The first line of what FFmpeg said that tells of an error."""
    lines = [ORIGIN.sub("", line.strip()) for line in said.splitlines() if line.startswith("[")]
    told = [line for line in lines if "misdetection" not in line and "Error opening" not in line]
    return (told or ["FFmpeg does not say why"])[0]


def _streams(said: str, chosen: str) -> tuple[str, str]:
    """What is said of the stream that was chosen, and of what is made of it."""
    source, _, made = said.partition("Stream mapping:")
    lines = [line for line in source.splitlines() if re.search(rf"Stream {chosen}\D", line)]
    shown = [line for line in made.splitlines() if "Video: wrapped_avframe" in line]
    return lines[0], (shown or [""])[0]


def _pixel(shown: str) -> float:
    found = SHAPE.search(shown)
    wide, high = map(int, found.groups()) if found else (1, 1)
    return wide / high if wide and high else 1.0


def _rate(source: str) -> float:
    """Frames per second."""
    found = RATE.search(source)
    return float(found[1]) * (1000 if found[2] else 1) if found else 0.0


def _seconds(path: Path, said: str) -> float:
    """As the container says, or else counted."""
    found = LENGTH.search(said) or next(reversed(list(REACHED.finditer(_inspect(path)))), None)
    hours, minutes, seconds = map(float, found.groups()) if found else (0, 0, 0)
    return 3600 * hours + 60 * minutes + seconds


def _scale(footage: Footage, width: int, height: int) -> str:
    shrinks = width <= footage.width and height <= footage.height
    return f"scale={width}:{height}:flags={'area' if shrinks else 'bicubic'}+{EXACT},setsar=1"
