"""How the frames of a clip look: mean over frames, at the clip's own size. A clip is uint8 (F, H, W, 3)."""

import numpy as np

from ..curate import imaging

RADIUS = 0.25  # cycles per pixel, half of what pixels can show


def colourfulness(video: np.ndarray) -> float:
    """0 for greys to about 110."""
    return float(np.mean([imaging.colourfulness(frame) for frame in video]))


def sharpness(video: np.ndarray) -> float:
    return float(np.mean([imaging.sharpness(frame) for frame in video]))


def high_frequency(video: np.ndarray) -> float:
    """Share of the energy above RADIUS in any direction; 0 for flat frames, 1 - pi / 16 for white noise.

    Frames are faded out to their borders, whose jump to the other side would count as detail.
    """
    return float(np.mean([_share_above(imaging.grey(frame).astype(float)) for frame in video]))


def _share_above(luma: np.ndarray) -> float:
    fade = np.outer(*(np.hanning(n + 2)[1:-1] for n in luma.shape))
    faded = (luma - np.average(luma, weights=fade)) * fade
    energy = np.square(np.abs(np.fft.fft2(faded)))
    radius = np.hypot(*np.meshgrid(*map(np.fft.fftfreq, luma.shape), indexing="ij"))
    whole = energy.sum()
    return float(energy[radius > RADIUS].sum() / whole) if luma.std() > 0 else 0.0


MEASURES = {"colourfulness": colourfulness, "sharpness": sharpness, "high_frequency": high_frequency}
