"""DeepSpeed, set up for this machine, and what a network's place means in its words. See docs/engines.md."""

import contextlib
import logging
import os
import sys
from types import ModuleType

import torch
import torch.distributed as dist

from .errors import UserError
from .places import Place

BUCKET_ELEMENTS = 25_000_000  # of gradients on their way, and of weights gathered ahead of their use
LIVE_ELEMENTS = 1_000_000_000  # of gathered weights at a time, at most
PERSISTENT_ELEMENTS = 100_000  # a parameter of so few is not worth gathering


def library() -> ModuleType:
    """The module `deepspeed`, in processes that know each other; UserError if it is not installed."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    try:
        import deepspeed
    except ImportError as error:
        raise UserError(
            "engine asks for ZeRO, which needs deepspeed, and it is not installed: "
            "pip install 'distill[deepspeed]', or set engine=ddp"
        ) from error
    deepspeed.utils.logger.setLevel(logging.ERROR)  # it tells of every setting
    _begin(deepspeed)
    return deepspeed


def leave() -> None:
    """End what DeepSpeed keeps of the processes, if it was used: another run of this process begins anew."""
    deepspeed = sys.modules.get("deepspeed")
    if deepspeed is not None and deepspeed.comm.is_initialized():
        deepspeed.comm.destroy_process_group()
        if "RANK" not in os.environ:  # no launcher has set the other
            os.environ.pop("LOCAL_RANK", None)


def _begin(deepspeed: ModuleType) -> None:
    if not dist.is_initialized():  # one process by itself, which is to look like one that a launcher has started
        os.environ["LOCAL_RANK"] = "0"
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    if not deepspeed.comm.is_initialized():
        if not torch.cuda.is_available():
            _spare_compiler()
        deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False)


def _spare_compiler() -> None:
    """Without this the first start on a CPU compiles a kernel for over a minute, or fails for want of a compiler."""
    import deepspeed.ops

    with contextlib.suppress(AttributeError):  # a table that a later version may not have
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def config(place: Place, *, elements: int, bf16: bool) -> dict:
    """DeepSpeed's configuration of one network.

    Args:
        elements: parameters of the network, by which buffers are sized: a tiny network is gathered in pieces as well.
        bf16: weights and their gradients are bf16, beside float32 masters.
    """
    gpu = torch.cuda.is_available()
    stage = int(place.sharding.removeprefix("zero"))
    bucket = max(1, min(BUCKET_ELEMENTS, elements))
    zero = {
        "stage": stage,
        "overlap_comm": gpu and stage > 1,  # stage 1 reduces at the end of an update, by a call of its own
        "reduce_bucket_size": bucket,
        "allgather_bucket_size": BUCKET_ELEMENTS,
        # it would replace torch.nn.functional.linear for all networks of the process, and round bf16 biases otherwise
        "memory_efficient_linear": False,
    }
    if stage == 3:
        zero |= {
            "stage3_prefetch_bucket_size": min(BUCKET_ELEMENTS, elements // 10),
            "stage3_max_live_parameters": min(LIVE_ELEMENTS, elements // 10),
            "stage3_max_reuse_distance": 0,  # weights are given back at once, in whatever order networks are asked
            "stage3_param_persistence_threshold": min(PERSISTENT_ELEMENTS, elements // 10_000),
        }
    for what, key in (("optimizer", "offload_optimizer"), ("parameters", "offload_param")):
        if what in place.offload:
            zero[key] = {"device": "cpu", "pin_memory": gpu}
    return {
        "train_micro_batch_size_per_gpu": 1,  # asked for, and of no effect: batches are ours
        "gradient_clipping": 0.0,  # ours: DeepSpeed clips to 1 unless told
        "zero_optimization": zero,
        "bf16": {"enabled": bf16},
        # with sums in float32 stage 1 would be another optimizer, DeepSpeed's BF16_Optimizer, whose norms come too late
        "data_types": {"grad_accum_dtype": "bf16" if bf16 and stage == 1 else "fp32"},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # torch's fused AdamW runs on the CPU too, and is not compiled first
    }
