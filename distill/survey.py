"""Which videos of a source a store is made from: all that can be said before the VAE is needed."""

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from .data import footage
from .data.captions import Listed
from .data.footage import BadVideo, Footage
from .data.table import Row
from .progress import Watched

AT_ONCE = 8  # files that are probed


def base(source: Path) -> Path:
    """Where the relative paths of a source start from."""
    return source if source.is_dir() else source.parent


def digest(listed: Sequence[Listed]) -> str:
    """Changes with the captions, paths and sizes of the videos that a source lists."""
    known = [(each.name, each.caption, _size(each.path)) for each in listed]
    return hashlib.sha256(json.dumps(known).encode()).hexdigest()[:16]


def survey(listed: Sequence[Listed], recipe, look_up: Callable[[], None], curation: Path) -> list[Row]:
    """A row for each video that a source lists; those with places are to be encoded.

    Args:
        look_up: is called now and then; what it raises ends the survey.
        curation: the folder of what curation measures.
    """
    found = _probe(listed, look_up)
    rows = [_row(each, what, recipe) for each, what in zip(listed, found, strict=True)]
    return _curated(listed, rows, found, recipe, look_up, curation) if recipe.data.videos.curation else rows


def _probe(listed: Sequence[Listed], look_up: Callable[[], None]) -> list[Footage | str]:
    """What each file shows, or why it shows nothing."""
    found = []
    with Watched(look_up, "looking at", "video", len(listed)) as progress, ThreadPoolExecutor(AT_ONCE) as threads:
        try:
            for what in threads.map(_look_at, listed):
                found.append(what)
                progress.show(len(found))
        except BaseException:
            threads.shutdown(cancel_futures=True)
            raise
    return found


def _look_at(listed: Listed) -> Footage | str:
    if listed.fault:
        return listed.fault
    try:
        return footage.probe(listed.path)
    except BadVideo as error:
        return str(error)
    except OSError as error:
        return f"cannot be read ({error.strerror})"


def _row(listed: Listed, found: Footage | str, recipe) -> Row:
    row = Row(listed.name, listed.where, listed.caption, _size(listed.path))
    if isinstance(found, str):
        return row.dropped(found)
    facts = {"width": found.width, "height": found.height, "fps": found.fps, "seconds": found.seconds}
    row = replace(row, **facts, places=places(found, recipe))
    video = recipe.video
    if (found.width < video.width or found.height < video.height) and not recipe.data.videos.upscale:
        return row.dropped(f"too small: {found.width}x{found.height} pixels for clips of {video.width}x{video.height}")
    return row


def places(found: Footage, recipe) -> int:
    """How many clips a video has room for, by what its container says, as far as they are wanted; at least one."""
    said, video = recipe.data.videos, recipe.video
    room = int((found.seconds * video.fps + 1) / video.frames)  # a length is rounded, and by less than a frame
    return max(1, min(room, math.inf if said.per_video == "all" else said.per_video))


def _curated(
    listed: Sequence[Listed], rows: list[Row], found: Sequence[Footage | str], recipe, look_up, folder: Path
) -> list[Row]:
    """Those that are not good enough dropped, too."""
    from . import curate  # imports OpenCV

    left = [i for i, row in enumerate(rows) if row.places]
    videos = [found[i] for i in left]
    unmeasured = {each.path: row.reason for each, row in zip(listed, rows, strict=True) if not row.places}
    with Watched(look_up, "measuring", "video", len(videos)) as progress:
        judged = curate.judge(
            videos, recipe.data.videos.curation, folder, recipe.video.fps, progress, unmeasured=unmeasured
        )
    verdicts = dict(zip(left, judged, strict=True))
    return [row.dropped(verdicts[i]) if verdicts.get(i) else row for i, row in enumerate(rows)]


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None
