"""Metrics as a user would write them, good and bad."""

import numpy as np


def brightness(video):
    """Mean of all channels.

    Of 255.
    """
    return video.mean()


brightness.better, brightness.unit = "higher", "levels"


def off(reference, video, scale=2.0):
    return scale * np.abs(video.astype(float) - reference).mean()


def told(fps, prompt):
    return fps + len(prompt)


def hungry(video, weights):
    return 0.0


def misled(video):
    return 0.0


misled.better = "larger"


def fails(video):
    raise RuntimeError("no weights")


def infinite(video):
    return float("inf")
