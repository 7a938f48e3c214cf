"""A clip beside the reference's from the same noise: latents (C, F, H, W), videos uint8 (F, H, W, 3)."""

import numpy as np
import torch
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

ROUNDING = 1 / 12  # mean square error of rounding to uint8: equal clips have 59 dB, not infinitely many
WINDOW = 11  # pixels, the side of SSIM's


def rmse(x: Tensor, y: Tensor) -> float:
    return (x.double() - y.double()).square().mean().sqrt().item()


def cosine(x: Tensor, y: Tensor) -> float:
    return torch.nn.functional.cosine_similarity(x.double().flatten(), y.double().flatten(), dim=0).item()


def psnr(video: np.ndarray, reference: np.ndarray) -> float:
    """In dB, at most 58.9."""
    mse = np.square(video.astype(np.float64) - reference).mean()
    return float(10 * np.log10(255**2 / max(mse, ROUNDING)))


def ssim(video: np.ndarray, reference: np.ndarray) -> float:
    """Mean over frames, channels and the pixels around which Wang et al.'s Gaussian window is inside of the frame."""
    height, width = video.shape[1:3]
    if min(height, width) < WINDOW:
        raise ValueError(f"ssim needs frames of {WINDOW}x{WINDOW} or more; the clip has {width}x{height}")
    return float(np.mean([_ssim(*pair) for pair in zip(video, reference, strict=True)]))


def _ssim(frame: np.ndarray, reference: np.ndarray) -> float:
    a, b = (torch.from_numpy(image.astype(np.float32)).movedim(-1, 0)[None] for image in (frame, reference))
    _, image = structural_similarity_index_measure(a, b, data_range=255.0, return_full_image=True)
    inside = slice(WINDOW // 2, -(WINDOW // 2))  # torchmetrics mirrors the rest; its own mean has had it in and out
    return image[..., inside, inside].mean().item()


OF_LATENTS = {"rmse": rmse, "cosine": cosine}
OF_VIDEOS = {"psnr": psnr, "ssim": ssim}
