import hashlib
import time
from dataclasses import replace

import numpy as np
import pytest

from wordbrush.storybook.catalogue import PLACES, STYLES, TIMES, TONES, WEATHERS
from wordbrush.storybook.render import Renderer
from wordbrush.storybook.scenes import Item, Scene, draw_scene, scene_rng
from wordbrush.storybook.sprites import SpriteLibrary

DOG = Item("dog", "left", scale=1.1)
CAT = Item("cat", "right")
SCENE = Scene("meadow", (DOG, CAT), seed=3)


def pixels(render: Renderer, scene: Scene) -> np.ndarray:
    return np.asarray(render(scene).image, dtype=np.int16)


def test_the_same_scene_gives_the_same_bytes(sprites: SpriteLibrary, render: Renderer):
    """From another renderer, too, and after other scenes: nothing is left over in a cache."""
    fresh = Renderer(sprites)
    for number in range(12):
        scene = draw_scene(scene_rng("test", number), "test")
        one, other = render(scene), fresh(scene)
        assert hashlib.sha256(one.image.tobytes()).digest() == hashlib.sha256(other.image.tobytes()).digest()
        assert (one.masks == other.masks).all() and (one.depth == other.depth).all()


@pytest.mark.parametrize("size", [64, 128, 200])
def test_everything_has_the_asked_size(sprites: SpriteLibrary, size: int):
    rendered = Renderer(sprites, size=size)(SCENE)
    assert rendered.image.size == (size, size) and rendered.image.mode == "RGB"
    assert rendered.masks.shape == (2, size, size) and rendered.depth.shape == (size, size)


def test_a_mask_is_exactly_where_its_item_is(render: Renderer):
    """Without the item, what is inside its mask changes and, but for the shadow, nothing else."""
    alone = replace(SCENE, items=(CAT,))
    apart = np.abs(pixels(render, SCENE) - pixels(render, alone)).max(-1)
    mask = render(SCENE).masks[0]
    assert mask.sum() > 400
    assert (apart[mask] > 2).mean() > 0.9
    rows, columns = mask.nonzero()
    near = np.zeros_like(mask)
    near[rows.min() - 2 : rows.max() + 18, max(0, columns.min() - 18) : columns.max() + 18] = True
    assert apart[~near].max() == 0


def test_masks_do_not_overlap_and_nearer_items_cover_others(render: Renderer):
    back, front = Item("elephant", "back", size="large"), Item("cow", "middle", size="large")
    masks = render(Scene("desert", (front, back))).masks
    assert not (masks[0] & masks[1]).any()
    alone = render(Scene("desert", (back,))).masks[0]
    assert masks[1].sum() < alone.sum() and (masks[1] & ~alone).sum() == 0


def test_depth_falls_towards_the_viewer(render: Renderer):
    rendered = render(Scene("desert", (Item("elephant", "back"), Item("cow", "middle", size="small"))))
    depth = rendered.depth
    assert depth.min() >= 0 and depth.max() <= 1
    assert depth[0].min() == 1 and depth[-1].max() < 0.1
    back, front = (depth[mask] for mask in rendered.masks)
    assert np.ptp(back) == 0 and np.ptp(front) == 0
    assert front[0] < back[0] < 1


def test_every_place_time_weather_style_and_tone_looks_different(render: Renderer):
    def all_differ(scenes: list[Scene]) -> None:
        looks = [pixels(render, scene) for scene in scenes]
        for i, one in enumerate(looks):
            assert all(np.abs(one - other).mean() > 0.5 for other in looks[:i]), scenes[i]

    all_differ([replace(SCENE, place=place) for place in PLACES])
    all_differ([replace(SCENE, time=t, weather=w) for t in TIMES for w in WEATHERS])
    all_differ([replace(SCENE, style=style) for style in STYLES])
    all_differ([replace(SCENE, tone=tone) for tone in TONES])


def test_hidden_details_stay_when_one_field_changes(render: Renderer):
    """Moving the dog leaves the rest of the picture as it was, cloud for cloud."""
    moved = SCENE.with_item(0, dx=0.03)
    assert (pixels(render, SCENE)[:, 90:] == pixels(render, moved)[:, 90:]).all()


@pytest.mark.long
def test_a_scene_takes_less_than_ten_milliseconds(render: Renderer):
    scenes = [draw_scene(scene_rng("train", number)) for number in range(300)]
    for scene in scenes:
        render(scene)
    start = time.process_time()
    for scene in scenes:
        render(scene)
    assert (time.process_time() - start) / len(scenes) < 0.010
