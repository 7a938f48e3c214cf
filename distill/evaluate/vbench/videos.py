"""Making the videos of a suite, or going on where it stopped.

A video is what `distill sample SOURCE --prompt TEXT --seed SEED` makes, text and seed as its record has them.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor

from ... import video
from ...data.prompts import Embeddings
from ...engine import Engine
from ...errors import Stopped, UserError
from ...progress import Progress
from ...sample import Source, open_source
from ...signals import StopRequest
from .. import kept, metrics
from . import layout, made
from .layout import Layout, Wanted
from .suites import FLICKERING

FORMAT = 1
PASSED_OVER = (RuntimeError, ValueError)  # of one prompt; a full disk stops the rest as well


def write(
    source: str,
    info: Path,
    folder: Path,
    *,
    extended: Path | None = None,
    short: Path | None = None,
    dimensions: Sequence[str] = (),
    steps: int | None = None,
    guidance: float | None = None,
    seed: int = 0,
) -> tuple[str, ...]:
    """Make the videos that dimensions are measured on; every process takes its share.

    Returns a line for each prompt that can have none.

    Args:
        source: a run, a pipeline's folder, or `embedded`.
        info, extended, short: see layout.read.
        dimensions: by name; none are all of them.
        steps, guidance: None is what the source has.
        seed: of the first prompt's first video; the others' follow.

    Raises:
        UserError: some cannot be made; the others are.
    """
    engine = Engine()
    try:
        case_blind = engine.main_first(lambda: made.prepare(folder))
        asked = layout.read(info, extended, short, same_case=case_blind)
        wanted = asked.wanted(asked.chosen(dimensions), seed)
        with StopRequest() as stop, ExitStack() as held:
            engine.main_first(lambda: _hold(folder, held))
            opened = open_source(source)
            said = settings(source, opened, asked, steps, guidance, seed)
            engine.main_first(lambda: made.agree(folder, said, info))
            maker = _Maker(opened, opened.sampler(steps, guidance), folder, engine.rank, stop)
            maker.make(_works(wanted)[engine.rank :: engine.world])
        engine.wait()
        engine.main_first(lambda: made.complain(folder, wanted))
        return asked.faults
    finally:
        engine.close()


def _hold(folder: Path, held: ExitStack) -> None:
    held.enter_context(made.hold(folder))


def settings(source: str, opened: Source, asked: Layout, steps: int | None, guidance: float | None, seed: int) -> dict:
    """All that the videos of a folder depend on, but which dimensions are asked for."""
    return {
        "format": FORMAT,
        "suite": asked.suite.name,
        "source": Path(source).name,
        "weights": kept.weights(opened.net.role.module),
        "teacher": opened.teacher.fingerprint,
        "steps": steps or opened.steps,
        "guidance": opened.guidance if guidance is None else guidance,
        "shift": opened.shift,
        "levels": None if opened.levels is None else opened.levels.tolist(),
        "renoises": opened.renoises,
        "video": opened.video.model_dump(),
        "negative_prompt": opened.negative_prompt,
        "seed": seed,
        "prompts": asked.digest,
        "extended": asked.extended,
    }


def _works(wanted: Sequence[Wanted]) -> list[list[Wanted]]:
    """Files of the same text and seed are one video."""
    works: dict[tuple[str, int], list[Wanted]] = {}
    for each in wanted:
        works.setdefault((each.text, each.seed), []).append(each)
    return list(works.values())


class _Maker:
    """Makes the videos of one process."""

    def __init__(self, opened: Source, sampler: Callable, folder: Path, rank: int, stop: StopRequest):
        self.opened, self.sampler, self.folder, self.stop = opened, sampler, folder, stop
        self.embeddings, self.records = Embeddings(opened.teacher), made.Records(folder, rank)
        self.silent = rank > 0

    @torch.no_grad()
    def make(self, works: list[list[Wanted]]) -> None:
        todo = [files for files in works if not all(map(self.records.is_whole, files))]
        faults = self._encode([files[0].text for files in todo])
        self.opened.teacher.unload()
        done = len(works) - len(todo)
        with Progress("sampling", "video", len(works), done, self.silent) as progress:
            for i, files in enumerate(todo, done + 1):
                fault = faults.get(files[0].text) or self._write(files)
                if fault:
                    self.records.fault(files, fault)
                progress.show(i)
                if self.stop.signal:
                    raise Stopped(f"stopped; the same command goes on in {self.folder}", 128 + self.stop.signal)

    def _encode(self, texts: list[str]) -> dict[str, str]:
        """Encode them, and return why some cannot be."""
        try:
            self.embeddings.prepare(texts)
            return {}
        except PASSED_OVER:
            faults = {}
        for text in dict.fromkeys(texts):
            try:
                self.embeddings.prepare([text])
            except PASSED_OVER as error:
                faults[text] = _line(error)
        return faults

    def _write(self, files: list[Wanted]) -> str | None:
        """Write a video to its file, or files; why that failed."""
        fps = self.opened.video.fps
        try:
            path = video.write(self.records.scratch, self._clip(files[0]), fps)
            flickers = any(each.file.startswith(f"{FLICKERING}/") for each in files)
            more = metrics.of_clip(["flicker"], video.read(path), fps) if flickers else {}
        except PASSED_OVER as error:
            return _line(error)
        self.records.take(path, files, more)
        return None

    def _clip(self, wanted: Wanted) -> Tensor:
        cond = self.embeddings.get([wanted.text]).to(self.opened.teacher.device)
        return self.opened.teacher.decode(self.sampler(self.opened.noise(wanted.seed), cond))[0]


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0] if not isinstance(error, UserError) else str(error)
