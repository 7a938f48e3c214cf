"""What the sections of a recipe are made of."""

import enum
import re
from pathlib import Path
from typing import Annotated

import pydantic
from pydantic import Field


class Relative(enum.Enum):
    """Annotates a field that holds a path, with what a relative one starts from."""

    TO_RECIPE = "the file that wrote it; it must exist"
    TO_HERE = "the working directory"
    VIDEOS = "the file that wrote it, unless it is the embedded world; a store may have come without them"
    TEACHER = "the file that wrote it, unless it is `embedded` or a hub id"


class Section(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(
        extra="forbid", strict=True, frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


Text = Annotated[str, Field(min_length=1)]
File = Annotated[Path, Relative.TO_RECIPE]
Folder = Annotated[Path, Relative.TO_HERE]

EMBEDDED = "embedded"
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")


def is_embedded(source: str) -> bool:
    """Whether videos come from the embedded world, or one of its domains."""
    return source.partition(":")[0] == EMBEDDED


def is_hub_id(name: str) -> bool:
    return HUB_ID.fullmatch(name) is not None
