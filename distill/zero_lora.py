"""Adapters on a base that is in pieces over the processes (zero3). They are small and stay whole on each.

Every view gathers the base's weights by hooks of its own, which stand on its modules before the adapters come: what is
not there when they are made is not cut.
"""

import contextlib
from collections.abc import Iterator

from torch import Tensor, nn

from . import zero, zero_config
from .engine import Role
from .places import Lora, Place
from .teachers.adapters import AdapterRole, SharedBase
from .teachers.ends import EndEmbedding


class SpreadBase(SharedBase):
    """A shared base in pieces.

    Args:
        network: whose parameters are cut already (zero.partition).
    """

    def __init__(self, network: nn.Module, lora: Lora, seed: int, place: Place):
        super().__init__(network, lora, seed)
        self.place, self.arriving = place, None
        self.evaluated: list[SpreadRole] = []  # since the last rest
        self.plain = self.copied(network)
        self._hooks(self.plain)

    def _hooks(self, module: nn.Module):
        if self.arriving is not None:  # what is on its way is known to all views: the parameters are the same
            module.ds_inflight_param_registry = self.arriving
        offload = zero.hooks(module, self.place)
        self.arriving = module.ds_inflight_param_registry
        return offload

    def role(self, name: str, *, adapted: bool, ends: bool = False, **options) -> "SpreadRole":
        module = self.copied(self.network)
        if ends:
            self._tell_ends(module)
        with _whole(module):
            offload = self._hooks(module)
        if adapted:
            self._adapt(module, name)
        return SpreadRole(name, module, self, offload, **options)

    def _tell_ends(self, module: nn.Module) -> None:
        """It begins as a copy of the embedding of time."""
        parent, name, _ = module._time_embedding()
        time = list(getattr(parent, name).parameters())
        with zero_config.library().zero.GatheredParameters(time):
            module.tell_ends()


@contextlib.contextmanager
def _whole(module: nn.Module) -> Iterator[None]:
    """Within it, the embedding of ends is not there."""
    embeddings = [each for each in module.modules() if isinstance(each, EndEmbedding)]
    further = [each.further for each in embeddings]
    for each in embeddings:
        each.further = None
    yield
    for each, part in zip(embeddings, further, strict=True):
        each.further = part


class SpreadRole(AdapterRole, zero.PartitionedRole):
    """A view of a shared base in pieces."""

    def __init__(self, name: str, module: nn.Module, base: SpreadBase, offload, **options):
        super().__init__(name, module, base, **options)
        self.offload = offload

    stream, finite = Role.stream, Role.finite

    def pieces(self) -> dict[str, zero.Piece]:
        """Of the base."""
        found = {}
        for name, p in self.module.named_parameters():
            if hasattr(p, "ds_tensor"):
                start, length = self._of_parameter(p)
                found[name] = zero.Piece(start, p.ds_tensor.data[:length])
        return found

    def _computed(self, keys: list[str]) -> Iterator[Tensor]:
        own = {id(p) for p in self.parameters}
        whole = {key: p.detach() for key, p in self.module.named_parameters() if id(p) in own}
        yield from (whole.get(key, tensor) for key, tensor in self._stream(keys))

    def forward(self, *inputs, **extra) -> Tensor:
        self.base.evaluated.append(self)
        return super().forward(*inputs, **extra)

    def rest(self) -> None:
        """Weights are given back by the view that gathered them, which counts what it holds."""
        for role in [*dict.fromkeys(reversed(self.base.evaluated)), self]:
            role.offload.get_param_coordinator().release_and_reset_all(self.base.plain)
        self.base.evaluated.clear()
