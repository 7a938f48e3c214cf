"""A store of either kind, opened by its folder alone."""

import json
from pathlib import Path

from . import shards, trajectories, videos
from .store import Store


def open_store(path: Path) -> Store:
    """Raises UserError if it is none, or its index is damaged."""
    try:
        said = json.loads((path / shards.INDEX).read_text("utf-8"))
    except (OSError, ValueError):
        said = {}  # the store says what is wrong
    of_videos = isinstance(said, dict) and "listing" in said
    return (videos if of_videos else trajectories).Store(path)
