"""Which videos a suite asks for, where they lie and what they are named. Imports no torch.

Videos of a dimension lie in a folder of their own, or that of the dimension whose videos it shares, as the official
scripts look for them. Files are named by the suite's short prompt also where the network is given an extended one.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ...errors import UserError
from .suites import Suite, of_dimensions

MOST_SAMPLES = 25  # of a prompt, in either suite: seeds leave room for them
LONGEST = 255  # bytes of a file's name
NUL = "\0"


@dataclass(frozen=True)
class Prompt:
    """An entry of the suite's list.

    Attributes:
        number: of the first entry with the same text; the seeds follow from it.
        text: what the network is given: the prompt, or an extension of it.
    """

    number: int
    prompt: str
    text: str
    dimensions: tuple[str, ...]


@dataclass(frozen=True)
class Wanted:
    """A video.

    Attributes:
        file: from the folder of the suite, as in scene/alley-0.mp4.
    """

    file: str
    prompt: str
    text: str
    seed: int


@dataclass(frozen=True)
class Layout:
    """A suite's prompts.

    Attributes:
        info: the list that they are from, as the official package has it.
        extended: the network is given longer texts.
        faults: a line for each prompt that has no videos, and why.
    """

    suite: Suite
    info: Path
    prompts: tuple[Prompt, ...]
    extended: bool
    faults: tuple[str, ...]

    @cached_property
    def dimensions(self) -> tuple[str, ...]:
        """Those that have prompts, in the suite's order."""
        given = {dimension for prompt in self.prompts for dimension in prompt.dimensions}
        return tuple(dimension for dimension in self.suite.dimensions if dimension in given)

    @cached_property
    def digest(self) -> str:
        """16 hex digits that change with the prompts and their texts."""
        known = [(each.number, each.prompt, each.text) for each in self.prompts]
        return hashlib.sha256(json.dumps(known).encode()).hexdigest()[:16]

    def chosen(self, dimensions: Sequence[str]) -> tuple[str, ...]:
        """Some of these dimensions, by name; all of them if none is named."""
        for dimension in dimensions:
            self.suite.check(dimension, "--dimension: ")
            if dimension not in self.dimensions:
                raise UserError(f"--dimension: {self.info} has no prompts of {dimension}; {', '.join(self.dimensions)}")
        return tuple(dimensions) or self.dimensions

    def wanted(self, dimensions: Iterable[str], seed: int = 0) -> list[Wanted]:
        """The videos that dimensions are measured on, each file once."""
        found = {}
        for dimension in dimensions:
            for prompt in self.prompts:
                if dimension in prompt.dimensions:
                    for each in self._videos(prompt, dimension, seed):
                        found.setdefault(each.file, each)
        return list(found.values())

    def _videos(self, prompt: Prompt, dimension: str, seed: int) -> list[Wanted]:
        name, first = _stem(self.suite, prompt.prompt), seed + MOST_SAMPLES * prompt.number
        return [
            Wanted(f"{self.suite.folder(dimension)}/{name}-{i}.mp4", prompt.prompt, prompt.text, first + i)
            for i in range(self.suite.samples(dimension))
        ]


def read(info: Path, extended: Path | None = None, short: Path | None = None, *, same_case: bool = False) -> Layout:
    """The prompts of VBench_full_info.json, VBench2_full_info.json or a list like them.

    Args:
        extended: a file with a longer text for each prompt, line by line.
        short: the prompts that its lines extend, where they are not those of the list in its order.
        same_case: the disk does not tell a from A in the names of files.
    """
    entries = _entries(info)
    suite = of_dimensions({name for _, dimensions in entries for name in dimensions}, f"{info}: ")
    texts = [prompt for prompt, _ in entries]
    if short is not None and extended is None:
        raise UserError(f"--short {short} has no effect without --extended FILE")
    longer = _extensions(extended, short, texts, info) if extended else texts
    first: dict[str, int] = {}
    prompts = [
        Prompt(first.setdefault(text, i), prompt, text, dimensions)
        for i, ((prompt, dimensions), text) in enumerate(zip(entries, longer, strict=True))
    ]
    kept, faults = _with_files(suite, prompts, same_case)
    return Layout(suite, info, tuple(kept), extended is not None, tuple(faults))


def _entries(info: Path) -> list[tuple[str, tuple[str, ...]]]:
    """Prompt and dimensions of each entry."""
    try:
        listed = json.loads(_text(info))
    except ValueError as error:
        raise UserError(f"{info}: not JSON ({error}); expected VBench_full_info.json or its like") from error
    if not isinstance(listed, list) or not listed:
        raise UserError(f"{info}: expected a list of prompts with dimensions, as VBench_full_info.json has it")
    for i, entry in enumerate(listed):
        given = entry.get("dimension") if isinstance(entry, dict) else None
        named = isinstance(given, list) and given and all(isinstance(name, str) for name in given)
        if not named or not isinstance(entry.get("prompt_en"), str):
            raise UserError(f"{info}: entry {i} is {str(entry)[:60]}; expected prompt_en and a list dimension")
    return [(entry["prompt_en"], tuple(entry["dimension"])) for entry in listed]


def _extensions(extended: Path, short: Path | None, texts: list[str], info: Path) -> list[str]:
    longer, shorter = _lines(extended), texts if short is None else _lines(short)
    if len(longer) != len(shorter):
        of = short or info
        hint = "" if short else "; name the prompts that they extend with --short FILE"
        raise UserError(f"{extended} has {len(longer)} lines for the {len(shorter)} prompts of {of}{hint}")
    if short is None:
        return longer
    found = dict(zip(shorter, longer, strict=True))
    missing = [text for text in texts if text not in found]
    if missing:
        raise UserError(f"{short} lacks {len(missing)} prompts of {info}, first {missing[0]!r}")
    return [found[text] for text in texts]


def _lines(path: Path) -> list[str]:
    lines = [line.strip() for line in _text(path).split("\n")]
    while lines and not lines[-1]:
        lines.pop()
    if "" in lines:
        raise UserError(f"{path}: line {lines.index('') + 1} is empty; expected a text on each, in the prompts' order")
    return lines


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 at byte {error.start}") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error


def _stem(suite: Suite, prompt: str) -> str:
    return prompt[: suite.stem]


def _with_files(suite: Suite, prompts: list[Prompt], same_case: bool) -> tuple[list[Prompt], list[str]]:
    """The prompts that can have files of their own; those with the very same prompt and text share them."""
    kept, faults, taken = [], [], {}
    for prompt in prompts:
        stem = _stem(suite, prompt.prompt)
        key, own = stem.casefold() if same_case else stem, (prompt.prompt, prompt.text)
        places = [(suite.folder(dimension), key) for dimension in prompt.dimensions]
        others = {taken[place] for place in places if place in taken} - {own}
        if fault := _unfit(stem) or (f"its files would be those of {min(others)[1][:80]!r}" if others else None):
            faults.append(f"no videos of {prompt.text[:80]!r}: {fault}")
        else:
            kept.append(prompt)
            taken |= dict.fromkeys(places, own)
    return kept, faults


def _unfit(stem: str) -> str | None:
    """Why a prompt is no name of a file."""
    if not stem.strip() or stem.startswith("."):
        return "no name of a file begins like that"
    if bad := [letter for letter in ("/", NUL, "\n") if letter in stem]:
        return f"{bad[0]!r} cannot be in the name of a file"
    if len(os.fsencode(f"{stem}-{MOST_SAMPLES}.mp4")) > LONGEST:
        return f"a file's name has at most {LONGEST} bytes"
    return None
