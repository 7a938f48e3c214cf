"""An exported student by itself: what its distill.json says in the place of a run's folder.

It has its recipe and, of what training took, seconds and evaluations. It has no log, and nothing to go on from.
"""

import json
from pathlib import Path

import pydantic

from .errors import UserError
from .recipe import Recipe

SETTINGS, INDEX = "distill.json", "model_index.json"


def is_student(folder: Path) -> bool:
    """Whether `distill export` made this pipeline of a student; a teacher's may have a distill.json, too."""
    return (
        (folder / SETTINGS).is_file() and (folder / INDEX).is_file() and {"recipe", "sigmas"} <= settings(folder).keys()
    )


def settings(folder: Path) -> dict:
    try:
        return dict(json.loads((folder / SETTINGS).read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise UserError(f"{folder / SETTINGS}: torn, or no settings ({error}); export its run anew") from error


def recipe(folder: Path) -> Recipe:
    """That of its run; the folder stands for the run's. Prompts that are not on this machine are left out."""
    said = settings(folder)["recipe"]
    try:
        found = Recipe.model_validate_json(json.dumps(said))
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, ("recipe", *first["loc"])))
        raise UserError(f"{folder / SETTINGS}: {where}: {first['msg']}; export its run anew") from error
    changes = {"output": folder}
    if lost_prompts(folder):
        changes["data"] = found.data.model_copy(update={"prompts": None})
    return found.model_copy(update=changes)


def lost_prompts(folder: Path) -> str:
    """The name of the file of training prompts where it is not on this machine, or nothing."""
    prompts = settings(folder)["recipe"]["data"].get("prompts")
    return Path(prompts).name if prompts and not Path(prompts).is_file() else ""
