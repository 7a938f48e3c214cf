"""Curation: which videos are fit to learn from, measured, judged and shown (docs/curation.md)."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from .. import disk
from ..data.footage import Footage
from ..data.spec import Curation
from ..progress import Progress
from . import page, pool, scorers, survey, verdicts
from .records import Records
from .survey import Survey


def judge(
    videos: Sequence[Footage],
    curation: Curation,
    folder: Path,
    fps: float,
    progress: Progress,
    *,
    unmeasured: Mapping[Path, str] | None = None,
    processes: int | None = None,
) -> list[str | None]:
    """Why each video is dropped, or None; FOLDER/index.html shows all of them.

    Args:
        folder: keeps what was measured, for the next time.
        fps: of the training clips.
        progress: told how many videos are measured; if it raises, what was measured is kept.
        unmeasured: files that were dropped before, with the reason, for the page.
        processes: that measure; None takes as many as there are cores.

    Raises:
        UserError: a scorer does not work, or the folder cannot be used.
    """
    rate = fps if curation.motion_at == "training" else None
    named = {key: name for key in verdicts.RANKED if (name := getattr(curation, f"{key}_by"))}
    plugs = {key: scorers.load(f"data.videos.curation.{key}_by", name) for key, name in named.items()}
    (folder / survey.STILLS).mkdir(parents=True, exist_ok=True)
    with disk.hold(folder, f"{folder} is in use by {{holder}}; wait for it"), Records(folder) as records:
        known = Survey(videos, folder, rate, records)
        known.measure(progress, processes or pool.cores())
        for key, scorer in plugs.items():
            known.score(key, named[key], scorer, progress)
        found = [known.result(video, named) for video in videos]
        reasons = verdicts.judge(found, curation)
        page.write(folder, found, reasons, curation, unmeasured or {}, rate)
    return reasons
