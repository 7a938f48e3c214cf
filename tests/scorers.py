"""Scorers as a user would write them, good and bad."""

import numpy as np


def colours(frames):
    """Features (N, 3)."""
    return frames.mean((1, 2))


def brightness(frames):
    """Scores (N,)."""
    return frames.mean((1, 2, 3))


def darkness(frames):
    return -brightness(frames)


def picky(frames):
    if frames.mean() < 10:
        raise RuntimeError("too dark for me")
    return brightness(frames)


def broken(frames):
    raise RuntimeError("no weights")


def one_number(frames):
    return 3.0


def not_finite(frames):
    return np.full(len(frames), np.nan)
