"""Finding the faults of a recipe: what a model refuses, and files that are missing; fits.py has the rest."""

import json
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import pydantic

from . import fits, image_prompt, registry
from .errors import UserError
from .sections import Relative, is_embedded, is_hub_id
from .yaml_source import Key, Source, did_you_mean, missing


def check(source: Source, model: type[pydantic.BaseModel]) -> tuple[pydantic.BaseModel | None, dict[str, Any]]:
    """The validated model and the method's options; every fault is noted in the source."""
    _resolve_paths(source, model, ())
    options: dict[str, Any] = {}
    if "method" in model.model_fields:
        options = _check_method(source)
        fits.check(source)
    return validate(source, model, source.data, ()), options


def _check_method(source: Source) -> dict[str, Any]:
    """The method's options with their defaults, checked against its constructor."""
    spec, name = source.at("method"), source.at("method", "name")
    if not isinstance(name, str) or not name:
        return {}  # noted by the model
    try:
        model = registry.options(name)
    except UserError as error:
        source.fault(source.mark(("method", "name")), f"method.name: {error}")
        return {}
    given = {key: value for key, value in spec.items() if key != "name"}
    options = validate(source, model, given, ("method",))
    return {key: getattr(options, key) for key in model.model_fields} if options else {}


def validate(source: Source, model: type[pydantic.BaseModel], data: Any, prefix: Key) -> pydantic.BaseModel | None:
    """The model of the data found at a key, or None with its faults noted."""
    try:
        return model.model_validate_json(json.dumps(data))  # strict, yet lists may become tuples and text paths
    except pydantic.ValidationError as error:
        for key, text in _lines(error, model, data):
            where = (*prefix, *key)
            source.fault(source.mark(where), f"{_dotted(where)}: {text}")
        return None


def _lines(error: pydantic.ValidationError, model: type[pydantic.BaseModel], data: Any) -> Iterator[tuple[Key, str]]:
    """(key, text) of each fault; the branches of a union are one fault, that of the branch which got furthest."""
    found: dict[Key, list[str]] = {}
    inputs: dict[Key, str] = {}
    for fault in error.errors(include_url=False):
        key = _key(fault, data)
        found.setdefault(key, []).append(_text(fault, model, key))
        if fault["type"] != "extra_forbidden" and not _lacks_key(fault):
            inputs[key] = f", is {_brief(fault['input'])}"
    for key, texts in found.items():
        if not any(len(other) > len(key) and other[: len(key)] == key for other in found):
            yield key, " or ".join(dict.fromkeys(texts)) + inputs.get(key, "")


def _key(fault: dict[str, Any], data: Any) -> Key:
    """The place in the data; pydantic's own also names the branches of unions."""
    key: Key = ()
    for part in fault["loc"]:
        if isinstance(data, dict) and part in data or isinstance(data, list) and part in range(len(data)):
            key, data = (*key, part), data[part]
    return (*key, fault["loc"][-1]) if _lacks_key(fault) else key


def _lacks_key(fault: dict[str, Any]) -> bool:
    """A list that is too short is missing something as well, but at no key."""
    return fault["type"] == "missing" and isinstance(fault["loc"][-1], str)


def _text(fault: dict[str, Any], model: type[pydantic.BaseModel], key: Key) -> str:
    if fault["type"] == "extra_forbidden":
        known = _known(model, key[:-1])
        return f"unknown key{did_you_mean(str(key[-1]), known) or '; known are ' + ', '.join(known)}"
    if fault["type"] == "missing":
        return "required, but missing" if _lacks_key(fault) else f"needs {fault['loc'][-1] + 1} entries or more"
    return fault["msg"].removeprefix("Input ").removeprefix("Value error, ")


def _brief(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) < 60 else text[:57] + "..."


def _known(hint: Any, key: Key) -> list[str]:
    """The keys that a model allows at a place."""
    for part in key:
        hint = _inner(hint)
        section = isinstance(hint, type) and issubclass(hint, pydantic.BaseModel)
        hint = hint.model_fields[part].annotation if section else typing.get_args(hint)[-1]
    return list(_inner(hint).model_fields)


def _inner(hint: Any) -> Any:
    """A type without Annotated and `| None`."""
    while typing.get_origin(hint) in (Annotated, typing.Union, types.UnionType):
        hint = typing.get_args(hint)[0]
    return hint


def _dotted(key: Key) -> str:
    return ".".join(map(str, key))


# Paths


def _resolve_paths(source: Source, model: type[pydantic.BaseModel], section: Key) -> None:
    """Make the relative paths of a section absolute, and note files that do not exist."""
    data = source.at(*section)
    for name, field in model.model_fields.items() if isinstance(data, dict) else ():
        key, value = (*section, name), data.get(name)
        kinds = [m for m in field.metadata if isinstance(m, Relative)] or list(_kinds(field.annotation))
        inner = _inner(field.annotation)
        if kinds and isinstance(value, str) and value:
            data[name] = _resolved(source, key, value, kinds[0])
        elif kinds and isinstance(value, list):
            data[name] = [_prompt(source, (*key, i), each) for i, each in enumerate(value)]
        elif isinstance(inner, type) and issubclass(inner, pydantic.BaseModel):
            _resolve_paths(source, inner, key)


def _kinds(hint: Any) -> Iterator[Relative]:
    yield from (m for m in getattr(hint, "__metadata__", ()) if isinstance(m, Relative))
    for inner in typing.get_args(hint):
        yield from _kinds(inner)


def _resolved(source: Source, key: Key, value: str, kind: Relative) -> str:
    mark = source.mark(key)
    path = (Path() if kind is Relative.TO_HERE else mark.folder) / Path(value).expanduser()
    if kind is Relative.TEACHER and (value == "embedded" or not path.exists() and is_hub_id(value)):
        return value
    if kind is Relative.VIDEOS and is_embedded(value):
        return value
    if kind in (Relative.TO_RECIPE, Relative.TEACHER) and not path.exists():
        hub = ", nor is it a hub id (organisation/name)" if kind is Relative.TEACHER else ""
        source.fault(mark, f"{_dotted(key)}: {missing(path)}{hub}")
    return str(path.absolute())


def _prompt(source: Source, key: Key, value: Any) -> Any:
    """A prompt with the path of its image, if it has one, made absolute; its absence is noted."""
    mark = source.mark(key)
    if not isinstance(value, str) or not image_prompt.has_image(value):
        return value
    prompt = image_prompt.resolved(value, mark.folder)
    path, _ = image_prompt.split(prompt)
    if not path.exists():
        source.fault(mark, f"{_dotted(key)}: {missing(path)}")
    return prompt
