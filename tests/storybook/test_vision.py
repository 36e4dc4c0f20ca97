"""The answers of the vision tasks are exact, and what they ask can be read from the picture."""

import numpy as np
import pytest
from PIL import Image

from wordbrush import tasks
from wordbrush.storybook.render import Renderer
from wordbrush.storybook.scenes import held_out, scene_rng
from wordbrush.storybook.vision import (
    BOX_COLOUR,
    CONTOUR_COLOUR,
    HOLE_COLOUR,
    SHAPE_COLOUR,
    SLOT_COLOURS,
    TASKS,
    UNSEEN,
    WEIGHTS,
    VisionEdit,
    draw_vision_edit,
    render_vision_edit,
)


def draw(operation: str, number: int = 0) -> VisionEdit:
    return draw_vision_edit(scene_rng("test", number), "test", operation=operation)


def pixels(picture: Image.Image) -> np.ndarray:  # type: ignore[type-arg]
    return np.asarray(picture).astype(int)


def test_every_operation_has_a_task_of_the_taxonomy_and_a_weight():
    assert set(TASKS) == set(WEIGHTS) and set(TASKS.values()) <= set(tasks.TASKS)
    assert len(tasks.TASKS) == 16


def test_tasks_for_inversion_are_of_no_known_task_and_never_drawn_by_chance():
    assert not set(UNSEEN.values()) & set(tasks.TASKS)
    drawn = {draw_vision_edit(scene_rng("train", number)).operation for number in range(200)}
    assert drawn == set(WEIGHTS)


@pytest.mark.parametrize("operation", [*WEIGHTS, *UNSEEN])
def test_the_same_number_gives_the_same_edit(operation: str, render: Renderer):
    one, two = (render_vision_edit(render, draw(operation)) for _ in range(2))
    assert draw(operation) == draw(operation) != draw(operation, 1)
    assert all(a.tobytes() == b.tobytes() for a, b in zip(one, two, strict=True))
    assert one[0].tobytes() != one[1].tobytes()


@pytest.mark.parametrize("name", ["depth", "sketch", "map"])
def test_from_a_map_is_the_inverse_of_to_a_map(name: str, render: Renderer):
    to, back = draw(f"to_{name}"), draw(f"from_{name}")
    assert to.scene == back.scene
    assert [p.tobytes() for p in render_vision_edit(render, to)] == [
        p.tobytes() for p in reversed(render_vision_edit(render, back))
    ]


def test_a_box_touches_all_sides_of_its_object_and_leaves_the_rest(render: Renderer):
    edit = draw("detect")
    before, after = (pixels(p) for p in render_vision_edit(render, edit))
    changed = (before != after).any(-1)
    assert (after[changed] == BOX_COLOUR).all()
    mask = render(edit.scene).masks[edit.item or 0]
    for axis in (0, 1):
        line, shape = np.flatnonzero(changed.any(axis)), np.flatnonzero(mask.any(axis))
        assert (line[0], line[-1]) == (shape[0], shape[-1])


def test_a_segment_is_exactly_the_objects_visible_pixels(render: Renderer):
    edit = draw("segment", 3)
    before, after = (pixels(p) for p in render_vision_edit(render, edit))
    mask = render(edit.scene).masks[edit.item or 0]
    assert (after[mask] == SHAPE_COLOUR).all() and (after[~mask] == before[~mask]).all()


def test_a_coarse_picture_has_few_pixels_and_the_same_colours(render: Renderer):
    before, after = (pixels(p) for p in render_vision_edit(render, draw("upscale", 2)))
    blocks = after.reshape(32, 4, 32, 4, 3).mean((1, 3))
    again = np.asarray(Image.fromarray(before.astype(np.uint8)).reduce(4)).astype(int)
    assert np.abs(again - blocks).mean() < 4 < np.abs(before - after).max()


def test_a_hole_is_grey_and_all_else_is_as_it_was(render: Renderer):
    edit = draw("inpaint", 2)
    before, after = (pixels(p) for p in render_vision_edit(render, edit))
    assert edit.hole is not None
    left, top, right, bottom = (round(128 * share) for share in edit.hole)
    inside = np.zeros((128, 128), dtype=bool)
    inside[top:bottom, left:right] = True
    assert (before[inside] == HOLE_COLOUR).all() and (before[~inside] == after[~inside]).all()
    assert 0.06 <= inside.mean() <= 0.26


def test_contours_are_the_rims_of_the_things(render: Renderer):
    edit = draw("contour", 4)
    before, after = (pixels(p) for p in render_vision_edit(render, edit))
    changed = (before != after).any(-1)
    things = render(edit.scene).masks.any(0)
    assert (after[changed] == CONTOUR_COLOUR).all() and changed.any()
    assert not changed[~things].any() and changed.sum() < 0.7 * things.sum()


def test_maps_show_depth_and_objects(render: Renderer):
    edit = draw("to_depth")
    found = render(edit.scene)
    depth = pixels(render_vision_edit(render, edit)[1])[..., 0] / 255
    assert np.abs(depth - (1 - found.depth)).max() <= 0.5 / 255 + 1e-6
    edit = draw("to_map", 5)
    found, shown = render(edit.scene), pixels(render_vision_edit(render, edit)[1])
    for item, mask in zip(edit.scene.items, found.masks, strict=True):
        assert (shown[mask] == SLOT_COLOURS[item.slot]).all()
    assert (shown[~found.masks.any(0)] == 0).all()


def test_lettering_lies_at_the_top_and_is_named_in_the_instruction(render: Renderer):
    edit = draw("text_add")
    before, after = (pixels(p) for p in render_vision_edit(render, edit))
    rows = np.flatnonzero((before != after).any((1, 2)))
    assert edit.word and edit.word.lower() in edit.instruction.lower()
    assert rows[-1] < 0.35 * len(before) and 0.1 * len(before) < np.ptp(rows)


def test_training_shows_no_held_out_pair():
    edits = [draw_vision_edit(scene_rng("train", number), "train") for number in range(200)]
    assert not any(held_out(item.thing, e.scene.place) for e in edits for item in e.scene.items)
    assert {e.operation for e in edits} == set(WEIGHTS)
