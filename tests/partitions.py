"""What each of several processes finds when it loads a teacher in pieces: work for test_loading.py's processes."""

import os
from multiprocessing.connection import Connection
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from distill import registry, zero_config
from distill.batch import Condition
from distill.teachers.base import Teacher
from tests import tiny_wan

CONFIG = {  # every parameter is in pieces, however small
    "train_micro_batch_size_per_gpu": 1,
    "zero_optimization": {
        "stage": 3,
        "stage3_param_persistence_threshold": 0,
        "stage3_prefetch_bucket_size": 100,
        "stage3_max_live_parameters": 100,
        "memory_efficient_linear": False,
    },
}


def look(environment: dict[str, str], cases: list[tuple], mouth: Connection) -> None:
    """Send what is wrong in each case, or nothing."""
    os.environ.update(environment)
    torch.set_num_threads(1)
    try:
        dist.init_process_group("gloo")
        mouth.send([fault for case in cases for fault in _faults(*case)])
        dist.barrier()
    except BaseException as error:  # told to the parent, which shows it
        mouth.send([f"{type(error).__name__}: {error}"])
    os._exit(0)


def _faults(family: str, folder: Path, dtype: torch.dtype, ends: bool) -> list[str]:
    deepspeed = zero_config.library()

    def partition(module: nn.Module) -> None:
        deepspeed.zero.Init(module=module, config_dict_or_path=CONFIG, mem_efficient_linear=False)

    teacher = registry.teacher_class(family)(folder)
    plain = teacher.network(dtype, ends=ends)
    pieces = teacher.network(dtype, ends=ends, partition=partition).requires_grad_(False)
    case = f"{family}, {dtype}, ends {ends}, rank {dist.get_rank()}"
    faults = [f"{case}: {name}" for name in _other_slices(plain, pieces)]
    module = deepspeed.initialize(model=pieces, config=CONFIG)[0].module
    faults += [f"{case}: buffer {n}" for n in _other_buffers(plain, module)]
    if not torch.equal(_velocity(teacher, plain, ends), _velocity(teacher, module, ends)):
        faults.append(f"{case}: another velocity")
    return faults


def _other_slices(plain: nn.Module, pieces: nn.Module) -> list[str]:
    """Of every weight, flat and with zeros behind it, each process has its equal share."""
    whole, wrong = dict(plain.named_parameters()), []
    for name, weight in pieces.named_parameters():
        flat = whole[name].detach().flatten()
        share = -(-flat.numel() // dist.get_world_size())
        flat = torch.cat([flat, flat.new_zeros(share * dist.get_world_size() - flat.numel())])
        mine = flat[dist.get_rank() * share :][:share]
        if weight.ds_tensor.dtype != mine.dtype or not torch.equal(weight.ds_tensor, mine) or weight.numel():
            wrong.append(name)
    return wrong


def _other_buffers(plain: nn.Module, module: nn.Module) -> list[str]:
    there = dict(module.named_buffers())
    return [
        n for n, value in plain.named_buffers() if there[n].dtype != value.dtype or not torch.equal(there[n], value)
    ]


@torch.no_grad()
def _velocity(teacher: Teacher, module: nn.Module, ends: bool) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, *teacher.latent_shape(**tiny_wan.VIDEO), generator=generator)
    cond = _condition(teacher, generator)
    end = torch.tensor([0.1, 0.3]) if ends else None
    low = next(module.parameters()).dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16, enabled=low):
        return module(x, torch.tensor([0.9, 0.5]), cond, end=end)


def _condition(teacher: Teacher, generator: torch.Generator) -> Condition:
    if teacher.family == "wan":
        return Condition(text=torch.randn(2, 8, teacher.config["text_dim"], generator=generator))
    text = torch.randn(2, 9, teacher.config["text_embed_dim"], generator=generator)
    pooled = torch.randn(2, teacher.config["pooled_projection_dim"], generator=generator)
    return Condition(text=text, mask=torch.ones(2, 9), pooled=pooled)
