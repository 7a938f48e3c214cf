"""Checks of a method's updates: who moves, and that nothing but the recipe decides how."""

import math
from collections.abc import Sequence
from functools import partial

from .. import assemble
from ..errors import Stopped
from . import bench as benches
from . import trial as trials
from .bench import BREAK, SHORT, UPDATES, Bench
from .check import Check, DoesNotApply, Failed
from .places import PLACES, Place, Refused

CLOSE = 1e-3  # of two sums of the same numbers in another order, after a few updates

STATE = (
    "what must survive is buffers or submodules of the method (distill/memory.py has some), or tensors in batch.state "
    "if it follows a batch through one step; a plain Python attribute is lost"
)
SHARED = (
    "a draw belongs to its sample, so call batch.noise() and its siblings equally often whatever the batch holds; "
    "losses are means over samples, and what a method remembers of them belongs in a RunningMean, not to a process"
)


def finite(bench: Bench) -> str:
    """Seven updates, with finite losses, of the networks that the method trains."""
    agree(bench)
    try:
        whole = bench.whole
    except Stopped as stop:
        reason = str(stop).partition("; state")[0]
        raise Failed(reason, "look at divisions, logarithms and roots near the noise levels 0 and 1") from stop
    lines = whole.lines
    if len(lines) < SHORT:
        remedy = "try it with options that make its stages longer"
        raise Failed(f"the whole run has {len(lines)} updates, too few to see anything", remedy)
    terms = {f"{line['network']}/{name}": value for line in reversed(lines) for name, value in line["terms"].items()}
    return ", ".join(f"{name} {value:.3g}" for name, value in sorted(terms.items()))


def agree(bench: Bench) -> None:
    """The networks that updates name are those that are declared as trained."""
    method, trained = bench.method, set(assemble.trained(bench.method))
    stages = assemble.stages(method, benches.load(bench))
    named = {name for stage in stages for name in assemble.updates(method, stage)}
    said = [f"{name}: is updated, but not declared as Trained or Built" for name in sorted(named - trained)]
    said += [f"{name}: is declared as trained, but no update moves it" for name in sorted(trained - named)]
    if said:
        raise Failed("; ".join(said), "make `networks` and `updates` agree")


def moves(bench: Bench) -> str:
    """No update moves another network than it names; that one may stand still, but not all the time."""
    for number, (named, moved) in enumerate(bench.whole.moved, 1):
        if others := [name for name in moved if name != named]:
            raise Failed(
                f"update {number} is of {named}, and {', '.join(others)} moved as well",
                "a loss only computes: let an Update of its own move each network, a Copy be taken by copy_from, "
                "an Average follow by itself",
            )
    moved = {name for _, names in bench.whole.moved for name in names}
    if still := sorted({named for named, _ in bench.whole.moved} - moved):
        said = f"{', '.join(still)} did not move in {len(bench.whole.moved)} updates"
        raise Failed(said, "let the loss depend on it, with gradients that are not 0")
    return ", ".join(sorted(moved))


def frozen(bench: Bench) -> str:
    """Frozen networks are as they were."""
    if not bench.whole.first:
        raise DoesNotApply("it has no frozen network")
    if thawed := bench.whole.thawed:
        remedy = "declare it as Trained, Copy or Average if it shall change"
        raise Failed(f"{', '.join(thawed)}: declared as Frozen, and other than before the run", remedy)
    return ", ".join(bench.whole.first)


def reproducible(bench: Bench) -> str:
    """The same recipe gives the same losses, bit for bit."""
    before = BREAK if len(bench.whole.lines) > BREAK else len(bench.whole.lines)
    seen = difference(bench.whole.lines[:before], bench.resumed.lines[:before], 0.0)
    if seen:
        remedy = "draw from batch.noise(), .uniform() and .integers(), or distill.batch.generator(...) with a key"
        raise Failed(f"a second run of the same recipe differs: {seen}", remedy)
    return f"{before} updates"


def resume(bench: Bench) -> str:
    """Seven updates equal five, a resume, and two more, bit for bit."""
    if len(bench.whole.lines) <= BREAK:
        raise Failed(f"the run has only {BREAK} updates or fewer", "try it with options that make its stages longer")
    if seen := difference(bench.whole.lines, bench.resumed.lines, 0.0):
        raise Failed(f"after a resume at update {BREAK} the run is another one: {seen}", STATE)
    one, other = (trials.numbers(run.folder) for run in (bench.whole, bench.resumed))
    if lost := [name for name in one if name not in other or not trials.same(one[name], other[name])]:
        raise Failed(f"after a resume at update {BREAK} {', '.join(lost[:3])} differ", STATE)
    return f"{len(one)} tensors after {UPDATES} updates"


def accumulation(bench: Bench) -> str:
    """One micro-batch of four does what two of two do."""
    if bench.method.whole_micro_batches:
        raise DoesNotApply("it says that its losses look at whole micro-batches")
    if norms := [name for name, role in bench.whole.roles.items() if role.statistics]:
        raise DoesNotApply(f"batch normalization in {', '.join(norms)} sees micro-batches, and shall")
    if seen := difference(bench.whole.lines[:SHORT], bench.in_one_piece.lines, CLOSE):
        raise Failed(f"one micro-batch of 4 is not two of 2: {seen}", SHARED)
    return f"{SHORT} updates, 1 x 4 and 2 x 2"


def elsewhere(bench: Bench, place: Place) -> str:
    """Another layout of processes, or another engine, does the same."""
    try:
        there = bench.laid_out(place)
    except Refused as reason:
        raise DoesNotApply(str(reason).removeprefix("UserError: ")) from reason
    if seen := difference(bench.whole.lines[:SHORT], there, CLOSE):
        raise Failed(f"{place.name} are not one: {seen}", SHARED)
    return f"{SHORT} updates"


def difference(one: Sequence[dict], other: Sequence[dict], tolerance: float) -> str:
    """The first difference between two logs, or nothing."""
    for line, beside in zip(one, other, strict=False):
        for name, value in numbers_of(line).items():
            found = numbers_of(beside).get(name, math.nan)
            if not math.isclose(value, found, rel_tol=tolerance, abs_tol=tolerance / 1000):
                return f"{name} of update {line['update']} is {found:.9g}, it was {value:.9g}"
        if len(numbers_of(beside)) > len(numbers_of(line)):
            return f"update {line['update']} has other terms"
    return "" if len(one) == len(other) else f"it has {len(other)} updates, it had {len(one)}"


def numbers_of(line: dict) -> dict[str, float]:
    terms = {f"{line['network']}/{name}": value for name, value in line["terms"].items()}
    return terms | {f"the gradient norm of {line['network']}": line["grad_norm"]}


CHECKS = (
    Check("finite", "every network that it trains gets updates, with finite losses", finite, ("interface", "options")),
    Check("moves", "each update moves its network, and no other", moves, ("finite",)),
    Check("frozen", "frozen networks never move", frozen, ("finite",)),
    Check("reproducible", "the same recipe gives the same bits", reproducible, ("finite",)),
    Check("resume", "seven updates equal five, a resume, and two more", resume, ("reproducible",)),
    Check("accumulation", "micro-batches of any size give the same updates", accumulation, ("reproducible",)),
    *(
        Check(place.key, f"{place.name} do what one does", partial(elsewhere, place=place), ("reproducible",))
        for place in PLACES
    ),
)
