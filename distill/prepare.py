"""Encoding real videos into a store of latents. A clip depends on its video and the recipe alone."""

import dataclasses
from collections.abc import Sequence
from contextlib import closing
from functools import cached_property
from itertools import groupby, islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from . import survey, teachers
from .data import captions, footage, shards, table, videos
from .data.captions import Listed
from .data.footage import BadVideo
from .data.table import DROPPED, KEPT, Row
from .data.videos import Store
from .embedded import clips as embedded_clips
from .engine import Engine
from .errors import UserError
from .fill import Filler
from .progress import Watched
from .signals import StopRequest

CURATION, SOURCE = "curation", "source"  # folders in the store's
SHORT = "too short"  # begins reasons
BLANK = 8  # of 255: a frame in which no channel differs by more shows nothing


def run(recipe) -> Path:
    """Encode what a recipe's store lacks, replace what is damaged; returns the store.

    Raises:
        UserError: the recipe asks for something else than what the store holds, and nothing was changed; or no video
            is fit.
        Stopped: a signal came; what was prepared is kept.
    """
    engine = Engine()
    try:
        with StopRequest() as stop:
            return complete(recipe, teachers.load(recipe.teacher, recipe.video), engine, stop, repair=True).path
    finally:
        engine.close()


def complete(recipe, teacher, engine: Engine, stop: StopRequest, repair: bool = False) -> Store:
    """The recipe's store, with every clip that its source has; prepared now if it is not there.

    Args:
        repair: look at the contents of every shard, and encode damaged ones anew; without it they are an error.
    """
    with Preparer(recipe, teacher, engine, stop) as preparer:
        preparer.fill(repair)
        engine.main_first(preparer.conclude)
    teacher.unload()
    return Store(Path(recipe.data.videos.path))


def curate(recipe) -> Path:
    """Judge the source's videos, and encode none; returns the page that shows them."""
    with StopRequest() as stop:
        engine = Engine()
        with Preparer(recipe, None, engine, stop) as preparer:
            return preparer.curate()


class Preparer(Filler):
    """Context manager: holds the store while it is written to."""

    store, unit, units, doing = Store, "clip", "clips", "encoding"
    own = (CURATION, SOURCE, videos.FRAMES, table.TABLE, table.TABLE + shards.PARTIAL)

    def __init__(self, recipe, teacher, engine: Engine, stop: StopRequest):
        super().__init__(engine, stop)
        self.recipe, self.said, self.teacher = recipe, recipe.data.videos, teacher
        self.path, self.size = Path(self.said.path), self.said.shard

    @cached_property
    def rows(self) -> list[Row]:
        return table.read(self.path)

    @cached_property
    def places(self) -> list[tuple[Row, int]]:
        return table.places(self.rows)

    @property
    def total(self) -> int:
        return len(self.places)

    @cached_property
    def asked(self) -> dict:
        return videos.settings(self.recipe, self.teacher)

    @property
    def source(self) -> Path:
        """What lists the videos."""
        rendered = self.path / SOURCE / embedded_clips.CAPTIONS
        return Path(self.said.source) if self.said.domain is None else rendered

    # Opening, on the main process

    def _make(self) -> None:
        if shards.is_store(self.path):
            return
        rows = self._survey()
        table.write(self.path, rows)
        _check_some(self.path, rows)
        listing = {"listing": survey.digest(self.listed), "records": len(table.places(rows))}
        shards.create(self.path, self.asked | listing)

    @cached_property
    def listed(self) -> list[Listed]:
        """What the source lists; the embedded world's videos are rendered now, if they are not there."""
        if self.said.domain is not None:
            with Watched(self._look_up, "rendering", "video", self.said.clips) as progress:
                embedded_clips.write(self.path / SOURCE, self.said.domain, self.said.clips, progress.show)
        return captions.read(self.source)

    def _survey(self) -> list[Row]:
        return survey.survey(self.listed, self.recipe, self._look_up, self.path / CURATION)

    def _differences(self, store: Store, writing: bool = False) -> list[str]:
        faults = videos.differences(store, self.asked)
        needed = writing or store.missing(self.total, self.total)
        if faults or not (needed or self.source.exists()) or survey.digest(self.listed) == store.info["listing"]:
            return faults
        return [
            f"{self.path}: {self.source} lists other videos, or captions, than it was prepared from; {videos.OTHER}"
        ]

    def curate(self) -> Path:
        """The page that shows what curation thinks of each video."""
        self._hold()
        rows = self._together(self._survey)
        if not shards.is_store(self.path):
            table.write(self.path, rows)
        print("\n".join(table.summary(rows)), flush=True)
        _check_some(self.path, rows)
        return self.path / CURATION / "index.html"

    def conclude(self) -> None:
        """Write the verdicts into the table, and say them in short; UserError if no clip is fit."""
        rows = _judged(self.rows, Store(self.path))
        if rows != self.rows:
            if self._lock is None:
                self._hold()
            table.write(self.path, rows)
        if self._lock is not None:
            print("\n".join([*table.summary(rows), f"each with its reason: {self.path / table.TABLE}"]), flush=True)
        _check_some(self.path, rows)

    # A process's own work

    def _shard(self, samples: range) -> None:
        before, made = self._done(), []
        for row, places in groupby((self.places[sample] for sample in samples), lambda place: place[0]):
            made += self._clips(row, [clip for _, clip in places], before + len(made))
        records = [(row.video, clip, row.caption) for row, clip in (self.places[sample] for sample in samples)]
        videos.add(self.path, samples[0], records, made)

    def _clips(self, row: Row, wanted: Sequence[int], before: int) -> list[Tensor | str]:
        """The latents of a video's clips, which follow each other, or why they are not there.

        Args:
            before: how many are done, for the bar.
        """
        video, made = self.recipe.video, []
        path = survey.base(self.source) / Path(row.video).expanduser()
        part = {"first": wanted[0] * video.frames, "count": len(wanted) * video.frames}
        with closing(footage.stream(path, fps=video.fps, size=cover(row, video), **part)) as frames:
            try:
                for clip in wanted:
                    found = self._whole([centre(frame, video) for frame in islice(frames, video.frames)], clip)
                    made.append(found if isinstance(found, str) else self._encoded(found))
                    if self.teacher.takes_images and not isinstance(found, str):
                        videos.add_first_frame(self.path, row.video, clip, found[0])
                    self._look_up()
                    self.progress.show(min(before + len(made), self.total - 1))
                next(frames, None)  # there is none, but now it is known that no frame was damaged
            except BadVideo as error:
                return [str(error)] * len(wanted)
        return made

    def _whole(self, frames: list[np.ndarray], clip: int) -> np.ndarray | str:
        """A clip of as many frames as there should be, or why it is none."""
        video = self.recipe.video
        lacking = video.frames - len(frames)
        if lacking and not (self.said.short == "hold" and clip == 0 and frames):
            there = clip * video.frames + len(frames)
            return f"{SHORT}: {there} frames at {video.fps} fps for clips of {video.frames}"
        found = np.stack(frames + frames[-1:] * lacking)
        return "blank: every frame is of one colour" if is_blank(found) else found

    def _encoded(self, clip: np.ndarray) -> Tensor | str:
        """Latents (C, F, H, W) in the store's precision."""
        latents = self.teacher.encode_video(torch.from_numpy(clip)[None])[0]
        stored = latents.to(shards.DTYPES[self.said.precision])
        return stored if stored.isfinite().all() else "its latents are not finite"

    def _reached(self, what: str) -> str:
        if not shards.is_store(self.path):
            return f"the videos are not all looked at, and none is {what}"
        return super()._reached(what)


def cover(row: Row, video) -> tuple[int, int]:
    """(width, height) of a video that is scaled until a clip just fits into it."""
    scale = max(video.width / row.width, video.height / row.height)
    return max(video.width, round(row.width * scale)), max(video.height, round(row.height * scale))


def centre(frame: np.ndarray, video) -> np.ndarray:
    """The middle of a frame (H, W, 3)."""
    top, left = (frame.shape[0] - video.height) // 2, (frame.shape[1] - video.width) // 2
    return frame[top : top + video.height, left : left + video.width]


def is_blank(clip: np.ndarray) -> bool:
    """Whether each frame of a clip is of one colour, as black ones are."""
    return int((clip.max((1, 2)).astype(int) - clip.min((1, 2))).max()) <= BLANK


def _judged(rows: Sequence[Row], store: Store) -> list[Row]:
    """The rows with what became of their places."""
    outcomes = (reason for shard in store.shards for reason in shard.dropped)
    return [_verdict(row, list(islice(outcomes, row.places))) if row.places else row for row in rows]


def _verdict(row: Row, outcomes: list[str | None]) -> Row:
    clips = outcomes.count(None)
    faults = [why for why in outcomes if why and not (clips and why.startswith(SHORT))]  # the last clip may be one
    verdict = KEPT if clips else DROPPED
    return dataclasses.replace(row, clips=clips, verdict=verdict, reason=next(iter(faults), None))


def _check_some(path: Path, rows: Sequence[Row]) -> None:
    if all(row.verdict == DROPPED for row in rows):
        _, *reasons = table.summary(rows)
        said = ", ".join(" ".join(reason.split()) for reason in reasons)
        raise UserError(f"{path}: of {len(rows)} videos none is fit: {said}; see {path / table.TABLE}")
