"""Networks in pieces over the processes: DeepSpeed's ZeRO behind the calls of a Role (engine.py). See docs/engines.md.

A piece is what one process keeps of a parameter: a stretch of its flat values. Whatever needs a parameter as a whole --
copies, averages, checkpoints -- gathers it, one at a time. Trained networks are in zero_trained.py.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from . import zero_config, zero_turns
from .batch import Condition
from .engine import Role
from .errors import UserError
from .places import Place


@dataclass(frozen=True)
class Piece:
    """This process's part of a parameter.

    Attributes:
        start: of the stretch in the flat parameter.
        values: the stretch itself, flat: float32 masters of a trained network, the weights of another.
        within: for trained networks, the flat tensor that the optimizer steps, and the stretch's place in it.
    """

    start: int
    values: Tensor
    within: tuple[Tensor, int] | None = None

    def of(self, whole: Tensor) -> Tensor:
        """The same stretch of another tensor of the parameter's shape."""
        return whole.flatten()[self.start : self.start + self.values.numel()]


class ZeroRole(Role):
    """A network of which each process keeps pieces. `pieces` has none of a parameter that is elsewhere altogether."""

    def __init__(self, name: str, module: nn.Module, *, precision: str, device: torch.device | str):
        super().__init__(name, module, precision=precision, device=device)
        self.place_of_values = torch.device(device)
        self.checkpoints = hasattr(module, "enable_checkpointing")

    @property
    def device(self) -> torch.device:
        return self.place_of_values

    def pieces(self) -> dict[str, Piece]:
        raise NotImplementedError

    def spread(self) -> None:
        """After the pieces have changed: let the network compute with them."""

    # As a whole, parameter by parameter

    def stream(self) -> Iterator[tuple[str, Tensor]]:
        yield from self._stream(list(self.module.state_dict()))

    def everything(self) -> Iterator[tuple[str, Tensor]]:
        yield from self._stream(sorted(self.module.state_dict()))

    def weights(self) -> dict[str, Tensor]:
        return dict(self.stream())

    def tensors(self) -> Iterator[Tensor]:
        yield from (tensor for _, tensor in self._stream([name for name, _ in self.module.named_parameters()]))
        yield from self.module.buffers()

    def _stream(self, names: list[str]) -> Iterator[tuple[str, Tensor]]:
        self.rest()
        pieces, parameters = self.pieces(), dict(self.module.named_parameters())
        buffers = dict(self.module.named_buffers())
        for name in names:
            whole = name in parameters
            yield name, self._gathered(parameters[name], pieces.get(name)) if whole else buffers[name].detach()

    @torch.no_grad()
    def _gathered(self, parameter: nn.Parameter, piece: Piece | None) -> Tensor:
        shape = getattr(parameter, "ds_shape", parameter.shape)
        found = torch.zeros(math.prod(shape), device=self.device)
        if piece is not None:
            piece.of(found).copy_(piece.values)
        dist.all_reduce(found.view(torch.int32))  # the others have zeros there: as bits, so that -0.0 stays what it is
        return found.view(shape).to(self._kept(parameter))

    def _kept(self, parameter: nn.Parameter) -> torch.dtype:
        """In which a checkpoint keeps a parameter."""
        return parameter.dtype

    def finite(self) -> dict[str, bool]:
        self.rest()
        pieces, names = self.pieces(), list(self.module.state_dict())
        buffers = dict(self.module.named_buffers())
        mine = {name: piece.values for name, piece in pieces.items()} | buffers
        bad = [not mine[name].isfinite().all() if name in mine else False for name in names]
        counted = torch.tensor(bad, dtype=torch.float32, device=self.device)
        dist.all_reduce(counted)
        return {name: not count for name, count in zip(names, counted.tolist(), strict=True)}

    # Taking over

    @torch.no_grad()
    def load_weights(self, weights: dict[str, Tensor]) -> None:
        self.rest()
        pieces, buffers = self.pieces(), dict(self.module.named_buffers())
        for name, tensor in weights.items():
            if name in pieces:
                pieces[name].values.copy_(pieces[name].of(tensor))
            elif name in buffers:
                buffers[name].copy_(tensor)
        self.spread()

    @torch.no_grad()
    def copy_from(self, other: Role) -> None:
        for mine, theirs in self._beside(other):
            mine.copy_(theirs)
        self.spread()

    @torch.no_grad()
    def average_from(self, other: Role, decay: float) -> None:
        buffers = {id(each) for each in self.module.buffers()}
        for mine, theirs in self._beside(other):
            mine.copy_(theirs) if id(mine) in buffers else mine.lerp_(theirs, 1 - decay)
        self.spread()

    def _beside(self, other: Role) -> Iterator[tuple[Tensor, Tensor]]:
        """What this process keeps, each beside the same of another network."""
        self.rest()
        pieces, names = self.pieces(), [name for name, _ in self.module.named_parameters()]
        if isinstance(other, ZeroRole) and self._like(other):
            other.rest()
            theirs = other.pieces()
            yield from ((piece.values, theirs[name].values) for name, piece in pieces.items())
            yield from zip(self.module.buffers(), other.module.buffers(), strict=True)
            return
        tensors = other.tensors()
        for name in names:
            whole = next(tensors)
            if name in pieces:
                yield pieces[name].values, pieces[name].of(whole)
        yield from zip(self.module.buffers(), tensors, strict=True)

    def _like(self, other: "ZeroRole") -> bool:
        """Whether both are cut alike, so that nothing has to travel."""
        mine, theirs = self.pieces(), other.pieces()
        return self.together == other.together and {n: p.start for n, p in mine.items()} == {
            n: p.start for n, p in theirs.items()
        }


class PartitionedRole(ZeroRole):
    """Whose weights are in pieces as well (stage 3): an evaluation gathers them layer by layer."""

    together = True

    def __init__(self, name: str, module: nn.Module, *arguments, **options):
        super().__init__(name, module, *arguments, **options)
        self.turns = zero_turns.of_run()
        self.number = self.turns.join(self)

    def forward(self, x: Tensor, sigma: Tensor, cond: Condition, **extra) -> Tensor:
        through = torch.is_grad_enabled() and (x.requires_grad or any(p.requires_grad for p in self.parameters))
        self._refuse(through)
        self.turns.seen[self.number] = x[:1].detach(), sigma[:1], cond.rows(slice(1)), extra
        self.turns.wait_for((self.number, max(extra.get("features") or [0]), int(through)))
        return super().forward(x, sigma, cond, **extra)

    def ready(self) -> None:
        self.turns.wait_for(zero_turns.DONE)

    @torch.no_grad()
    def take_part(self, depth: int) -> None:
        """In an evaluation that another process needs: the result is forgotten, and nothing is counted."""
        x, sigma, cond, extra = self.turns.inputs(self.number)
        counts = self.evaluations, self.differentiated
        super().forward(x, sigma, cond, **extra | ({"features": [depth]} if depth else {}))
        self.evaluations, self.differentiated = counts

    def _refuse(self, through: bool) -> None:
        if torch._C._functorch.peek_interpreter_stack() is not None:
            raise UserError(
                f"engine.{self.name}: zero3 gathers weights layer by layer, where no exact derivative can be taken; "
                f"let the method take differences (meanflow: difference=0.005), or set engine.{self.name}=zero2"
            )
        if through and self.checkpoints and not self.recomputes:
            raise UserError(
                f"engine.{self.name}: gradients pass through a network that zero3 keeps in pieces, and without "
                "activation checkpointing all of its gathered weights would stay; "
                "set train.activation_checkpointing=full"
            )

    @property
    def recomputes(self) -> bool:
        """Whether activation checkpointing is on."""
        return any(getattr(each, "gradient_checkpointing", False) for each in self.module.modules())

    def _of_parameter(self, parameter: nn.Parameter) -> tuple[int, int]:
        """Start and length of this process's stretch, without the zeros behind the parameter's end."""
        size = parameter.ds_tensor.ds_numel
        start = min(dist.get_rank() * size, parameter.ds_numel)
        return start, min(size, parameter.ds_numel - start)


class FrozenRole(PartitionedRole):
    """A network without an optimizer, whose weights are in pieces."""

    def __init__(self, name: str, module: nn.Module, place: Place, *, precision: str, device: torch.device | str):
        super().__init__(name, module, precision=precision, device=device)
        self.offload = hooks(module, place)

    def pieces(self) -> dict[str, Piece]:
        found = {}
        for name, p in self.module.named_parameters():
            start, length = self._of_parameter(p)
            if length:
                found[name] = Piece(start, p.ds_tensor.data[:length])
        return found

    def rest(self) -> None:
        self.offload.empty_partition_cache()


def frozen(name: str, build: "Build", place: Place, **options) -> FrozenRole:
    """A frozen network under zero3."""
    return FrozenRole(name, build(partition(place)), place, **options)


Partition = Callable[[nn.Module], object]
Build = Callable[[Partition | None], nn.Module]


def partition(place: Place, dtype: torch.dtype | None = None) -> Partition:
    """What leaves this process its piece of each parameter of a module (teachers/base.py, Teacher.network)."""
    deepspeed = zero_config.library()
    settings = zero_config.config(place, elements=1, bf16=False)

    def cut(module: nn.Module) -> None:
        if dtype is not None:
            for weight in module.parameters(recurse=False):  # not its buffers: rotary frequencies stay exact
                weight.data = weight.data.to(dtype)
        deepspeed.zero.Init(module=module, config_dict_or_path=settings, mem_efficient_linear=False)

    return cut


def hooks(module: nn.Module, place: Place):
    """The hooks that gather and give back. `deepspeed.initialize` makes the same, but of one precision only."""
    deepspeed = zero_config.library()
    from deepspeed.runtime.zero.parameter_offload import DeepSpeedZeRoOffload
    from deepspeed.utils.timer import NoopTimer

    elements = sum(getattr(p, "ds_numel", p.numel()) for p in module.parameters())
    settings = zero_config.config(place, elements=elements, bf16=False)
    told = deepspeed.runtime.config.DeepSpeedConfig(settings).zero_config
    return DeepSpeedZeRoOffload(
        module,
        timers=NoopTimer(),
        ds_config=settings,
        overlap_comm=told.overlap_comm,
        prefetch_bucket_size=told.prefetch_bucket_size,
        max_reuse_distance=told.max_reuse_distance,
        max_live_parameters=told.max_live_parameters,
        param_persistence_threshold=told.param_persistence_threshold,
        offload_param_config=told.offload_param,
    )
