"""Finding the faults of a recipe: what a model refuses, files that are missing, sections that do not fit each other."""

import json
import re
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import pydantic

from . import image_prompt, registry, signature
from .errors import UserError
from .sections import Relative
from .yaml_source import Key, Source, did_you_mean, missing

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")


def check(source: Source, model: type[pydantic.BaseModel]) -> tuple[pydantic.BaseModel | None, dict[str, Any]]:
    """The validated model and the method's options; every fault is noted in the source."""
    _resolve_paths(source, model, ())
    options: dict[str, Any] = {}
    if "method" in model.model_fields:
        options = _check_method(source)
        _check_teacher(source)
        _check_optim(source)
        _check_train(source)
        _check_trajectories(source)
        _check_videos(source)
        _check_prompts(source)
        _check_student(source)
    return validate(source, model, source.data, ()), options


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


def _at(source: Source, *key: str) -> Any:
    """The value at a key, or None."""
    value = source.data
    for part in key:
        value = value.get(part) if isinstance(value, dict) else None
    return value


# Paths


def _resolve_paths(source: Source, model: type[pydantic.BaseModel], section: Key) -> None:
    """Make the relative paths of a section absolute, and note files that do not exist."""
    data = _at(source, *section)
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
    if kind is Relative.TEACHER and (value == "embedded" or not path.exists() and _is_hub_id(value)):
        return value
    if kind is Relative.VIDEOS and _is_embedded(value):
        return value
    if kind in (Relative.TO_RECIPE, Relative.TEACHER) and not path.exists():
        hub = ", nor is it a hub id (organisation/name)" if kind is Relative.TEACHER else ""
        source.fault(mark, f"{_dotted(key)}: {missing(path)}{hub}")
    return str(path.absolute())


def _is_embedded(value: str) -> bool:
    return value.partition(":")[0] == "embedded"


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


def _is_hub_id(value: str) -> bool:
    return HUB_ID.fullmatch(value) is not None


# Sections that depend on each other


def _signature(source: Source) -> signature.Signature | None:
    name = _at(source, "method", "name")
    try:
        return registry.describe(name) if isinstance(name, str) and name else None
    except UserError:
        return None  # noted by _check_method


def _check_method(source: Source) -> dict[str, Any]:
    """The method's options with their defaults, checked against its constructor."""
    spec, name = _at(source, "method"), _at(source, "method", "name")
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


def _check_teacher(source: Source) -> None:
    family, path = _at(source, "teacher", "family"), _at(source, "teacher", "path")
    if isinstance(family, str) and family:
        try:
            registry.teacher(family)
        except UserError as error:
            source.fault(source.mark(("teacher", "family")), f"teacher.family: {error}")
    if isinstance(path, str) and _at(source, "teacher", "revision") is not None and not _is_hub_id(path):
        source.fault(
            source.mark(("teacher", "revision")), f"teacher.revision: {path} is no hub id and has no revisions"
        )


def _check_optim(source: Source) -> None:
    optim, method = _at(source, "optim"), _signature(source)
    if not isinstance(optim, dict) or method is None:
        return
    trained = [name for name, kind in method.networks.items() if kind in ("Trained", "Built")]
    for name in optim:
        if name not in trained:
            hint = did_you_mean(name, trained) or f"; it trains {', '.join(trained)}"
            source.fault(source.mark(("optim", name)), f"optim.{name}: the method trains no such network{hint}")
        if _at(source, "optim", name, "warmup") and _at(source, "optim", name, "schedule") in (None, "constant"):
            mark = source.mark(("optim", name, "warmup"))
            source.fault(mark, f"optim.{name}.warmup: schedule constant has none; use constant_with_warmup")
    for name in trained:
        if name not in optim:
            source.fault(source.mark(("optim",)), f"optim.{name}: required, but missing: the method trains {name}")


def _check_train(source: Source) -> None:
    batch, micro = _at(source, "train", "batch_size"), _at(source, "train", "micro_batch_size")
    if type(batch) is int and type(micro) is int and micro > 0 and batch % micro:
        text = f"train.batch_size: {batch} is not a multiple of micro_batch_size {micro}"
        source.fault(source.mark(("train", "batch_size")), text)
    method = _signature(source)
    if (
        method
        and not method.has_stages
        and isinstance(_at(source, "train"), dict)
        and not _at(source, "train", "steps")
    ):
        source.fault(source.mark(("train",)), "train.steps: required, but missing: the method has no stages of its own")


def _check_trajectories(source: Source) -> None:
    given, method = _at(source, "data", "trajectories"), _signature(source)
    if method and given is None and "trajectories" in method.data and isinstance(_at(source, "data"), dict):
        text = "data.trajectories: required, but missing: the method learns from recorded trajectories"
        source.fault(source.mark(("data",)), text)
    if method and given is not None and "trajectories" not in method.data:
        mark = source.mark(("data", "trajectories"))
        source.fault(mark, "data.trajectories: the method reads no trajectories; leave it out")
    steps, keep = (_at(source, "data", "trajectories", key) for key in ("steps", "keep"))
    steps, keep = 50 if steps is None else steps, 5 if keep is None else keep  # the section's defaults
    if given is not None and type(steps) is int and type(keep) is int and keep > 0 and steps % keep:
        fitting = ", ".join(str(m) for m in range(1, steps + 1) if steps % m == 0)
        text = f"data.trajectories.keep: {keep} does not divide steps {steps}; it may be all, or one of {fitting}"
        source.fault(source.mark(("data", "trajectories", "keep")), text)


def _check_videos(source: Source) -> None:
    given, method = _at(source, "data", "videos"), _signature(source)
    if method and given is None and "videos" in method.data and isinstance(_at(source, "data"), dict):
        source.fault(source.mark(("data",)), "data.videos: required, but missing: the method learns from real videos")
    if method and given is not None and "videos" not in method.data:
        mark = source.mark(("data", "videos"))
        source.fault(mark, "data.videos: the method reads no videos; leave it out")
    if method and {"videos", "trajectories"} <= set(method.data):
        text = "method.name: the method reads trajectories and videos, which no run gives together"
        source.fault(source.mark(("method", "name")), text)
    if isinstance(given, dict):
        _check_source(source, given)


def _check_source(source: Source, given: dict[str, Any]) -> None:
    """Where videos come from: files, or the embedded world, which needs a number."""
    place, clips, mark = given.get("source"), given.get("clips"), source.mark(("data", "videos", "source"))
    if not isinstance(place, str):
        return  # noted by the model
    if not _is_embedded(place):
        if clips is not None:
            text = "data.videos.clips: counts what the embedded world renders; leave it out, or set source: embedded"
            source.fault(source.mark(("data", "videos", "clips")), text)
        return
    if clips is None:
        source.fault(mark, "data.videos.clips: required, but missing: how many the embedded world renders")
    from .embedded.world import DOMAINS  # imports numpy

    domain = place.partition(":")[2]
    if ":" in place and domain not in DOMAINS:
        known = did_you_mean(domain, DOMAINS) or f"; the embedded world has {', '.join(DOMAINS)}"
        source.fault(mark, f"data.videos.source: no domain {domain!r}{known}")


def _check_prompts(source: Source) -> None:
    given, method = _at(source, "data", "prompts"), _signature(source)
    if method is None or not isinstance(_at(source, "data"), dict):
        return
    alone = method.data == ("videos",)
    if alone and given is not None:
        source.fault(source.mark(("data", "prompts")), "data.prompts: the method reads no prompts; leave it out")
    if not alone and given is None:
        source.fault(source.mark(("data",)), "data.prompts: required, but missing")


def _check_student(source: Source) -> None:
    """Sections about a student where none is trained, and about measures where none are taken."""
    method, path = _signature(source), _at(source, "half_rate", "interpolator")
    if isinstance(path, str) and not Path(path).exists():
        text = f"half_rate.interpolator: {missing(Path(path))}; train one with the method interpolator"
        source.fault(source.mark(("half_rate", "interpolator")), text)
    if method and "student" not in method.networks:
        for key in (("validation",), ("evaluation",), ("half_rate",), ("train", "ema")):
            if _at(source, *key) is not None:
                source.fault(source.mark(key), f"{_dotted(key)}: the method trains no student; leave it out")
    if method and not method.measures and _at(source, "held_out") is not None:
        source.fault(source.mark(("held_out",)), "held_out: the method measures nothing on videos; leave it out")
