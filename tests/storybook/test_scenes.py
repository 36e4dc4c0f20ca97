from collections import Counter

import pytest

from wordbrush.storybook.catalogue import (
    COLOURS,
    EXPRESSIONS,
    INDOORS,
    PLACES,
    STYLES,
    THING,
    THINGS,
    TIMES,
    WEATHERS,
)
from wordbrush.storybook.scenes import SLOTS, Scene, allowed, draw_scene, held_out, scene_rng

COUNT = 400


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [draw_scene(scene_rng("train", number)) for number in range(COUNT)]


def test_the_world_is_as_large_as_promised():
    assert len(THINGS) >= 100 and len(THING) == len(THINGS)
    assert len(PLACES) >= 8
    assert len(set(TIMES) | set(WEATHERS) - {"clear"}) >= 4
    assert len(STYLES) - 1 >= 8
    assert len(COLOURS) >= 8
    assert sum(thing.hue is not None for thing in THINGS) >= 10
    assert {"standing", "kneeling", "running"} <= set(THING["man"].variants)
    assert len(EXPRESSIONS) >= 4


def test_scenes_follow_from_their_seed(scenes: list[Scene]):
    assert [draw_scene(scene_rng("train", number)) for number in range(20)] == scenes[:20]
    assert len(set(scenes)) == COUNT


def test_the_splits_share_no_scene(scenes: list[Scene]):
    assert not set(scenes) & {draw_scene(scene_rng("test", number), "test") for number in range(COUNT)}


def test_scenes_have_one_to_four_items_in_slots_of_their_own(scenes: list[Scene]):
    assert {len(scene.items) for scene in scenes} == {1, 2, 3, 4}
    for scene in scenes:
        slots = [item.slot for item in scene.items]
        assert len(set(slots)) == len(slots) and set(slots) <= set(SLOTS)
        assert set(slots) | set(scene.free_slots()) == set(SLOTS)


def test_everything_is_drawn_now_and_then(scenes: list[Scene]):
    assert {scene.place for scene in scenes} == set(PLACES)
    assert {scene.time for scene in scenes} == set(TIMES)
    assert {scene.weather for scene in scenes} == set(WEATHERS)
    assert len({scene.style for scene in scenes}) == len(STYLES)
    assert len({item.thing for scene in scenes for item in scene.items}) > 0.9 * len(THINGS)


def test_places_without_a_sky_have_no_weather_and_no_time(scenes: list[Scene]):
    indoors = [scene for scene in scenes if scene.place in INDOORS]
    assert indoors and {(scene.time, scene.weather) for scene in indoors} == {("day", "clear")}


def test_only_things_that_have_them_have_colours_and_variants(scenes: list[Scene]):
    for item in (item for scene in scenes for item in scene.items):
        kind = THING[item.thing]
        assert (item.colour is not None) == (kind.hue is not None)
        assert (item.variant is not None) == bool(kind.variants)


def test_training_never_sees_a_held_out_pair(scenes: list[Scene]):
    assert not any(held_out(item.thing, scene.place) for scene in scenes for item in scene.items)
    pairs = [(thing.name, place) for thing in THINGS for place in PLACES]
    share = sum(held_out(*pair) for pair in pairs) / len(pairs)
    assert 0.05 < share < 0.12
    assert max(Counter(place for thing, place in pairs if held_out(thing, place)).values()) < len(THINGS) / 4


def test_the_test_split_sees_held_out_pairs():
    drawn = [draw_scene(scene_rng("test", number), "test") for number in range(COUNT)]
    assert any(not allowed(scene, "train") for scene in drawn)
    assert all(allowed(scene, "test") for scene in drawn)
