"""Put a run's clips side by side: the teacher at most and at fewest steps, the student at its last validation.

    python benchmarks/contact_sheet.py runs/demo docs/images/demo.png

Rows are prompts, columns frames; all three start from the same noise.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from distill import video

FRAMES = 5
SIDE = 64  # pixels
GAP, HEADER = 12, 18  # pixels


def main(run: Path, out: Path) -> None:
    teachers = sorted((run / "samples").glob("teacher_*"), key=lambda p: -int(p.name.split("_")[1]))
    student = max((run / "samples").glob("update_*"))
    columns = {f"teacher, {p.name.split('_')[1]} guided steps": p for p in (teachers[0], teachers[-1])}
    panels = [panel(name, folder) for name, folder in {**columns, "student": student}.items()]
    width = sum(p.shape[1] for p in panels) + GAP * (len(panels) - 1)
    page = np.full((panels[0].shape[0], width, 3), 255, np.uint8)
    left = 0
    for part in panels:
        page[:, left : left + part.shape[1]] = part
        left += part.shape[1] + GAP
    Image.fromarray(page).save(out, optimize=True)


def panel(name: str, folder: Path) -> np.ndarray:
    rows = [row(path) for path in sorted(folder.glob("*.mp4"))]
    header = Image.new("RGB", (rows[0].shape[1], HEADER), "white")
    ImageDraw.Draw(header).text((0, 3), name, fill="black")
    return np.concatenate([np.asarray(header), *rows])


def row(path: Path) -> np.ndarray:
    clip = video.read(path)
    shown = clip[np.linspace(0, len(clip) - 1, FRAMES).round().astype(int)]
    return np.concatenate([np.asarray(Image.fromarray(frame).resize((SIDE, SIDE))) for frame in shown], axis=1)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
