"""How a stock transformer computes: its kernel of attention, what it keeps for the backward pass, compiled blocks."""

import contextlib
import functools
from collections.abc import Iterator
from typing import ClassVar, Literal

import torch
from diffusers import ModelMixin
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..errors import UserError
from ..recipe import Train
from . import attention

RECOMPILES = 64  # of one kind of block: for other batches, with and without gradients, in either precision


class Stock(nn.Module):
    """What velocity networks around a transformer of diffusers inherit.

    Attributes:
        masked: attention is told which tokens are there, which not every kernel can be.
    """

    transformer: ModelMixin
    masked: ClassVar[bool] = False

    def enable_checkpointing(self, mode: Literal["full", "selective"] = "full") -> None:
        """Keep only block inputs for the backward pass, and compute the rest again; selective: keep what attention
        over all tokens returns, too."""
        if mode == "full":
            self.transformer.enable_gradient_checkpointing()
        else:
            self.transformer.enable_gradient_checkpointing(_selective)

    def set_attention(self, name: str) -> None:
        """Use a kernel by its name in diffusers."""
        attention.choose(self.transformer, name)

    def compile_blocks(self) -> None:
        """Compile each kind of block when it is first evaluated; names of weights stay, and copies are not compiled."""
        self.transformer.compile_repeated_blocks()

    @contextlib.contextmanager
    def plainly(self) -> Iterator[None]:
        """With torch's own attention, and nothing compiled: for forward mode, and for counting operations."""
        kernels = attention.chosen(self.transformer)
        attention.restore(dict.fromkeys(kernels))
        try:
            with torch.compiler.set_stance("force_eager"):
                yield
        finally:
            attention.restore(kernels)


def _selective(block: nn.Module, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
    return checkpoint(block.__call__, *inputs, use_reentrant=False, context_fn=attention.keep_attention)


def set_up(module: nn.Module, train: Train, *, gradients: bool = True) -> None:
    """Let a network, where it is to stay, compute as a recipe's section `train` says.

    Args:
        gradients: they may pass through it, although it is frozen.

    Raises:
        UserError: this machine, or this family, cannot.
    """
    again = train.activation_checkpointing if gradients else "none"
    if isinstance(module, Stock):
        precision = torch.bfloat16 if train.precision == "bf16" else torch.float32
        sizes = {"masked": module.masked, "precision": precision, "gradients": gradients}
        attention.check(train.attention, module.transformer, keeps=again == "selective", **sizes)
    if again != "none":
        _able(module, "enable_checkpointing", "activation_checkpointing")
        module.enable_checkpointing(again)
    if train.attention is not None:
        _able(module, "set_attention", "attention")
        module.set_attention(train.attention)
    if train.compile:
        _able(module, "compile_blocks", "compile")
        check_compiler(next(module.parameters()).device.type)
        module.compile_blocks()


def _able(module: nn.Module, call: str, option: str) -> None:
    if not hasattr(module, call):
        raise UserError(
            f"train.{option}: {type(module).__name__} has no {call}; leave the option out, or let the network inherit"
            " distill.teachers.stock.Stock"
        )


@functools.cache
def check_compiler(device: str) -> None:
    """UserError unless torch.compile works."""
    torch._dynamo.config.recompile_limit = max(RECOMPILES, torch._dynamo.config.recompile_limit)
    try:
        torch.compile(lambda x: 2 * x + 1)(torch.ones(8, device=device))
    except Exception as error:  # of torch, of Triton, of a C++ compiler
        said = next((line for line in reversed(str(error).splitlines()) if ": " in line), type(error).__name__)
        needed = "Triton" if device == "cuda" else "a C++ compiler"
        raise UserError(
            f"train.compile: torch.compile does not work here ({said.strip()}); it needs {needed}; install that, or"
            " set train.compile=false"
        ) from error
