"""Quality against cost as inline SVG: one point per number of steps, joined where they are one student's."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from . import plot
from .plot import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, number

ROOM = 34  # pixels right of the last point, for its label


@dataclass(frozen=True)
class Dot:
    """A measured value with its interval at a cost. `label` stands beside it, `about` is told under the pointer."""

    x: float
    y: float
    low: float
    high: float
    label: str
    about: str
    own: bool = True


@dataclass(frozen=True)
class Scatter:
    """Dots over a logarithmic cost.

    Attributes:
        series: name -> its dots.
        colours: name -> index of its colour.
        levels: name -> value of a horizontal line.
    """

    title: str
    cost: str
    series: dict[str, Sequence[Dot]]
    colours: dict[str, int]
    levels: dict[str, float]


def svg(scatter: Scatter) -> Markup:
    axes = fit(scatter)
    parts = [grid(axes), *(level(axes, *each) for each in scatter.levels.items())]
    parts += [joined(axes, dots, scatter.colours[name]) for name, dots in scatter.series.items()]
    return Markup(
        f'<svg class="chart scatter" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(spoken(scatter))}">{"".join(parts)}</svg>'
    )


@dataclass(frozen=True)
class Axes(plot.Axes):
    """With a logarithmic cost."""

    def x(self, cost: float) -> float:
        share = math.log(cost / self.first) / math.log(self.last / self.first)
        return LEFT + (WIDTH - LEFT - RIGHT - ROOM) * share


def fit(scatter: Scatter) -> Axes:
    """Axes that hold every interval."""
    dots = [dot for series in scatter.series.values() for dot in series]
    ends = [[(dot.x, dot.low), (dot.x, dot.high)] for dot in dots]
    inner = plot.fit(plot.Chart("", {str(i): each for i, each in enumerate(ends)}, scatter.levels))
    first, last = min(dot.x for dot in dots) / 1.25, max(dot.x for dot in dots) * 1.25
    return Axes(inner.low, inner.high, first, last, inner.log)


def grid(axes: Axes) -> str:
    lines = []
    for value in plot.ticks(axes.low, axes.high, axes.log):
        y = axes.y(value)
        lines.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" class="grid"/>')
        lines.append(f'<text x="{LEFT - 6}" y="{y + 3.5:.1f}" text-anchor="end">{number(value)}</text>')
    for cost in plot.ticks(axes.first, axes.last, True):
        x = axes.x(cost)
        lines.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}" class="grid"/>')
        lines.append(f'<text x="{x:.1f}" y="{HEIGHT - 8}" text-anchor="middle">{number(cost)}</text>')
    return "".join(lines)


def level(axes: Axes, name: str, value: float) -> str:
    y = axes.y(value)
    return (
        f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" class="level"/>'
        f'<text x="{LEFT + 4}" y="{y - 4:.1f}">{escape(name)}</text>'
    )


def joined(axes: Axes, dots: Sequence[Dot], index: int) -> str:
    colour = f"var(--series-{index % 6})"
    dots = sorted(dots, key=lambda dot: dot.x)
    line = " ".join(f"{axes.x(dot.x):.1f},{axes.y(dot.y):.1f}" for dot in dots)
    shapes = [f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="1.2" opacity=".55"/>']
    return "".join(shapes + [shape(axes, dot, colour) for dot in dots])


def shape(axes: Axes, dot: Dot, colour: str) -> str:
    """A dot with its interval; hollow where the student was not trained for so many steps."""
    x, y = f"{axes.x(dot.x):.1f}", axes.y(dot.y)
    fill = colour if dot.own else "var(--card)"
    return (
        f'<g><line x1="{x}" x2="{x}" y1="{axes.y(dot.low):.1f}" y2="{axes.y(dot.high):.1f}" stroke="{colour}" '
        f'stroke-width="1.4"/><circle cx="{x}" cy="{y:.1f}" r="4" fill="{fill}" stroke="{colour}" stroke-width="1.8"/>'
        f'<text x="{axes.x(dot.x) + 8:.1f}" y="{y + 4:.1f}">{escape(dot.label)}</text>'
        f"<title>{escape(dot.about)}</title></g>"
    )


def spoken(scatter: Scatter) -> str:
    """The plot in words."""
    told = [f"{name}: " + ", ".join(dot.about for dot in dots) for name, dots in scatter.series.items()]
    return f"{scatter.title} against {scatter.cost}. " + "; ".join(told)
