"""Videos of the procedural world, as files."""

import json

import numpy as np
import pytest

from distill import video
from distill.embedded import clips, world
from distill.errors import UserError


def shrunk(path) -> np.ndarray:
    """The clip of a file at the world's own size: video.write repeats pixels."""
    frames = video.read(path)
    factor = frames.shape[1] // world.SIZE
    return frames.reshape(len(frames), world.SIZE, factor, world.SIZE, factor, 3).mean((2, 4))


def test_the_files_show_the_scenes_of_their_captions(tmp_path):
    listing = clips.write(tmp_path, "own", 3)
    for i, line in enumerate(map(json.loads, listing.read_text().splitlines())):
        rendered = world.render(world.parse(line["caption"]), np.random.default_rng((clips.SEED, i)))
        seen = shrunk(tmp_path / line["path"])
        assert seen.shape == rendered.shape
        assert np.abs(seen - rendered).mean() < 4  # H.264


def test_a_domain_paints_other_grounds_and_leaves_out_things_that_nobody_could_see_on_them(tmp_path):
    listing = clips.write(tmp_path, "cloth", 6)
    scenes = [world.parse(json.loads(line)["caption"]) for line in listing.read_text().splitlines()]
    assert len(scenes) == 6
    assert not {thing.colour for scene in scenes for thing in scene.things} & {"blue", "green"}
    first = shrunk(tmp_path / clips.name(0))
    assert np.abs(first - world.render(scenes[0], np.random.default_rng((clips.SEED, 0)))).mean() > 30


def test_what_is_there_is_not_rendered_again_and_comes_out_the_same(tmp_path):
    clips.write(tmp_path / "whole", "own", 4)
    clips.write(tmp_path / "grown", "own", 2)
    before = (tmp_path / "grown" / clips.name(1)).stat().st_mtime_ns
    clips.write(tmp_path / "grown", "own", 4)
    assert (tmp_path / "grown" / clips.name(1)).stat().st_mtime_ns == before
    for name in (clips.CAPTIONS, *map(clips.name, range(4))):
        assert (tmp_path / "grown" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_an_unknown_domain_is_named_with_those_that_there_are(tmp_path):
    with pytest.raises(UserError, match="no domain 'snow'; it has own, cloth"):
        clips.write(tmp_path, "snow", 2)
