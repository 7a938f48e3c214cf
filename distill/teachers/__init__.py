"""Teachers: one file per model family."""

from pathlib import Path

from .. import embedded, registry
from ..recipe import TeacherSpec, Video
from .base import Teacher


def load(spec: TeacherSpec, video: Video) -> Teacher:
    """The teacher of a recipe, for videos of one size."""
    family = registry.teacher_class(spec.family)
    teacher = family(locate(spec.path), revision=spec.revision, max_sequence_length=spec.max_sequence_length)
    teacher.video = video
    return teacher


def locate(path: str) -> str | Path:
    """A folder or hub id; `embedded` is the teacher that comes with distill."""
    return embedded.PATH if path == "embedded" else path
