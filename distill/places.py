"""Where the networks of a run are kept, and what hardware it is for: sections of a recipe."""

from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag

from .options import PositiveFloat, PositiveInt
from .sections import Section, Text

Sharding = Literal["ddp", "zero1", "zero2", "zero3"]
Offload = Literal["optimizer", "parameters"]


class Place(Section):
    """How one network is spread over the processes."""

    sharding: Sharding = "ddp"
    """ddp: whole on each. zero1: its moments in pieces; zero2: gradients too; zero3: weights too."""
    offload: list[Offload] = []
    """What waits in the memory of the host."""


Placed = Annotated[
    Annotated[Place, Tag("section")] | Annotated[Sharding, Tag("word")],
    Discriminator(lambda value: "word" if isinstance(value, str) else "section"),
]
Engine = Annotated[
    Annotated[dict[str, Placed], Tag("section")] | Annotated[Sharding, Tag("word")],
    Discriminator(lambda value: "word" if isinstance(value, str) else "section"),
]


class Lora(Section):
    """Low-rank adapters on one frozen copy of the teacher instead of whole networks (docs/lora.md)."""

    rank: PositiveInt
    alpha: PositiveFloat | None = None
    """An adapter's output is scaled by alpha / rank; null: the rank."""
    targets: Annotated[list[Text], Field(min_length=1)] | None = None
    """Ends of the names of linear layers; null: all of the transformer's blocks."""


class Hardware(Section):
    """What the run is for: `distill plan` and `run` hold the recipe against it."""

    gpus: PositiveInt = 1
    memory_gib: PositiveFloat
    """Of one GPU."""
    host_memory_gib: PositiveFloat | None = None
    """Of one machine; null: not known, so offloading is not held against anything."""
    gpus_per_machine: PositiveInt = 8


def place(engine: Engine, network: str) -> Place:
    """Where a recipe's section `engine` puts a network; one that it does not name is whole on every process."""
    placed = engine.get(network, "ddp") if isinstance(engine, dict) else engine
    return Place(sharding=placed) if isinstance(placed, str) else placed
