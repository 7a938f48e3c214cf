"""VBench and VBench-2.0 as they are: videos for them, their own package where there is one, its results, the totals.

Nothing here estimates a dimension: what was not measured is missing, and a total without it is partial. docs/vbench.md.
"""

from .totals import scores, scores2

__all__ = ["scores", "scores2"]
