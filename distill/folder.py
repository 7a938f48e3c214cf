"""The run's folder: made once, held by one run at a time, and faithful to one recipe."""

from pathlib import Path

from . import disk
from . import recipe as recipes
from .engine import Engine
from .environment import environment
from .errors import UserError
from .recipe import Recipe

# What does not touch the training; of the prompts the content counts, not the path (resume.py).
STORE = tuple(f"data.trajectories.{key}" for key in ("path", "batch_size", "shard", "clips"))
STORE += tuple(f"data.videos.{key}" for key in ("path", "source", "shard"))
SHOWN = ("validation", "evaluation", "half_rate", "held_out.every", "health")
MAY_CHANGE = (*SHOWN, "checkpoint", "log", "output", "data.prompts", *STORE)


class RunFolder:
    """Context manager: the folder exists, holds the recipe, and no other run writes into it.

    Raises:
        UserError: not writable, in use, not a run, or started from another recipe.
    """

    def __init__(self, recipe: Recipe, engine: Engine):
        self.path, self.recipe, self.engine = Path(recipe.output), recipe, engine
        self._lock = None

    def __enter__(self) -> "RunFolder":
        try:
            self.engine.main_first(self._open)
        except UserError:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_) -> None:
        if self._lock is not None:
            self._lock.close()

    def _open(self) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = disk.hold(self.path, f"{self.path} is in use by {{holder}}; wait for it, or set output=FOLDER")
        except OSError as error:
            raise UserError(f"output {self.path}: not writable ({error.strerror}); set output=FOLDER") from error
        check(self.path, self.recipe)
        recipes.save(self.recipe, self.path / "recipe.yaml")
        environment(self.path / "environment.json")


def check(folder: Path, recipe: Recipe) -> None:
    """UserError unless a folder that exists is free for a recipe's run, or holds that run."""
    if not (folder / "recipe.yaml").exists():
        _refuse_others(folder)
    elif any((folder / "checkpoints").glob("update_*")):  # until then nothing depends on the recipe
        _compare(folder, recipe)


def _refuse_others(folder: Path) -> None:
    others = [p.name for p in folder.iterdir() if p.name != "lock"]
    if others:
        raise UserError(f"{folder} holds {others[0]!r} but no recipe.yaml: not a run; set output=NEW_FOLDER")


def _compare(folder: Path, recipe: Recipe) -> None:
    before = recipes.flatten(recipes.load(folder / "recipe.yaml"))
    now = recipes.flatten(recipe)
    keys = [k for k in sorted(before | now) if before.get(k) != now.get(k) and not k.startswith(MAY_CHANGE)]
    if keys:
        said = "; ".join(f"{k} was {before.get(k)!r}, is {now.get(k)!r}" for k in keys)
        raise UserError(
            f"{folder} was started from another recipe: {said}. "
            f"Go on with `distill run {folder}`, or start anew with output=NEW_FOLDER"
        )
