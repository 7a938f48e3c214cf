"""`distill methods new`: a package with a small method that trains as it stands."""

import importlib.util
import keyword
import re
from pathlib import Path

import jinja2

from . import INTERFACE, registry
from .errors import UserError

FILES = {  # template -> file
    "setup.cfg.j2": "setup.cfg",
    "pyproject.toml.j2": "pyproject.toml",
    "README.md.j2": "README.md",
    "method.py.j2": "{module}.py",
    "test_method.py.j2": "tests/test_{name}.py",
    "tiny.yaml.j2": "recipes/tiny.yaml",
}
TRAIN, HELD_OUT = 256, 64  # prompts


def write(name: str, folder: Path) -> list[str]:
    """Write the package of a method; returns lines that say what comes next.

    Raises:
        UserError: the name is taken, or no name of a module; the folder holds something.
    """
    module = f"distill_{name}"
    _check(name, module, folder)
    loader = jinja2.PackageLoader("distill", "templates/new_method")
    templates = jinja2.Environment(loader=loader, undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    facts = {"name": name, "module": module, "cls": class_name(name), "folder": folder, "interface": INTERFACE}
    texts = {path.format(**facts): templates.get_template(source).render(facts) for source, path in FILES.items()}
    for path, text in (texts | _prompts()).items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text, "utf-8")
    return [
        f"{folder / module}.py is a method that trains as it stands; change it into yours. Then:",
        f"  pip install --no-deps --no-build-isolation -e {folder}",
        f"  distill methods check {name}",
        f"  distill run {folder}/recipes/tiny.yaml",
        f"  pytest {folder}",
    ]


def class_name(name: str) -> str:
    """As TrajectoryMatching of trajectory_matching."""
    return "".join(word.capitalize() for word in name.split("_"))


def _check(name: str, module: str, folder: Path) -> None:
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name) or keyword.iskeyword(name):
        raise UserError(f"{name!r} is no name for a method: small letters, digits and _ are, as in reverse_flow")
    if name in registry.methods():
        raise UserError(f"{registry.method(name)} is installed already; choose another name")
    if importlib.util.find_spec(module):
        raise UserError(f"there is a module {module} already; choose another name")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists and is not empty; name another folder with --out")


def _prompts() -> dict[str, str]:
    """Captions of the embedded teacher's world: of its training, and of what was kept from it."""
    from .embedded import world

    texts = {
        "train.txt": world.prompts("train", seed=1, n=TRAIN),
        "heldout.txt": world.prompts("heldout", n=HELD_OUT),
    }
    return {f"recipes/{name}": "\n".join(lines) + "\n" for name, lines in texts.items()}
