"""A run, written down: YAML -> checked, typed options. Every fault is found at once and says file:line:column.

A recipe may extend others (`extends: base.yaml`) and be changed from the command line (`optim.student.lr=1e-6`).
Relative paths start from the file that wrote them, `output` from the working directory.
"""

import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import pydantic
from pydantic import Discriminator, Field, Tag

from . import faults, places, registry, yaml_source
from .data.spec import Data
from .errors import UserError
from .options import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from .sections import File, Folder, Relative, Section, Text

Prompts = Annotated[
    Annotated[list[Text], Field(min_length=1), Tag("list")] | Annotated[File, Tag("file")],
    Discriminator(lambda value: "list" if isinstance(value, list) else "file"),
]
Beta = Annotated[float, Field(ge=0, lt=1)]
Tracker = Literal["tensorboard", "wandb", "trackio", "swanlab", "mlflow", "aim", "comet_ml", "clearml"]
Schedule = Literal["constant", "constant_with_warmup", "linear", "cosine", "polynomial"]


class RecipeError(UserError):
    """Every fault of a recipe, one per line."""

    def __init__(self, found: Sequence[yaml_source.Fault]):
        super().__init__("\n".join(map(str, sorted(found))))


class TeacherSpec(Section):
    family: Text
    path: Annotated[Text, Relative.TEACHER]
    """`embedded`, a folder in diffusers layout, or a hub id."""
    revision: Text | None = None
    """Of the hub repository."""
    max_sequence_length: PositiveInt | None = None
    """Text tokens; null: what the tokenizer allows, at most the pipeline's default."""


class Video(Section):
    frames: PositiveInt
    height: PositiveInt
    """Pixels."""
    width: PositiveInt
    """Pixels."""
    fps: PositiveInt


class MethodSpec(Section):
    """`name` is that of an installed method or package.module:Class; the other keys are its options."""

    name: Text
    options: dict[str, Any] = {}

    @pydantic.model_validator(mode="before")
    @classmethod
    def _gather(cls, data: Any) -> Any:
        if not isinstance(data, dict) or isinstance(data.get("options"), dict):
            return data
        named = {"name": data["name"]} if "name" in data else {}
        return named | {"options": {key: value for key, value in data.items() if key != "name"}}

    @pydantic.model_serializer
    def _flat(self) -> dict[str, Any]:
        return {"name": self.name} | self.options


class Optimizer(Section):
    """AdamW for one trained network, fresh in every stage."""

    lr: Annotated[float, Field(gt=0, lt=1)]
    weight_decay: NonNegativeFloat = 0.01
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    eps: PositiveFloat = 1e-8
    clip: PositiveFloat = 1.0
    """Largest gradient norm."""
    schedule: Schedule = "constant"
    warmup: NonNegativeInt = 0
    """Updates."""


class Train(Section):
    seed: NonNegativeInt = 0
    batch_size: PositiveInt
    """Samples per update, over all processes."""
    micro_batch_size: PositiveInt = 1
    """Samples of one forward pass."""
    steps: PositiveInt | None = None
    """For methods without stages of their own."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of the networks' evaluations; trained weights are kept in float32."""
    activation_checkpointing: Literal["none", "full", "selective"] = "none"
    """Compute activations twice instead of keeping them: all of a block's, or all but what attention returns."""
    attention: Text | None = None
    """The kernel of attention, by its name in diffusers ("flash", "_flash_3", "sage"); null: torch's own choice."""
    compile: bool = False
    """Compile each kind of block once (torch.compile)."""
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Decay of the student's moving average, which validation and export use when it is set."""


class Checkpoint(Section):
    every: PositiveInt = 100
    """Updates."""
    keep: PositiveInt = 2


class Clips(Section):
    prompts: Prompts
    seed: NonNegativeInt
    teacher_steps: Annotated[list[PositiveInt], Field(min_length=1)] = [6, 48]
    """The teacher's clips beside the student's, from the same noise."""
    guidance: PositiveFloat = 5.0
    """The teacher's."""


class Validation(Clips):
    """Clips during training."""

    every: PositiveInt = 100
    """Updates."""
    seed: NonNegativeInt = 1000


class Evaluation(Clips):
    """The student against its teacher, at the end of the run."""

    samples: PositiveInt = 128
    seed: NonNegativeInt = 2000
    batch_size: PositiveInt = 16
    world: bool = False
    """Measure the attributes that captions of the embedded teacher's world name."""
    metrics: Annotated[list[Text], Field(min_length=1)] | None = None
    """Names that `distill metrics` lists, or package.module:function; null: all that need no weights."""


class HalfRate(Section):
    """The student's first steps at half the frame rate (docs/interpolation.md): evaluated beside the student as it is,
    and exported with it."""

    interpolator: Folder
    """A run that trains one, or a folder that `distill export` has made of such a run."""
    steps: PositiveInt = 2
    """So many of the student's."""


class HeldOut(Section):
    """Videos that are kept from training, for methods that measure themselves on them."""

    clips: PositiveInt = 32
    """The last of data.videos."""
    every: PositiveInt = 100
    """Updates."""


Guard = Literal["motion", "saturation", "variety", "critic", "gradients"]
Limits = Annotated[tuple[NonNegativeFloat, PositiveFloat], pydantic.AfterValidator(lambda limits: _ascending(limits))]


class Health(Section):
    """Guards of a run (docs/health.md): beyond these limits the log says so. Clips are the validation's, and their
    limits are ratios to the teacher's."""

    motion: Limits = (0.5, 2.0)
    """Change from frame to frame: below, the clips stand still."""
    saturation: Limits = (0.67, 1.5)
    variety: Limits = (0.5, 1.5)
    """Difference between clips of different prompts: below, they are all alike."""
    critic: Limits = (0.02, 0.9)
    """How much surer a critic (a discriminator, a fake score) is that the student made the student's clips than that it
    made the teacher's. Below, it cannot tell, which counts where clips are out of their limits; above, it has won."""
    gradients: Limits = (0.05, 10.0)
    """A network's gradient norm over what was usual for it in the stage, medians of `window` updates."""
    window: Annotated[int, Field(ge=2)] = 20
    """Updates of a network."""
    stop: list[Guard] = []
    """Guards that stop the run, at a saved state; the others only say so."""


class Log(Section):
    every: PositiveInt = 1
    """Updates."""
    trackers: list[Tracker] = []
    """Beside log.jsonl, through accelerate."""


class Recipe(Section):
    teacher: TeacherSpec
    video: Video
    data: Data
    method: MethodSpec
    optim: Annotated[dict[str, Optimizer], Field(min_length=1)]
    """One optimizer per trained network."""
    train: Train
    engine: places.Engine = "ddp"
    """How networks are spread over the processes: a word for all, or by network."""
    lora: places.Lora | None = None
    hardware: places.Hardware | None = None
    checkpoint: Checkpoint = Checkpoint()
    validation: Validation | None = None
    evaluation: Evaluation | None = None
    half_rate: HalfRate | None = None
    held_out: HeldOut | None = None
    health: Health = Health()
    log: Log = Log()
    output: Annotated[Path, Relative.TO_HERE]
    """The run's folder."""


Model = TypeVar("Model", bound=pydantic.BaseModel)


def _ascending(limits: tuple[float, float]) -> tuple[float, float]:
    if limits[0] >= limits[1]:
        raise ValueError(f"the lower limit {limits[0]:g} is not below the upper one {limits[1]:g}")
    return limits


def load(path: str | Path, overrides: Sequence[str] = (), model: type[Model] = Recipe) -> Model:
    """Read and check a recipe; RecipeError with all of its faults."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} is a folder, not a recipe" if path.is_dir() else yaml_source.missing(path))
    source = yaml_source.read(path, overrides)
    recipe, options = (None, {}) if source.torn else faults.check(source, model)
    if source.faults:
        raise RecipeError(source.faults)
    if options:
        recipe = recipe.model_copy(update={"method": MethodSpec(name=recipe.method.name, options=options)})
    return recipe


def save(recipe: pydantic.BaseModel, path: Path) -> None:
    """Write the resolved recipe: every option, absolute paths; `load` reads it back."""
    path.write_text(yaml_source.dump(recipe.model_dump(mode="json")), "utf-8")


def flatten(recipe: pydantic.BaseModel) -> dict[str, Any]:
    """Dotted key -> value, for comparing two recipes."""
    return dict(_leaves("", recipe.model_dump(mode="json")))


def schema() -> dict[str, Any]:
    """JSON schema for editors, with the options of every installed method."""
    made = Recipe.model_json_schema()
    made["required"] = []  # a recipe that extends another need not repeat its sections
    made["properties"]["extends"] = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}
    made["$defs"]["MethodSpec"] = {"anyOf": list(_method_schemas())}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **made}


def _method_schemas() -> Iterator[dict[str, Any]]:
    """Of every installed method; a broken one is left out, with a warning."""
    for name in registry.methods():
        try:
            yield _method_schema(name)
        except UserError as error:
            warnings.warn(str(error), stacklevel=2)


def _method_schema(name: str) -> dict[str, Any]:
    made = registry.options(name).model_json_schema()
    made["properties"] = {"name": {"const": name}} | made.get("properties", {})
    return made


def _leaves(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _leaves(f"{prefix}.{key}" if prefix else key, inner)
    else:
        yield prefix, value


def check_output(folder: Path, key: str = "output") -> None:
    """UserError unless the folder that a key names exists or can be made, and written to."""
    nearest = next(p for p in (folder, *folder.parents) if p.exists())
    if not nearest.is_dir():
        raise UserError(f"{key}: {folder} cannot be made, {nearest} is a file")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise UserError(f"{key}: {folder} cannot be written, no permission in {nearest}; set {key}=FOLDER")
