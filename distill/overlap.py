"""Prompts that a student is trained on and measured with: what is learnt by heart says little about the rest.

Imports no torch: `distill check` warns before anything is trained.
"""

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from . import image_prompt
from .data import captions, prompt_file
from .errors import UserError
from .recipe import Recipe
from .sections import is_embedded

SHOWN, LENGTH = 3, 90  # examples, and characters of each
SEPARATORS = "PSZC"  # first letters of the unicode categories of punctuation, symbols, spaces and controls


@dataclass(frozen=True)
class Overlap:
    """Of evaluation prompts with training prompts; each prompt counts once, an image is not looked at.

    Attributes:
        prompts: how many evaluation prompts there are.
        exact: those that are training prompts.
        alike: those that are, but for case, punctuation, spaces or the form of their letters.
    """

    prompts: int
    exact: tuple[str, ...]
    alike: tuple[str, ...]

    @property
    def share(self) -> float:
        return (len(self.exact) + len(self.alike)) / self.prompts

    def line(self, which: str) -> str | None:
        """A warning, or None where there is no overlap; `which` names the evaluation prompts."""
        found = [*self.exact, *self.alike]
        if not found:
            return None
        apart = f", {len(self.alike)} of them but for case or punctuation" if self.alike else ""
        examples = ", ".join(repr(_short(text)) for text in found[:SHOWN])
        count = f"{len(found)} of {self.prompts} {which} prompts ({self.share:.1%}) are training prompts"
        return f"{count}{apart}: {examples}{', ...' if len(found) > SHOWN else ''}; measure with prompts that are not"


def overlap(training: Iterable[str], evaluation: Iterable[str]) -> Overlap:
    asked = list(dict.fromkeys(map(image_prompt.text, evaluation)))
    wanted, plain = set(asked), {normalised(text) for text in asked} - {""}
    exact, alike = set(), set()
    for text in map(image_prompt.text, training):
        if text in wanted:
            exact.add(text)
        if (same := normalised(text)) in plain:
            alike.add(same)
    rest = [text for text in asked if text not in exact and normalised(text) in alike]
    return Overlap(len(asked), tuple(text for text in asked if text in exact), tuple(rest))


def normalised(text: str) -> str:
    """In lower case, one form of every letter, words alone."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    return " ".join(text.casefold().translate(_TABLE).split())


def warnings(recipe: Recipe) -> list[str]:
    """A line for each section of a recipe whose prompts are trained on."""
    asked = {"validation": recipe.validation, "evaluation": recipe.evaluation}
    asked = {name: prompt_file.listed(section.prompts) for name, section in asked.items() if section}
    known = training(recipe) if asked else []
    return [line for name, prompts in asked.items() if (line := overlap(known, prompts).line(name))]


def training(recipe: Recipe) -> list[str]:
    """What a recipe trains on, as far as it is written down: its prompts, and the captions of listed videos."""
    data = recipe.data
    texts = prompt_file.read(data.prompts) if data.prompts else []
    if data.videos and not is_embedded(data.videos.source):
        texts += _captions(Path(data.videos.source))
    return texts


def _captions(source: Path) -> Sequence[str]:
    try:
        return [each.caption for each in captions.read(source) if each.caption]
    except UserError:
        return []  # `prepare` says what is wrong; a store of latents needs its videos no more


class _Table(dict):
    """For str.translate: apostrophes vanish, what is no letter, digit or mark becomes a space."""

    def __missing__(self, code: int) -> str:
        letter = chr(code)
        apart = unicodedata.category(letter)[0] in SEPARATORS
        self[code] = "" if letter in "'\u2019" else " " if apart else letter
        return self[code]


_TABLE = _Table()


def _short(text: str) -> str:
    return text if len(text) <= LENGTH else f"{text[: LENGTH - 3]}..."
