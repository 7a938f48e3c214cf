"""The embedded teacher: a small WanPipeline trained on a procedural world of moving shapes."""

from pathlib import Path

PATH = Path(__file__).parent / "wan_shapes"
