"""One run of the conformance kit: the real trainer, stopped at a saved state after so many updates."""

import contextlib
import io
import itertools
import random
import signal
import unittest.mock
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from .. import assemble, checkpoint, track
from .. import recipe as recipes
from ..checkpoint import Position
from ..engine import Engine, Role
from ..errors import Stopped
from ..folder import RunFolder
from ..method import Frozen
from ..trainer import Trainer

SAVED = 130  # the exit code of a run that was asked to stop
seeds = itertools.count(1)


class Trial(Trainer):
    """A trainer that stops after so many updates and remembers what moved.

    Attributes:
        moved: for each update the network that it names, and those that are trained whose weights changed.
        thawed: frozen networks that are not as they were before the first update.
    """

    def __init__(self, recipe, engine: Engine, folder: Path, end: int):
        stop = StopAt()
        stop.trial, self.end, self.position = self, end, Position()  # it is asked while the data is made, too
        super().__init__(recipe, engine, folder, stop)
        self.moved: list[tuple[str, list[str]]] = []
        frozen = [name for name, kind in self.method.networks.items() if isinstance(kind, Frozen)]
        self.first = {name: weights(self.roles[name]) for name in frozen}

    @property
    def lines(self) -> list[dict]:
        """What the log says of each update."""
        return [line for line in track.read(self.folder) if line["kind"] == "update"]

    @property
    def thawed(self) -> list[str]:
        return [name for name, before in self.first.items() if changed(before, self.roles[name])]

    def _descend(self, update, *batches) -> dict:
        before = {name: weights(self.roles[name]) for name in assemble.trained(self.method)}
        line = super()._descend(update, *batches)
        self.moved.append((update.network, [name for name in before if changed(before[name], self.roles[name])]))
        return line


class StopAt:
    """Asks a trial to save and leave after its last update, as a signal would."""

    trial: Trial

    @property
    def signal(self) -> int:
        return signal.SIGTERM if self.trial.position.done >= self.trial.end else 0


def run(recipe: Path, end: int, overrides: Sequence[str] = ()) -> Trial:
    """Train a recipe, or go on with it, up to an update; what is printed and drawn outside of it changes nothing.

    Raises:
        Stopped: a loss was not finite.
    """
    checked = recipes.load(recipe, overrides)
    with quiet(), other_randomness():
        engine = Engine()
        with RunFolder(checked, engine) as folder:
            trial = Trial(checked, engine, folder.path, end)
            with saved():
                trial.train()
    return trial


@contextlib.contextmanager
def saved() -> Iterator[None]:
    """A run that stops because it was asked to is no failure."""
    try:
        yield
    except Stopped as stop:
        if stop.code != SAVED:
            raise


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """On the CPU, without output."""
    no_gpu = unittest.mock.patch("torch.cuda.is_available", lambda: False)
    nowhere = io.StringIO()
    output = contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere)
    with warnings.catch_warnings(), output[0], output[1], no_gpu:
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def other_randomness() -> Iterator[None]:
    """The generators that methods must not draw from are in another state each time."""
    before = random.getstate()
    with torch.random.fork_rng(devices=[]):
        seed = next(seeds)
        torch.manual_seed(seed)
        random.seed(seed)
        try:
            yield
        finally:
            random.setstate(before)


def weights(role: Role) -> list[Tensor]:
    return [each.clone() for each in role.module.state_dict().values()]


def changed(before: list[Tensor], role: Role) -> bool:
    return not all(map(same, before, role.module.state_dict().values()))


def numbers(folder: Path) -> dict[str, Tensor]:
    """Every number of a run's newest checkpoint, flat."""
    found: dict[str, Tensor] = {}
    for path in sorted(checkpoint.newest(folder, print).rglob("*")):
        if path.suffix == ".safetensors":
            found |= {f"{path.stem}.{key}": value for key, value in load_file(path).items()}
        elif path.suffix == ".pt":
            found |= flat(path.stem, checkpoint.load_state(path))
    return found


def same(one: Tensor, other: Tensor) -> bool:
    """Bit for bit, nan where the other is nan."""
    return one.shape == other.shape and bool(((one == other) | one.isnan() & other.isnan()).all())


def flat(name: str, value) -> dict[str, Tensor]:
    """The numbers in nested dicts and lists, under dotted names."""
    if isinstance(value, dict):
        return {k: v for key, inner in value.items() for k, v in flat(f"{name}.{key}", inner).items()}
    if isinstance(value, list | tuple):
        return {k: v for i, inner in enumerate(value) for k, v in flat(f"{name}.{i}", inner).items()}
    return {name: torch.as_tensor(value)} if isinstance(value, Tensor | int | float) else {}
