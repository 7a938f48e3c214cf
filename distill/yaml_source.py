"""YAML with positions: plain data, and for every key the place that wrote it, through `extends:` and overrides.

Values follow YAML 1.2: 1e-6 is a float, 16:9 and on are strings, 010 is ten, and a key given twice is an error.
"""

import difflib
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import yaml

from .errors import UserError

Key = tuple[str | int, ...]

_TAG = "tag:yaml.org,2002:"
_RESOLVERS = {
    "null": r"~|null|Null|NULL|",
    "bool": r"true|True|TRUE|false|False|FALSE",
    "int": r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+",
    "float": r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
}


@dataclass(frozen=True, order=True)
class Mark:
    """Where a key was written; `folder` is what its relative paths start from."""

    file: str
    line: int = 0
    column: int = 0
    folder: Path = field(default=Path(), compare=False)

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}" if self.line else self.file


@dataclass(frozen=True, order=True)
class Fault:
    mark: Mark
    text: str

    def __str__(self) -> str:
        return f"{self.mark}: {self.text}"


@dataclass
class Source:
    """Plain data with the mark of each key, and the faults met while reading; `torn` if parts could not be read."""

    data: Any = field(default_factory=dict)
    marks: dict[Key, Mark] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    torn: bool = False

    def mark(self, key: Key) -> Mark:
        """The mark of a key, or of the nearest section around it."""
        while key and key not in self.marks:
            key = key[:-1]
        return self.marks[key]

    def at(self, *key: str) -> Any:
        """The value at a key, or None."""
        value = self.data
        for part in key:
            value = value.get(part) if isinstance(value, dict) else None
        return value

    def fault(self, mark: Mark, text: str, *, torn: bool = False) -> None:
        self.faults.append(Fault(mark, text))
        self.torn |= torn

    def update(self, other: "Source") -> None:
        """Lay another source over this one: sections merge key by key, everything else is replaced."""
        self.faults += other.faults
        self.torn |= other.torn
        self.data = self._merged(self.data, other.data, ())
        self.marks |= other.marks

    def _merged(self, old: Any, new: Any, key: Key) -> Any:
        if isinstance(old, dict) and isinstance(new, dict):
            both = {k: self._merged(old[k], v, (*key, k)) if k in old else v for k, v in new.items()}
            return old | both
        self.marks = {k: mark for k, mark in self.marks.items() if k[: len(key)] != key}
        return new


def read(path: Path, overrides: Sequence[str] = ()) -> Source:
    """Read a file, the bases it extends, and then `a.b=value` overrides. OSError if it cannot be opened."""
    source = _with_bases(path, ())
    for override in overrides:
        source.update(_override(override))
    return source


def assignment(text: str) -> tuple[str, Any]:
    """The key and the value of `a.b=value`; UserError if it is none."""
    source, key = _override(text), text.partition("=")[0]
    if source.faults:
        raise UserError(str(source.faults[0]))
    return key, source.at(*key.split("."))


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`, did you mean 'x'?`, or nothing if no known word is near."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f", did you mean {near[0]!r}?" if near else ""


def dump(data: Any) -> str:
    """YAML text that `read` reads back as the same data."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def missing(path: Path) -> str:
    """The line for a file that is not there."""
    siblings = [p.name for p in path.parent.glob(f"*{path.suffix}")] if path.parent.is_dir() else []
    return f"no such file: {path}{did_you_mean(path.name, siblings)}"


def _with_bases(path: Path, below: tuple[Path, ...]) -> Source:
    own = _file(path)
    if not isinstance(own.data, dict):
        own.fault(own.marks[()], "a recipe is a mapping of sections", torn=True)
        own.data = {}
    extends, merged = own.data.pop("extends", []), Source()
    for base in [extends] if isinstance(extends, str) else extends or []:
        base_path = Path(os.path.normpath(path.parent / str(base)))
        if base_path.resolve() in [p.resolve() for p in (*below, path)]:
            own.fault(own.mark(("extends",)), f"extends: {base_path} extends itself", torn=True)
        elif not base_path.is_file():
            own.fault(own.mark(("extends",)), f"extends: {missing(base_path)}", torn=True)
        else:
            merged.update(_with_bases(base_path, (*below, path)))
    merged.update(own)
    return merged


def _file(path: Path) -> Source:
    try:
        text = path.read_text("utf-8")
    except UnicodeDecodeError as error:
        top = Mark(str(path))
        byte = f"{error.object[error.start]:#04x}"
        return Source({}, {(): top}, [Fault(top, f"not UTF-8: byte {byte} at position {error.start}")], torn=True)
    return _parse(text, str(path), path.parent)


def _override(text: str) -> Source:
    """`a.b=value`: the value is YAML, its paths start from the working directory."""
    top = Mark(f"command line {text!r}")
    key, equals, value = text.partition("=")
    if not equals or not all(key.split(".")):
        return Source(faults=[Fault(top, "expected KEY=VALUE, as in optim.student.lr=1e-6")])
    parsed = _parse(value, top.file, Path())
    data, path = parsed.data, tuple(key.split("."))
    for part in reversed(path):
        data = {part: data}
    marks = {(*path, *k): top for k in parsed.marks} | {path[:i]: top for i in range(1, len(path))}
    return Source(data, marks, [Fault(top, fault.text) for fault in parsed.faults], parsed.torn)


def _parse(text: str, name: str, folder: Path) -> Source:
    source = Source(marks={(): Mark(name, folder=folder)})
    try:
        node = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        at = error.problem_mark or error.context_mark
        source.fault(Mark(name, at.line + 1, at.column + 1), f"not YAML: {error.problem}", torn=True)
    except yaml.reader.ReaderError as error:
        source.fault(source.marks[()], f"not YAML: {error.reason} at position {error.position}", torn=True)
    else:
        source.data = _Builder(source, name, folder).build(node, ()) if node else None
    return source


class _Builder:
    """Turns nodes into data, noting marks and faults in a source."""

    def __init__(self, source: Source, name: str, folder: Path):
        self.source, self.name, self.folder, self.open = source, name, folder, []

    def mark(self, node: yaml.Node) -> Mark:
        return Mark(self.name, node.start_mark.line + 1, node.start_mark.column + 1, self.folder)

    def build(self, node: yaml.Node, key: Key) -> Any:
        self.source.marks.setdefault(key, self.mark(node))
        if node in self.open:
            return self.source.fault(self.mark(node), "an alias inside its own anchor")
        self.open.append(node)
        value = self._value(node, key)
        self.open.pop()
        return value

    def _value(self, node: yaml.Node, key: Key) -> Any:
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, key)
        if isinstance(node, yaml.SequenceNode):
            return [self.build(item, (*key, i)) for i, item in enumerate(node.value)]
        kind = node.tag.removeprefix(_TAG)
        if kind not in _SCALARS or not re.fullmatch(_RESOLVERS.get(kind, ".*"), node.value, re.DOTALL):
            return self.source.fault(self.mark(node), f"{node.value!r} is not a {kind}")
        return _SCALARS[kind](node.value)

    def _mapping(self, node: yaml.MappingNode, key: Key) -> dict[str, Any]:
        data: dict[str, Any] = {}
        for name, value in node.value:
            if not isinstance(name, yaml.ScalarNode):
                self.source.fault(self.mark(name), "a key must be a word")
            elif name.value in data:
                first, dotted = self.source.marks[(*key, name.value)], ".".join(map(str, (*key, name.value)))
                self.source.fault(self.mark(name), f"{dotted}: duplicate key, first given on line {first.line}")
            else:
                self.source.marks[(*key, name.value)] = self.mark(name)
                data[name.value] = self.build(value, (*key, name.value))
        return data


def _int(text: str) -> int:
    return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))


def _float(text: str) -> float:
    return float(text.replace(".", "") if text.lower().endswith(("inf", "nan")) else text)


_SCALARS = {
    "null": lambda text: None,
    "bool": lambda text: text.lower() == "true",
    "int": _int,
    "float": _float,
    "str": str,
}


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: ClassVar[dict] = {}


class _Dumper(yaml.SafeDumper):
    yaml_implicit_resolvers: ClassVar[dict] = {}


for _kind, _pattern in _RESOLVERS.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(_TAG + _kind, re.compile(f"^(?:{_pattern})$"), None)
