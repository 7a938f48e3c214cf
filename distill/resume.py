"""Whether a run can go on from a checkpoint: the same method, the same data, and processes that can share its state."""

from pathlib import Path

from .errors import UserError


def check(path: Path, manifest: dict, recipe, digests: dict[str, str], world: int, stateless: bool) -> None:
    """UserError if not.

    Args:
        digests: of what the run learns from, by kind.
        stateless: whether the method keeps nothing between steps, so that any number of processes can go on.
    """
    name = recipe.method.name
    if manifest["method"] != name:
        raise UserError(f"{path} is of method {manifest['method']!r}, the recipe's is {name!r}; set output=NEW_FOLDER")
    _check_data(path, manifest, recipe.data, digests)
    free = manifest["position"]["update"] == 0 and stateless
    if manifest["world_size"] != world and not free:
        raise UserError(
            f"{path} holds what each of {manifest['world_size']} processes was doing; go on with as many, not {world}"
        )


def _check_data(path: Path, manifest: dict, data, digests: dict[str, str]) -> None:
    """UserError if a kind of data is not what the checkpoint was trained on."""
    old = dict.fromkeys(("prompts", "trajectories"), manifest.get("prompts"))  # of checkpoints before videos
    before = manifest.get("data", old)
    for what, digest in digests.items():
        if before.get(what) != digest:
            where = data.prompts if what == "prompts" else getattr(data, what).path
            raise UserError(
                f"{where}: not the {what} that {path} was trained on; restore them, or set output=NEW_FOLDER"
            )
