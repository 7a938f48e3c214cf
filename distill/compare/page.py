"""The page of a comparison: index.html beside compare.json and clips/, whole without a network."""

import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .. import plot, scatter
from ..errors import UserError
from ..track import duration
from . import blind as blind_test
from . import figures, stills, tradeoff
from .blind import CONTENT

PAGE = "index.html"
FORMAT = 1
PIXELATED = 256  # pixels of width up to which a clip's pixels are meant to be seen
TEACHER_COLOUR, COLOURS = 5, 5  # of plot's six, the last is the teacher's
KINDS = {
    "pair": "Distance to the teacher's own clip from the same noise",
    "clip": "Each clip by itself",
    "set": "All clips together, against the teacher's",
    "world": "What the clips show, measured against their captions",
}
FIRST_CURVE = "distance to the teacher"
POINT = dict.fromkeys(("guidance", "evaluations", "flop", "seconds")) | {"own": False, "metrics": {}, "clips": []}
MEASURE = {"best": False, "seeds": [], "spread": None, "difference": None}
TRAINING = dict.fromkeys(("updates", "flop", "seconds", "device", "days")) | {"evaluations": {}}
DATA = dict.fromkeys(("what", "evaluations", "seconds"))


@dataclass(frozen=True)
class Column:
    """A sampler with the numbers of steps it was sampled with, one of them shown at first.

    Attributes:
        fixed: whether it is the reference, which no choice of steps changes.
    """

    place: int
    key: str
    label: str
    kind: str
    colour: int
    points: list[dict]
    shown: dict
    fixed: bool
    source: dict


@dataclass(frozen=True)
class Cell:
    """A clip on the page: addresses of it and of its first frame, or why there is none."""

    clip: str = ""
    still: str = ""
    gap: str = ""


def write(folder: Path, blind: bool = False, seed: int = 0) -> Path:
    """Render what compare.json and clips/ hold; with blind, the page that asks for votes instead."""
    content = read(folder)
    if blind:
        return blind_test.write(folder, content, seed)
    environment = blind_test.templates()
    environment.filters |= {
        "number": plot.number,
        "chart": plot.svg,
        "scatter": scatter.svg,
        "duration": duration,
        "value": figures.value,
        "si": figures.si,
    }
    html = environment.get_template("compare.html.j2").render(prepared(folder, content))
    partial = folder / (PAGE + ".partial")
    partial.write_text(html, encoding="utf-8")
    os.replace(partial, folder / PAGE)
    return folder / PAGE


def read(folder: Path) -> dict:
    path = folder / CONTENT
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; `distill compare` writes it") from None
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}); run `distill compare` again") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content.get("format") if isinstance(content, dict) else type(content).__name__
        raise UserError(f"{path}: format {found}, this version reads format {FORMAT}; run `distill compare` again")
    return content


def prepared(folder: Path, content: dict) -> dict:
    """What the template reads."""
    shown = columns(content)
    students = [column for column in shown if column.kind == "student"]
    metrics = [m for m in content["metrics"] if any(m["name"] in p["metrics"] for c in shown for p in c.points)]
    choices = sorted({point["steps"] for column in shown if len(column.points) > 1 for point in column.points})
    return {
        **content,
        "columns": shown,
        "students": students,
        "metrics": metrics,
        "groups": grouped(metrics),
        "headline": headline(metrics),
        "choices": choices,
        "cells": cells(folder, shown, len(content["shown"]["prompts"])),
        "plots": list(tradeoff.plots(shown, metrics)),
        "settings": {name: v for name, v in content["settings"].items() if sum(map(is_set, v.values())) > 1},
        "own_settings": {name: v for name, v in content["settings"].items() if sum(map(is_set, v.values())) == 1},
        "curves": list(curves(students)),
        "pixelated": content["setting"]["video"]["width"] <= PIXELATED,
        "reference": next((column.shown for column in shown if column.fixed), None),
        "page_data": {
            "fps": content["shown"]["fps"],
            "frames": content["setting"]["video"]["frames"],
            "choices": choices,
            "columns": [
                {"steps": [p["steps"] for p in c.points], "own": c.shown["steps"], "fixed": c.fixed} for c in shown
            ],
        },
        "labels": {column["key"]: column["label"] for column in content["columns"]},
    }


def columns(content: dict) -> list[Column]:
    """The teacher's many steps, its few, and each student."""
    found: list[Column] = []
    students = [each for each in content["columns"] if each["kind"] == "student"]
    wanted = next((own(each["points"])["steps"] for each in students if each["points"]), None)
    for source in content["columns"]:
        teacher = source["kind"] == "teacher"
        points = [normal_point(point) for point in source["points"]]
        many = [point for point in points if teacher and point["steps"] == content["setting"]["reference_steps"]]
        few = [point for point in points if point not in many]
        many = without_distance(many, content["metrics"])
        colour = TEACHER_COLOUR if teacher else students.index(source) % COLOURS
        about = (source["key"], source["label"], source["kind"], colour)
        for leg in filter(None, (many, few)):
            first = next((p for p in leg if p["steps"] == wanted), leg[0]) if teacher else own(leg)
            found.append(Column(len(found), *about, leg, first, leg is many, normal(source)))
    return found


def own(points: list[dict]) -> dict:
    """The number of steps that the student was trained for, else its first."""
    return next((point for point in points if point.get("own")), points[0])


def normal_point(point: dict) -> dict:
    """With every key, and only with numbers that can be shown."""
    known = {name: MEASURE | number for name, number in point.get("metrics", {}).items() if is_known(number)}
    for number in known.values():
        number["difference"] = number["difference"] if is_known(number["difference"]) else None
    return POINT | point | {"metrics": known}


def is_known(number: dict | None) -> bool:
    ends = (number or {}).get("mean"), (number or {}).get("low"), (number or {}).get("high")
    return all(end is not None and math.isfinite(end) for end in ends)


def without_distance(points: list[dict], metrics: list[dict]) -> list[dict]:
    """The reference's points; its distance to itself is no measure."""
    distances = {metric["name"] for metric in metrics if metric["kind"] in ("pair", "set")}
    return [p | {"metrics": {name: v for name, v in p["metrics"].items() if name not in distances}} for p in points]


def normal(source: dict) -> dict:
    """A column in which nothing that the page asks for is absent."""
    training = source.get("training")
    if training:
        training = TRAINING | training | {"data": DATA | (training.get("data") or {})}
    blank = {"seeds": [], "runs": [], "curves": {}, "recipe": None, "method": None}
    return blank | source | {"training": training}


def grouped(metrics: list[dict]) -> dict[str, list[dict]]:
    """Title -> metrics, in the order of KINDS."""
    kinds = dict.fromkeys([*KINDS, *(metric["kind"] for metric in metrics)])
    found = {KINDS.get(kind, kind): [m for m in metrics if m["kind"] == kind] for kind in kinds}
    return {title: members for title, members in found.items() if members}


def headline(metrics: list[dict]) -> list[dict]:
    """The first metric of each kind; of the world's, whether a clip shows all that was asked for."""
    chosen = {}
    for metric in metrics:
        if metric["kind"] not in chosen or (metric["kind"], metric["name"]) == ("world", "all"):
            chosen[metric["kind"]] = metric
    return [chosen[kind] for kind in dict.fromkeys([*KINDS, *chosen]) if kind in chosen]


def cells(folder: Path, shown: list[Column], rows: int) -> dict[tuple[int, int, int], Cell]:
    """(place of the column, steps, row) -> its cell."""
    return {
        (column.place, point["steps"], row): cell(folder, point["clips"][row] if row < len(point["clips"]) else None)
        for column in shown
        for point in column.points
        for row in range(rows)
    }


def cell(folder: Path, clip: str | None) -> Cell:
    if clip is None:
        return Cell(gap="no clip")
    try:
        return Cell(clip, stills.write(folder / clip).relative_to(folder).as_posix())
    except OSError as error:
        return Cell(gap=str(error))


def is_set(option: object) -> bool:
    """Whether a recipe has the option at all."""
    return option is not None


def curves(students: list[Column]) -> Iterator[plot.Chart]:
    """One chart for each name, all students that have it in it."""
    names = dict.fromkeys(name for column in students for name in column.source["curves"])
    for name in sorted(names, key=lambda name: name != FIRST_CURVE):
        series = {c.label: c.source["curves"][name] for c in students if c.source["curves"].get(name)}
        if series:
            colours = {c.label: c.colour for c in students}
            yield plot.Chart(name, {label: [tuple(p) for p in s] for label, s in series.items()}, colours=colours)
