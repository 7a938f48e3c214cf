"""What was judged, for people: index.html with every video's stills and signals, verdicts.csv for everything else."""

import csv
import datetime
import io
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import jinja2
import numpy as np

from .. import plot
from ..data.spec import Curation
from . import verdicts
from .histogram import Histogram, svg
from .verdicts import Measured

PAGE, TABLE = "index.html", "verdicts.csv"
UNMEASURED = "not measured"  # the kind of a reason
SHOWN = 2000  # videos on the page; a browser is slow with many more

TITLES = {  # signal -> its name on the page, and what it is
    "hue_entropy": ("Hue entropy", "nats, least of four frames; near 0 there is one colour or none"),
    "hue_entropy_achromatic": ("Hue entropy, greys apart", "nats, least of four frames; grey pixels share one bin"),
    "sharpness": ("Sharpness", "variance of the Laplacian at 480p, least of four frames"),
    "sharpness_native": ("Sharpness, native", "variance of the Laplacian at the video's own size"),
    "contrast": ("Contrast", "standard deviation of the luma, least of all frames"),
    "motion": ("Motion", "mean optical flow in pixels per frame at 480p"),
    "cuts": ("Cuts", "changes of the scene"),
    "consistency": ("Temporal consistency", "similarity to the previous and the first frame"),
    "aesthetics": ("Looks", "mean of eight frames"),
    "colourfulness": ("Colourfulness", "Hasler and Suesstrunk's; shown, not judged"),
    "saturation": ("Saturation", "mean, 0 to 1; shown, not judged"),
}


@dataclass(frozen=True)
class Card:
    """A video on the page.

    Attributes:
        kind: `kept`, or the kind of its reason.
        figures: (signal, value, broken: whether it is what the video was dropped for).
    """

    name: str
    link: str
    facts: str
    kind: str
    reason: str
    still: str
    figures: list[tuple[str, float, bool]]


def write(
    folder: Path,
    measured: Sequence[Measured],
    reasons: Sequence[str | None],
    curation: Curation,
    unmeasured: Mapping[Path, str],
    rate: float | None,
) -> None:
    """Both files, each whole or not at all.

    Args:
        unmeasured: files that were dropped before, with the reason.
        rate: frames per second that motion was measured at; None: each video's own.
    """
    paths = [each.video.path for each in measured] + list(unmeasured)
    root = Path(os.path.commonpath([path.absolute().parent for path in paths])) if paths else folder
    guilty = {limit.kind: limit.key for limit in verdicts.limits(curation)} | {key: key for key in verdicts.RANKED}
    cards = [card(each, reason, guilty, root, folder) for each, reason in zip(measured, reasons, strict=True)]
    cards += [lost(path, reason, root, folder) for path, reason in unmeasured.items()]
    _replace(folder / PAGE, render(cards, measured, reasons, curation, rate))
    table(folder / TABLE, cards)


def render(
    cards: list[Card], measured: Sequence[Measured], reasons: Sequence[str | None], curation: Curation, rate
) -> str:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("distill", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": plot.number, "histogram": svg}
    kinds = Counter(each.kind for each in cards)
    return environment.get_template("curation.html.j2").render(
        cards=spread(cards, SHOWN),
        total=len(cards),
        kinds={kind: kinds[kind] for kind in sorted(kinds, key=lambda k: (k != "kept", -kinds[k], k))},
        rules=rules(curation),
        titles=TITLES,
        histograms=list(histograms(measured, reasons, curation)),
        stillness=stillness(measured),
        groups=curation.consistency_groups,
        proxies=[key for key, *_ in verdicts.ranks(curation) if getattr(curation, f"{key}_by") is None],
        rate=rate,
        table=TABLE,
        written=datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
    )


def card(measured: Measured, reason: str | None, guilty: Mapping[str, str], root: Path, folder: Path) -> Card:
    """Of a video that was judged.

    Args:
        guilty: kind of a reason -> the signal that it speaks of.
    """
    video, kind = measured.video, (reason or "kept").partition(":")[0]
    figures = [(key, measured.values[key], guilty.get(kind) == key) for key in TITLES if key in measured.values]
    still = measured.still.relative_to(folder).as_posix() if measured.still else ""
    facts = f"{video.width}x{video.height}, {video.fps:.4g} fps, {video.seconds:.3g} s"
    return Card(_name(video.path, root), _link(video.path, folder), facts, kind, reason or "", still, figures)


def lost(path: Path, reason: str, root: Path, folder: Path) -> Card:
    """Of a file that never came to be measured."""
    return Card(_name(path, root), _link(path, folder), "", UNMEASURED, reason, "", [])


def _name(path: Path, root: Path) -> str:
    return path.absolute().relative_to(root).as_posix()


def _link(path: Path, folder: Path) -> str:
    return quote(Path(os.path.relpath(path, folder)).as_posix())


def spread(cards: list[Card], most: int) -> list[Card]:
    """All, or so many at even distances."""
    return cards if len(cards) <= most else [cards[i * len(cards) // most] for i in range(most)]


def rules(curation: Curation) -> list[tuple[str, str]]:
    """(kind, what it takes to pass) of every filter in force, in order."""
    found = [(UNMEASURED, "a clip can be cut from it"), ("unreadable", "what is looked at can be decoded")]
    if curation.resolution:
        short, long = sorted(curation.resolution)
        found.append(("resolution", f"shorter side at least {short}, longer at least {long} pixels"))
    found += [(limit.kind, limit.rule()) for limit in verdicts.limits(curation)]
    for key, share, _ in verdicts.ranks(curation):
        found.append((key, f"among the best {100 * share:.4g} % of what remains"))
    return found


def histograms(measured: Sequence[Measured], reasons: Sequence[str | None], curation: Curation) -> Iterator[Histogram]:
    """One per signal that was measured, marked where a video is dropped."""
    marks = {limit.key: ("at most" if limit.most else "at least", limit.bound) for limit in verdicts.limits(curation)}
    marks |= {key: ("best from", value) for key, value in lowest(measured, reasons, curation).items()}
    for key, (title, about) in TITLES.items():
        kept, dropped = [], []
        for each, reason in zip(measured, reasons, strict=True):
            if key in each.values:
                (dropped if reason else kept).append(each.values[key])
        if kept or dropped:
            yield Histogram(title, about, kept, dropped, marks.get(key))


def lowest(measured: Sequence[Measured], reasons: Sequence[str | None], curation: Curation) -> dict[str, float]:
    """Signal -> the least value that a rank let pass, where one value divides all."""
    found, kinds = {}, [(reason or "").partition(":")[0] for reason in reasons]
    later = [key for key, _, groups in verdicts.ranks(curation)]
    for key, _, groups in verdicts.ranks(curation):
        later.remove(key)
        passed = [each.values[key] for each, kind in zip(measured, kinds, strict=True) if kind in ("", *later)]
        if passed and groups == 1:
            found[key] = min(passed)
    return found


def stillness(measured: Sequence[Measured]) -> float | None:
    """Rank correlation of temporal consistency with motion, or None where there is none to be had."""
    both = [(each.values["consistency"], each.values["motion"]) for each in measured if "consistency" in each.values]
    if len({a for a, _ in both}) < 3 or len({b for _, b in both}) < 3:
        return None
    ranks = [np.unique(column, return_inverse=True)[1] for column in np.transpose(both)]
    return float(np.corrcoef(ranks)[0, 1])


def table(path: Path, cards: list[Card]) -> None:
    """One line per video: name, verdict, reason, signals."""
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerow(["video", "verdict", "reason", *TITLES])
    for each in cards:
        values = {key: f"{value:.6g}" for key, value, _ in each.figures}
        verdict = "keep" if each.kind == "kept" else "drop"
        writer.writerow([each.name, verdict, each.reason, *(values.get(key, "") for key in TITLES)])
    _replace(path, lines.getvalue())


def _replace(path: Path, text: str) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)
