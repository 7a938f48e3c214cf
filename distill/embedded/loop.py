"""A resumable training loop over one or more processes that average their gradients."""

import json
import os
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

CLIP = 1.0  # largest gradient norm
LOG_EVERY, SAVE_EVERY = 100, 500  # steps


@dataclass(frozen=True)
class Workers:
    """The processes of a training, and which of them this one is."""

    rank: int = 0
    count: int = 1

    def average(self, parameters: list[nn.Parameter]) -> None:
        """Average the gradients over the processes."""
        if self.count == 1:
            return
        flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters])
        dist.all_reduce(flat)
        for p, grad in zip(parameters, flat.div_(self.count).split([p.numel() for p in parameters]), strict=True):
            p.grad = grad.view_as(p)

    def wait(self) -> None:
        if self.count > 1:
            dist.barrier()


@dataclass
class Training:
    """One network's training.

    Attributes:
        loss: of a step, on this process's samples; depends on the step and the weights alone.
        factor: on the learning rates, of a step.
        average: decay of the moving average of the weights.
        evaluate: called with the moving average every `evaluate_every` steps and at the end; what it returns is logged.
    """

    name: str
    model: nn.Module
    optimizers: list[Optimizer]
    steps: int
    loss: Callable[[int], Tensor]
    factor: Callable[[int], float]
    average: float = 0.0
    evaluate: Callable[[nn.Module], dict] | None = None
    evaluate_every: int | None = None
    step: int = 0
    averaged: nn.Module = field(init=False)

    def __post_init__(self) -> None:
        self.averaged = deepcopy(self.model).requires_grad_(False)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["initial_lr"] = group["lr"]

    def state(self) -> dict:
        return {
            "step": self.step,
            "model": self.model.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimizers": [o.state_dict() for o in self.optimizers],
        }

    def load(self, path: Path) -> None:
        state = torch.load(path, weights_only=True)
        self.step = state["step"]
        self.model.load_state_dict(state["model"])
        self.averaged.load_state_dict(state["averaged"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)


def fit(training: Training, folder: Path, workers: Workers) -> nn.Module:
    """Train, or go on from <name>.pt in the folder; the moving average of the weights."""
    path = folder / f"{training.name}.pt"
    if path.exists():
        training.load(path)
    started, losses = time.perf_counter(), []
    while training.step < training.steps:
        losses.append(advance(training, workers))
        last = training.step == training.steps
        if training.step % LOG_EVERY == 0 or last:
            seconds = (time.perf_counter() - started) / len(losses)
            log(folder, workers, training, loss=sum(losses) / len(losses), seconds_per_step=seconds)
            started, losses = time.perf_counter(), []
        if training.evaluate and (training.step % training.evaluate_every == 0 or last):
            log(folder, workers, training, **(training.evaluate(training.averaged) if workers.rank == 0 else {}))
        if training.step % SAVE_EVERY == 0 or last:
            save(training, path, workers)
    return training.averaged


def advance(training: Training, workers: Workers) -> float:
    """One step; its loss on this process."""
    loss = training.loss(training.step)
    loss.backward()
    parameters = list(training.model.parameters())
    workers.average(parameters)
    torch.nn.utils.clip_grad_norm_(parameters, CLIP, error_if_nonfinite=True)
    factor = training.factor(training.step)
    for optimizer in training.optimizers:
        for group in optimizer.param_groups:
            group["lr"] = factor * group["initial_lr"]
        optimizer.step()
    training.model.zero_grad()
    follow(training)
    training.step += 1
    return loss.item()


@torch.no_grad()
def follow(training: Training) -> None:
    """Advance the moving average; young averages are short."""
    decay = min(training.average, (training.step + 1) / (training.step + 20))
    for average, weight in zip(training.averaged.parameters(), training.model.parameters(), strict=True):
        average.lerp_(weight, 1 - decay)


def save(training: Training, path: Path, workers: Workers) -> None:
    if workers.rank == 0:
        partial = path.with_suffix(".partial")
        torch.save(training.state(), partial)
        os.replace(partial, path)
    workers.wait()


def log(folder: Path, workers: Workers, training: Training, **values: float) -> None:
    """A line in log.jsonl and on the terminal; figures of the first process."""
    if workers.rank == 0:
        rounded = {key: round(value, 4) for key, value in values.items()}
        line = json.dumps({"network": training.name, "step": training.step, "steps": training.steps} | rounded)
        print(line, flush=True)
        with (folder / "log.jsonl").open("a") as file:
            file.write(line + "\n")
