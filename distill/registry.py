"""Names of methods and teacher families -> their classes, by entry point; listed and checked without importing them."""

import functools
import importlib
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING

import pydantic

from . import signature
from .errors import UserError
from .yaml_source import did_you_mean

if TYPE_CHECKING:
    from .method import Method
    from .teachers.base import Teacher


@dataclass(frozen=True)
class Entry:
    """An installed method or teacher family: `value` is module:Class; package and version are who offers it."""

    kind: str
    name: str
    value: str
    package: str
    version: str

    @property
    def target(self) -> tuple[str, str]:
        module, _, cls = self.value.partition(":")
        return module, cls

    def __str__(self) -> str:
        if not self.version:  # not installed, only importable
            return f"{self.kind} {self.name!r} from {self.package}"
        return f"{self.kind} {self.name!r} from {self.package} {self.version} ({self.value})"


def methods() -> dict[str, Entry]:
    return _entries("method")


def teachers() -> dict[str, Entry]:
    return _entries("teacher")


def method(name: str) -> Entry:
    """The entry of an installed method, or of `package.module:Class`."""
    if ":" in name:
        return Entry("method", name, name, name.split(":")[0].split(".")[0], "")
    return _named("method", name)


def teacher(family: str) -> Entry:
    return _named("teacher", family)


def method_class(name: str) -> "type[Method]":
    from .method import Method

    return _load(method(name), Method)


def teacher_class(family: str) -> "type[Teacher]":
    from .teachers.base import Teacher

    return _load(teacher(family), Teacher)


def options(name: str) -> type[pydantic.BaseModel]:
    """The constructor's keywords, without importing the method."""
    return describe(name).options


def describe(name: str) -> signature.Signature:
    """What a method's source says: description, options, networks. It imports nothing."""
    entry = method(name)
    try:
        return signature.read(*entry.target)
    except UserError as error:
        raise UserError(f"{entry}: {error}") from error


def trained(name: str) -> list[str]:
    """The networks of a method that an optimizer moves."""
    return [network for network, kind in describe(name).networks.items() if kind in ("Trained", "Built")]


@functools.cache
def _entries(kind: str) -> dict[str, Entry]:
    found: dict[str, Entry] = {}
    for point in metadata.entry_points(group=f"distill.{kind}s"):
        entry = Entry(kind, point.name, point.value, point.dist.name, point.dist.version)
        other = found.setdefault(point.name, entry)
        if other.value != entry.value:
            raise UserError(f"two packages offer a {kind} {point.name!r}: {other} and {entry}; uninstall one")
    return found


def _named(kind: str, name: str) -> Entry:
    entries = _entries(kind)
    if name not in entries:
        known = f"installed are {', '.join(sorted(entries))}" if entries else "none is installed"
        raise UserError(f"unknown {kind} {name!r}{did_you_mean(name, entries) or f': {known}'}")
    return entries[name]


def _load(entry: Entry, base: type) -> type:
    module, name = entry.target
    try:
        if entry.kind == "method":
            signature.check_interface(module, name)  # before anything of it runs
        found = getattr(importlib.import_module(module), name, None)
    except UserError as error:
        raise UserError(f"{entry}: {error}") from error
    except Exception as error:  # whatever a plugin does when it is imported
        raise UserError(f"{entry} failed to import: {type(error).__name__}: {error}") from error
    if not (isinstance(found, type) and issubclass(found, base)):
        raise UserError(f"{entry} is not a {base.__module__}.{base.__qualname__}")
    return found
