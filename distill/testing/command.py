"""`distill methods check`: every check with what it saw, and what an update costs."""

from collections.abc import Callable, Mapping
from typing import Any

from ..errors import UserError
from .bench import Bench
from .check import Outcome, outcomes
from .conformance import CHECKS
from .cost import lines

WIDTH = max(len(check.name) for check in CHECKS)


def check(name: str, options: Mapping[str, Any], changes: Mapping[str, Any], show: Callable[[str], None]) -> int:
    """Show every outcome as it comes; returns how many checks failed.

    Args:
        options: the method's.
        changes: of the recipe that the kit writes, dotted key -> value.
    """
    bench, seen = Bench(name, options, changes), []
    try:
        _refuse(bench)
        show(str(bench.entry))
        for outcome in outcomes(CHECKS, bench):
            seen.append(outcome)
            for line in told(outcome):
                show(line)
        if passed("finite", seen):
            show("evaluations of each network by an update, per sample:")
            for line in lines(bench):
                show(line)
    finally:
        bench.close()
    failed = [outcome for outcome in seen if outcome.status == "fail"]
    show(f"{len(failed)} of {len(seen)} checks failed" if failed else f"{name} holds what a method must")
    return len(failed)


def _refuse(bench: Bench) -> None:
    """UserError for options that the method does not have; what else is wrong with it the first check says."""
    try:
        options = bench.signature.options.model_fields
    except UserError:
        return
    if all(name in bench.options for name, field in options.items() if field.is_required()):
        bench.arguments()


def passed(name: str, seen: list[Outcome]) -> bool:
    return any(outcome.check.name == name and outcome.status == "pass" for outcome in seen)


def told(outcome: Outcome) -> list[str]:
    """Lines for people; of a failure the claim, what was seen, and what to do."""
    head = f"{outcome.status:4}  {outcome.check.name:{WIDTH}}  "
    if outcome.status != "fail":
        return [f"{head}{outcome.text}"]
    indent = " " * len(head)
    return [f"{head}{outcome.check.claim}", f"{indent}{outcome.text}", f"{indent}-> {outcome.remedy}"]
