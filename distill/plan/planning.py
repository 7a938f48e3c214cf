"""A plan: a recipe held against hardware."""

import dataclasses
from dataclasses import dataclass

from .. import registry
from ..places import Hardware
from ..recipe import Recipe
from . import costs, duration, memory, teacher
from .costs import Costs
from .duration import DEVICES, UTILIZATION, Duration
from .kept import Setting
from .memory import GIB, Memory

MARGIN = 0.1  # how far a plan may be off: nothing here was held against a GPU


@dataclass(frozen=True)
class Assumptions:
    """What a plan takes for given.

    Attributes:
        gpu: a name in duration.DEVICES.
        utilization: of its peak.
        overhead_gib: of memory on a GPU that no formula has.
    """

    gpu: str = "h100"
    utilization: float = UTILIZATION
    overhead_gib: float = memory.OVERHEAD_GIB


@dataclass(frozen=True)
class Plan:
    setting: Setting
    hardware: Hardware
    assumptions: Assumptions
    memory: Memory
    duration: Duration | None

    @property
    def recipe(self) -> Recipe:
        return self.setting.recipe

    @property
    def machines(self) -> int:
        return -(-self.hardware.gpus // self.hardware.gpus_per_machine)

    @property
    def host_per_machine(self) -> float:
        return self.memory.host / self.machines

    @property
    def checkpoints(self) -> float:
        """On disk at most: those that are kept, and the one that is being written."""
        return self.memory.checkpoint * (self.recipe.checkpoint.keep + 1)

    @property
    def fits_gpu(self) -> bool:
        return self.memory.per_gpu <= self.hardware.memory_gib * GIB

    @property
    def fits_host(self) -> bool:
        given = self.hardware.host_memory_gib
        return given is None or self.host_per_machine <= given * GIB

    @property
    def shares(self) -> bool:
        """Whether a global batch is a whole number of micro-batches on every process."""
        train = self.recipe.train
        return train.batch_size % (self.hardware.gpus * train.micro_batch_size) == 0

    @property
    def fits(self) -> bool:
        return self.fits_gpu and self.fits_host and self.shares

    @property
    def decided(self) -> bool:
        """Whether a plan that is MARGIN off would say the same."""
        have = self.hardware.memory_gib * GIB
        return abs(self.memory.per_gpu - have) > MARGIN * have


def make(recipe: Recipe, hardware: Hardware | None = None, assumptions: Assumptions = Assumptions()) -> Plan:
    """The plan of a recipe on its own hardware, or on other.

    Raises:
        UserError: the sizes of the teacher's network are not known without opening it.
    """
    sizes = teacher.sizes(recipe.teacher, recipe.video)
    counted = costs.find(recipe.method.name, recipe.method.options, sizes.guided)
    setting = Setting(recipe, sizes, counted, 0, registry.describe(recipe.method.name))
    return on(setting, hardware or own(recipe, assumptions), assumptions)


def on(setting: Setting, hardware: Hardware, assumptions: Assumptions) -> Plan:
    setting = dataclasses.replace(setting, world=hardware.gpus)
    recipe, sizes, counted = setting.recipe, setting.sizes, setting.costs
    needed = memory.of(setting, assumptions.overhead_gib)
    device = DEVICES[assumptions.gpu]
    time = duration.of(recipe, sizes, counted, hardware.gpus, device, assumptions.utilization) if counted else None
    return Plan(setting, hardware, assumptions, needed, time)


def counted(setting: Setting, found: Costs) -> Setting:
    """The same with other counts of what the method evaluates."""
    return dataclasses.replace(setting, costs=found)


def own(recipe: Recipe, assumptions: Assumptions) -> Hardware:
    """The hardware that a recipe names, or one GPU."""
    return recipe.hardware or Hardware(gpus=1, memory_gib=DEVICES[assumptions.gpu].memory_gib)
