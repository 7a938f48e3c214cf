"""Kernels of attention, by their names in diffusers. Each is tried once before a network relies on it."""

import functools
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from diffusers import ModelMixin
from diffusers.models.attention_dispatch import AttentionBackendName, attention_backend, dispatch_attention_fn
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from ..errors import UserError
from .parts import quiet

DEFAULT = "native"
NATIVE = (DEFAULT, "_native_cudnn", "_native_efficient", "_native_flash", "_native_math")
TOKENS = 128  # of the trial
NORMS = ("norm_q", "norm_k", "norm_added_q", "norm_added_k")

Contexts = tuple[AbstractContextManager, AbstractContextManager]


def choose(network: ModelMixin, name: str) -> None:
    """Let a network's attention run on this kernel, and no other network's."""
    with quiet(), attention_backend(DEFAULT):  # which puts back what set_attention_backend changes for the process
        network.set_attention_backend(name)
    if name not in NATIVE:
        for key, module in network.named_modules():
            if key.rpartition(".")[2] in NORMS:
                module.register_forward_hook(_same_precision)


def _same_precision(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    """Kernels outside torch want q, k and v alike; under autocast norms return float32."""
    return output.to(inputs[0].dtype)


def chosen(network: ModelMixin) -> dict[nn.Module, str | None]:
    """The kernel of each module whose attention has a choice; None is the default."""
    processors = {module: getattr(module, "processor", None) for module in network.modules()}
    return {m: p._attention_backend for m, p in processors.items() if hasattr(p, "_attention_backend")}


def restore(kernels: dict[nn.Module, str | None]) -> None:
    for module, kernel in kernels.items():
        module.processor._attention_backend = kernel


def keep_attention() -> Contexts:
    """For torch's checkpoint: what attention over all tokens returns is kept, and nothing else."""
    return create_selective_checkpoint_contexts(_policy)


def _policy(context, operation: Callable, *inputs, **_) -> CheckpointPolicy:
    name = str(operation)
    if not ("attention" in name or "flash" in name):
        return CheckpointPolicy.PREFER_RECOMPUTE
    query, key = inputs[:2]
    over_all = query.shape == key.shape  # over the text it takes no time
    return CheckpointPolicy.MUST_SAVE if over_all else CheckpointPolicy.PREFER_RECOMPUTE


def check(
    name: str | None, network: ModelMixin, *, masked: bool, precision: torch.dtype, keeps: bool, gradients: bool
) -> None:
    """UserError unless a network of these sizes can use a kernel on its device.

    Args:
        name: None is torch's own choice.
        masked: it is told which tokens are there.
        keeps: what it returns is kept under selective checkpointing.
        gradients: they go through it.
    """
    device = next(network.parameters()).device.type
    heads, width = network.config.num_attention_heads, network.config.attention_head_dim
    fault = functools.partial(
        _fault, heads=heads, width=width, masked=masked, precision=precision, gradients=gradients, device=device
    )
    if name is not None and (why := fault(name, keeps=False)):
        here = ", ".join(each.value for each in AttentionBackendName if _is_local(each) and not fault(each.value))
        raise UserError(f"train.attention: {name!r} cannot be used here: {why}; this machine has {here}")
    if keeps and (why := fault(name or DEFAULT, keeps=True)):
        raise UserError(
            f"train.activation_checkpointing: selective keeps what a kernel of attention returns, and {why};"
            " say full, or another kernel in train.attention"
        )


def _is_local(name: AttentionBackendName) -> bool:
    """Others are fetched from the hub when they are asked for."""
    return "hub" not in name.value.split("_")


@functools.cache
def _fault(
    name: str,
    *,
    heads: int,
    width: int,
    masked: bool,
    precision: torch.dtype,
    gradients: bool,
    device: str,
    keeps: bool = False,
) -> str | None:
    """Why a kernel cannot be used; None if it can."""
    q, k, v = torch.ones(3, 1, TOKENS, heads, width, dtype=precision, device=device).requires_grad_(gradients)
    mask = torch.ones(1, 1, 1, TOKENS, dtype=torch.bool, device=device) if masked else None
    kept: list[str] = []

    def attend() -> Tensor:
        return dispatch_attention_fn(q, k, v, attn_mask=mask, backend=AttentionBackendName(name))

    def contexts() -> Contexts:
        return create_selective_checkpoint_contexts(_recorded(kept))

    try:
        with quiet(), warnings.catch_warnings(), torch.set_grad_enabled(gradients):
            warnings.simplefilter("ignore")
            with attention_backend(name):
                out = checkpoint(attend, use_reentrant=False, context_fn=contexts) if keeps else attend()
            if gradients and not out.requires_grad:
                return "it computes no gradients"
            if gradients:
                out.float().sum().backward()
    except Exception as error:  # of whatever a kernel's library raises
        return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
    return f"{name} is not one operation on {device}, whose result could be" if keeps and not kept else None


def _recorded(kept: list[str]) -> Callable[..., CheckpointPolicy]:
    def policy(context, operation: Callable, *inputs, **more) -> CheckpointPolicy:
        found = _policy(context, operation, *inputs, **more)
        if found is CheckpointPolicy.MUST_SAVE:
            kept.append(str(operation))
        return found

    return policy
