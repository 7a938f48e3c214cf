"""Prompts of teachers that start from an image: its path, a tab, and the text, in one string.

Whatever passes prompts on (recipes, stores, logs) passes these on as they are.
"""

import functools
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Protocol

from .errors import UserError

TAB = "\t"
FORM = "path/to/image.png, a tab, and the text"


class Family(Protocol):
    """A teacher, in what concerns this file."""

    family: str
    takes_images: bool


def split(prompt: str) -> tuple[Path | None, str]:
    """The path of the image, None if the prompt is text alone, and the text."""
    image, tab, text = prompt.partition(TAB)
    return (Path(image), text.strip()) if tab else (None, prompt)


def join(image: Path, text: str) -> str:
    if TAB in text:
        raise UserError(f"prompt {text!r} has an image of its own; leave out the other, {image}")
    return f"{image}{TAB}{text}"


def has_image(prompt: str) -> bool:
    return TAB in prompt


def text(prompt: str) -> str:
    return split(prompt)[1]


def resolved(prompt: str, folder: Path) -> str:
    """The prompt with its image's path made absolute; a relative one starts from the folder."""
    image, words = split(prompt)
    return prompt if image is None else join((folder / image.expanduser()).absolute(), words)


def check(prompts: Sequence[str], teacher: Family) -> None:
    """UserError unless the prompts are of the teacher's kind and their images can be opened."""
    for prompt in prompts:
        if teacher.takes_images and not has_image(prompt):
            raise UserError(f"prompt {prompt!r} has no image; {teacher.family} starts from one: {FORM}")
        if has_image(prompt) and not teacher.takes_images:
            raise UserError(f"prompt {prompt!r} has an image; {teacher.family} makes videos of text alone: remove it")
    for image in dict.fromkeys(split(prompt)[0] for prompt in prompts if has_image(prompt)):
        load(image, whole=False)


def load(image: Path, whole: bool = True):
    """A PIL image in RGB, upright, as diffusers' load_image has it; if not `whole`, its header is looked at."""
    from PIL import Image, ImageOps

    try:
        with Image.open(image) as opened:
            return ImageOps.exif_transpose(opened).convert("RGB") if whole else None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if not image.is_file():
            raise UserError(f"{image}: no such image; a prompt with one is {FORM}") from error
        reason = str(error).partition("\n")[0]
        raise UserError(f"{image}: cannot be read as an image ({reason}); expected PNG, JPEG or WebP") from error


def content(prompt: str) -> str | None:
    """32 hex digits that change with the content of the prompt's image; None if it has none."""
    image, _ = split(prompt)
    if image is None:
        return None
    try:
        found = image.stat()
        return _digest(image, found.st_size, found.st_mtime_ns)
    except OSError as error:
        raise UserError(f"{image}: cannot read the image ({error.strerror})") from error


def contents(prompts: Sequence[str]) -> list[str]:
    """Those of all images, in order."""
    return [content(prompt) for prompt in prompts if has_image(prompt)]


@functools.cache
def _digest(image: Path, size: int, changed: int) -> str:
    return blake2b(image.read_bytes(), digest_size=16).hexdigest()


def draw_example(path: Path) -> None:
    """Write a picture of a red circle on white, 64 x 64 pixels."""
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (64, 64), "white")
    ImageDraw.Draw(image).ellipse((16, 16, 48, 48), fill="red")
    image.save(path)
