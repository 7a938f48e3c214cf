"""Quality against what a clip costs, and against what training cost."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from .. import plot, scatter
from . import figures

if TYPE_CHECKING:
    from .page import Column

COSTS = {"evaluations": "network evaluations per clip", "seconds": "seconds per clip"}


def plots(shown: Sequence["Column"], metrics: list[dict]) -> Iterator[tuple[str, str, scatter.Scatter]]:
    """(metric, cost, plot) of each pair for which a student has both; costs are COSTS and "training"."""
    students = [column for column in shown if column.kind == "student"]
    teachers = [column for column in shown if column.kind == "teacher"]
    days = {column.label: (column.source["training"] or {}).get("days") for column in students}
    unit, per_day = figures.clock(list(days.values()))
    spent = {label: each and each * per_day for label, each in days.items()}
    colours = {column.label: column.colour for column in shown}
    for metric in metrics:
        for cost, title in COSTS.items():
            series: dict[str, list[scatter.Dot]] = {}
            for column in students + teachers:
                series[column.label] = series.get(column.label, []) + dots(column, metric, cost)
            if any(series[column.label] for column in students):
                series = {label: found for label, found in series.items() if found}
                yield metric["name"], cost, scatter.Scatter(metric["name"], title, series, colours, {})
        series = {c.label: trained(c, metric, spent[c.label], unit) for c in students}
        if series := {label: found for label, found in series.items() if found}:
            known = [c for c in teachers if metric["name"] in c.shown["metrics"]]
            levels = {f"teacher, {c.shown['steps']} steps": c.shown["metrics"][metric["name"]]["mean"] for c in known}
            title = f"device-{unit} of training"
            yield metric["name"], "training", scatter.Scatter(metric["name"], title, series, colours, levels)


def dots(column: "Column", metric: dict, cost: str) -> list[scatter.Dot]:
    """One for each number of steps."""
    mine = column.kind == "teacher"
    return [
        dot(column, metric, point, point[cost], COSTS[cost], str(point["steps"]), mine or point["own"])
        for point in column.points
        if point[cost] and metric["name"] in point["metrics"]
    ]


def trained(column: "Column", metric: dict, spent: float | None, unit: str) -> list[scatter.Dot]:
    """The student with its own number of steps, at what its training took."""
    if not spent or metric["name"] not in column.shown["metrics"]:
        return []
    label = f"{column.label} {column.shown['steps']}"
    return [dot(column, metric, column.shown, spent, f"device-{unit} of training", label, True)]


def dot(column: "Column", metric: dict, point: dict, x: float, cost: str, label: str, mine: bool) -> scatter.Dot:
    y = point["metrics"][metric["name"]]
    about = f"{column.label}, {point['steps']} steps: {figures.told(y, metric)} at {plot.number(x)} {cost}"
    return scatter.Dot(x, y["mean"], y["low"], y["high"], label, about, mine)
