"""A comparison as `distill compare` leaves it, made up: its numbers and its clips."""

import hashlib
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np

from distill import video
from distill.compare import stills
from distill.embedded import world

PROMPTS = 4
BITS = 6  # of a frame number that a clip of `counting` spells
SIZE = 64  # pixels of its side
METRICS = [
    ("rmse", "pair", "lower", "", "root mean square of the latent difference"),
    ("psnr", "pair", "higher", "dB", "peak signal-to-noise ratio of the decoded clips"),
    ("saturation", "clip", "reference", "", "mean saturation of the pixels"),
    ("motion", "clip", "reference", "px/frame", "mean optical flow"),
    ("frechet", "set", "lower", "", "Frechet distance of the teacher's features"),
    ("all", "world", "higher", "", "share of clips that show all of their captions"),
]
STUDENTS = {"gpd": ("GPD", 4), "avd": ("AVD", 4), "dmd2": ("DMD2", 2)}
TEACHER_STEPS = (48, 4)
STUDENT_STEPS = {"gpd": (2, 4, 6, 8), "avd": (4,), "dmd2": (1, 2, 4)}
LAG = {"teacher": -1.5, "gpd": 1.0, "avd": 0.0, "dmd2": 0.4}  # a student's loss is that of so many steps less

Maker = Callable[[str, int, int], np.ndarray]


def scene(column: str, steps: int, row: int) -> np.ndarray:
    """A clip of the embedded world, noisier with fewer steps."""
    rng = np.random.default_rng((row, 7))
    clip = world.render(next(iter(world.scenes("heldout", row, 1))), rng).astype(float)
    noise = np.random.default_rng((row, steps)).normal(0, 90 / steps, clip.shape)
    return (clip + noise).clip(0, 255).astype(np.uint8)


def counting(frames: int, size: int = SIZE) -> Maker:
    """Clips whose brightness squares spell the frame's number: the lowest bit first."""

    def clip(column: str, steps: int, row: int) -> np.ndarray:
        bits = (np.arange(frames)[:, None] >> np.arange(BITS)) & 1
        squares = np.repeat(bits[:, None] * 255, size, 1).repeat(size // BITS + 1, 2)[:, :, :size]
        return np.repeat(squares[..., None], 3, 3).astype(np.uint8)

    return clip


def number(value: float, half: float, **more) -> dict:
    return {"mean": value, "low": value - half, "high": value + half, "seeds": [], "spread": None} | more


def measured(column: str, steps: int, own: bool) -> dict:
    """Better with more steps; AVD a little behind."""
    loss = 0.9 / (steps + LAG[column])
    values = {
        "rmse": (loss, 0.02),
        "psnr": (24 - 12 * loss, 0.4),
        "saturation": (0.41 - loss / 8, 0.01),
        "motion": (0.62 - loss / 4, 0.03),
        "frechet": (40 * loss, 3.1),
        "all": (0.93 - loss / 2, 0.05),
    }
    if column == "teacher" and steps == TEACHER_STEPS[0]:  # its distances to itself
        values |= {"rmse": (0.0, 0.0), "psnr": (99.0, 0.0), "frechet": (0.0, 0.1)}
    found = {name: number(*value) for name, value in values.items()}
    if column != "teacher":
        for name, value in found.items():
            away = {"motion": 0.0, "all": -0.05}.get(name, value["mean"] / 10)
            value["difference"] = {"mean": away, "low": away - 0.005, "high": away + 0.005}
    if own and column == "gpd":
        found["rmse"] |= {"best": True, "seeds": [loss - 0.01, loss, loss + 0.01], "spread": 0.012}
    return found


def point(folder: Path, column: str, steps: int, own: bool, maker: Maker, rows: int, fps: float) -> dict:
    evaluations = steps * (2 if column == "teacher" else 1)
    names = [f"clips/{column}_{steps}_{row:02d}.mp4" for row in range(rows)]
    for row, name in enumerate(names):
        stored(folder / name, maker(column, steps, row), fps)
    return {
        "steps": steps,
        "own": own,
        "guidance": 9.0 if column == "teacher" else 1.0,
        "evaluations": float(evaluations),
        "flop": 9.2e8 * evaluations,
        "seconds": 0.0061 * evaluations,
        "metrics": measured(column, steps, own),
        "clips": names,
    }


def stored(path: Path, clip: np.ndarray, fps: float) -> None:
    """Like `video.write`, with a still; clips that are alike are made once."""
    first = path.with_name(f"{hashlib.sha256(clip.tobytes()).hexdigest()[:12]}.mp4")
    if not first.exists():
        video.write(first, clip, fps)
        stills.write(first)
    for suffix in (".mp4", ".webp"):
        shutil.copyfile(first.with_suffix(suffix), path.with_suffix(suffix))


def student(folder: Path, key: str, maker: Maker, rows: int, fps: float) -> dict:
    label, own = STUDENTS[key]
    updates, pace = list(range(20, 1700, 20)), 500 + 200 * LAG[key]
    seconds = {"gpd": 260.0, "avd": 610.0, "dmd2": 900.0}[key]
    data = {"what": "trajectories", "evaluations": 9600, "seconds": 30.0} if key == "avd" else None
    return {
        "key": key,
        "label": label,
        "kind": "student",
        "method": key,
        "recipe": f"tiny_{key}.yaml",
        "seeds": [0, 1, 2] if key == "gpd" else [0],
        "runs": [f"tiny_{key}"],
        "points": [point(folder, key, n, n == own, maker, rows, fps) for n in STUDENT_STEPS[key]],
        "training": {
            "updates": 1680,
            "evaluations": {"student": 26_880, "teacher": 53_760},
            "flop": 7.4e13,
            "seconds": seconds,
            "device": "cpu",
            "data": data,
            "days": (seconds + (data["seconds"] if data else 0)) / 86400,
        },
        "curves": {
            "student/velocity": [[u, 0.4 * math.exp(-u / pace) + 0.1] for u in updates],
            "distance to the teacher": [[u, 0.3 * math.exp(-u / pace) + 0.2] for u in updates[::20]],
        },
    }


def teacher(folder: Path, maker: Maker, rows: int, fps: float) -> dict:
    points = [point(folder, "teacher", n, n == TEACHER_STEPS[0], maker, rows, fps) for n in TEACHER_STEPS]
    blank = {"method": None, "recipe": None, "seeds": [], "runs": [], "training": None}
    return {"key": "teacher", "label": "teacher", "kind": "teacher", "points": points, **blank}


def write(folder: Path, maker: Maker = scene, rows: int = PROMPTS, fps: float = world.FPS, **changes) -> Path:
    """A folder with compare.json and clips/; changes replace keys of the former."""
    (folder / "clips").mkdir(parents=True, exist_ok=True)
    frames, height, width = maker("gpd", 4, 0).shape[:3]
    prompts = [world.caption(next(iter(world.scenes("heldout", row, 1)))) for row in range(rows)]
    content = {
        "format": 1,
        "title": "GPD, AVD, DMD2",
        "command": "distill compare recipes/tiny_gpd.yaml recipes/tiny_avd.yaml recipes/tiny_dmd2.yaml --steps 2,4,6,8",
        "teacher": {"family": "wan", "path": "embedded", "fingerprint": "9f2c77ab01"},
        "setting": {
            "samples": 128,
            "seed": 2000,
            "guidance": 9.0,
            "shift": 5.0,
            "video": {"frames": frames, "height": height, "width": width, "fps": fps},
            "prompts": 128,
            "reference": "teacher",
            "reference_steps": TEACHER_STEPS[0],
        },
        "metrics": [dict(zip(("name", "kind", "better", "unit", "about"), m, strict=True)) for m in METRICS],
        "columns": [
            teacher(folder, maker, rows, fps),
            *(student(folder, key, maker, rows, fps) for key in STUDENTS),
        ],
        "settings": {
            "optim.student.lr": {"gpd": 1e-4, "avd": 2e-4, "dmd2": 2e-5},
            "method.guidance": {"gpd": [3.0, 9.0], "avd": 9.0, "dmd2": None},
            "method.alpha": {"gpd": 1.0, "avd": None, "dmd2": None},
            "train.steps": {"gpd": None, "avd": 1680, "dmd2": 1680},
        },
        "shown": {"prompts": prompts, "seed": 2000, "fps": fps},
        "votes": None,
        "notes": ["AVD knows 4 steps alone"],
        "failures": [],
        "machine": {"cpu": "laptop, 2 cores", "gpus": []},
        "versions": {"torch": "2.13.0", "diffusers": "0.42.1"},
    } | changes
    (folder / "compare.json").write_text(json.dumps(content, indent=1))
    return folder


def read(folder: Path) -> dict:
    return json.loads((folder / "compare.json").read_text())
