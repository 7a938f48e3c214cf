"""What a clip of the procedural world shows, measured from its pixels alone, and scored against its caption.

The objects are the connected regions of strong colour. Shape and turning come from the angular moments
    c_m = sum rho^m exp(i m theta) / sum rho^m    over the pixels of an object, around its centre:
|c_3| is large for a triangle, |c_4| for a square, and the phase of the larger one turns with the object.
"""

import math
from dataclasses import dataclass

import numpy as np

from distill.embedded.world import CLOTH, COLOURS, OWN, Look, Scene, parse

ATTRIBUTES = ("colour", "shape", "texture", "direction", "speed", "background", "count", "relation", "all")
BEHAVIOUR = ("preserved", "dynamic", "cloth")

CHROMA = 48  # largest minus smallest channel from which a pixel belongs to an object
LEAST_AREA = 14  # pixels of the smallest object
STILL, FAST = 0.22, 0.82  # pixels per frame
TURNING, TURNING_FAST = 1.8, 7.2  # degrees per frame
TRIANGLE, SQUARE = 0.36, 0.23  # |c_3| and |c_4| from which a shape is one
STRIPED = 0.14  # standard deviation of the brightness inside an object over its mean
CHECKERED = 25  # standard deviation of the gray levels of the background
COLOURED = 0.25  # share of the ground's pixels from which it is that of the domain `cloth`


@dataclass(frozen=True)
class Thing:
    colour: str
    texture: str
    shape: str
    motion: str
    speed: str | None
    centre: tuple[float, float]  # pixels, (x, y)


@dataclass(frozen=True)
class Measured:
    """What a clip shows.

    Attributes:
        counts: of things in each frame; `count` is their median.
        ground: share of the ground that is coloured.
    """

    things: tuple[Thing, ...]
    count: int
    counts: tuple[int, ...]
    background: str
    ground: float


def measure(video: np.ndarray, look: Look | None = None) -> Measured:
    """What a clip, uint8 (F, H, W, 3), shows: things are of the look's colours (None: that of the clip's ground)."""
    rgb = video.astype(np.float32)
    value, chroma = rgb.max(-1), rgb.max(-1) - rgb.min(-1)
    hue = hues(rgb, chroma)
    coloured = chroma > CHROMA
    mask = coloured & painted(hue, CLOTH)
    ground = float((coloured & ~mask).sum() / max((~mask).sum(), 1))
    look = look or (CLOTH if ground >= COLOURED else OWN)
    mask = coloured & painted(hue, look)
    areas = {name: ((hue == i) & mask).sum((1, 2)).mean() for i, name in enumerate(COLOURS)}
    counts = regions(mask)
    count = int(np.median(counts))
    shown = [name for name in sorted(areas, key=areas.get, reverse=True)[: max(count, 1)] if areas[name] >= LEAST_AREA]
    names = list(COLOURS)
    things = tuple(thing(name, (hue == names.index(name)) & mask, value) for name in shown)
    return Measured(things, count, tuple(counts.tolist()), background(rgb.mean(-1), chroma), ground)


def painted(hue: np.ndarray, look: Look) -> np.ndarray:
    """Where the hue is that of a thing of the look."""
    return np.isin(hue, [i for i, name in enumerate(COLOURS) if name in look.colours])


def hues(rgb: np.ndarray, chroma: np.ndarray) -> np.ndarray:
    """Index of the colour whose chromatic direction is nearest, per pixel."""
    palette = np.array(list(COLOURS.values()), np.float32)
    palette -= palette.mean(-1, keepdims=True)
    palette /= np.linalg.norm(palette, axis=-1, keepdims=True)
    return ((rgb - rgb.mean(-1, keepdims=True)) @ palette.T).argmax(-1)


def regions(mask: np.ndarray) -> np.ndarray:
    """Number of 4-connected regions of at least LEAST_AREA pixels in each frame of mask (F, H, W)."""
    label = np.where(mask, np.arange(1, mask.size + 1).reshape(mask.shape), 0)
    while True:  # every pixel takes the largest number of its region
        p = np.pad(label, ((0, 0), (1, 1), (1, 1)))
        near = np.maximum.reduce([label, p[:, 2:, 1:-1], p[:, :-2, 1:-1], p[:, 1:-1, 2:], p[:, 1:-1, :-2]])
        grown = np.where(mask, near, 0)
        if (grown == label).all():
            break
        label = grown
    area = np.bincount(label[mask], minlength=mask.size + 1)[1:]
    return (area.reshape(len(mask), -1) >= LEAST_AREA).sum(1)


def thing(colour: str, mask: np.ndarray, value: np.ndarray) -> Thing:
    """Measure the object under mask (F, H, W) with brightness value (F, H, W)."""
    seen = mask.sum((1, 2)) >= LEAST_AREA / 2
    mask, value, frame = mask[seen], value[seen], np.flatnonzero(seen)
    y, x = np.mgrid[: mask.shape[1], : mask.shape[2]].astype(np.float32)
    area = mask.sum((1, 2))
    centres = np.stack([(x * mask).sum((1, 2)), (y * mask).sum((1, 2))], 1) / area[:, None]
    shape, spin = shape_and_spin(mask, x, y, centres, frame)
    velocity = slope(frame, centres)
    inside = eroded(mask)
    deviation = np.median([value[f][m].std() / value[f][m].mean() for f, m in enumerate(inside) if m.any()] or [0])
    motion, speed = motion_of(velocity, spin)
    return Thing(colour, "striped" if deviation > STRIPED else "plain", shape, motion, speed, tuple(centres.mean(0)))


def slope(frame: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Least-squares change per frame of values (F, ...)."""
    time = frame - frame.mean()
    return np.tensordot(time, values, 1) / max((time**2).sum(), 1)


def shape_and_spin(mask, x, y, centres, frame) -> tuple[str, float]:
    """Shape, and clockwise degrees per frame."""
    z = (x - centres[:, :1, None]) + 1j * (y - centres[:, 1:, None])
    rho = np.abs(z) * mask
    c3, c4 = (((z**m) * mask).sum((1, 2)) / (rho**m).sum((1, 2)).clip(1e-6) for m in (3, 4))
    if np.abs(c3).mean() > TRIANGLE:
        name, c, m = "triangle", c3, 3
    elif np.abs(c4).mean() > SQUARE:
        name, c, m = "square", c4, 4
    else:
        return "circle", 0.0
    return name, float(np.rad2deg(slope(frame, np.unwrap(np.angle(c)))) / m)


def eroded(mask: np.ndarray) -> np.ndarray:
    """Pixels of mask (F, H, W) whose four neighbours belong to it as well."""
    p = np.pad(mask, ((0, 0), (1, 1), (1, 1)))
    return mask & p[:, 2:, 1:-1] & p[:, :-2, 1:-1] & p[:, 1:-1, 2:] & p[:, 1:-1, :-2]


def motion_of(velocity: np.ndarray, spin: float) -> tuple[str, str | None]:
    """Motion and speed of an object from its velocity (x, y) in pixels per frame and its spin in degrees per frame."""
    along = int(abs(velocity[1]) > abs(velocity[0]))
    pace, drift = abs(velocity[along]), abs(velocity[1 - along])
    if pace > STILL and drift < 0.6 * pace:
        return (("left", "right"), ("up", "down"))[along][int(velocity[along] > 0)], "fast" if pace > FAST else "slow"
    if pace > STILL:
        return "diagonal", None
    if spin > TURNING:
        return "turn", "fast" if spin > TURNING_FAST else "slow"
    return ("still", None) if spin > -TURNING else ("turn back", None)


def background(gray: np.ndarray, chroma: np.ndarray) -> str:
    """Name of the background from gray levels and chroma, both (F, H, W)."""
    near = np.pad(chroma > CHROMA / 2, ((0, 0), (1, 1), (1, 1)))
    free = ~(near[:, 1:-1, 1:-1] | near[:, 2:, 1:-1] | near[:, :-2, 1:-1] | near[:, 1:-1, 2:] | near[:, 1:-1, :-2])
    if not free.any():
        return "none"
    levels = gray[free]
    if levels.std() > CHECKERED:
        return "checkered"
    return "black" if levels.mean() < 70 else "gray" if levels.mean() < 185 else "white"


def compare(seen: Measured, scene: Scene) -> dict[str, bool]:
    """Which attributes of the scene the clip shows; with two objects both have to be right."""
    found = {t.colour: t for t in seen.things}
    if len(scene.things) == 1 and len(seen.things) == 1:
        pairs = [(scene.things[0], seen.things[0])]
    else:
        pairs = [(t, found.get(t.colour)) for t in scene.things]

    def agree(name: str) -> bool:
        return all(s is not None and getattr(s, name) == getattr(t, name) for t, s in pairs)

    def moves(name: str) -> bool:
        return all(s is not None and getattr(s, name) == getattr(scene, name) for _, s in pairs)

    right = {
        "colour": {t.colour for t in scene.things} == set(found),
        "shape": agree("shape"),
        "texture": agree("texture"),
        "direction": moves("motion"),
        "speed": moves("speed"),
        "background": seen.background == scene.background,
        "count": seen.count == len(scene.things),
        "relation": related(scene, [s for _, s in pairs]),
    }
    return right | {"all": all(right.values())}


def related(scene: Scene, things: list[Thing | None]) -> bool:
    """True as well for a scene of one object, which has no relation."""
    if scene.relation is None:
        return True
    if None in things:
        return False
    (x0, y0), (x1, y1) = things[0].centre, things[1].centre
    ahead, aside = (x1 - x0, y1 - y0) if scene.relation == "left of" else (y1 - y0, x1 - x0)
    return ahead > abs(aside)


def behaviour(seen: Measured, scene: Scene) -> dict[str, float]:
    """What happens in a clip: every frame has as many things as the caption; something moves; the ground is cloth.

    Like VBench's dynamic degree, which has prompts of its own, `dynamic` is measured where motion is asked for: it is
    nan where the caption asks for stillness.
    """
    moves = any(thing.motion != "still" for thing in seen.things)
    return {
        "preserved": set(seen.counts) == {len(scene.things)},
        "dynamic": moves if scene.motion != "still" else math.nan,
        "cloth": seen.ground >= COLOURED,
    }


def score(videos: np.ndarray, captions: list[str]) -> dict[str, np.ndarray]:
    """Per attribute and behaviour, 0 or 1 (nan: not asked) for each of the videos, uint8 (N, F, H, W, 3)."""
    pairs = [(measure(video), parse(text)) for video, text in zip(videos, captions, strict=True)]
    results = [compare(*pair) | behaviour(*pair) for pair in pairs]
    return {name: np.array([r[name] for r in results], float) for name in (*ATTRIBUTES, *BEHAVIOUR)}
