"""Low-rank adapters on one frozen network, arXiv:2106.09685: what a recipe's section `lora` makes of the teacher's.

Every network of a method is a view of the same base: modules of its own around the same tensors, and adapters of its
own. Nothing is switched between evaluations, so an activation that is computed again in the backward pass meets the
adapters of the network that computed it first, whichever was asked since.
"""

import copy
import re
from collections.abc import Iterable, Iterator

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from ..batch import generator
from ..engine import Role
from ..errors import UserError
from ..places import Lora
from ..yaml_source import did_you_mean

ADAPTER = "distilled"  # its name in each view, which has no other; files leave it out
A, B = ".lora_A.weight", ".lora_B.weight"


class SharedBase:
    """One frozen network, whose tensors all views share.

    Raises:
        UserError: targets that name no layer, or a rank that is too large for one.
    """

    def __init__(self, network: nn.Module, lora: Lora, seed: int):
        self.network, self.lora, self.seed = network.requires_grad_(False), lora, seed
        self.targets = targets(network, lora)

    def copied(self, module: nn.Module) -> nn.Module:
        """A module like this one, with the base's tensors and copies of all others."""
        return copy.deepcopy(module, {id(each): each for each in tensors(self.network)})

    def role(self, name: str, *, adapted: bool, ends: bool = False, **options) -> "AdapterRole":
        """The base under a network's name: as it is, or with adapters that have no effect at first.

        Args:
            ends: it is told where a step ends (ends.py); what that adds is trained whole.
            options: of the role.
        """
        module = self.copied(self.network)
        if ends:
            module.tell_ends()
        if adapted:
            self._adapt(module, name)
        return AdapterRole(name, module, self, **options)

    def _adapt(self, module: nn.Module, name: str) -> None:
        mine = {id(self.network.get_submodule(target).weight) for target in self.targets}
        layers = [key for key, layer in module.named_modules() if _is_linear(layer) and id(layer.weight) in mine]
        options = {"r": self.lora.rank, "lora_alpha": alpha(self.lora), "target_modules": layers}
        with torch.random.fork_rng(devices=[]):  # peft draws weights, which are drawn anew below
            inject_adapter_in_model(LoraConfig(**options), module, ADAPTER)
        for key, layer in module.named_modules():
            if isinstance(layer, LoraLayer):
                self._begin(layer, generator("lora", self.seed, name, key))

    def _begin(self, layer: LoraLayer, draw: torch.Generator) -> None:
        """A at random, as linear layers begin, and B = 0, in float32 whatever the base is kept in."""
        down, up = layer.lora_A[ADAPTER].float(), layer.lora_B[ADAPTER].float()
        start = torch.empty(down.weight.shape)
        nn.init.kaiming_uniform_(start, a=5**0.5, generator=draw)
        with torch.no_grad():
            down.weight.copy_(start)
            up.weight.zero_()


class AdapterRole(Role):
    """A view of a shared base in the place of a network. What it owns (adapters, the embedding of ends) is all that is
    trained, copied, averaged and saved; a frozen network owns nothing."""

    def __init__(self, name: str, module: nn.Module, base: SharedBase, **options):
        super().__init__(name, module, **options)
        shared = {id(each) for each in tensors(base.network)}
        named = {key: p for key, p in module.named_parameters() if id(p) not in shared}
        self.base, self.own = base, {key.replace(f".{ADAPTER}.", "."): p for key, p in named.items()}

    @property
    def parameters(self) -> list[nn.Parameter]:
        return list(self.own.values())

    def weights(self) -> dict[str, Tensor]:
        return {key: p.detach() for key, p in self.own.items()}

    @torch.no_grad()
    def load_weights(self, weights: dict[str, Tensor]) -> None:
        found = {key: tuple(each.shape) for key, each in weights.items()}
        if found != {key: tuple(p.shape) for key, p in self.own.items()}:
            raise UserError(
                f"{self.name}: its {len(found)} saved tensors are not the {len(self.own)} of adapters of rank"
                f" {self.base.lora.rank}; restore the recipe's section lora, or set output=NEW_FOLDER"
            )
        for key, p in self.own.items():
            p.copy_(weights[key])

    def everything(self) -> Iterator[tuple[str, Tensor]]:
        """As one whole network: what `merge` makes of a checkpoint is known by the same numbers."""
        saved = self.weights()
        names = {key.replace(".base_layer.", "."): key for key in self.module.state_dict() if ".lora_" not in key}
        for name, tensor in zip(sorted(names), self._computed([names[name] for name in sorted(names)]), strict=True):
            layer = name.removesuffix(".weight")
            yield name, _merged(tensor, saved, layer, self.base.lora) if layer + B in saved else tensor

    def _computed(self, keys: list[str]) -> Iterator[Tensor]:
        """These tensors of the module."""
        state = self.module.state_dict()
        yield from (state[key] for key in keys)

    @torch.no_grad()
    def copy_from(self, other: "AdapterRole") -> None:
        """Take over the other's adapters; those of the base itself have no effect: B = 0, A stays."""
        for key, p in self.own.items():
            if other.own:
                p.copy_(other.own[key])
            elif key.endswith((B, ".further.linear_2.weight", ".further.linear_2.bias")):
                p.zero_()

    @torch.no_grad()
    def average_from(self, other: "AdapterRole", decay: float) -> None:
        """Advance a moving average of A and of B, each by itself."""
        torch._foreach_lerp_(self.parameters, other.parameters, 1 - decay)


def tensors(module: nn.Module) -> Iterable[Tensor]:
    yield from module.parameters()
    yield from module.buffers()


def alpha(lora: Lora) -> float:
    return lora.rank if lora.alpha is None else lora.alpha


def targets(network: nn.Module, lora: Lora) -> list[str]:
    """Names of the linear layers that get adapters."""
    linear = {name: layer for name, layer in network.named_modules() if _is_linear(layer)}
    if lora.targets is None:
        found = [name for name in linear if _in_a_block(name)]
    else:
        found = [name for name in linear if any(_ends(name, target) for target in _known(lora.targets, linear))]
    sizes = {name: (linear[name].out_features, linear[name].in_features) for name in found}
    if not sizes:
        raise UserError(
            "lora.targets: null is every linear layer of the transformer's blocks, and there is none; name some"
        )
    name = min(sizes, key=lambda name: min(sizes[name]))
    if lora.rank > min(sizes[name]):
        rows, columns = sizes[name]
        raise UserError(
            f"lora.rank: {lora.rank} is more than {name} of {rows} x {columns} can take; at most"
            f" {min(sizes[name])}, or name larger layers in lora.targets"
        )
    return found


def _known(wanted: list[str], linear: dict[str, nn.Linear]) -> list[str]:
    """The targets, each the end of some layer's name; UserError if one is not."""
    for target in wanted:
        if not any(_ends(name, target) for name in linear):
            ends = list(dict.fromkeys(re.split(r"\.\d+\.", name, maxsplit=1)[-1] for name in linear))
            hint = did_you_mean(target, [*ends, *{end.rpartition(".")[2] for end in ends}])
            raise UserError(
                f"lora.targets: {target!r} is the end of no linear layer's name{hint}; there are {', '.join(ends)}"
            )
    return wanted


def _ends(name: str, target: str) -> bool:
    return f".{name}".endswith(f".{target}")


def _in_a_block(name: str) -> bool:
    """Of the transformer itself: `transformer.blocks.3.ffn.net.2`, not of a text refiner inside an embedder."""
    return re.fullmatch(r"\w+\.\w*blocks\.\d+\..+", name) is not None


def _is_linear(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Linear)


@torch.no_grad()
def merge(network: nn.Module, weights: dict[str, Tensor], lora: Lora) -> None:
    """Fold what an AdapterRole has saved into a whole network of the teacher's."""
    whole = dict(network.named_parameters())
    for key, value in weights.items():
        if key.endswith(B):
            layer = key.removesuffix(B)
            weight = whole[f"{layer}.weight"]
            weight.copy_(_merged(weight, weights, layer, lora))
        elif not key.endswith(A):
            whole[key].copy_(value)


def _merged(weight: Tensor, weights: dict[str, Tensor], layer: str, lora: Lora) -> Tensor:
    """W + alpha / rank B A, in float64, so that it is rounded once."""
    up, down = (weights[layer + part].to(weight.device).double() for part in (B, A))
    return (weight.double() + up @ down * (alpha(lora) / lora.rank)).to(weight.dtype)
