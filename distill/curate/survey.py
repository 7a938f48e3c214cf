"""Every video measured that is not yet: the weight-free signals over all cores, a user's scorers in this process."""

import contextlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from ..data.footage import BadVideo, Footage
from ..errors import UserError
from ..progress import Progress
from . import measure, pool
from .records import Records, identity
from .scorers import BadScore, Scorer
from .verdicts import Measured

METHOD = "opencv 1"  # counts up when a signal is defined anew: then all is measured again
STILLS = "stills"

# {"values": signals}, {"bad": why there are none}, or {"failed": why not this time}, which is not kept
Outcome = dict


class Survey:
    """What is known of some videos.

    Args:
        folder: has the stills.
        rate: frames per second that motion is measured at; None: each video's own.
    """

    def __init__(self, videos: Sequence[Footage], folder: Path, rate: float | None, records: Records):
        self.folder, self.rate, self.records = folder, rate, records
        self.by = f"{METHOD}, motion at {f'{rate:g} fps' if rate else 'native rate'}"
        self.ids: dict[Footage, str] = {}
        self.failed: dict[tuple[Footage, str], str] = {}  # (video, what was to measure it) -> why it did not
        for video in videos:
            try:
                self.ids[video] = identity(video.path)
            except OSError as error:
                self.failed[video, self.by] = f"{error.strerror or error}"

    def measure(self, progress: Progress, processes: int) -> None:
        """All that needs no weights."""
        missing = [(video, self.still(video)) for video in self.ids if not self._is_measured(video)]
        progress.done = len(self.ids) - len(missing)
        progress.show(progress.done)
        work = partial(outcome, rate=self.rate)
        alone = processes == 1 or len(missing) == 1
        found = ((item, work(item)) for item in missing) if alone else pool.over(work, missing, processes)
        with contextlib.closing(found):  # an interruption waits for its processes
            for left, ((video, _), each) in enumerate(found, 1 - len(missing)):
                self._keep(video, self.by, {"failed": str(each)} if isinstance(each, pool.Died) else each)
                progress.show(len(self.ids) + left)

    def score(self, key: str, name: str, scorer: Scorer, progress: Progress) -> None:
        """One signal by a function of the user's.

        Raises:
            UserError: it could not score a single video.
        """
        by = self._scored_by(key, name)
        missing = [v for v in self.ids if self._values(v, self.by) and not self._values(v, by)]
        if missing:
            progress.say(f"scoring {key} with {name}")
        for left, video in enumerate(missing, 1 - len(missing)):
            self._keep(video, by, score(video, self.rate, key, scorer))
            progress.show(len(self.ids) + left)
        if missing and all((video, by) in self.failed for video in missing):
            fault = self.failed[missing[0], by]
            raise UserError(f"data.videos.curation.{key}_by: {name} {fault}, with {missing[0].path}")

    def result(self, video: Footage, plugs: dict[str, str]) -> Measured:
        """What was found.

        Args:
            plugs: signal -> the name of its scorer.
        """
        line = self.records.get(self.ids.get(video, ""), self.by) or {}
        if (video, self.by) in self.failed or "bad" in line:
            return Measured(video, bad=self.failed.get((video, self.by)) or line["bad"])
        values, unscored = dict(line["values"]), {}
        for key, name in plugs.items():
            by = self._scored_by(key, name)
            if (video, by) in self.failed:
                unscored[key] = f"{name} {self.failed[video, by]}"
                del values[key]
            else:
                values |= self._values(video, by)
        return Measured(video, values, still=self.still(video), unscored=unscored)

    def still(self, video: Footage) -> Path:
        return self.folder / STILLS / f"{self.ids[video]}.jpg"

    def _is_measured(self, video: Footage) -> bool:
        line = self.records.get(self.ids[video], self.by)
        return line is not None and ("bad" in line or self.still(video).exists())

    def _values(self, video: Footage, by: str) -> dict:
        return (self.records.get(self.ids[video], by) or {}).get("values", {})

    def _scored_by(self, key: str, name: str) -> str:
        return f"{key} by {name}, {self.by}"

    def _keep(self, video: Footage, by: str, found: Outcome) -> None:
        if "failed" in found:
            self.failed[video, by] = found["failed"]
        else:
            self.records.add(self.ids[video], video.path, by, found)


def outcome(item: tuple[Footage, Path], rate: float | None) -> Outcome:
    """A video measured, and its still written."""
    video, still = item
    try:
        return {"values": measure.video(video, rate, still)}
    except BadVideo as error:
        return {"bad": str(error)}
    except (OSError, UserError) as error:  # the disk, or an FFmpeg that was killed
        return {"failed": str(error)}
    except MemoryError:
        return {"failed": f"not enough memory for {video.width}x{video.height} pixels"}


def score(video: Footage, rate: float | None, key: str, scorer: Scorer) -> Outcome:
    try:
        return {"values": measure.scored(video, rate, key, scorer)}
    except (BadVideo, OSError, UserError) as error:
        return {"failed": f"had nothing to score: {error}"}
    except BadScore as error:
        return {"failed": str(error)}
