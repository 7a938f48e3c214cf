"""The reference of recipes, made from the models that check them: `{recipe-reference}` and `{method-options}`.

Each section becomes a table of key, type, default and meaning. Nothing is written down twice, so nothing can be stale.
"""

import re
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pydantic
from annotated_types import Ge, Gt, Le, Lt, MultipleOf
from docutils import nodes
from pydantic.fields import FieldInfo
from sphinx.util.docutils import SphinxDirective

from distill import recipe, registry
from distill.sections import Relative, Section

PLAIN = {int: "integer", float: "number", str: "text", bool: "`true` or `false`", Path: "path", type(None): "`null`"}
HEADER = "| key | type | default | |\n|---|---|---|---|"


def reference(model: type[pydantic.BaseModel] = recipe.Recipe) -> str:
    """All sections of a recipe, a heading and a table each; nested sections follow the one that names them."""
    return "\n\n".join(_section(name, inner) for name, inner in _sections(model))


def method_options() -> str:
    """The options of the methods that are installed with distill, a heading and a table each."""
    own = [entry for entry in registry.methods().values() if entry.package == "distill"]
    return "\n\n".join(_method(entry.name) for entry in sorted(own, key=lambda entry: entry.name))


def describe(annotation: Any, metadata: typing.Iterable[Any] = ()) -> str:
    """A type as a reader of recipes would say it: `integer >= 1`, `list of text`."""
    if typing.get_origin(annotation) is typing.Annotated:
        annotation, *more = typing.get_args(annotation)
        metadata = [*metadata, *more]
    limits = [text for each in metadata for text in _limits(each)]
    return " ".join([_bare(annotation), " and ".join(limits)]).strip()


def _bare(annotation: Any) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return " or ".join(f"`{value}`" for value in arguments)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(dict.fromkeys(describe(each) for each in arguments))
    if origin is list or origin is tuple and arguments[-1] is Ellipsis:
        return f"list of {describe(arguments[0])}"
    if origin is tuple:
        return f"[{', '.join(describe(each) for each in arguments)}]"
    if origin is dict:
        return f"one {describe(arguments[1])} for each name"
    if isinstance(annotation, type) and issubclass(annotation, pydantic.BaseModel):
        return "section"
    return PLAIN[annotation]


def _limits(each: Any) -> Iterator[str]:
    """What a piece of metadata asks for, in words."""
    signs = {Ge: (">=", "ge"), Gt: (">", "gt"), Le: ("<=", "le"), Lt: ("<", "lt")}
    signs |= {MultipleOf: ("a multiple of", "multiple_of")}
    if type(each) in signs:
        sign, name = signs[type(each)]
        yield f"{sign} {getattr(each, name):g}"
    elif each in (Relative.TO_RECIPE, Relative.TO_HERE):
        yield f"from {each.value.partition(';')[0]}"
    elif isinstance(each, FieldInfo):
        yield from (text for inner in each.metadata for text in _limits(inner))


def _sections(model: type[pydantic.BaseModel], prefix: str = "") -> Iterator[tuple[str, type[Section]]]:
    """(dotted name, model) of the sections below a model, depth first."""
    for name, field in model.model_fields.items():
        for inner, many in _models(field.annotation):
            dotted = f"{prefix}{name}" + (".NAME" if many else "")
            yield dotted, inner
            yield from _sections(inner, f"{dotted}.")


def _models(annotation: Any, many: bool = False) -> Iterator[tuple[type[Section], bool]]:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation, many
    for each in typing.get_args(annotation):
        yield from _models(each, many or typing.get_origin(annotation) is dict)


def _section(name: str, model: type[Section]) -> str:
    about = [_linked(model.__doc__)] if model.__doc__ else []
    parts = [f"## `{name}`", *about]
    if model is recipe.MethodSpec:
        return "\n\n".join([*parts, "Options of the built-in methods are [below](#options-of-the-methods)."])
    return "\n\n".join([*parts, _table(model)])


def _method(name: str) -> str:
    found = registry.describe(name)
    return f"### `method.name: {name}`\n\n{found.description}\n\n{_table(found.options)}"


def _table(model: type[pydantic.BaseModel]) -> str:
    return "\n".join([HEADER, *(_row(name, field) for name, field in model.model_fields.items())])


def _row(name: str, field: FieldInfo) -> str:
    default = "required" if field.is_required() else f"`{_value(field.get_default(call_default_factory=True))}`"
    cells = f"`{name}`", describe(field.annotation, field.metadata), default, _linked(field.description or "")
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _linked(text: str) -> str:
    """On one line, with the pages that it names as links."""
    return re.sub(r"docs/(\w+)\.md", r"[\1](\1.md)", " ".join(text.split()))


def _value(value: Any) -> str:
    """A default as a recipe would write it."""
    if isinstance(value, Section):
        return "{}"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"[{', '.join(map(_value, value))}]" if isinstance(value, list | tuple) else f"{value}"


class Generated(SphinxDirective):
    """Text of a function, as if it stood on the page."""

    make: typing.ClassVar[Any]

    def run(self) -> list[nodes.Node]:
        return self.parse_text_to_nodes(type(self).make(), allow_section_headings=True)


class RecipeReference(Generated):
    make = staticmethod(reference)


class MethodOptions(Generated):
    make = staticmethod(method_options)


def setup(app) -> dict[str, bool]:
    app.add_directive("recipe-reference", RecipeReference)
    app.add_directive("method-options", MethodOptions)
    return {"parallel_read_safe": True}
