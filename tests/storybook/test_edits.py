from dataclasses import replace

import numpy as np
import pytest

from wordbrush.storybook.catalogue import STYLES, THING, TONES
from wordbrush.storybook.edits import TASKS, WEIGHTS, SceneEdit, draw_edit, sample_edit
from wordbrush.storybook.render import Renderer
from wordbrush.storybook.scenes import SIZES, Scene, Split, allowed, held_out, scene_rng
from wordbrush.storybook.wording import caption

COUNT = 25
OPERATIONS = tuple(WEIGHTS)


def draw(operation: str, split: Split = "train") -> list[SceneEdit]:
    return [draw_edit(scene_rng(split, n), split, operation=operation) for n in range(COUNT)]


def fields(one: Scene, other: Scene) -> set[str]:
    return {name for name in vars(one) if getattr(one, name) != getattr(other, name)}


def items(one: Scene, other: Scene) -> set[str]:
    """The fields of items that differ, of two scenes with as many items."""
    pairs = zip(one.items, other.items, strict=True)
    return {name for a, b in pairs for name in vars(a) if getattr(a, name) != getattr(b, name)}


def test_every_operation_has_a_task_and_a_share():
    assert set(TASKS) == set(WEIGHTS)
    names = {"background", "color", "global", "style", "add", "remove", "local", "texture"}
    assert set(TASKS.values()) <= names


@pytest.mark.parametrize("operation", OPERATIONS)
def test_an_edit_follows_from_its_seed_and_is_complete(operation: str):
    edits = draw(operation)
    assert edits == draw(operation)
    assert len({edit.instruction for edit in edits}) > COUNT / 4
    for edit in edits:
        assert edit.before != edit.after and edit.operation == operation and edit.task == TASKS[operation]
        assert "{" not in edit.instruction and edit.instruction == edit.instruction.strip()
        assert (edit.source_caption, edit.target_caption) == (caption(edit.before), caption(edit.after))


def test_other_operations_than_the_asked_one_change_nothing_else():
    for edit in draw("recolour"):
        assert items(edit.before, edit.after) == {"colour"} and fields(edit.before, edit.after) == {"items"}
        changed = next(b for a, b in zip(edit.before.items, edit.after.items, strict=True) if a != b)
        assert THING[changed.thing].hue and str(changed.colour) in edit.instruction.lower()
    for edit in draw("resize"):
        assert items(edit.before, edit.after) == {"size"}
        old, new = next((a, b) for a, b in zip(edit.before.items, edit.after.items, strict=True) if a != b)
        assert abs(list(SIZES).index(old.size) - list(SIZES).index(new.size)) == 1
    for edit in draw("variant"):
        assert items(edit.before, edit.after) == {"variant"}
    for edit in draw("replace"):
        pairs = zip(edit.before.items, edit.after.items, strict=True)
        changed = [(a, b) for a, b in pairs if a != b]
        assert len(changed) == 1
        old, new = changed[0]
        assert old.thing != new.thing and (old.slot, old.size, old.dx, old.scale) == (
            new.slot, new.size, new.dx, new.scale,
        )  # fmt: skip


def test_adding_and_removing_leave_the_other_items():
    for edit in draw("add"):
        assert edit.after.items[:-1] == edit.before.items
    for edit in draw("remove"):
        assert len(edit.after.items) == len(edit.before.items) - 1
        assert set(edit.after.items) <= set(edit.before.items)


def test_moves_swaps_and_counts():
    for edit in draw("move"):
        assert items(edit.before, edit.after) == {"slot"}
    for edit in draw("swap"):
        assert items(edit.before, edit.after) <= {"slot", "dx", "dy"}
        assert {i.slot for i in edit.before.items} == {i.slot for i in edit.after.items}
    for edit in draw("count"):
        kinds = {item.kind for item in edit.before.items} | {item.kind for item in edit.after.items}
        changed = [k for k in kinds if _count(edit.before, k) != _count(edit.after, k)]
        assert len(changed) == 1 and 1 <= _count(edit.after, changed[0]) <= 4


def _count(scene: Scene, kind: object) -> int:
    return sum(item.kind == kind for item in scene.items)


def test_global_edits_leave_the_items():
    changes = {name: {name} for name in ("time", "weather", "style")}
    changes |= {"tone": {"tone", "style"}, "background": {"place", "time", "weather"}}
    for operation, may_change in changes.items():
        for edit in draw(operation):
            assert fields(edit.before, edit.after) <= may_change
    assert {edit.after.style for edit in draw("style")} <= set(STYLES) - {"none"}
    assert {edit.after.tone for edit in draw("tone")} <= set(TONES) - {"none"}


def test_training_edits_never_show_a_held_out_pair():
    for operation in OPERATIONS:
        assert all(allowed(scene, "train") for e in draw(operation) for scene in (e.before, e.after))
    test = [scene for e in draw("background", "test") for scene in (e.before, e.after)]
    assert any(held_out(item.thing, scene.place) for scene in test for item in scene.items)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_the_pictures_differ_exactly_where_the_mask_is(render: Renderer, operation: str):
    for number in range(3):
        sample = sample_edit(render, "test", number, operation=operation)
        before, after = (np.asarray(p, dtype=np.int16) for p in (sample.before, sample.after))
        mask = np.asarray(sample.mask)
        assert set(np.unique(mask)) <= {0, 255}
        assert ((np.abs(before - after).max(-1) > 2) == (mask == 255)).all()
        assert mask.any(), sample.edit.instruction


def test_local_edits_leave_what_is_far_from_the_item(render: Renderer):
    """Replacing an item on the left changes nothing on the right: the scene's hidden details are its own."""
    found = 0
    for number in range(200):
        edit = draw_edit(scene_rng("test", number), "test", operation="replace")
        edit = replace(
            edit, before=replace(edit.before, style="none"), after=replace(edit.after, style="none")
        )
        changed = [a for a, b in zip(edit.before.items, edit.after.items, strict=True) if a != b]
        if changed[0].slot == "left" and changed[0].size != "large" and edit.before.tone == "none":
            one, other = (np.asarray(render(scene).image) for scene in (edit.before, edit.after))
            assert (one[:, 90:] == other[:, 90:]).all()
            found += 1
    assert found > 3
