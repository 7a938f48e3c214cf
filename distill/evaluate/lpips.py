"""LPIPS (Zhang et al. 2018, arXiv:1801.03924), version 0.1 on AlexNet: the learned distance between two pictures."""

import torch
from torch import Tensor, nn

SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # ImageNet's mean and deviation, for -1 to 1
WIDTHS = (64, 192, 384, 256, 256)  # channels after each of the five convolutions
SMALLEST = 31  # pixels of a side; below, the second pooling has nothing to pool


class Lpips(nn.Module):
    """Features of both pictures after each ReLU, of length 1 at every place; their squared difference, weighted by
    channel, averaged over places and summed over layers (eq. 1). Names are those of the published AlexNet."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 64, 11, stride=4, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(3, stride=2),
            nn.Conv2d(64, 192, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(3, stride=2),
            nn.Conv2d(192, 384, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(384, 256, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(256, 256, 3, padding=1),
            nn.ReLU(),
        )
        self.heads = nn.ParameterList(torch.zeros(width) for width in WIDTHS)
        self.register_buffer("shift", torch.tensor(SHIFT)[:, None, None], persistent=False)
        self.register_buffer("scale", torch.tensor(SCALE)[:, None, None], persistent=False)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """(B,): distances of pictures (B, 3, H, W) from -1 to 1.

        Raises:
            ValueError: they are too small.
        """
        if min(x.shape[-2:]) < SMALLEST:
            raise ValueError(
                f"lpips: frames of {x.shape[-1]}x{x.shape[-2]} pixels; expected {SMALLEST}x{SMALLEST} or more"
            )
        layers = zip(self.heads, self.unit_features(x), self.unit_features(y), strict=True)
        return sum(((a - b).square() * head[:, None, None]).sum(1).mean((1, 2)) for head, a, b in layers)

    def unit_features(self, x: Tensor) -> list[Tensor]:
        """Of each layer (B, C, h, w), of length 1 over the channels, or 0."""
        x, found = (x - self.shift) / self.scale, []
        for layer in self.features:
            x = layer(x)
            if isinstance(layer, nn.ReLU):
                found.append(nn.functional.normalize(x, dim=1, eps=1e-10))
        return found
