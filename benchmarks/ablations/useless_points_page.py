"""The 1D experiment's tables, in markdown, and its figure, in SVG."""

from statistics import mean, stdev

from distill import plot

WIDTH, HEIGHT = plot.WIDTH, plot.HEIGHT + 26  # of a panel with its title
COLOURS = {"--series-0": "#2f6fd0", "--series-1": "#d2691e", "--series-2": "#23865f", "--series-3": "#8a4fb8"}
STYLE = (
    "text{font:11px sans-serif;fill:#1c1e21}.title{font-size:13px;font-weight:600}.grid{stroke:#e3e4e6}"
    ".level{stroke:#62676f;stroke-dasharray:4 3}"
)
MOVES = ("both up", "outward", "inward")  # the first three colours
MIXED = "outward, half on trajectories"

Points = list[tuple[float, float, float, float]]  # M, mean over seeds, lowest, highest


def tables(result: dict) -> str:
    """Both panels as markdown, then how they were made."""
    return "\n\n".join([useless_table(result["useless"]), error_table(result), provenance(result)]) + "\n"


def useless_table(rows: list[dict]) -> str:
    levels = sorted({row["M"] for row in rows})
    lines = [head(["share of start points", "data move", *(f"M = {M:g}" for M in levels)])]
    for name, told in (("off_trajectory", "off every trajectory"), ("wrong_mode", "paired with the wrong mode")):
        for move in MOVES:
            shares = {row["M"]: decimals(mean(row[name]), 3) for row in rows if row["move"] == move}
            lines.append(line([told, move, *(shares[M] for M in levels)]))
    return "\n".join(lines)


def error_table(result: dict) -> str:
    names = ["start points", "M", "W1, closed form", "W1, ResNet", "within .3, closed form", "within .3, ResNet"]
    names += ["W1 to the distillation data", "own points between", "own points beyond"]
    lines = [head(names)]
    closed, learned = ([row for row in result["errors"] if row["teacher"] == t] for t in ("closed form", "ResNet"))
    for exact, net in zip(closed, learned, strict=True):
        cells = [spread(exact["w1"]), spread(net["w1"]), spread(exact["near"]), spread(net["near"])]
        cells += [spread(exact["w1_to_distillation_data"]), spread(exact["between"]), spread(exact["beyond"])]
        lines.append(line([told(exact), f"{exact['M']:g}", *cells]))
    at_50 = {kind: spread(errors) for kind, errors in result["teachers_at_50_steps"].items()}
    lines.append(line(["the teachers at 50 steps", "", at_50["closed form"], at_50["ResNet"], *[""] * 5]))
    return "\n".join(lines)


def told(row: dict) -> str:
    """A setting in words."""
    move = row["move"] if row["M"] else "{-3, 3}"
    return {0: move, 0.5: f"{move}, half on trajectories", 1: "all on trajectories"}[row["on_trajectory"]]


def provenance(result: dict) -> str:
    plan, machine = result["plan"], result["machine"]
    software = ", ".join(f"{name} {result['versions'][name]}" for name in ("python", "torch"))
    return (
        f"`{result['command']}`: seeds {', '.join(map(str, plan['seeds']))}; {result['cpu_seconds']} CPU s, "
        f"{result['wall_seconds']} s by the clock, {machine['threads']} thread, {machine['processor']}; {software}. "
        "Second table: mean over seeds [lowest, highest]; its last three columns are for the closed-form teacher. "
        f"First table: standard deviations over seeds are at most {worst_deviation(result['useless']):.4f}."
    )


def worst_deviation(rows: list[dict]) -> float:
    return max(stdev(row[name]) for row in rows for name in ("off_trajectory", "wrong_mode"))


def head(names: list[str]) -> str:
    return line(names) + "\n" + "|---" * len(names) + "|"


def line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def decimals(value: float, places: int) -> str:
    return f"{value:.{places}f}".removeprefix("0") if value < 1 else f"{value:.{places}f}"


def spread(values: list[float]) -> str:
    places = 2 if max(values) >= 1 else 3
    if len(values) == 1:
        return decimals(values[0], places)
    return f"{decimals(mean(values), places)} [{decimals(min(values), places)}, {decimals(max(values), places)}]"


def figure(result: dict) -> str:
    """Fig. 2(e) above, by both definitions; Fig. 2(f) below, for both teachers."""
    off, wrong = ({m: over(result["useless"], m, name) for m in MOVES} for name in ("off_trajectory", "wrong_mode"))
    panels = [
        panel("(e) start points off every trajectory, share against M", off, 0.6),
        panel("(e) start points paired with the wrong mode, share against M", wrong, 0.6),
    ]
    for teacher, name in (("closed form", "closed-form"), ("ResNet", "learned")):
        rows = [row for row in result["errors"] if row["teacher"] == teacher]
        errors = {move: over([row for row in rows if row["on_trajectory"] == 0], move, "w1") for move in MOVES}
        errors[MIXED] = over([row for row in rows if row["on_trajectory"] == 0.5], "outward", "w1")
        floor = mean(next(row for row in rows if row["on_trajectory"] == 1)["w1"])
        highest = max(max(row["w1"]) for row in result["errors"])
        title = f"(f) W1 from 4-step samples to the training data against M, {name} teacher"
        panels.append(panel(title, errors, 1.1 * highest, floor))
    places = [(WIDTH * (i % 2), 24 + HEIGHT * (i // 2)) for i in range(4)]
    drawn = [f'<g transform="translate({x} {y})">{each}</g>' for (x, y), each in zip(places, panels, strict=True)]
    width, height = 2 * WIDTH, 2 * HEIGHT + 24
    body = f"<style>{STYLE}</style>" + f'<rect width="{width}" height="{height}" fill="#fff"/>' + legend()
    text = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}">{body}{"".join(drawn)}</svg>\n'
    for name, colour in COLOURS.items():
        text = text.replace(f"var({name})", colour)  # an image has no page to take colours from
    return text


def over(rows: list[dict], move: str, name: str) -> Points:
    """A quantity over M; without mismatch every move is the same."""
    found = [(row["M"], row[name]) for row in rows if row["move"] == move or row["M"] == 0]
    unique = dict(sorted(found, key=lambda pair: pair[0]))
    return [(M, mean(values), min(values), max(values)) for M, values in unique.items()]


def panel(title: str, series: dict[str, Points], high: float, level: float | None = None) -> str:
    axes = plot.Axes(low=0, high=high, first=0, last=max(p[0] for points in series.values() for p in points), log=False)
    curves = [plot.curve(axes, points, i) for i, points in enumerate(series.values())]
    if level is not None:
        ends = f'x1="{plot.LEFT}" x2="{WIDTH - plot.RIGHT}" y1="{axes.y(level):.1f}" y2="{axes.y(level):.1f}"'
        curves.insert(0, f'<line {ends} class="level"/>')
    heading = f'<text class="title" x="{plot.LEFT}" y="18">{title}</text>'
    return heading + f'<g transform="translate(0 22)">{plot.grid(axes)}{"".join(curves)}</g>'


def legend() -> str:
    """Names in the order of the colours."""
    parts = []
    for i, name in enumerate([*MOVES, MIXED]):
        x = plot.LEFT + 110 * i
        parts.append(f'<circle cx="{x}" cy="14" r="4" fill="var(--series-{i})"/><text x="{x + 9}" y="18">{name}</text>')
    text = "dashed: all start points on trajectories; bands: lowest to highest of the seeds"
    return "".join(parts) + f'<text x="{plot.LEFT + WIDTH}" y="18">{text}</text>'
