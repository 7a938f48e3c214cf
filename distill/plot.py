"""Curves as inline SVG. Colours are the page's: `--series-0` and on, `--grid`, `--text`."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby

from markupsafe import Markup, escape

WIDTH, HEIGHT = 640, 240
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 14, 26
POINTS = 120  # per curve; more are averaged, their range stays as a band
DECADES = 1.2  # from which span on an axis is logarithmic

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Chart:
    """Curves over updates.

    Attributes:
        series: name -> (update, value); values that are not finite leave a hole.
        levels: name -> value of a horizontal line.
        marks: update -> label of a vertical line.
        flags: name -> updates at which something is wrong with that curve.
        colours: name -> index of its colour, where that is not its place.
    """

    title: str
    series: dict[str, Points]
    levels: dict[str, float] = field(default_factory=dict)
    marks: dict[float, str] = field(default_factory=dict)
    flags: dict[str, list[float]] = field(default_factory=dict)
    colours: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Axes:
    low: float
    high: float
    first: float
    last: float
    log: bool

    def x(self, update: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (update - self.first) / max(self.last - self.first, 1)

    def y(self, value: float) -> float:
        low, high, value = (math.log10(v) if self.log else v for v in (self.low, self.high, value))
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (value - low) / (high - low)


def svg(chart: Chart) -> Markup:
    axes = fit(chart)
    names = list(chart.series)
    curves = [curve(axes, binned(chart.series[name]), chart.colours.get(name, i)) for i, name in enumerate(names)]
    parts = [grid(axes), *(mark(axes, *each) for each in chart.marks.items())]
    parts += [level(axes, *each) for each in chart.levels.items()] + curves
    parts += [flag(axes, chart.series[name], u) for name, updates in chart.flags.items() for u in updates]
    data = json.dumps({name: [[x, y] for x, y, *_ in binned(chart.series[name])] for name in names})
    frame = [axes.first, axes.last, LEFT, WIDTH - RIGHT]
    return Markup(
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(spoken(chart))}" '
        f'data-frame="{frame}" data-series="{escape(data)}">{"".join(parts)}</svg>'
    )


def finite(points: Points) -> list[tuple[float, float]]:
    return [(x, y) for x, y in points if math.isfinite(y)]


def fit(chart: Chart) -> Axes:
    """Axes that hold everything, logarithmic if positive values span more than DECADES."""
    points = [p for series in chart.series.values() for p in finite(series)]
    values = [y for _, y in points] + list(chart.levels.values()) or [0.0, 1.0]
    updates = [x for x, _ in points] or [0, 1]
    low, high = min(values), max(values)
    log = low > 0 and math.log10(high / low) > DECADES
    if log:
        low, high = low / 1.15, high * 1.15
    else:
        margin = 0.06 * (high - low) or abs(high) * 0.1 or 1.0
        low, high = (0.0 if 0 <= low < 0.5 * high else low - margin), high + margin
    return Axes(low, high, min(updates), max(updates), log)


def binned(points: Points) -> list[tuple[float, float, float, float]]:
    """At most POINTS of (update, mean, lowest, highest), in order."""
    points = finite(points)
    if len(points) <= POINTS:
        return [(x, y, y, y) for x, y in points]
    first, last = points[0][0], points[-1][0]

    def bin_of(point: tuple[float, float]) -> int:
        return int((point[0] - first) / (last - first) * (POINTS - 1e-6))

    bins = [list(members) for _, members in groupby(points, bin_of)]
    return [summary([x for x, _ in b], [y for _, y in b]) for b in bins]


def summary(xs: list[float], ys: list[float]) -> tuple[float, float, float, float]:
    return round(sum(xs) / len(xs)), sum(ys) / len(ys), min(ys), max(ys)


def curve(axes: Axes, points: list[tuple[float, float, float, float]], index: int) -> str:
    """A line through the means over a band of the ranges; dots where there are few."""
    colour = f"var(--series-{index % 6})"
    line = " ".join(f"{axes.x(x):.1f},{axes.y(y):.1f}" for x, y, *_ in points)
    shapes = [f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="1.6" stroke-linejoin="round"/>']
    if any(high > low for _, _, low, high in points):
        upper = [f"{axes.x(x):.1f},{axes.y(high):.1f}" for x, _, _, high in points]
        lower = [f"{axes.x(x):.1f},{axes.y(low):.1f}" for x, _, low, _ in reversed(points)]
        shapes.insert(0, f'<polygon points="{" ".join(upper + lower)}" fill="{colour}" opacity=".16"/>')
    if len(points) <= 30:
        shapes += [
            f'<circle cx="{axes.x(x):.1f}" cy="{axes.y(y):.1f}" r="2.6" fill="{colour}"/>' for x, y, *_ in points
        ]
    return "".join(shapes)


def grid(axes: Axes) -> str:
    lines = []
    for value in ticks(axes.low, axes.high, axes.log):
        y = axes.y(value)
        lines.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" class="grid"/>')
        lines.append(f'<text x="{LEFT - 6}" y="{y + 3.5:.1f}" text-anchor="end">{number(value)}</text>')
    for update in sorted({round(u) for u in ticks(axes.first, axes.last, False)}):
        lines.append(f'<text x="{axes.x(update):.1f}" y="{HEIGHT - 8}" text-anchor="middle">{update:,.0f}</text>')
    return "".join(lines)


def mark(axes: Axes, update: float, label: str) -> str:
    x = axes.x(update)
    anchor = "end" if x > WIDTH - 60 else "start"
    return (
        f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}" class="mark"/>'
        f'<text x="{x:.1f}" y="{TOP - 3}" text-anchor="{anchor}">{escape(label)}</text>'
    )


def level(axes: Axes, name: str, value: float) -> str:
    y = axes.y(value)
    return (
        f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" class="level"/>'
        f'<text x="{WIDTH - RIGHT}" y="{y - 4:.1f}" text-anchor="end">{escape(name)} {number(value)}</text>'
    )


def flag(axes: Axes, points: Points, update: float) -> str:
    """A ring around the point of a curve that is nearest to an update."""
    x, y, *_ = min(binned(points), key=lambda point: abs(point[0] - update))
    at = f'cx="{axes.x(x):.1f}" cy="{axes.y(y):.1f}"'
    return f'<circle {at} r="6" class="flag"><title>update {update}</title></circle>'


def ticks(low: float, high: float, log: bool) -> list[float]:
    if log:
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        steps = (1,) if len(decades) > 3 else (1, 2, 5)
        return [m * 10.0**e for e in decades for m in steps if low <= m * 10.0**e <= high]
    raw = (high - low) / 5 or 1.0
    size = 10 ** math.floor(math.log10(raw))
    step = next(m * size for m in (1, 2, 5, 10) if m * size >= raw)
    return [i * step for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def number(value: float) -> str:
    """At most three digits, and no more than it has."""
    return f"{value:.3g}".replace("e-0", "e-").replace("e+0", "e")


def spoken(chart: Chart) -> str:
    """The chart in words."""
    told = []
    for name, series in chart.series.items():
        points = finite(series)
        if points:
            (x0, y0), (x1, y1) = points[0], points[-1]
            told.append(f"{name} from {number(y0)} at update {x0} to {number(y1)} at update {x1}")
        if name in chart.flags:
            told.append(f"{name} out of its limits at updates {', '.join(map(str, chart.flags[name]))}")
    return f"{chart.title}: " + ("; ".join(told) or "nothing yet")
