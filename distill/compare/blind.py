"""A human preference test: pairs of clips without names, in a folder of its own that voters can be given.

`blind/` holds the page and the clips under names that say nothing; the key that resolves them lies beside the folder.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from random import Random

import jinja2

from ..errors import UserError
from . import stills

CONTENT = "compare.json"
FOLDER, PAGE, KEY = "blind", "vote.html", "blind_key.json"


def templates() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.PackageLoader("distill", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def write(folder: Path, content: dict, seed: int = 0) -> Path:
    """Lay out the test; returns its page.

    Raises:
        UserError: fewer than two samplers have clips of one prompt.
    """
    clips = dict(playable(folder, content))
    digest = fingerprint(folder, content)
    pairs = drawn(clips, Random(f"{seed} {digest}"))
    if not pairs:
        raise UserError(f"{folder / CONTENT}: no prompt has clips of two samplers, so there is nothing to vote on")
    target = folder / FOLDER
    shutil.rmtree(target, ignore_errors=True)
    (target / "clips").mkdir(parents=True)
    for pair in pairs:
        for side in ("left", "right"):
            shutil.copyfile(folder / clips[pair[side], pair["row"]], target / "clips" / f"{pair['id']}_{side}.mp4")
    shown = content["shown"]
    html = (
        templates()
        .get_template("vote.html.j2")
        .render(
            fps=shown["fps"],
            frames=content["setting"]["video"]["frames"],
            width=content["setting"]["video"]["width"],
            comparison=digest,
            pairs=[{"id": pair["id"], "prompt": shown["prompts"][pair["row"]]} for pair in pairs],
        )
    )
    (target / PAGE).write_text(html, encoding="utf-8")
    key = {"comparison": digest, "seed": seed, "pairs": {pair.pop("id"): pair for pair in pairs}}
    partial = folder / (KEY + ".partial")
    partial.write_text(json.dumps(key, indent=1), encoding="utf-8")
    os.replace(partial, folder / KEY)
    return target / PAGE


def entries(content: dict) -> Iterator[tuple[str, int, str]]:
    """(sampler, row, clip) of every sampler at its own number of steps."""
    for column in content["columns"]:
        if column["points"]:
            point = next((point for point in column["points"] if point.get("own")), column["points"][0])
            for row, clip in enumerate(point.get("clips", [])):
                if clip:
                    yield column["key"], row, clip


def playable(folder: Path, content: dict) -> Iterator[tuple[tuple[str, int], str]]:
    """(sampler, row) -> clip, but for clips that are missing or damaged."""
    for key, row, clip in entries(content):
        try:
            stills.write(folder / clip)
        except OSError:
            continue
        yield (key, row), clip


def fingerprint(folder: Path, content: dict) -> str:
    """Of what is voted on: samplers, prompts and the clips' bytes; votes for other clips say nothing here."""
    digest = hashlib.sha256(json.dumps(content["shown"]["prompts"]).encode())
    for key, row, clip in entries(content):
        path = folder / clip
        digest.update(f"{key} {row} ".encode() + (path.read_bytes() if path.is_file() else b""))
    return digest.hexdigest()[:16]


def drawn(clips: dict[tuple[str, int], str], draw: Random) -> list[dict]:
    """Every two samplers for every prompt, sides and order at random."""
    rows = sorted({row for _, row in clips})
    found = []
    for row in rows:
        samplers = [key for key, other in clips if other == row]
        for pair in combinations(samplers, 2):
            left, right = draw.sample(pair, 2)
            found.append({"id": f"{draw.getrandbits(48):012x}", "row": row, "left": left, "right": right})
    draw.shuffle(found)
    return found
