"""Files of prompts. Imports no torch: `distill check` reads them without it."""

from collections.abc import Sequence
from pathlib import Path

from .. import image_prompt
from ..errors import UserError


def read(path: str | Path) -> list[str]:
    """The prompts of a UTF-8 text file, one per line; empty lines do not count. Images start from its folder."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 at byte {error.start}; save the prompts as UTF-8 text") from error
    except OSError as error:
        raise UserError(f"{path}: cannot read prompts ({error.strerror})") from error
    folder = Path(path).parent
    prompts = [image_prompt.resolved(line.strip(), folder) for line in text.splitlines() if line.strip()]
    if not prompts:
        raise UserError(f"{path}: no prompts; expected one per line")
    return prompts


def listed(prompts: Sequence[str] | Path) -> list[str]:
    """The prompts that a recipe lists, or names the file of."""
    return read(prompts) if isinstance(prompts, Path) else list(prompts)
