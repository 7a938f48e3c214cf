"""Latent frame interpolation: between any two latent frames of a clip, one more. F frames become 2F - 1.

The U-Net of "Adaptive Video Distillation" (sections 3.4 and 8): it sees two neighbours, channel by channel side by
side, and says what lies between them. The frames that it is given are kept as they are.
This file goes along with exported students, and therefore imports torch and diffusers alone.
"""

from typing import Literal

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from torch.nn import functional as F

GRAIN = 4  # latent pixels: two poolings by 2


class PositionNorm(nn.BatchNorm2d):
    """Batch normalization which, in training, takes each of P positions in the clips by itself.

    So the batched call is the official loop over pairs of frames, in its statistics and running means as well.
    """

    def forward(self, x: Tensor, positions: int) -> Tensor:
        """x is (B P, C, H, W), clip by clip; positions 1 takes all together."""
        if not self.training:
            return super().forward(x)
        mean, var = self.running_mean.repeat(positions), self.running_var.repeat(positions)
        weight, bias = self.weight.repeat(positions), self.bias.repeat(positions)
        apart = x.reshape(-1, positions * x.shape[1], *x.shape[2:])
        y = F.batch_norm(apart, mean, var, weight, bias, True, 1.0, self.eps)  # momentum 1: they become the batch's
        for running, seen in ((self.running_mean, mean), (self.running_var, var)):
            for each in seen.unflatten(0, (positions, -1)):
                running.lerp_(each, self.momentum)
        self.num_batches_tracked += positions
        return y.reshape(x.shape)


class ConvBlock(nn.Module):
    def __init__(self, channels: int, out: int):
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(channels, out, 3, padding=1, bias=False), PositionNorm(out), nn.ReLU())

    def forward(self, x: Tensor, positions: int) -> Tensor:
        convolve, normalize, rectify = self.conv
        return rectify(normalize(convolve(x), positions))


class Interpolator(ModelMixin, ConfigMixin):
    """Latents (B, C, F, H, W) -> (B, C, 2F - 1, H, W), all pairs in one batched call.

    Args:
        channels: C.
        width: channels after the first of the three blocks; the next have twice and four times as many.
        statistics: while training, batch normalization takes each pair's position in the clip by itself, as the
            official code does, or all pairs together.
        residual: the network says what to add to the mean of the two neighbours, not the whole frame.
    """

    @register_to_config
    def __init__(
        self,
        channels: int = 16,
        width: int = 32,
        statistics: Literal["position", "together"] = "position",
        residual: bool = False,
    ):
        super().__init__()
        self.enc1 = ConvBlock(2 * channels, width)
        self.enc2 = ConvBlock(width, 2 * width)
        self.enc3 = ConvBlock(2 * width, 4 * width)
        self.upconv2 = nn.ConvTranspose2d(4 * width, 2 * width, 2, stride=2)
        self.dec2 = ConvBlock(4 * width, 2 * width)
        self.upconv1 = nn.ConvTranspose2d(2 * width, width, 2, stride=2)
        self.dec1 = ConvBlock(2 * width, width)
        self.out_conv = nn.Conv2d(width, channels, 1)

    def forward(self, x: Tensor, sigma: Tensor | None = None, cond: dict | None = None) -> Tensor:
        """The frames of x, and one between any two.

        Args:
            x: clean latents; a single frame stays alone. Sides that 4 does not divide are padded on the way.
            sigma, cond: what every network of a method is told; they say nothing here.
        """
        if x.ndim != 5 or x.shape[1] != self.config.channels:
            raise ValueError(f"latents {tuple(x.shape)} do not fit: expected (B, {self.config.channels}, F, H, W)")
        if x.shape[2] == 1:
            return x
        before, after = x[:, :, :-1], x[:, :, 1:]
        between = self.between(torch.cat([before, after], 1).to(self.out_conv.weight.dtype)).to(x.dtype)
        if self.config.residual:
            between = between + (before + after) / 2
        return torch.cat([torch.stack([before, between], 3).flatten(2, 3), x[:, :, -1:]], 2)

    def between(self, pairs: Tensor) -> Tensor:
        """(B, C, P, H, W) of pairs (B, 2C, P, H, W)."""
        positions, height, width = pairs.shape[2:]
        flat = pairs.transpose(1, 2).flatten(0, 1)
        padded = F.pad(flat, (0, -width % GRAIN, 0, -height % GRAIN), mode="replicate")
        y = self.unet(padded, positions if self.config.statistics == "position" else 1)
        return y[..., :height, :width].unflatten(0, (-1, positions)).transpose(1, 2)

    def unet(self, x: Tensor, positions: int) -> Tensor:
        """(N, C, H, W) of (N, 2C, H, W)."""
        one = self.enc1(x, positions)
        two = self.enc2(F.max_pool2d(one, 2), positions)
        three = self.enc3(F.max_pool2d(two, 2), positions)
        two = self.dec2(torch.cat([self.upconv2(three), two], 1), positions)
        one = self.dec1(torch.cat([self.upconv1(two), one], 1), positions)
        return self.out_conv(one)
