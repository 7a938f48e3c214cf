"""`distill compare`: train what is missing, measure all alike, write the folder.

A command that was interrupted goes on: finished runs, sampled latents and written clips are not made again. Two
comparisons of the same inputs write the same compare.json, byte for byte.
"""

import contextlib
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .. import disk
from .. import folder as run_folder
from .. import recipe as recipes
from ..errors import UserError
from ..evaluate import fidelity, kept
from ..evaluate.asked import Asked
from ..evaluate.summarize import finite
from ..recipe import Recipe
from . import blind, content, inputs, page, setting, training, votes
from .inputs import Column
from .measuring import Measurer, ahead

RESULT, LOCK, LOGS = "compare.json", "lock", "logs"
NEUTRAL = ("--out", "--processes", "--jobs", "--votes")


@dataclass(frozen=True)
class Options:
    """What the command line asks for.

    Attributes:
        changes: fields of Asked (evaluate/asked.py) that are not those of the first recipe.
        seeds: of training, in the place of a recipe's own.
        shown: clips of each column on the page.
        processes: of every training and evaluation.
        jobs: of them at a time.
        blind: write a blind test, too.
        votes: files of such a test to read.
        command: how compare.json says it was made.
    """

    changes: Mapping = field(default_factory=dict)
    seeds: Sequence[int] = ()
    shown: int = 6
    processes: int = 1
    jobs: int = 1
    blind: bool = False
    votes: Sequence[Path] = ()
    command: str = "distill compare"


@dataclass(frozen=True)
class Outcome:
    """What there is to say at the end.

    Attributes:
        failures: a line for everything that failed.
        missing: runs that are not on the page.
    """

    failures: list[str]
    missing: int


def compare(
    given: Sequence[Path], load: Callable[[Path], Recipe], out: Path, options: Options, tell: Callable[[str], None]
) -> Outcome:
    """Write OUT/compare.json, OUT/clips and the pages.

    Args:
        given: recipes, the folders of runs, and those of exported students.
        load: the checked recipe of one of them.
        tell: takes in what is to be said meanwhile.

    Raises:
        UserError: the inputs cannot be compared, or no blind test was held that had votes, and nothing was trained; or
            not one run could be measured.
        Stopped: a signal came.
    """
    runs, notes = inputs.runs(given, load, options.seeds)
    columns = inputs.columns(runs)
    common, shifts = setting.common(columns)
    asked, overridden = setting.asked(columns, common.shift, options.changes)
    fidelity.check(asked, common.teacher)
    for run in runs:
        if run.folder.is_dir() and not run.is_export:
            run_folder.check(run.folder, run.recipe)
    said = votes.read(out, options.votes) if options.votes else None
    with hold(out):
        many = {"processes": options.processes, "jobs": options.jobs, "tell": tell}
        reasons = training.train(columns, out / LOGS, **many)
        for column in columns:
            column.runs = [run for run in column.runs if run.folder not in reasons]
        ahead(columns, asked, out, common.recipe.teacher.path, **many)
        measurer = Measurer(asked, out, options.shown, common)
        measurer.measure(columns)
        measurer.failures[:0] = [
            f"{run} was not trained: {reasons[run.folder]}" for run in runs if run.folder in reasons
        ]
        measurer.notes[:0] = [*notes, *shifts, *overridden]
        failures = write(columns, common, asked, measurer, said, out, options)
    return Outcome(failures, len(runs) - sum(len(column.runs) for column in columns))


def write(
    columns: Sequence[Column],
    common: setting.Common,
    asked: Asked,
    found: Measurer,
    voted: dict | None,
    out: Path,
    options: Options,
) -> list[str]:
    """compare.json and the pages; returns what failed."""
    columns = [column for column in columns if column.runs]
    if not columns:
        raise UserError("\n".join(["no student could be measured", *found.failures]))
    made = content.header(common, asked, columns, options.command)
    columns, results = content.with_half_rate(columns, found.results)
    made["columns"] = content.table(common, asked, columns, results, found.clips)
    made["settings"] = content.settings(columns)
    made["shown"] = content.shown(asked, found.rows, common.recipe.video.fps)
    voted, unread = counted(out, made, voted)
    failures = [*found.failures, *unread]
    made |= {"votes": voted, "notes": list(map(content.nameless, found.notes))}
    made |= {"failures": list(map(content.nameless, failures))} | content.made_by()
    disk.replace(out / RESULT, lambda file: kept.write(finite(made), file))
    page.write(out)
    if options.blind:
        page.write(out, blind=True)
    return failures


def counted(out: Path, made: dict, voted: dict | None) -> tuple[dict | None, list[str]]:
    """The votes, unless they are about other clips than these; and a line for every file that was left out."""
    if voted is None:
        return None, []
    if votes.read_key(out)["comparison"] != blind.fingerprint(out, made):
        return None, [f"the votes are about other clips than those in {out}; ask again with --blind"]
    return {name: value for name, value in voted.items() if name != "failures"}, voted["failures"]


def command(arguments: Sequence[str]) -> str:
    """The command line without what changes nothing in compare.json, and without folders outside the working one."""
    words = iter(arguments)
    said = []
    for word in words:
        if word in NEUTRAL:
            next(words, None)
        elif word != "--blind" and word.partition("=")[0] not in NEUTRAL:
            said.append(content.nameless(word))
    return shlex.join(["distill", *said])


@contextlib.contextmanager
def hold(out: Path) -> Iterator[None]:
    """The comparison's folder, for one command at a time.

    Raises:
        UserError: it holds something else, or another comparison is being written to it.
    """
    recipes.check_output(out.absolute(), "--out")
    others = sorted(path.name for path in out.iterdir()) if out.is_dir() else []
    if others and LOCK not in others and RESULT not in others:
        raise UserError(f"--out {out} holds {others[0]!r}, and is not the folder of a comparison; name another")
    out.mkdir(parents=True, exist_ok=True)
    lock = disk.hold(out, f"{out} is being written by {{holder}}; wait for it, or name another --out")
    try:
        yield
    finally:
        lock.close()
