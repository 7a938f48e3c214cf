"""What is fixed in the two suites: dimensions, ranges, weights, folders, videos per prompt.

From Vchitect/VBench at 45e79ec (Apache-2.0): scripts/constant.py, evaluate.sh, dimension_to_folder.json,
VBench-2.0/scripts/cal_final_score.py and the packages vbench 0.1.5, vbench2 0.1.1.
"""

from collections.abc import Callable
from dataclasses import dataclass

from ...errors import UserError
from ...yaml_source import did_you_mean


@dataclass(frozen=True)
class Range:
    """Of a dimension's mean; what is at `low` counts 0, what is at `high` 1."""

    low: float = 0.0
    high: float = 1.0
    weight: float = 1.0


QUALITY = {
    "subject_consistency": Range(0.1462),
    "background_consistency": Range(0.2615),
    "temporal_flickering": Range(0.6293),
    "motion_smoothness": Range(0.706, 0.9975),
    "aesthetic_quality": Range(),
    "imaging_quality": Range(),
    "dynamic_degree": Range(weight=0.5),
}
SEMANTIC = {
    "object_class": Range(),
    "multiple_objects": Range(),
    "human_action": Range(),
    "color": Range(),
    "spatial_relationship": Range(),
    "scene": Range(high=0.8222),
    "appearance_style": Range(0.0009, 0.2855),
    "temporal_style": Range(high=0.364),
    "overall_consistency": Range(high=0.364),
}
QUALITY_WEIGHT, SEMANTIC_WEIGHT = 4, 1

CATEGORIES = {
    "creativity": ("Composition", "Diversity"),
    "commonsense": ("Instance_Preservation", "Motion_Rationality"),
    "controllability": (
        "Camera_Motion",
        "Complex_Landscape",
        "Complex_Plot",
        "Dynamic_Attribute",
        "Dynamic_Spatial_Relationship",
        "Human_Interaction",
        "Motion_Order_Understanding",
    ),
    "human_fidelity": ("Human_Anatomy", "Human_Clothes", "Human_Identity"),
    "physics": ("Material", "Mechanics", "Multi-View_Consistency", "Thermotics"),
}

SHARED_FOLDERS = {  # dimensions that are measured on another one's videos
    "background_consistency": "scene",
    "aesthetic_quality": "overall_consistency",
    "imaging_quality": "overall_consistency",
    "motion_smoothness": "subject_consistency",
    "dynamic_degree": "subject_consistency",
}
FLICKERING = "temporal_flickering"
FILTERED_FROM, MEASURED = 25, 5  # videos per prompt, of which the static filter lets as many pass


@dataclass(frozen=True)
class Suite:
    """A benchmark.

    Attributes:
        package, main: the official package, and its class.
        stem: characters of a prompt that its files are named by; None is all of them.
        samples: videos per prompt of a dimension.
        scale: dimension -> what its values of single videos are divided by to be like its mean.
    """

    name: str
    title: str
    package: str
    main: str
    dimensions: tuple[str, ...]
    stem: int | None
    samples: Callable[[str], int]
    scale: dict[str, float]

    def folder(self, dimension: str) -> str:
        """Where the videos lie that a dimension is measured on."""
        return SHARED_FOLDERS.get(dimension, dimension)

    def check(self, dimension: str, where: str = "") -> None:
        """UserError unless it is one of the suite's."""
        if dimension not in self.dimensions:
            hint = did_you_mean(dimension, self.dimensions) or f"; it has {', '.join(self.dimensions)}"
            raise UserError(f"{where}{self.title} has no dimension {dimension!r}{hint}")


VBENCH = Suite(
    name="vbench",
    title="VBench",
    package="vbench",
    main="VBench",
    dimensions=(*QUALITY, *SEMANTIC),
    stem=None,
    samples=lambda dimension: FILTERED_FROM if dimension == FLICKERING else MEASURED,
    scale={"imaging_quality": 100.0},
)
VBENCH2 = Suite(
    name="vbench2",
    title="VBench-2.0",
    package="vbench2",
    main="VBench2",
    dimensions=tuple(dimension for some in CATEGORIES.values() for dimension in some),
    stem=180,
    samples=lambda dimension: 20 if dimension == "Diversity" else 3,
    scale={},
)
SUITES = {suite.name: suite for suite in (VBENCH, VBENCH2)}


def of_dimensions(dimensions: set[str], where: str) -> Suite:
    """The suite that these are dimensions of; UserError names the first that is of none."""
    suite = max(SUITES.values(), key=lambda suite: len(dimensions & set(suite.dimensions)))
    for dimension in sorted(dimensions):
        suite.check(dimension, where)
    return suite
