"""The options of a training of the embedded teacher. Imports no torch."""

from typing import Annotated

from pydantic import Field

from ..options import Fraction, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from ..recipe import Section


class Phase(Section):
    """A leg of the autoencoder's training; the rates fall linearly to 0."""

    steps: PositiveInt
    lr: PositiveFloat
    """Muon's."""
    kl: NonNegativeFloat
    """Weight of the divergence from the standard normal distribution."""


class Vae(Section):
    base_dim: PositiveInt
    res_blocks: PositiveInt
    z_dim: PositiveInt
    batch_size: PositiveInt
    """Clips per step and process."""
    phases: Annotated[list[Phase], Field(min_length=1)]


class Transformer(Section):
    layers: PositiveInt
    dim: PositiveInt
    heads: PositiveInt
    ffn_dim: PositiveInt
    clips: Annotated[int, Field(ge=32, multiple_of=32)]
    """Per process, encoded once."""
    batch_size: PositiveInt
    """Clips per step and process, or five times as many first frames."""
    steps: PositiveInt
    decay: Annotated[float, Field(gt=0, le=1)]
    """The share of the steps, at the end, in which the rates fall linearly to 0."""
    image_steps: NonNegativeInt
    """Of the first so many steps three quarters see first frames only, of the others a fifth."""
    shift: PositiveFloat
    """Of the noise levels trained at."""
    dropout: Fraction
    """Of captions, for guidance."""
    compile: bool
    """Compile the transformer; a sixth faster, and needs a C++ compiler."""
    average: Fraction
    """Decay of the moving average of the weights, which is what is written."""


class Evaluation(Section):
    """Clips of held-out prompts, measured during the training."""

    every: PositiveInt
    """Steps of the training."""
    prompts: PositiveInt
    steps: PositiveInt
    """Of the sampler."""
    guidance: PositiveFloat
    seed: NonNegativeInt


class TeacherRecipe(Section):
    seed: NonNegativeInt
    processes: PositiveInt
    """Of one thread each; the numbers depend on it."""
    vae: Vae
    transformer: Transformer
    evaluation: Evaluation
