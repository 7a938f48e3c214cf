"""What an update costs in evaluations of each network: counted, not estimated."""

from collections import defaultdict

from .bench import BATCH, Bench
from .trial import Trial


def count(name: str) -> list[str]:
    """The same of a method by its name, from a run of its own."""
    bench = Bench(name)
    try:
        return lines(bench)
    finally:
        bench.close()


def lines(bench: Bench) -> list[str]:
    """For people: one line per kind of update, per sample of the batch."""
    found = [f"  {kind}: {', '.join(counts)}" for kind, counts in per_update(bench.whole).items()]
    asked = {name for line in bench.whole.lines for name in line["evaluations"]}
    idle = [name for name in bench.whole.method.networks if name not in asked]
    if idle:
        found.append(f"  never evaluated in {len(bench.whole.lines)} updates: {', '.join(idle)}")
    return found


def per_update(run: Trial) -> dict[str, list[str]]:
    """Kind of update -> "3 teacher", "2 student (1 with gradients)", ... per sample."""
    seen: dict[str, list[dict]] = defaultdict(list)
    for line in run.lines:
        seen[f"{line['network']} ({', '.join(line['terms'])})"].append(line)
    return {kind: [_count(name, each) for name in _names(each)] for kind, each in seen.items()}


def _names(of: list[dict]) -> list[str]:
    return list(dict.fromkeys(name for line in of for name in line["evaluations"]))


def _count(name: str, of: list[dict]) -> str:
    everything, differentiated = (
        _span([line[key].get(name, 0) / BATCH for line in of]) for key in ("evaluations", "differentiated")
    )
    return f"{everything} {name}" + (f" ({differentiated} with gradients)" if differentiated != "0" else "")


def _span(counts: list[float]) -> str:
    """As 2, or 1.5 to 4 where updates differ."""
    low, high = min(counts), max(counts)
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"
