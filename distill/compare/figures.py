"""Numbers of a comparison as text."""

import math

# unit, how many make a day, and for times shorter than so many days
CLOCK = (("minutes", 1440, 0.1), ("hours", 24, 2.0), ("days", 1, math.inf))
PREFIXES = ((18, "E"), (15, "P"), (12, "T"), (9, "G"), (6, "M"), (3, "k"))


def value(number: dict, metric: dict, sign: str = "") -> dict[str, str]:
    """mean, low, high and, where there is one, spread as text, with as many digits as the interval allows.

    Args:
        sign: "+" writes that of positive numbers, too.
    """
    scale = 100 if percent(metric) else 1
    half = scale * (number["high"] - number["low"]) / 2
    size = half or scale * abs(number["mean"]) / 10
    digits = min(max(1 - math.floor(math.log10(size)), 0), 5) if size > 0 else 0
    found = {key: number.get(key) for key in ("mean", "low", "high", "spread")}
    return {key: f"{scale * v:{sign}.{digits}f}" for key, v in found.items() if v is not None and math.isfinite(v)}


def told(number: dict, metric: dict) -> str:
    text = value(number, metric)
    return f"{text['mean']} ({text['low']} to {text['high']}){unit(metric)}"


def percent(metric: dict) -> bool:
    """The world's own measures are shares of clips."""
    return metric["kind"] == "world" and not metric["unit"]


def unit(metric: dict) -> str:
    symbol = "%" if percent(metric) else metric["unit"]
    return f" {symbol}" if symbol else ""


def si(number: float) -> str:
    """As 7.4 T: three digits and a prefix."""
    for exponent, prefix in PREFIXES:
        if number >= 10**exponent:
            return f"{number / 10**exponent:.3g} {prefix}"
    return f"{number:.3g} "


def clock(days: list[float | None]) -> tuple[str, int]:
    """The unit in which the longest of some times is a number to read, and how many of it make a day."""
    longest = max((each or 0 for each in days), default=0)
    return next((unit, per_day) for unit, per_day, most in CLOCK if longest < most)
