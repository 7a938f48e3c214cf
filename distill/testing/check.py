"""What a check is, and how one ends."""

import os
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import Stopped, UserError
from .bench import Bench

OURS = Path(__file__).resolve().parent.parent


class Failed(Exception):
    """A method does not hold what a check asks for.

    Args:
        reason: what was seen, and what was expected.
        remedy: what its author can do.
    """

    def __init__(self, reason: str, remedy: str):
        super().__init__(reason)
        self.remedy = remedy


class DoesNotApply(Exception):
    """The check asks for something that the method does not have."""


@dataclass(frozen=True)
class Check:
    """A claim about methods.

    Attributes:
        run: returns what it saw, or raises Failed or DoesNotApply.
        needs: names of the checks that must have passed for this one to say anything.
    """

    name: str
    claim: str
    run: Callable[[Bench], str]
    needs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """How a check ended: `status` is "pass", "fail" or "skip"; `text` what was seen, or why not."""

    check: Check
    status: str
    text: str
    remedy: str = ""


def outcomes(checks: Sequence[Check], bench: Bench) -> Iterator[Outcome]:
    """Every check in order; those that need one which has not passed are left out."""
    seen: dict[str, Outcome] = {}
    for check in checks:
        missing = next((seen[name] for name in check.needs if seen[name].status != "pass"), None)
        seen[check.name] = _left_out(check, missing) if missing else _try(check, bench)
        yield seen[check.name]


def _left_out(check: Check, missing: Outcome) -> Outcome:
    """The reason is the first one: a failure, or what the method does not have."""
    failed = missing.status == "fail"
    return Outcome(check, "skip", f"says nothing while {missing.check.name} fails" if failed else missing.text)


def _try(check: Check, bench: Bench) -> Outcome:
    try:
        return Outcome(check, "pass", check.run(bench))
    except DoesNotApply as reason:
        return Outcome(check, "skip", str(reason))
    except Failed as fault:
        return Outcome(check, "fail", str(fault), fault.remedy)
    except (UserError, Stopped) as fault:
        return Outcome(check, "fail", str(fault), "that is what `distill run` would say, too")
    except Exception as fault:  # a method may raise anything
        if os.environ.get("DISTILL_TRACEBACK"):
            raise
        text = " ".join(f"{type(fault).__name__}: {fault}".split())
        return Outcome(check, "fail", f"{text} ({place(fault)})", "DISTILL_TRACEBACK=1 shows where it comes from")


def place(error: BaseException) -> str:
    """File and line of the innermost frame outside of distill, torch and their like; else of the innermost."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if OURS not in Path(f.filename).parents and "site-packages" not in f.filename]
    frame = (own or frames)[-1]
    return f"{frame.filename}:{frame.lineno}"
