"""The files of a pipeline in diffusers' layout: a local folder, or a hub id fetched part by part."""

import json
import re
from hashlib import blake2b
from pathlib import Path

from ..errors import UserError

SAMPLED_BYTES = 1 << 20  # of either end of a weight file: the fingerprint of 30 GB takes no time


class PipelineFiles:
    """Where a pipeline lies.

    Raises:
        UserError: the path is neither a folder nor a hub id that can be reached, or files are missing.
    """

    def __init__(self, path: str | Path, revision: str | None = None):
        self.path, self.revision = str(path), revision
        self.is_local = Path(path).expanduser().is_dir()
        if self.is_local and revision is not None:
            raise UserError(f"teacher revision {revision!r} is for hub ids; {self.path} is a folder: remove it")
        if not self.is_local and not re.fullmatch(r"[\w.-]+/[\w.-]+", self.path):
            raise UserError(
                f"no teacher at {self.path}: expected a folder in the diffusers layout or a hub id owner/name"
            )

    def folder(self, *components: str) -> Path:
        """The pipeline's folder, with its small files and these components in place."""
        if self.is_local:
            return Path(self.path).expanduser().resolve()
        from huggingface_hub import snapshot_download

        patterns = ["*.json", "tokenizer/*", *(f"{c}/*" for c in components)]
        try:
            return Path(snapshot_download(self.path, revision=self.revision, allow_patterns=patterns))
        except (OSError, ValueError) as error:
            at = f" at revision {self.revision}" if self.revision else ""
            reason = str(error).strip().splitlines()[0]
            raise UserError(
                f"no folder {self.path} here, and no such teacher{at} on the hub or in its cache ({reason})"
            ) from error

    def json(self, name: str) -> dict:
        file = self.folder() / name
        if not file.is_file():
            hint = self._hint() if name == "model_index.json" else ""
            raise UserError(f"{self.path} is not a pipeline in the diffusers layout: {name} is missing{hint}")
        try:
            return json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"{file} is not valid JSON: {error}") from error

    def _hint(self) -> str:
        """What to do with a model in Wan's own layout; nothing of others."""
        file = self.folder() / "config.json"
        try:
            original = json.loads(file.read_text("utf-8"))["_class_name"] == "WanModel"
        except (OSError, ValueError, KeyError, TypeError):
            return ""
        if not original:
            return ""
        advice = (
            f"`distill convert {self.path} OUT` makes" if self.is_local else f"as {self.path}-Diffusers the hub has"
        )
        return f"; its layout is Wan's original one: {advice} one in this layout"

    def weights(self, component: str) -> list[Path]:
        """The safetensors files of a component, shards included."""
        folder = self.folder(component) / component
        files = sorted(folder.glob("*.safetensors"))
        if not files:
            raise UserError(f"{self.path}: {component}/ has no weights (expected *.safetensors)")
        for index in folder.glob("*.safetensors.index.json"):
            missing = set(json.loads(index.read_text())["weight_map"].values()) - {f.name for f in files}
            if missing:
                raise UserError(f"{self.path}: {component}/{min(missing)} is missing, {index.name} lists it")
        return files

    def fingerprint(self, *components: str) -> str:
        """16 hex digits that change with the configurations and weights of these components."""
        folder = self.folder()
        if not self.is_local:
            return blake2b(folder.name.encode(), digest_size=8).hexdigest()  # a hub snapshot is named by its commit
        digest = blake2b(digest_size=8)
        for file in sorted(f for c in components for f in (folder / c).rglob("*") if f.is_file()):
            digest.update(f"{file.relative_to(folder).as_posix()} {file.stat().st_size} ".encode())
            digest.update(_ends(file))
        return digest.hexdigest()


def _ends(file: Path) -> bytes:
    with file.open("rb") as stream:
        head = stream.read(SAMPLED_BYTES)
        stream.seek(max(SAMPLED_BYTES, file.stat().st_size - SAMPLED_BYTES))
        return head + stream.read()
