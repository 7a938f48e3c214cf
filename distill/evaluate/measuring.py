"""One batch of an evaluation: every sampler's clips from the same noise, and what is measured of them."""

import importlib.util
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from .. import disk, image_prompt
from ..batch import Condition, generator
from ..data.prompts import Embeddings
from ..engine import Engine, Role
from ..networks import Net
from ..recipe import Video
from ..teachers.base import Teacher
from . import kept, metrics, world
from .asked import Asked, digest
from .columns import Column

VERSION = 1  # of what is kept: raise it where the same settings give other latents than before
NOISE, DEPTH = 0.1, 2 / 3  # features are those of latents at this noise level, after this share of the blocks


@dataclass
class Setting:
    """What does not change from batch to batch.

    Attributes:
        pipeline: the teacher, which decodes the clips.
        shift: of the teacher's noise levels.
        net: the teacher's network; its hidden states are the features that sets of clips are compared by.
        columns: the teacher's, then the student's.
        roles: networks whose evaluations are counted.
        look_up: raises where the work is to end early.
        asking: the processes, while they ask networks together (`sample`).
    """

    pipeline: Teacher
    net: Net
    embeddings: Embeddings
    asked: Asked
    video: Video
    shift: float
    columns: list[Column]
    roles: list[Role]
    look_up: Callable[[], None] = field(default=lambda: None)
    asking: Engine | None = None

    @property
    def device(self) -> torch.device:
        return self.net.role.device

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return self.pipeline.latent_shape(self.video.frames, self.video.height, self.video.width)

    @property
    def clock(self) -> str:
        """CPU seconds do not count what else the machine does; a GPU only has a wall clock."""
        return "wall" if self.device.type == "cuda" else "cpu"

    @property
    def reference(self) -> Column:
        return next(column for column in self.columns if column.name == f"teacher_{self.asked.many}")

    @property
    def compares_sets(self) -> bool:
        return any(metric.kind == "set" for metric in self.asked.measures())

    def evaluations(self) -> int:
        return sum(role.evaluations for role in self.roles)

    def now(self) -> float:
        if self.clock == "cpu":
            return time.process_time()
        torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def folder(self, column: Column) -> Path:
        """Of what is kept of a sampler."""
        same = {"version": VERSION, "shape": self.shape, "device": self.device.type, "seed": self.asked.seed}
        return kept.folder() / "clips" / digest(column.identity, same)

    def flop(self, column: Column) -> int:
        """Floating-point operations of one clip, the decoder not counted."""
        path = self.folder(column) / "flop.json"
        return self.keep(kept.values, path, lambda: {"flop": self._flop(column)})["flop"]

    def keep(self, how: Callable, path: Path, make: Callable[[], dict]) -> dict:
        """kept.tensors or kept.values of what networks are asked for."""
        return how(path, make) if self.asking is None else kept.together(how, path, make, self.asking)

    @torch.no_grad()
    def _flop(self, column: Column) -> int:
        batch, on_cpu = Batch(self, range(1)), self.device.type == "cpu"  # whose own attention kernel is not counted
        with ExitStack() as plain, FlopCounterMode(display=False) as counter:
            for role in self.roles:
                plain.enter_context(role.plainly())
            if on_cpu:
                plain.enter_context(sdpa_kernel(SDPBackend.MATH))
            column.sample(batch.noise, batch.cond)
        return counter.get_total_flops()


class Batch:
    """Some samples of an evaluation. What is kept of them is not made again."""

    def __init__(self, setting: Setting, rows: range):
        self.setting, self.rows = setting, rows
        self.captions = setting.asked.captions(rows)
        told = [image_prompt.text(caption) for caption in self.captions], image_prompt.contents(self.captions)
        self.name = f"{rows.start:05d}-{rows.stop:05d}_{digest(*told)}"

    @cached_property
    def noise(self) -> Tensor:
        return self._draw("evaluation").to(self.setting.device)

    def _draw(self, purpose: str) -> Tensor:
        seed, shape = self.setting.asked.seed, self.setting.shape
        return torch.stack([torch.randn(shape, generator=generator(purpose, seed, j)) for j in self.rows])

    @cached_property
    def cond(self) -> Condition:
        return self.setting.embeddings.get(self.captions).to(self.setting.device)

    def sampled(self, column: Column) -> dict[str, Tensor]:
        """Latents (B, C, F, H, W), and what each clip took: (B, 2), seconds and network evaluations."""
        return self.setting.keep(kept.tensors, self._file(column), partial(self._sample, column))

    def _file(self, column: Column) -> Path:
        return self.setting.folder(column) / f"{self.name}.safetensors"

    @torch.no_grad()
    def _sample(self, column: Column) -> dict[str, Tensor]:
        setting, n = self.setting, len(self.rows)
        noise, cond = self.noise, self.cond  # before the clock starts
        started, evaluations = setting.now(), setting.evaluations()
        latents = column.sample(noise, cond).float().cpu().contiguous()
        seconds, evaluations = setting.now() - started, setting.evaluations() - evaluations
        return {"latents": latents, "cost": torch.tensor([[seconds / n, evaluations / n]] * n, dtype=torch.float64)}

    def features(self, column: Column) -> Tensor:
        """(B, D): the teacher's hidden states of lightly noised latents, averaged over their tokens."""
        path = self._file(column).with_suffix(f".features_{digest(self._features_of)}.safetensors")
        return self.setting.keep(kept.tensors, path, lambda: {"features": self._features(column)})["features"]

    @property
    def _features_of(self) -> list:
        role = self.setting.net.role
        return [self.setting.pipeline.fingerprint, role.precision, str(role.dtype), NOISE, DEPTH]

    @torch.no_grad()
    def _features(self, column: Column) -> Tensor:
        x, sigma = self.sampled(column)["latents"], torch.full((len(self.rows),), NOISE)
        noisy = (1 - NOISE) * x + NOISE * self._draw("evaluation features")
        layer = max(1, round(DEPTH * self.setting.pipeline.depth))
        (hidden,) = self.setting.net.features(noisy.to(self.setting.device), sigma, self.cond, [layer])
        return hidden.mean((2, 3, 4)).float().cpu()

    @cached_property
    def _reference_video(self) -> np.ndarray:
        return self._decoded(self.setting.reference)

    def _decoded(self, column: Column) -> np.ndarray:
        return self.setting.pipeline.decode(self.sampled(column)["latents"]).numpy()

    def measured(self, column: Column) -> dict:
        """`values`: per measure, one number per sample or None; `failures`: measure, sample and reason of some."""
        asked, names = self.setting.asked, [metric.name for metric in self.setting.asked.measures()]
        on = [self.setting.folder(column).name, self.setting.folder(self.setting.reference).name, self.name]
        key = digest(on, names, asked.metrics, asked.world, self.setting.video.fps, kept.code(), plugged(names))
        return kept.values(kept.folder() / "values" / key[:2] / f"{key}.json", lambda: self._measure(column))

    def _measure(self, column: Column) -> dict:
        asked, made = self.setting.asked, self.sampled(column)
        video = self._reference_video if column is self.setting.reference else self._decoded(column)
        x, y = made["latents"], self.sampled(self.setting.reference)["latents"]
        seconds, evaluations = made["cost"].T.tolist()
        values = {"seconds": seconds, "evaluations": evaluations}
        measures, failures = [metric for metric in asked.measures() if metric.kind in ("clip", "pair")], []
        values |= {metric.name: [] for metric in measures}
        for j, *clip in zip(self.rows, x, y, video, self._reference_video, self.captions, strict=True):
            for metric in measures:
                value, why = tried(partial(self._one, metric, *clip))
                values[metric.name].append(value)
                failures += [[metric.name, j, why]] * (why is not None)
        return {"values": values | self._world(video), "failures": failures}

    def _one(self, metric: metrics.Metric, x: Tensor, y: Tensor, video, reference, caption: str) -> float:
        told = {"fps": self.setting.video.fps, "prompt": image_prompt.text(caption)}
        if metric.kind == "pair":
            return metrics.of_pair([metric.name], x, y, video, reference, **told)[metric.name]
        return metrics.of_clip([metric.name], video, **told)[metric.name]

    def _world(self, video: np.ndarray) -> dict[str, list[float | None]]:
        if not self.setting.asked.world:
            return {}
        return {name: list(map(number, v)) for name, v in world.score(video, self.captions).items()}


def tried(measure: Callable[[], float]) -> tuple[float | None, str | None]:
    """A number, None where there is none; and why a clip could not be measured."""
    try:
        return number(measure()), None
    except ValueError as error:
        return None, str(error)
    except Exception as error:  # a user's metric may raise anything, and one clip must not end an evaluation
        return None, f"{type(error).__name__}: {error}"


def plugged(names: Sequence[str]) -> list[str]:
    """What changes with the code of users' metrics, `package.module:function`, and with the weights of others."""
    modules = sorted({name.partition(":")[0] for name in names if ":" in name})
    files = [importlib.util.find_spec(module).origin for module in modules]
    return [disk.sha256(Path(file)) for file in files] + list(metrics.weights_of(names).values())


def number(value: float) -> float | None:
    """None for nan: the measure says nothing about the clip."""
    return None if np.isnan(value) else float(value)


def parts(setting: Setting, batches: Sequence[range]) -> Iterator[dict]:
    """For every batch: `prompt`, an index for each sample; per sampler what is `measured`, and its `features`."""
    sets = setting.compares_sets
    for rows in batches:
        batch, samplers = Batch(setting, rows), {}
        for column in setting.columns:
            setting.look_up()
            samplers[column.name] = batch.measured(column)
            samplers[column.name]["features"] = batch.features(column).numpy() if sets else None
        yield {"prompt": [j % len(setting.asked.prompts) for j in rows], "samplers": samplers}


def sample(setting: Setting, engine: Engine, together: Callable[[Callable[[], None]], None]) -> None:
    """Ask networks in pieces, all processes together, for everything that is wanted of them; then it is kept.

    Args:
        together: does work on each process, and ends it on all where it ends on one (fidelity.together).
    """
    setting.asking = engine
    for rows in setting.asked.batches():
        batch = Batch(setting, rows)
        for column in setting.columns:
            together(setting.look_up)
            batch.sampled(column)
            if setting.compares_sets:
                batch.features(column)
    for column in setting.columns:
        setting.flop(column)
    setting.asking = None


def latents(setting: Setting, column: Column, rows: Sequence[int]) -> Tensor:
    """(N, C, F, H, W) of these samples, from what is kept of their batches."""
    found = {}
    for batch in setting.asked.batches():
        if wanted := [j for j in rows if j in batch]:
            made = Batch(setting, batch).sampled(column)["latents"]
            found |= {j: made[j - batch.start] for j in wanted}
    return torch.stack([found[j] for j in rows])
