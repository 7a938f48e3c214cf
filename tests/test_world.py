"""The procedural world: captions, splits, clips, and how well clips can be measured."""

import dataclasses

import numpy as np
import pytest

from distill.embedded import world
from distill.evaluate.world import ATTRIBUTES, measure, regions, score


def drawn(n: int, seed: int = 0, split: str = "heldout") -> tuple[np.ndarray, list[str]]:
    rng = np.random.default_rng(seed)
    scenes = [world.sample(rng, split) for _ in range(n)]
    return np.stack([world.render(scene, rng) for scene in scenes]), [world.caption(scene) for scene in scenes]


def test_parse_is_the_inverse_of_caption():
    for scene in world.scenes("train", seed=3, n=500):
        assert world.parse(world.caption(scene)) == scene


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a red circle moves left fast on gray",
        "a red plain circle move left fast on gray",
        "a red plain circle turns fast on gray",
        "a red plain square left of a red plain circle move up slow on white",
        "a red plain square moves left fast on gray and more",
        "a red plain square left of a blue plain circle move right slow on white",
    ],
)
def test_what_is_no_caption_is_refused_with_an_example(text):
    with pytest.raises(ValueError, match="expected e.g. 'a red plain circle"):
        world.parse(text)


def test_the_longest_caption_and_its_end_fit_the_text_length():
    assert max(len(text.split()) for text in world.prompts("train", 0, 2000)) + 1 == 16
    assert {word for text in world.prompts("train", 0, 2000) for word in text.split()} == set(world.WORDS)


def test_no_held_out_combination_is_ever_trained_on():
    train, held_out = (set(world.prompts(split, 5, 3000)) for split in ("train", "heldout"))
    assert not train & held_out
    everything = np.random.default_rng(0)
    share = np.mean([world.split_of(world.draw(everything)) == "heldout" for _ in range(4000)])
    assert abs(share - 0.1) < 0.02


def test_prompts_and_clips_follow_from_the_seed():
    assert world.prompts("heldout", 7, 5) == world.prompts("heldout", 7, 9)[:5] != world.prompts("heldout", 8, 5)
    assert (drawn(3)[0] == drawn(3)[0]).all()


def test_a_clip_has_the_pixels_that_its_scene_says():
    scene = world.parse("a red plain square stays still on black")
    clip = world.render(scene, np.random.default_rng(0))
    assert clip.shape == (9, 32, 32, 3) and clip.dtype == np.uint8
    assert (clip == clip[0]).all()
    assert (clip[0, 0, 0] == 12).all() and (clip[0, 16, 16] == world.COLOURS["red"]).all()
    red = clip[0, ..., 0].astype(float)
    area = ((red - 12) / (world.COLOURS["red"][0] - 12)).sum()
    low, high = ((2 * world.HALF_SIDE * r) ** 2 for r in world.RADIUS_ALONE)
    assert low * 0.97 < area < high * 1.03


def test_no_object_leaves_the_frame():
    rng = np.random.default_rng(2)
    for scene in world.scenes("train", 2, 300):
        plain = tuple(dataclasses.replace(thing, texture="plain") for thing in scene.things)
        clip = world.render(dataclasses.replace(scene, things=plain), rng).astype(float)
        colour = (clip.max(-1) - clip.min(-1)).sum((1, 2))  # of the gray background: 0
        assert colour.min() > 0.96 * colour.max(), world.caption(scene)


def test_everything_that_a_caption_says_can_be_measured():
    clips, captions = drawn(200, seed=11)
    scores = score(clips, captions)
    for name in ATTRIBUTES:
        assert scores[name].mean() >= 0.97, name


def test_a_video_compressed_as_teachers_do_is_still_measured():
    clips, captions = drawn(100, seed=12)
    noisy = clips + np.random.default_rng(0).normal(0, 10, clips.shape)
    scores = score(noisy.clip(0, 255).astype(np.uint8), captions)
    assert scores["all"].mean() >= 0.9


def wrongs(marks) -> set[str]:
    return {name for name in ATTRIBUTES if not marks[name][0]}


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        ({"background": "white"}, {"background"}),
        ({"motion": "down"}, {"direction"}),
        ({"speed": "slow"}, {"speed"}),
        ({"motion": "still", "speed": None}, {"direction", "speed"}),
        ({"motion": "turn"}, {"direction"}),
    ],
)
def test_only_the_attribute_that_differs_is_marked_wrong(change, wrong):
    scene = world.parse("a red plain square left of a blue striped triangle move up fast on gray")
    clip = world.render(scene, np.random.default_rng(1))
    marks = score(clip[None], [world.caption(dataclasses.replace(scene, **change))])
    assert wrongs(marks) == wrong | {"all"}


@pytest.mark.parametrize(
    ("thing", "wrong"),
    [
        (("red", "plain", "circle"), {"shape"}),
        (("red", "striped", "square"), {"texture"}),
        (("green", "plain", "square"), {"colour"}),
    ],
)
def test_a_wrong_object_is_marked_by_what_is_wrong_with_it(thing, wrong):
    clip = world.render(world.parse("a red plain square moves up slow on black"), np.random.default_rng(1))
    marks = score(clip[None], [f"a {' '.join(thing)} moves up slow on black"])
    assert wrongs(marks) == wrong | {"all"}


def test_the_order_of_two_objects_is_the_relation():
    clip = world.render(
        world.parse("a red plain square above a blue plain square stay still on gray"), np.random.default_rng(1)
    )
    for text in (
        "a blue plain square above a red plain square stay still on gray",
        "a red plain square left of a blue plain square stay still on gray",
    ):
        marks = score(clip[None], [text])
        assert wrongs(marks) == {"relation", "all"}


def test_a_missing_object_counts():
    clip = world.render(world.parse("a red plain square stays still on gray"), np.random.default_rng(1))
    marks = score(clip[None], ["a red plain square above a blue plain square stay still on gray"])
    assert not any(marks[name][0] for name in ("count", "colour", "shape", "relation", "all"))
    assert marks["background"][0] == 1


def test_an_empty_clip_shows_a_background_and_nothing_else():
    seen = measure(np.full((9, 32, 32, 3), 128, np.uint8))
    assert (seen.things, seen.count, seen.background) == ((), 0, "gray")


def test_regions_are_four_connected_and_not_tiny():
    mask = np.zeros((12, 12), bool)
    mask[0:4, 0:4] = mask[4:8, 4:8] = mask[10, 0:5] = True  # two squares that touch at a corner, and a speck
    assert regions(np.stack([mask, ~mask])).tolist() == [2, 1]


def test_a_thing_that_vanishes_for_one_frame_is_not_preserved():
    text = "a red plain square moves up slow on gray"
    whole = world.render(world.parse(text), np.random.default_rng(1))
    torn = whole.copy()
    torn[4] = 128
    scores = score(np.stack([whole, torn]), [text] * 2)
    assert scores["preserved"].tolist() == [1, 0]
    assert scores["count"].tolist() == [1, 1]  # the median does not see it


def test_where_the_caption_asks_for_motion_a_clip_is_dynamic_if_something_moves():
    texts = [f"a red plain square {verb} on gray" for verb in ("stays still", "moves up slow", "turns slow")]
    clips = np.stack([world.render(world.parse(text), np.random.default_rng(1)) for text in texts])
    for asked in texts[1:]:
        assert score(clips, [asked] * 3)["dynamic"].tolist() == [0, 1, 1]
    still = score(clips, [texts[0]] * 3)
    assert np.isnan(still["dynamic"]).all() and not np.isnan(still["preserved"]).any()


def test_the_ground_tells_the_domains_apart_and_things_are_found_on_both():
    scenes = [scene for scene in world.scenes("heldout", 3, 80) if world.CLOTH.shows(scene)]
    captions = [world.caption(scene) for scene in scenes]
    for look, expected in ((world.OWN, 0), (world.CLOTH, 1)):
        clips = [world.render(scene, np.random.default_rng(i), look) for i, scene in enumerate(scenes)]
        scores = score(np.stack(clips), captions)
        assert set(scores["cloth"]) == {expected}
        for name in ("colour", "count", "preserved", "direction", "texture"):
            assert scores[name].mean() >= 0.97, name
