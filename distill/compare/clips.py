"""The clips of a comparison: decoded from what the evaluations have kept, and written once."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from .. import disk, video
from ..evaluate import kept
from ..evaluate.asked import Asked

CLIPS, WRITTEN = "clips", "clips/written.json"  # name -> sha256 of the latents that a clip shows


def rows(asked: Asked, shown: int) -> list[int]:
    """Samples to show, of as many different prompts, from all over the list."""
    prompts = min(asked.samples, len(asked.prompts))
    n = min(shown, prompts)
    return [i * prompts // n for i in range(n)]


class Clips:
    """Context manager; at its end clips that were not asked for are removed."""

    def __init__(self, folder: Path, fps: float):
        self.folder, self.fps = folder, fps
        self.asked: dict[str, str] = {}
        self.written: dict[str, str] = {}

    def __enter__(self) -> "Clips":
        (self.folder / CLIPS).mkdir(parents=True, exist_ok=True)
        if (self.folder / WRITTEN).is_file():
            self.written = json.loads((self.folder / WRITTEN).read_text("utf-8"))
        return self

    def __exit__(self, error: type | None, *_) -> None:
        if error is not None:
            return
        for path in (self.folder / CLIPS).iterdir():
            if path.stem not in {Path(name).stem for name in self.asked} and path.name != Path(WRITTEN).name:
                path.unlink()
        self._note(self.asked)

    def write(self, stem: str, latents: Tensor, decode: Callable[[Tensor], Tensor]) -> str:
        """The name of the clip that latents (C, F, H, W) show; decoded unless it is there.

        Raises:
            ValueError: there can be no such clip (video.write).
        """
        name = f"{CLIPS}/{stem}.mp4"
        self.asked[name] = hashlib.sha256(latents.contiguous().numpy().tobytes()).hexdigest()
        if self.written.get(name) != self.asked[name] or not (self.folder / name).is_file():
            video.write(self.folder / name, decode(latents[None])[0], self.fps)
            self._note(self.written | self.asked)
        return name

    def _note(self, written: dict[str, str]) -> None:
        self.written = written
        disk.replace(self.folder / WRITTEN, lambda file: kept.write(dict(sorted(written.items())), file))
