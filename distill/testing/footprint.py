"""What evaluations really keep in memory, measured on the CPU: what plans are held against."""

import contextlib
import unittest.mock
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from ..descent import descend
from ..engine import Engine, Role
from ..folder import RunFolder
from ..recipe import Recipe
from .trial import Trial, saved


@dataclass
class Kept:
    """Of one network, in bytes."""

    weights: int = 0
    gradients: int = 0
    optimizer: int = 0


@dataclass
class Measured:
    """Of a run.

    Attributes:
        held: network -> the most that waited for a backward pass in an update of it.
        peaks: network -> the most that an update of it allocated at a time.
    """

    networks: dict[str, Kept]
    held: dict[str, int]
    peaks: dict[str, int]


def of_run(recipe: Recipe, updates: int, peaks: bool = False) -> Measured:
    """What the first updates of a recipe keep, in one process; its folder is written.

    Args:
        peaks: also look at every allocation, which takes time.
    """
    found = Measured({}, {}, {})
    engine = Engine()
    with RunFolder(recipe, engine) as folder:
        run = Trial(recipe, engine, folder.path, updates)
        found.networks = {name: Kept() for name in run.roles}
        with _watched(found, run, peaks), saved():
            run.train()
        for name, role in run.roles.items():
            found.networks[name].weights = _bytes(role.parameters)
            if role.optimizer is not None:
                found.networks[name].optimizer = _bytes(_moments(role.optimizer))
    return found


@contextlib.contextmanager
def _watched(found: Measured, run: Trial, peaks: bool) -> Iterator[None]:
    """Look at gradients before they are cleared, and at what is saved before each backward pass."""
    modules = [role.module for role in run.roles.values()]
    backward, clip = Role.backward, Role.clip
    now: list[Held] = []

    def noted_backward(role: Role, loss: Tensor) -> None:
        now[-1].note()
        backward(role, loss)

    def noted_clip(role: Role, max_norm: float) -> Tensor:
        gradients = _bytes([p.grad for p in role.parameters if p.grad is not None])
        found.networks[role.name].gradients = max(found.networks[role.name].gradients, gradients)
        return clip(role, max_norm)

    def noted_update(update, *args):
        with Held(modules) as held:
            now.append(held)
            line: list[dict] = []
            most = _with_peak(lambda: line.append(descend(update, *args)), peaks)
        found.held[update.network] = max(found.held.get(update.network, 0), held.most)
        found.peaks[update.network] = max(found.peaks.get(update.network, 0), most)
        return line[0]

    with contextlib.ExitStack() as patches:
        for target, new in (
            ("distill.engine.Role.backward", noted_backward),
            ("distill.engine.Role.clip", noted_clip),
            ("distill.trainer.descend", noted_update),
        ):
            patches.enter_context(unittest.mock.patch(target, new))
        yield


def _with_peak(work: Callable[[], object], asked: bool) -> int:
    if asked:
        return peak(work)
    work()
    return 0


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(each.numel() * each.element_size() for each in tensors)


def _moments(optimizer: torch.optim.Optimizer) -> Iterator[Tensor]:
    for state in optimizer.state.values():
        yield from (each for name, each in state.items() if name != "step")


@contextlib.contextmanager
def casts_of_cuda() -> Iterator[None]:
    """Let norms compute in float32 under the CPU's autocast, as under CUDA's, for which plans are made."""
    layer, rms = F.layer_norm, torch.rms_norm

    def widened(norm: Callable) -> Callable:
        def run(x: Tensor, *args, **options) -> Tensor:
            if not torch.is_autocast_enabled("cpu"):
                return norm(x, *args, **options)
            args = [_wide(each) for each in args]
            return norm(x.float(), *args, **{name: _wide(each) for name, each in options.items()})

        return run

    patch = unittest.mock.patch.object
    with patch(F, "layer_norm", widened(layer)), patch(torch, "rms_norm", widened(rms)):
        yield


class Held:
    """Inside `with`, counts bytes that wait for backward passes: what autograd saves, weights and their casts aside.

    Attributes:
        most: of all moments at which `note` was called.
    """

    def __init__(self, modules: Iterable[nn.Module]):
        weights = [each for module in modules for each in (*module.parameters(), *module.buffers())]
        self.own = {each.untyped_storage().data_ptr() for each in weights}
        self.casts: dict[int, list[Tensor]] = {}
        for each in weights:
            if each.dtype == torch.float32:
                self.casts.setdefault(each.numel(), []).append(each.detach().bfloat16().flatten())
        self.saved: weakref.WeakSet[_Saved] = weakref.WeakSet()
        self.most = 0

    def __enter__(self) -> "Held":
        self.hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda saved: saved.tensor)
        self.hooks.__enter__()
        return self

    def __exit__(self, *error) -> None:
        self.hooks.__exit__(*error)

    def note(self) -> int:
        found = {each.storage: each.bytes for each in self.saved}
        now = sum(found.values())
        self.most = max(self.most, now)
        return now

    def _pack(self, tensor: Tensor) -> "_Saved":
        saved = _Saved(tensor)
        if saved.storage not in self.own and not self._is_cast(tensor):
            self.saved.add(saved)
        return saved

    def _is_cast(self, tensor: Tensor) -> bool:
        """Whether these are autocast's bf16 copies of a weight."""
        storage = tensor.untyped_storage()
        same = self.casts.get(storage.nbytes() // 2, ()) if tensor.dtype == torch.bfloat16 else ()
        flat = torch.empty(0, dtype=tensor.dtype).set_(storage) if same else None
        return any(torch.equal(flat, cast) for cast in same)


class _Saved:
    """A tensor that autograd has saved."""

    def __init__(self, tensor: Tensor):
        self.tensor = tensor
        self.storage, self.bytes = tensor.untyped_storage().data_ptr(), tensor.untyped_storage().nbytes()


def peak(work: Callable[[], object]) -> int:
    """The most bytes that work has allocated on the CPU at a time, beyond what was there before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        work()
    events = [each for each in seen.profiler.kineto_results.events() if each.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda each: each.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


def _wide(value: object) -> object:
    return value.float() if isinstance(value, Tensor) else value
