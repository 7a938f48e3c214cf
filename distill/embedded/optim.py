"""Muon for matrices and convolution kernels, AdamW for the rest."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim import Muon


class KernelMuon(Muon):
    """Muon, in which a convolution kernel (out, in, ...) counts as a matrix (out, in * ...)."""

    def __init__(self, kernels: Iterable[nn.Parameter], lr: float, momentum: float):
        self.kernels = list(kernels)
        self.matrices = [nn.Parameter(kernel.data.flatten(1)) for kernel in self.kernels]  # views of the same memory
        super().__init__(self.matrices, lr=lr, momentum=momentum, weight_decay=0.0)

    @torch.no_grad()
    def step(self) -> None:
        for kernel, matrix in zip(self.kernels, self.matrices, strict=True):
            assert kernel.data_ptr() == matrix.data_ptr()
            matrix.grad = kernel.grad.flatten(1)
        super().step()


def adamw(parameters: Iterable[Tensor], lr: float, betas: tuple[float, float]) -> torch.optim.AdamW:
    return torch.optim.AdamW(parameters, lr=lr, betas=betas, weight_decay=0.0, fused=True)
