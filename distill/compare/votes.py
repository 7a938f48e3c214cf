"""Votes of a blind test, read back as win rates."""

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from ..errors import UserError
from ..evaluate import statistics
from .blind import KEY

ANSWERS = ("left", "right", "tie")


def read(folder: Path, files: Iterable[Path]) -> dict:
    """What the voters preferred.

    Of two files by one voter the later counts. A file that cannot be used is left out and said so.

    Returns:
        votes, voters: how many; failures: a line for each file that was left out; pairs: for every two samplers a and b
        the votes for each, the ties, and the share of a's wins among votes that decide, with Wilson's 95 % interval
        (None without such a vote).

    Raises:
        UserError: there is no blind test in the folder.
    """
    key = read_key(folder)
    voters, failures = {}, []
    for path in files:
        try:
            voter, votes = checked(path, key)
            voters[voter] = votes
        except UserError as error:
            failures.append(str(error))
    given = [(key["pairs"][pair], answer) for votes in voters.values() for pair, answer in votes.items()]
    return {"votes": len(given), "voters": len(voters), "pairs": tally(key, given), "failures": failures}


def read_key(folder: Path) -> dict:
    path = folder / KEY
    try:
        key = json.loads(path.read_text(encoding="utf-8"))
        return {"comparison": key["comparison"], "pairs": key["pairs"]}
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; `distill compare --blind` writes it") from None
    except (ValueError, TypeError, KeyError):
        raise UserError(f"{path}: not the key of a blind test; write it again with `distill compare --blind`") from None


def checked(path: Path, key: dict) -> tuple[str, dict[str, str]]:
    """The voter's name, and pair -> answer.

    Raises:
        UserError: the file is missing, torn or about something else.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        voter, comparison, votes = (found[name] for name in ("voter", "comparison", "votes"))
        items = list(votes.items())
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; expected a votes.json that vote.html saved") from None
    except (ValueError, TypeError, KeyError, AttributeError):
        raise UserError(f"{path}: torn, or not votes; save it again from vote.html") from None
    if comparison != key["comparison"]:
        wanted = key["comparison"]
        raise UserError(f"{path}: votes on another comparison ({comparison}); this one is {wanted}, vote on its page")
    for pair, answer in items:
        if pair not in key["pairs"]:
            raise UserError(f"{path}: pair {pair!r} is not in this comparison; save the votes again from its vote.html")
        if answer not in ANSWERS:
            raise UserError(f"{path}: pair {pair}: vote {answer!r}; expected one of {', '.join(ANSWERS)}")
    return str(voter), votes


def tally(key: dict, given: list[tuple[dict, str]]) -> list[dict]:
    """The votes for every two samplers, in the order of their names."""
    names = sorted({tuple(sorted((pair["left"], pair["right"]))) for pair in key["pairs"].values()})
    found = []
    for a, b in names:
        winners = [pair.get(answer) for pair, answer in given if {pair["left"], pair["right"]} == {a, b}]
        decided = np.array([winner == a for winner in winners if winner is not None], dtype=float)
        share = statistics.share(decided) if len(decided) else dict.fromkeys(("mean", "low", "high"))
        wins = int(decided.sum())
        counts = {"wins_a": wins, "wins_b": len(decided) - wins, "ties": len(winners) - len(decided)}
        found.append({"a": a, "b": b, **counts, "share": share["mean"], "low": share["low"], "high": share["high"]})
    return found
