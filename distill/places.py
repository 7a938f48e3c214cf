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


def settled(engine: Engine, network: str, kind: str, source: Place | None = None) -> Place:
    """Where a network ends up: a word for all means for each what of it can be spread, and spares what is small.

    Args:
        kind: the name of its class in distill/method.py.
        source: of an average: where the network is that it follows.
    """
    asked = place(engine, network)
    if isinstance(engine, dict) and network in engine:
        return asked
    if kind == "Average":
        return Place(sharding="ddp" if source is None or source.sharding == "ddp" else "zero3")
    spread = kind == "Trained" or kind in ("Frozen", "Copy") and asked.sharding == "zero3"
    return asked if spread else Place()


def refusal(kind: str, asked: Place) -> str | None:
    """Why a network cannot be kept where a recipe puts it by name, and what can be, or None."""
    trained, sharding = kind in ("Trained", "Built"), asked.sharding
    if not trained and sharding in ("zero1", "zero2"):
        return (
            f"{sharding} spreads gradients and moments, which a network that is not trained has none of; ddp or zero3"
        )
    if asked.offload and sharding == "ddp":
        return "offload needs zero1, zero2 or zero3"
    if "optimizer" in asked.offload and not trained:
        return "offload: it is not trained, so it has no optimizer; parameters, or leave it out"
    if "parameters" in asked.offload and sharding != "zero3":
        return f"offload: parameters needs zero3, sharding is {sharding}; with it whole weights stay on every GPU"
    return None


def clashes(spread: bool, lora: bool, checkpointing: str, compiled: bool) -> dict[str, str]:
    """Options of the section `train` that cannot be beside weights in pieces, each with what else.

    Args:
        spread: some network is under zero3.
    """
    found = {}
    if spread and compiled:
        found["compile"] = "zero3 gathers weights layer by layer, and cuts what is compiled; leave it out, or zero2"
    if spread and lora and checkpointing == "selective":
        found["activation_checkpointing"] = (
            "selective leaves parts of a base gathered that zero3 keeps in pieces for lora; use full"
        )
    return found
