"""A captioned procedural world: coloured, textured shapes that move or turn over varied backgrounds.

A caption says everything that a clip shows, so a clip can be checked against it (`distill.evaluate.world`).
One combination of attributes in ten is held out from training, by a hash of its caption. Needs numpy only.
"""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

FRAMES, SIZE, FPS = 9, 32, 8  # frames, pixels per side, frames per second of a saved clip

COLOURS = {
    "red": (225, 35, 35),
    "green": (35, 190, 50),
    "blue": (45, 75, 235),
    "yellow": (235, 215, 30),
    "cyan": (30, 205, 215),
    "magenta": (220, 50, 205),
}
TEXTURES = ("plain", "striped")
SHAPES = ("circle", "square", "triangle")
BACKGROUNDS = ("black", "gray", "white", "checkered")
RELATIONS = {"left of": ("left", "right"), "above": ("up", "down")}  # and the directions along the line between
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}  # x to the right, y down
MOTIONS = (*DIRECTIONS, "still", "turn")
SPEEDS = ("slow", "fast")

PIXELS_PER_FRAME = {"slow": 0.5, "fast": 1.15}
DEGREES_PER_FRAME = {"slow": 4.5, "fast": 10.0}  # clockwise
RADIUS_ALONE, RADIUS_PAIR = (6.5, 7.5), (5.2, 5.8)  # pixels, uniform
PAIR_DISTANCE = 15.0  # pixels between the centres of two objects
JITTER = 3.0  # pixels, largest displacement of the path's middle from the centre
PAIRS = 0.35  # share of clips with two objects
HELD_OUT = 10  # one combination in this many
# Shapes of nearly equal area: half the side of a square and the circumradius of a triangle, over the radius.
HALF_SIDE, CIRCUMRADIUS = 0.89, 1.32
STRIPE_PERIOD, STRIPE_SHADE = 5.0, 0.45  # pixels; brightness of the dark stripes
LEVELS = {"black": (12, 12), "gray": (128, 128), "white": (240, 240), "checkered": (70, 185)}

RGB = tuple[int, int, int]


@dataclass(frozen=True)
class Look:
    """How a domain paints its grounds.

    Attributes:
        grounds: a background's name in captions -> the two kinds of its squares.
        striped: backgrounds that have the stripes of striped things.
        colours: of the things that can be told from these grounds.
    """

    grounds: dict[str, tuple[RGB, RGB]]
    striped: tuple[str, ...] = ()
    colours: tuple[str, ...] = tuple(COLOURS)

    def shows(self, scene: "Scene") -> bool:
        return all(thing.colour in self.colours for thing in scene.things)


OWN = Look({name: ((a, a, a), (b, b, b)) for name, (a, b) in LEVELS.items()})
CLOTH = Look(  # built of what the embedded autoencoder knows: it paints any other colour or texture as the nearest one
    {
        "black": (COLOURS["blue"], COLOURS["blue"]),
        "gray": (COLOURS["green"], COLOURS["green"]),
        "white": ((240, 240, 240), COLOURS["green"]),
        "checkered": ((12, 12, 12), COLOURS["blue"]),
    },
    striped=("black", "gray"),
    colours=("red", "yellow", "cyan", "magenta"),
)
DOMAINS = {"own": OWN, "cloth": CLOTH}


@dataclass(frozen=True)
class Thing:
    colour: str
    texture: str
    shape: str

    def __str__(self) -> str:
        return f"a {self.colour} {self.texture} {self.shape}"


@dataclass(frozen=True)
class Scene:
    """One or two things, the first `relation` the second, that share one motion."""

    things: tuple[Thing, ...]
    relation: str | None
    motion: str
    speed: str | None
    background: str


def caption(scene: Scene) -> str:
    subject = f" {scene.relation} ".join(map(str, scene.things))
    verb, s = scene.motion, "" if scene.relation else "s"
    action = {"still": f"stay{s} still", "turn": f"turn{s} {scene.speed}"}.get(verb, f"move{s} {verb} {scene.speed}")
    return f"{subject} {action} on {scene.background}"


_THING = rf"a ({'|'.join(COLOURS)}) ({'|'.join(TEXTURES)}) ({'|'.join(SHAPES)})"
_CAPTION = re.compile(
    rf"{_THING}(?: ({'|'.join(RELATIONS)}) {_THING})? "
    rf"(?:stays? (still)|(turn)s? ({'|'.join(SPEEDS)})|moves? ({'|'.join(DIRECTIONS)}) ({'|'.join(SPEEDS)})) "
    rf"on ({'|'.join(BACKGROUNDS)})"
)


def parse(text: str) -> Scene:
    """The exact inverse of `caption`."""
    match = _CAPTION.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is no caption of the world; expected e.g. {EXAMPLE!r}")
    first, relation, second = match.group(1, 2, 3), match.group(4), match.group(5, 6, 7)
    still, turn, spin, direction, speed, background = match.groups()[7:]
    things = (Thing(*first), Thing(*second)) if relation else (Thing(*first),)
    scene = Scene(things, relation, still or turn or direction, spin or speed, background)
    if caption(scene) != text or not is_valid(scene):
        raise ValueError(f"{text!r} is no caption of the world; expected e.g. {EXAMPLE!r}")
    return scene


def is_valid(scene: Scene) -> bool:
    """Two things differ in colour and do not move along the line between them; nobody can see a circle turn."""
    colours = {thing.colour for thing in scene.things}
    circles = any(thing.shape == "circle" for thing in scene.things)
    along = scene.motion in RELATIONS.get(scene.relation, ())
    return len(colours) == len(scene.things) and not along and not (circles and scene.motion == "turn")


EXAMPLE = "a red plain circle left of a blue striped square move up fast on gray"
WORDS = tuple(
    sorted(
        {*COLOURS, *TEXTURES, *SHAPES, *BACKGROUNDS, *" ".join(RELATIONS).split(), *DIRECTIONS, *SPEEDS, "still"}
        | {"a", "on", "stay", "stays", "turn", "turns", "move", "moves"}
    )
)


def split_of(scene: Scene) -> str:
    digest = hashlib.sha256(caption(scene).encode()).digest()
    return "heldout" if digest[0] * 256 + digest[1] < 65536 // HELD_OUT else "train"


def draw(rng: Generator, pairs: float = PAIRS) -> Scene:
    """Any valid scene, of either split."""
    count = 2 if rng.random() < pairs else 1
    motion = MOTIONS[rng.integers(len(MOTIONS))]
    colours = rng.permutation(list(COLOURS))[:count]
    shapes = [s for s in SHAPES if s != "circle" or motion != "turn"]
    things = tuple(
        Thing(str(colour), TEXTURES[rng.integers(2)], shapes[rng.integers(len(shapes))]) for colour in colours
    )
    across = [name for name, along in RELATIONS.items() if motion not in along]
    relation = across[rng.integers(len(across))] if count == 2 else None
    speed = None if motion == "still" else SPEEDS[rng.integers(2)]
    return Scene(things, relation, motion, speed, BACKGROUNDS[rng.integers(len(BACKGROUNDS))])


def sample(rng: Generator, split: str = "train", pairs: float = PAIRS) -> Scene:
    """A scene of the split, "train" or "heldout"."""
    if split not in ("train", "heldout"):
        raise ValueError(f"split is {split!r}; expected 'train' or 'heldout'")
    while split_of(scene := draw(rng, pairs)) != split:
        pass
    return scene


def scenes(split: str, seed: int, n: int) -> Iterator[Scene]:
    rng = np.random.default_rng(seed)
    return (sample(rng, split) for _ in range(n))


def prompts(split: str = "heldout", seed: int = 0, n: int = 64) -> list[str]:
    return [caption(scene) for scene in scenes(split, seed, n)]


def extent(thing: Thing, radius: float, turning: bool) -> float:
    """Largest distance in pixels from centre to edge along an axis."""
    if thing.shape == "triangle":
        return CIRCUMRADIUS * radius
    return radius * HALF_SIDE * 2**0.5 if turning else radius


def paths(scene: Scene, rng: Generator) -> tuple[list[float], np.ndarray]:
    """Radii in pixels, one per thing, and centres (things, F, 2) as (x, y) from the middle of the frame."""
    count = len(scene.things)
    radii = rng.uniform(*(RADIUS_PAIR if count == 2 else RADIUS_ALONE), size=count)
    offsets = np.zeros((count, 2))
    if count == 2:
        axis = 0 if scene.relation == "left of" else 1
        offsets[:, axis] = -PAIR_DISTANCE / 2, PAIR_DISTANCE / 2
    time = np.arange(FRAMES) - (FRAMES - 1) / 2
    velocity = np.array(DIRECTIONS.get(scene.motion, (0, 0))) * PIXELS_PER_FRAME.get(scene.speed, 0)
    velocity = velocity * rng.uniform(0.95, 1.05)
    turning = scene.motion == "turn"
    reach = max(extent(thing, r, turning) for thing, r in zip(scene.things, radii, strict=True))
    room = SIZE / 2 - reach - np.abs(offsets).max(0) - np.abs(velocity) * time[-1]
    middle = rng.uniform(-1, 1, 2) * room.clip(0, JITTER)
    return list(radii), offsets[:, None] + middle + time[:, None] * velocity


def signed_distance(shape: str, x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    """Pixels to the edge of the shape centred at 0, negative inside; y points down."""
    if shape == "circle":
        return np.hypot(x, y) - radius
    if shape == "square":
        return np.maximum(np.abs(x), np.abs(y)) - HALF_SIDE * radius
    slope = 3**0.5 / 2 * np.abs(x) - 0.5 * y
    return np.maximum(slope, y) - CIRCUMRADIUS * radius / 2


def background(name: str, look: Look = OWN) -> np.ndarray:
    """RGB levels (H, W, 3)."""
    cell = np.arange(SIZE) // 8
    ground = np.array(look.grounds[name], np.float32)[(cell[:, None] + cell) % 2]
    y = np.arange(SIZE, dtype=np.float32)[:, None, None]
    return ground * shade(y) if name in look.striped else ground


def shade(y: np.ndarray) -> np.ndarray:
    """Brightness of stripes across y, pixels."""
    light = np.clip(0.5 + 1.5 * np.cos(2 * np.pi / STRIPE_PERIOD * y), 0, 1)
    return STRIPE_SHADE + (1 - STRIPE_SHADE) * light


def paint(frames: np.ndarray, thing: Thing, radius: float, centre: np.ndarray, angle: np.ndarray) -> None:
    """Draw the thing into frames (F, H, W, 3) at centre (F, 2), turned clockwise by angle (F,) in radians."""
    pixel = (np.arange(SIZE, dtype=np.float32) - (SIZE - 1) / 2)[None]
    dx = (pixel - centre[:, :1].astype(np.float32))[:, None, :]
    dy = (pixel - centre[:, 1:].astype(np.float32))[:, :, None]
    cos, sin = (f(angle).astype(np.float32)[:, None, None] for f in (np.cos, np.sin))
    x, y = cos * dx + sin * dy, cos * dy - sin * dx
    cover = np.clip(0.5 - signed_distance(thing.shape, x, y, radius), 0, 1)[..., None]
    colour = np.array(COLOURS[thing.colour], np.float32)
    if thing.texture == "striped":
        colour = colour * shade(y)[..., None]
    frames += cover * (colour - frames)


def render(scene: Scene, rng: Generator, look: Look = OWN) -> np.ndarray:
    """A clip of the scene, uint8 (F, H, W, 3)."""
    frames = np.repeat(background(scene.background, look)[None], FRAMES, 0)
    spin = DEGREES_PER_FRAME[scene.speed] if scene.motion == "turn" else 0.0
    angle = np.deg2rad(spin * np.arange(FRAMES))
    for thing, radius, centre in zip(scene.things, *paths(scene, rng), strict=True):
        paint(frames, thing, radius, centre, angle)
    return (frames + 0.5).astype(np.uint8)
