"""Networks in their places: one process, or several that hold whole copies and average gradients.

The only importer of accelerate. A Role owns one network with its optimizer; an Engine owns the processes. Networks in
pieces (distill/zero.py) implement the same calls, so that hardly anything else knows how weights are kept.
"""

import contextlib
import copy
import datetime
import math
import sys
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from . import zero_config
from .batch import Condition

BUCKET_ELEMENTS = 25_000_000  # gradients travel in pieces of 100 MB


class Role:
    """A network on this process's device: float32 weights if trained, bf16 or float32 compute.

    Attributes:
        together: an evaluation takes all processes at once.
        evaluations: samples that went through the network since the last reset, for the cost tables.
        differentiated: those among them that a gradient can go back through.
    """

    together = False

    def __init__(self, name: str, module: nn.Module, *, precision: str = "fp32", device: torch.device | str = "cpu"):
        self.name = name
        self.module = module.to(device).requires_grad_(False)
        self.precision = precision
        self.optimizer: torch.optim.Optimizer | None = None
        self.schedule: torch.optim.lr_scheduler.LRScheduler | None = None
        self.evaluations = self.differentiated = 0

    @property
    def guidance_embedded(self) -> bool:
        return getattr(self.module, "guidance_embedded", False)

    @property
    def parameters(self) -> list[nn.Parameter]:
        return list(self.module.parameters())

    def let_gradients(self, on: bool) -> None:
        """Let gradients reach this network's parameters, or keep them away."""
        for p in self.parameters:
            p.requires_grad_(on)

    def weights(self) -> dict[str, Tensor]:
        """What a checkpoint keeps of the network, by name."""
        return self.module.state_dict()

    def load_weights(self, weights: dict[str, Tensor]) -> None:
        self.module.load_state_dict(weights)

    def stream(self) -> Iterator[tuple[str, Tensor]]:
        """`weights`, one after the other and whole on every process, which all ask for them."""
        yield from self.weights().items()

    def everything(self) -> Iterator[tuple[str, Tensor]]:
        """All that the network computes with, in the order of names; every process asks for it."""
        yield from sorted(self.module.state_dict().items())

    def tensors(self) -> Iterator[Tensor]:
        """Parameters, then buffers, one after the other and whole on every process, which all ask for them."""
        yield from self.module.parameters()
        yield from self.module.buffers()

    def finite(self) -> dict[str, bool]:
        """Of what a checkpoint keeps: whether all its numbers are finite."""
        return {name: bool(tensor.isfinite().all()) for name, tensor in self.weights().items()}

    @property
    def dtype(self) -> torch.dtype:
        """Of its weights, where all have the same."""
        return next(self.module.parameters()).dtype

    @property
    def statistics(self) -> list[Tensor]:
        """What batch normalization has seen, which every training pass moves."""
        norms = [each for each in self.module.modules() if isinstance(each, nn.modules.batchnorm._BatchNorm)]
        return [each for norm in norms for each in norm.buffers()]

    def forward(self, x: Tensor, sigma: Tensor, cond: Condition, **extra) -> Tensor:
        self.evaluations += x.shape[0]
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            out = self.module(x, sigma, cond, **extra)
        found = out if isinstance(out, list) else [out]
        self.differentiated += x.shape[0] * any(each.requires_grad for each in found)
        return out

    def plainly(self) -> contextlib.AbstractContextManager:
        """Within it the network uses torch's own attention, and nothing compiled (teachers/stock.py)."""
        return getattr(self.module, "plainly", contextlib.nullcontext)()

    @torch.no_grad()
    def copy_from(self, other: "Role") -> None:
        for mine, theirs in zip(Role.tensors(self), other.tensors(), strict=True):
            mine.copy_(theirs)

    @torch.no_grad()
    def average_from(self, other: "Role", decay: float) -> None:
        """Advance a float32 moving average of the other network's weights; take over its buffers."""
        trained = {id(p) for p in self.module.parameters()}
        for mine, theirs in zip(Role.tensors(self), other.tensors(), strict=True):
            mine.lerp_(theirs, 1 - decay) if id(mine) in trained else mine.copy_(theirs)

    def prepare(self, optim, updates: int, keep_moments: bool = False) -> None:
        """Start a learning-rate schedule over so many updates, with fresh AdamW moments unless they are kept.

        Args:
            optim: a recipe's section (recipe.Optimizer).
        """
        kept = self.optimizer.state_dict()["state"] if keep_moments and self.optimizer else {}
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=optim.lr, betas=optim.betas, eps=optim.eps, weight_decay=optim.weight_decay, fused=True
        )
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": kept})
        self._schedule(optim, updates)

    def _schedule(self, optim, updates: int) -> None:
        """Begin the optimizer's learning rates anew."""
        from diffusers.optimization import get_scheduler

        self.schedule = get_scheduler(
            optim.schedule, self.optimizer, num_warmup_steps=optim.warmup, num_training_steps=updates
        )

    def ready(self) -> None:
        """Before a backward pass: see that no process asks for more evaluations first. One role does it for all."""

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a part of an update's loss."""
        loss.backward()

    def reduce(self, average: Callable[[list[Tensor]], None]) -> None:
        """After the last part: gradients become their means over the processes."""
        average([p.grad for p in self.parameters if p.grad is not None])

    def clear(self) -> None:
        """Forget gradients."""
        for p in self.parameters:
            p.grad = None

    def rest(self) -> None:
        """Between updates: give back what is only there for evaluations."""

    def clip(self, max_norm: float) -> Tensor:
        """Scale the gradients down to max_norm; the norm before, still on the device."""
        return nn.utils.clip_grad_norm_(self.parameters, max_norm, foreach=True)

    def step(self) -> None:
        self.optimizer.step()
        self.schedule.step()

    @property
    def lr(self) -> float:
        return self.optimizer.param_groups[0]["lr"]

    def save_state(self, folder: Path, main: bool) -> None:
        """Write optimizer and schedule; every process calls this."""
        if main:
            state = {"optimizer": self.optimizer.state_dict(), "schedule": self.schedule.state_dict()}
            torch.save(state, self._state_file(folder))

    def load_state(self, folder: Path) -> None:
        """Take over what `save_state` wrote, once `prepare` has been called."""
        state = torch.load(self._state_file(folder), map_location="cpu", weights_only=True)
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])

    def _state_file(self, folder: Path) -> Path:
        return folder / f"optim_{self.name}.pt"

    def averaged(self, name: str) -> "Role":
        """A copy of this trained network, in float32 as it is, to be advanced by `average_from`."""
        return Role(name, copy.deepcopy(self.module), precision=self.precision, device=self.device)

    @property
    def device(self) -> torch.device:
        return next(self.module.parameters()).device


class Engine:
    """The processes of a run. Weights are whole on each; gradients are averaged once per update.

    The average is taken here and not by DistributedDataParallel: a loss may call its network several times, in parts
    and under accumulation, and none of that changes what is averaged.
    """

    def __init__(self):
        from accelerate import PartialState

        self.state = PartialState(cpu=not torch.cuda.is_available(), timeout=datetime.timedelta(hours=4))
        self.rank, self.world, self.device = self.state.process_index, self.state.num_processes, self.state.device

    @property
    def main(self) -> bool:
        return self.rank == 0

    @contextlib.contextmanager
    def only(self, role: Role, roles: Collection[Role]) -> Iterator[None]:
        """Let gradients reach one network and no other, forward and backward."""
        for other in roles:
            other.let_gradients(other is role)
        try:
            yield
        finally:
            role.let_gradients(False)
            role.clear()
            for other in roles:
                other.rest()

    def average(self, tensors: list[Tensor]) -> None:
        """Replace each tensor by its mean over the processes, in place."""
        if self.world == 1:
            return
        for bucket in _buckets(tensors):
            flat = torch.cat([t.flatten() for t in bucket])
            dist.all_reduce(flat)
            for t, mean in zip(bucket, flat.div_(self.world).split([t.numel() for t in bucket]), strict=True):
                t.copy_(mean.view_as(t))

    def wait(self) -> None:
        self.state.wait_for_everyone()

    def main_first(self, work: Callable[[], object]) -> object:
        """Do work on the main process and hand its result, or its error, to all."""
        box: list = [None, None]
        if self.main:
            try:
                box[0] = work()
            except Exception as error:  # handed to every process, which raises it
                if self.world == 1:
                    raise
                box[1] = error
        if self.world > 1:
            dist.broadcast_object_list(box)
        if box[1] is not None:
            raise box[1]
        return box[0]

    def first(self, value: object | None) -> object | None:
        """The first process's value that is not None, on all of them."""
        return next((v for v in self.all(value) if v is not None), None)

    def all(self, value: object) -> list:
        """Every process's value, on all of them."""
        values = [value] * self.world
        if self.world > 1:
            dist.all_gather_object(values, value)
        return values

    def close(self) -> None:
        """Leave together: a process that goes while another still reads from it takes that one down."""
        if self.world > 1 and sys.exc_info()[0] is None:  # after an error the others may never come
            self.wait()
        zero_config.leave()
        if dist.is_initialized():
            self.state.destroy_process_group()


def _buckets(tensors: list[Tensor]) -> Iterator[list[Tensor]]:
    bucket, size = [], 0
    for t in tensors:
        if bucket and size + t.numel() > BUCKET_ELEMENTS:
            yield bucket
            bucket, size = [], 0
        bucket.append(t)
        size += t.numel()
    if bucket:
        yield bucket


def finite(values: Iterable[float]) -> bool:
    return all(math.isfinite(v) for v in values)
