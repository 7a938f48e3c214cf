"""The teacher's autoencoder: an AutoencoderKLWan that compresses time by 2 and space by 4."""

from types import MethodType

import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanResample, patchify, unpatchify
from einops import rearrange
from torch import Tensor, nn


def build(base_dim: int, res_blocks: int, z_dim: int) -> AutoencoderKLWan:
    return AutoencoderKLWan(
        base_dim=base_dim,
        z_dim=z_dim,
        dim_mult=[1, 2],
        num_res_blocks=res_blocks,
        temperal_downsample=[True],
        latents_mean=[0.0] * z_dim,
        latents_std=[1.0] * z_dim,
        in_channels=12,
        out_channels=12,
        patch_size=2,
        scale_factor_temporal=2,
        scale_factor_spatial=4,
    )


def resample(self: WanResample, x: Tensor, feat_cache: None = None, feat_idx: None = None) -> Tensor:
    """WanResample over a whole clip (B, C, F, H, W): what the chunks of 1, 4, 4, ... frames come to."""
    if self.mode == "upsample3d" and x.shape[2] > 1:
        pairs = rearrange(self.time_conv(x[:, :, 1:]), "b (k c) f h w -> b c (f k) h w", k=2)
        x = torch.cat([x[:, :, :1], pairs], 2)
    batch = len(x)
    x = rearrange(self.resample(rearrange(x, "b c f h w -> (b f) c h w")), "(b f) c h w -> b c f h w", b=batch)
    if self.mode == "downsample3d" and x.shape[2] > 1:
        x = torch.cat([x[:, :, :1], self.time_conv(x)], 2)
    return x


def whole_clip(vae: AutoencoderKLWan) -> AutoencoderKLWan:
    """Make `encode` and `decode` below possible; the stock chunk-wise calls of this instance stop working."""
    for module in vae.modules():
        if isinstance(module, WanResample):
            module.forward = MethodType(resample, module)
    return vae


def encode(vae: AutoencoderKLWan, video: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and log variance (B, z, 1 + (F - 1) / 2, H / 4, W / 4) of a video (B, 3, F, H, W) in [-1, 1]."""
    return vae.quant_conv(vae.encoder(patchify(video, vae.config.patch_size))).chunk(2, dim=1)


def decode(vae: AutoencoderKLWan, z: Tensor) -> Tensor:
    """Video (B, 3, F, H, W), not clamped."""
    return unpatchify(vae.decoder(vae.post_quant_conv(z)), vae.config.patch_size)


def loss(vae: AutoencoderKLWan, video: Tensor, kl: float, generator: torch.Generator) -> Tensor:
    """Absolute, squared and edge error of the reconstruction, and kl times the divergence from N(0, 1)."""
    mean, log_variance = encode(vae, video)
    log_variance = log_variance.clamp(-20, 5)
    noise = torch.randn(mean.shape, generator=generator)
    error = decode(vae, mean + torch.exp(log_variance / 2) * noise).float() - video
    edges = sum(error.diff(dim=side).abs().mean() for side in (-1, -2))
    divergence = (mean**2 + log_variance.exp() - 1 - log_variance).float().mean() / 2
    return error.abs().mean() + 2 * error.square().mean() + 0.5 * edges + kl * divergence


def kernels(vae: AutoencoderKLWan) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The convolution kernels but the first and the last, and all other weights."""
    ends = ("encoder.conv_in.weight", "decoder.conv_out.weight")
    inner = [p for n, p in vae.named_parameters() if p.ndim >= 4 and not n.endswith(("gamma", *ends))]
    chosen = {id(p) for p in inner}
    return inner, [p for p in vae.parameters() if id(p) not in chosen]
