"""Teachers: one file per model family."""

from pathlib import Path

from .. import embedded, registry
from ..recipe import TeacherSpec
from .base import Teacher


def load(spec: TeacherSpec) -> Teacher:
    """The teacher of a recipe."""
    family = registry.teacher_class(spec.family)
    return family(locate(spec.path), revision=spec.revision, max_sequence_length=spec.max_sequence_length)


def locate(path: str) -> str | Path:
    """A folder or hub id; `embedded` is the teacher that comes with distill."""
    return embedded.PATH if path == "embedded" else path
