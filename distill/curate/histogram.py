"""How a signal is spread over the videos, as inline SVG: a bar per bin, those that were dropped on top."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from .. import plot

WIDTH, HEIGHT = 360, 130
LEFT, RIGHT, TOP, BOTTOM = 8, 8, 22, 22
BINS = 30


@dataclass(frozen=True)
class Histogram:
    """One signal.

    Attributes:
        mark: what drops a video: (words, value), or None.
    """

    title: str
    about: str
    kept: Sequence[float]
    dropped: Sequence[float]
    mark: tuple[str, float] | None = None


@dataclass(frozen=True)
class Axis:
    low: float
    high: float
    log: bool

    def share(self, value: float) -> float:
        """Where a value lies, 0 to 1; a logarithmic axis has no place for 0, which lies at its beginning."""
        low, high, value = (math.log(max(v, self.low)) if self.log else v for v in (self.low, self.high, value))
        return min(max((value - low) / (high - low), 0.0), 1.0)

    def x(self, value: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * self.share(value)


def svg(histogram: Histogram) -> Markup:
    axis = fit(histogram)
    kept, dropped = (counts(axis, values) for values in (histogram.kept, histogram.dropped))
    parts = [*bars(kept, dropped), *(tick(axis, value) for value in plot.ticks(axis.low, axis.high, axis.log))]
    if histogram.mark:
        parts.append(line(axis, *histogram.mark))
    return Markup(
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(spoken(histogram))}">'
        f"{''.join(parts)}</svg>"
    )


def fit(histogram: Histogram) -> Axis:
    """Holds every value and the mark; logarithmic where they span more than plot.DECADES."""
    values = [*histogram.kept, *histogram.dropped, *([histogram.mark[1]] if histogram.mark else [])] or [0.0]
    positive = [value for value in values if value > 0]
    low, high = min(values), max(values)
    if low >= 0 and positive and max(positive) > 10**plot.DECADES * sorted(positive)[len(positive) // 8]:
        return Axis(min(positive) / 1.15, high * 1.15, True)
    margin = 0.05 * (high - low) or abs(high) * 0.1 or 1.0
    return Axis(0.0 if low == 0 else low - margin, high + margin, False)


def counts(axis: Axis, values: Sequence[float]) -> list[int]:
    found = [0] * BINS
    for value in values:
        found[min(int(axis.share(value) * BINS), BINS - 1)] += 1
    return found


def bars(kept: list[int], dropped: list[int]) -> list[str]:
    highest = max(a + b for a, b in zip(kept, dropped, strict=True)) or 1
    width, unit = (WIDTH - LEFT - RIGHT) / BINS, (HEIGHT - TOP - BOTTOM) / highest
    found = []
    for i, (a, b) in enumerate(zip(kept, dropped, strict=True)):
        for name, count, top in (("kept", a, a), ("dropped", b, a + b)):
            at = f'x="{LEFT + i * width + 0.5:.1f}" y="{HEIGHT - BOTTOM - top * unit:.1f}"'
            if count:
                found.append(f'<rect class="{name}" {at} width="{width - 1:.1f}" height="{count * unit:.1f}"/>')
    return found


def tick(axis: Axis, value: float) -> str:
    x = axis.x(value)
    return (
        f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{HEIGHT - BOTTOM}" y2="{HEIGHT - BOTTOM + 4}"/>'
        f'<text x="{x:.1f}" y="{HEIGHT - 5}" text-anchor="middle">{plot.number(value)}</text>'
    )


def line(axis: Axis, words: str, value: float) -> str:
    x = axis.x(value)
    anchor = "end" if x > WIDTH / 2 else "start"
    return (
        f'<line class="level" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP - 6}" y2="{HEIGHT - BOTTOM}"/>'
        f'<text x="{x:.1f}" y="{TOP - 9}" text-anchor="{anchor}">{escape(words)} {plot.number(value)}</text>'
    )


def spoken(histogram: Histogram) -> str:
    values = [*histogram.kept, *histogram.dropped]
    if not values:
        return f"{histogram.title}: nothing measured"
    told = f"{histogram.title}: {len(values)} videos from {plot.number(min(values))} to {plot.number(max(values))}"
    return told + (f"; {histogram.mark[0]} {plot.number(histogram.mark[1])}" if histogram.mark else "")
