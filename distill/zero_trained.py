"""Trained networks in pieces: gradients and AdamW under ZeRO's stages 1, 2 and 3.

DeepSpeed adds up the gradients of every backward pass and reduces them; none is its accumulation boundary, for which
part of a loss is the last is not known before. At an update's end the sums are finished by hand, their norm is taken,
and only then, if it is finite, DeepSpeed steps. What is called here was read in deepspeed 0.19.8; tests/test_zero.py
compares it with plain runs.
"""

from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from . import zero_config, zero_moments
from .engine import Role
from .errors import UserError
from .places import Place
from .zero import PartitionedRole, Piece, ZeroRole


class TrainedRole(ZeroRole):
    """A network under ZeRO with its AdamW, which steps this process's pieces of float32 masters."""

    def __init__(self, name: str, module: nn.Module, place: Place, *, precision: str, device: torch.device | str):
        super().__init__(name, module, precision=precision, device=device)
        deepspeed = zero_config.library()
        self.offloaded = "optimizer" in place.offload
        elements = sum(getattr(p, "ds_numel", p.numel()) for p in module.parameters())
        settings = zero_config.config(place, elements=elements, bf16=precision == "bf16")
        module.requires_grad_(True)  # of what has no gradient now, none is ever reduced
        self.optimizer = torch.optim.AdamW(module.parameters(), lr=0.0, fused=True)
        self.engine, self.zero, *_ = deepspeed.initialize(model=module, optimizer=self.optimizer, config=settings)
        self.engine.set_gradient_accumulation_boundary(False)
        self.reached: set[str] = set()  # parameters with a gradient in this update
        for key, p in module.named_parameters():
            p.register_post_accumulate_grad_hook(lambda _, key=key: self.reached.add(key))
        module.requires_grad_(False)
        self.clear()

    def _kept(self, parameter: nn.Parameter) -> torch.dtype:
        return torch.float32

    # Where DeepSpeed keeps things, by stage

    def flats(self) -> list[Tensor]:
        """What AdamW steps: this process's pieces, end to end."""
        raise NotImplementedError

    def sums(self) -> dict[int, list[Tensor]]:
        """Of gradients, by the number of their flat tensor, once they are finished."""
        raise NotImplementedError

    # An update

    def prepare(self, optim, updates: int, keep_moments: bool = False) -> None:
        if not keep_moments:
            self.optimizer.state.clear()
        for group in self.optimizer.param_groups:
            group |= {"lr": optim.lr, "betas": optim.betas, "eps": optim.eps, "weight_decay": optim.weight_decay}
            group.pop("initial_lr", None)
        self._schedule(optim, updates)

    def backward(self, loss: Tensor) -> None:
        self.zero.clear_backward_seen_flag()
        self.engine.backward(loss, scale_wrt_gas=False)

    def reduce(self, average) -> None:
        """DeepSpeed has averaged each part already."""
        missed = [name for name, _ in self.module.named_parameters() if name not in self.reached]
        if missed:
            raise UserError(
                f"engine.{self.name}: an update gave no gradient to {len(missed)} of its parameters ({missed[0]}), "
                f"and ZeRO would move them all the same; set engine.{self.name}=ddp"
            )
        self._finish()

    def _finish(self) -> None:
        """Make the sums ready for a step."""
        self.zero.finalize_gradient_accumulation_boundary()

    @torch.no_grad()
    def clip(self, max_norm: float) -> Tensor:
        sums = [each for several in self.sums().values() for each in several]
        norm = torch.stack([each.float().square().sum().to(self.device) for each in sums]).sum()
        dist.all_reduce(norm)
        norm = norm.sqrt()
        scale = (max_norm / (norm + 1e-6)).clamp(max=1.0)  # as torch's clip_grad_norm_
        for each in sums:
            each.mul_(scale.to(each.device))
        return norm

    def step(self) -> None:
        self.engine.set_gradient_accumulation_boundary(True)
        self.engine.step()
        self.engine.set_gradient_accumulation_boundary(False)
        self.schedule.step()

    def clear(self) -> None:
        self.zero.zero_grad()
        self.reached.clear()
        if self.offloaded:
            self.zero.reset_cpu_buffers()
            for flat in self.flats():
                flat.grad.zero_()

    # Checkpoints

    def save_state(self, folder: Path, main: bool) -> None:
        zero_moments.save(self, folder, main)

    def load_state(self, folder: Path) -> None:
        zero_moments.load(self, folder)


class Stages12Role(TrainedRole):
    """Whole weights on every process: stage 1 spreads the moments and masters, stage 2 gradients as well."""

    def flats(self) -> list[Tensor]:
        return list(self.zero.single_partition_of_fp32_groups)

    def pieces(self) -> dict[str, Piece]:
        found = {}
        for name, p in self.module.named_parameters():
            if (map := p._hp_mapping) is not None:
                within = self.flats()[map.param_group_index], map.hp_fragment_address.start
                found[name] = Piece(map.lp_fragment_address.start, map.hp_fragment.data, within)
        return found

    def spread(self) -> None:
        self.zero.update_lp_params()

    def sums(self) -> dict[int, list[Tensor]]:
        if self.offloaded:
            return {i: [flat.grad] for i, flat in enumerate(self.flats())}
        return dict(self.zero.averaged_gradients)

    def _finish(self) -> None:
        if self.zero.partition_gradients:
            super()._finish()
        else:
            self.zero.set_gradient_accumulation_boundary(True)
            self.zero.reduce_gradients()
            self.zero.set_gradient_accumulation_boundary(False)

    def clear(self) -> None:
        super().clear()
        self.zero.micro_step_id = -1  # the next backward pass is the first
        for kept in (self.zero.averaged_gradients, self.zero.all_grad_tensors):
            kept.update(dict.fromkeys(kept))
        for each in getattr(self.zero, "accumulated_grads_in_cpu", {}).values():
            each.zero_()


class Stage3Role(PartitionedRole, TrainedRole):
    """Weights in pieces as well."""

    def flats(self) -> list[Tensor]:
        return list(self.zero.fp32_partitioned_groups_flat)

    def pieces(self) -> dict[str, Piece]:
        found = {}
        for name, p in self.module.named_parameters():
            group, offset, _ = self.zero.grad_position[self.zero.get_param_id(p)]
            start, length = self._of_parameter(p)
            if length:
                flat = self.flats()[group]
                found[name] = Piece(start, flat.data[offset : offset + length], (flat, offset))
        return found

    def spread(self) -> None:
        pieces = self.pieces()
        for name, p in self.module.named_parameters():
            if name in pieces:
                p.ds_tensor.data[: pieces[name].values.numel()].copy_(pieces[name].values)

    def sums(self) -> dict[int, list[Tensor]]:
        if self.offloaded:
            return {i: [flat.grad] for i, flat in enumerate(self.flats())}
        return dict(self.zero.averaged_gradients)

    def backward(self, loss: Tensor) -> None:
        self.zero.micro_step_id = 1  # add to the sums, which `clear` has set to zero
        super().backward(loss)

    def clear(self) -> None:
        super().clear()
        self.zero.grad_partitions_flat_buffer.zero_()

    def rest(self) -> None:
        self.zero.empty_partition_cache()  # the engine's own collects garbage besides, which takes seconds


def trained(name: str, module: nn.Module, place: Place, **options) -> Role:
    """A trained network under zero1, zero2 or zero3."""
    kind = Stage3Role if place.sharding == "zero3" else Stages12Role
    return kind(name, module, place, **options)
