"""Scorers that a recipe names, `package.module:function`: networks with weights, of which distill has none.

Of frames, uint8 (N, H, W, 3), RGB, a function for temporal consistency returns features, (N, D); one for looks returns
scores, (N,).
"""

import importlib
from collections.abc import Callable, Sequence

import numpy as np

from ..errors import UserError

Scorer = Callable[[np.ndarray], np.ndarray]


class BadScore(ValueError):
    """What a scorer made of one video cannot be used; the text says why."""


def load(option: str, name: str) -> Scorer:
    """The function that an option names.

    Raises:
        UserError: there is none.
    """
    module, _, function = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), function, None)
    except Exception as error:  # it is somebody else's code
        raise UserError(f"{option}: {name} failed to import: {type(error).__name__}: {error}") from error
    if not callable(found):
        raise UserError(f"{option}: {module} has no function {function}")
    return found


def call(scorer: Scorer, frames: Sequence[np.ndarray], dims: int) -> np.ndarray:
    """One row, or one number, per frame.

    Args:
        dims: of what it returns: 2 for features, 1 for scores.

    Raises:
        BadScore: it failed, or returned something else.
    """
    try:
        found = np.asarray(scorer(np.stack(frames)), dtype=float)
    except Exception as error:  # it is somebody else's code
        raise BadScore(f"failed: {type(error).__name__}: {error}") from error
    if found.ndim != dims or len(found) != len(frames):
        shape = f"({len(frames)}, D)" if dims == 2 else f"({len(frames)},)"
        raise BadScore(f"returned shape {found.shape} for {len(frames)} frames, expected {shape}")
    if not np.isfinite(found).all():
        raise BadScore("returned numbers that are not finite")
    return found
