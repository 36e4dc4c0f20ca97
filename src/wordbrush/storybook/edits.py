"""Edits of a scene: (before, instruction, after, mask, both captions, task), each drawn from a seed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from PIL import Image

from wordbrush.storybook.catalogue import (
    COLOURS,
    INDOORS,
    PLACES,
    STYLES,
    THING,
    TIMES,
    TONES,
    WEATHERS,
)
from wordbrush.storybook.render import Renderer
from wordbrush.storybook.scenes import (
    SIZES,
    Item,
    Scene,
    Split,
    allowed,
    draw_item,
    draw_photo_scene,
    draw_scene,
    scene_rng,
)
from wordbrush.storybook.wording import (
    NUMBERS,
    article,
    caption,
    noun,
    phrase,
    place_words,
    short,
    slot_words,
)
from wordbrush.triplets import Triplet


@dataclass(frozen=True)
class SceneEdit:
    """An edit not yet rendered: `operation` is the kind of change, `task` its name in Emu Edit's taxonomy."""

    operation: str
    task: str
    before: Scene
    after: Scene
    instruction: str
    source_caption: str
    target_caption: str

    @property
    def triplet(self) -> Triplet:
        """The edit in words, with the things that it is about."""
        gone, new = _changed(self.before, self.after), _changed(self.after, self.before)
        if self.task == "background":
            gone = _names(self.before, self.before.items[:1])  # it stays
        return Triplet(
            caption=self.source_caption,
            edit=self.instruction,
            output=self.target_caption,
            task=self.task,
            original=gone[0] if gone else "",
            edited=new[0] if new else "",
        )


def _changed(scene: Scene, other: Scene) -> list[str]:
    """The nouns of a scene's things that are not so in the other; or of their like, where only these are."""
    changed = [item for item in scene.items if item not in other.items]
    kinds = {item.kind for item in other.items if item not in scene.items}
    return _names(scene, changed or [item for item in scene.items if item.kind in kinds])


def _names(scene: Scene, items: Sequence[Item]) -> list[str]:
    """As the scene's caption has them."""
    kinds = [item.kind for item in scene.items]
    return [noun(item, plural=kinds.count(item.kind) > 1) for item in items]


@dataclass(frozen=True)
class EditSample:
    """A rendered edit. `mask`: white where the two pictures differ."""

    edit: SceneEdit
    before: Image.Image
    after: Image.Image
    mask: Image.Image


_T = TypeVar("_T")
# The scene after the edit, the key of its phrasings, and the words to fill in.
_Change = tuple[Scene, str, dict[str, str]]
# Draws a change of a scene; None where the scene offers nothing to change.
_Draw = Callable[[np.random.Generator, Scene], _Change | None]


def draw_edit(rng: np.random.Generator, split: Split = "train", *, operation: str | None = None) -> SceneEdit:
    """Draw an edit of a drawn scene; the operation, if not given, by `WEIGHTS`."""
    operation = operation or draw_operation(rng, WEIGHTS)
    while True:
        before = draw_scene(rng, split)
        if operation == "variant":
            before = _with_variants(rng, before)
        if operation != "style" and before.style != "none" and rng.random() < 0.7:
            before = replace(before, style="none")
        edit = edit_scene(rng, split, operation, before)
        if edit is not None and allowed(edit.before, split) and allowed(edit.after, split):
            return edit


def draw_photo_edit(
    rng: np.random.Generator, split: Split, num_photos: int, operation: str | None = None
) -> SceneEdit:
    """Draw an edit of a photograph; the operation, if not given, by `PHOTO_WEIGHTS`.

    Raises:
        ValueError: The operation needs things to change, and a photograph has none.
    """
    operation = operation or draw_operation(rng, PHOTO_WEIGHTS)
    edit = (
        edit_scene(rng, split, operation, draw_photo_scene(rng, num_photos))
        if operation in PHOTO_WEIGHTS
        else None
    )
    if edit is None:
        raise ValueError(f"not an edit of a photograph: {operation!r} (one of {', '.join(PHOTO_WEIGHTS)})")
    return edit


def draw_operation(rng: np.random.Generator, weights: dict[str, float]) -> str:
    """A name, as often as its weight says."""
    shares = np.array(list(weights.values()))
    return str(rng.choice(list(weights), p=shares / shares.sum()))


def edit_scene(rng: np.random.Generator, split: Split, operation: str, before: Scene) -> SceneEdit | None:
    """Draw an edit of a given scene; None where the scene offers nothing to change in that way."""
    drawn = _OPERATIONS[operation](rng, before)
    if drawn is None:
        return None
    after, wording, words = drawn
    instruction = phrase(rng, wording, split, **words)
    return SceneEdit(operation, TASKS[operation], before, after, instruction, caption(before), caption(after))


def sample_edit(render: Renderer, split: Split, index: int, *, operation: str | None = None) -> EditSample:
    """Render edit number `index` of the split."""
    return render_edit(render, draw_edit(scene_rng(split, index), split, operation=operation))


def sample_photo_edit(
    render: Renderer, split: Split, index: int, *, operation: str | None = None
) -> EditSample:
    """Render edit number `index` of the split's photographs; the renderer needs them (ValueError)."""
    if not render.photos:
        raise ValueError("these edits need photographs")
    return render_edit(render, draw_photo_edit(scene_rng(split, index), split, len(render.photos), operation))


def render_edit(render: Renderer, edit: SceneEdit) -> EditSample:
    """Render both pictures, and find where they differ."""
    before, after = render(edit.before).image, render(edit.after).image
    apart = np.abs(np.asarray(before, dtype=np.int16) - np.asarray(after, dtype=np.int16)).max(-1) > 2
    return EditSample(edit, before, after, Image.fromarray((apart * 255).astype(np.uint8)))


def _pick(rng: np.random.Generator, scene: Scene) -> int:
    return int(rng.integers(len(scene.items)))


def _one_of(rng: np.random.Generator, options: Sequence[_T]) -> _T:
    return options[int(rng.integers(len(options)))]


def _other(rng: np.random.Generator, options: Iterable[str], current: str | None) -> str:
    return _one_of(rng, [option for option in options if option != current])


def _free_in_front(scene: Scene) -> list[str]:
    return [slot for slot in scene.free_slots() if slot != "back"]


def _replace(rng: np.random.Generator, scene: Scene) -> _Change:
    index = _pick(rng, scene)
    old = scene.items[index]
    thing = _other(rng, THING, old.thing)
    fresh = draw_item(rng, old.slot, crowd=len(scene.items), thing=thing)
    fresh = replace(fresh, scale=old.scale, dx=old.dx, dy=old.dy, size=old.size)
    name = short(rng, scene, index)
    words = {"old": name, "a_old": article(name), "a_new": article(noun(fresh, sized=False))}
    return scene.with_items_at(index, fresh), "replace", words


def _remove(rng: np.random.Generator, scene: Scene) -> _Change:
    index = _pick(rng, scene)
    return scene.with_items_at(index), "remove", {"old": short(rng, scene, index)}


def _add(rng: np.random.Generator, scene: Scene) -> _Change | None:
    slots = _free_in_front(scene)
    if not slots:
        return None
    slot = _one_of(rng, slots)
    fresh = replace(draw_item(rng, slot, crowd=max(2, len(scene.items) + 1)), size="normal")
    words = {"a_new": article(noun(fresh)), **slot_words(slot)}
    wording = "add_anywhere" if len(slots) == 1 and rng.random() < 0.5 else "add"
    return replace(scene, items=(*scene.items, fresh)), wording, words


def _recolour(rng: np.random.Generator, scene: Scene) -> _Change | None:
    able = [i for i, item in enumerate(scene.items) if THING[item.thing].hue]
    if not able:
        return None
    index = _one_of(rng, able)
    colour = _other(rng, COLOURS, scene.items[index].colour)
    words = {"old": short(rng, scene, index), "colour": colour, "a_colour": article(colour)}
    return scene.with_item(index, colour=colour), "recolour", words


def _resize(rng: np.random.Generator, scene: Scene) -> _Change:
    index = _pick(rng, scene)
    order = list(SIZES)
    now = order.index(scene.items[index].size)
    step = 1 if now == 0 else -1 if now == 2 else int(rng.choice([-1, 1]))
    wording = "bigger" if step > 0 else "smaller"
    return scene.with_item(index, size=order[now + step]), wording, {"old": short(rng, scene, index)}


def _move(rng: np.random.Generator, scene: Scene) -> _Change | None:
    index, slots = _pick(rng, scene), _free_in_front(scene)
    if not slots:
        return None
    slot = _one_of(rng, slots)
    return scene.with_item(index, slot=slot), "move", {"old": short(rng, scene, index), **slot_words(slot)}


def _swap(rng: np.random.Generator, scene: Scene) -> _Change | None:
    if len(scene.items) < 2:
        return None
    i, j = sorted(int(k) for k in rng.choice(len(scene.items), 2, replace=False))
    one, two = scene.items[i], scene.items[j]
    if one.kind == two.kind:
        return None
    after = scene.with_item(i, slot=two.slot, dx=two.dx, dy=two.dy)
    after = after.with_item(j, slot=one.slot, dx=one.dx, dy=one.dy)
    return after, "swap", {"old": short(rng, scene, i), "other": short(rng, scene, j)}


def _count(rng: np.random.Generator, scene: Scene) -> _Change | None:
    model = scene.items[_pick(rng, scene)]
    same = [item for item in scene.items if item.kind == model.kind]
    others = [item for item in scene.items if item.kind != model.kind]
    room = len(scene.free_slots()) + len(same)
    options = [n for n in range(1, min(room, 4) + 1) if n != len(same)]
    if not options:
        return None
    number = _one_of(rng, options)
    if number > len(same):
        fresh = [replace(model, slot=slot) for slot in scene.free_slots()]
        same += fresh[: number - len(same)]
    words = {"number": NUMBERS[number], "plural": noun(model, plural=number > 1, sized=False)}
    return replace(scene, items=(*same[:number], *others)), "count", words


def _with_variants(rng: np.random.Generator, scene: Scene) -> Scene:
    """Things with poses or expressions are few: one of them takes the place of any item."""
    index = _pick(rng, scene)
    if any(item.variant for item in scene.items):
        return scene
    thing = str(rng.choice(["man", "woman", "face"]))
    fresh = draw_item(rng, scene.items[index].slot, crowd=len(scene.items), thing=thing)
    return scene.with_items_at(index, fresh)


def _variant(rng: np.random.Generator, scene: Scene) -> _Change | None:
    able = [i for i, item in enumerate(scene.items) if item.variant]
    if not able:
        return None
    index = _one_of(rng, able)
    item = scene.items[index]
    variant = _other(rng, THING[item.thing].variants, item.variant)
    wording = "expression" if item.thing == "face" else "pose"
    words = {"old": short(rng, scene, index), "variant": variant, "a_variant": article(variant)}
    return scene.with_item(index, variant=variant), wording, words


def _background(rng: np.random.Generator, scene: Scene) -> _Change:
    place = _other(rng, PLACES, scene.place)
    after = replace(scene, place=place)
    if place in INDOORS:
        after = replace(after, time="day", weather="clear")
    return after, "background", place_words(place)


def _time(rng: np.random.Generator, scene: Scene) -> _Change | None:
    if scene.place in INDOORS:
        return None
    time = _other(rng, TIMES, scene.time)
    return replace(scene, time=time), time, {}


def _weather(rng: np.random.Generator, scene: Scene) -> _Change | None:
    if scene.place in INDOORS:
        return None
    weather = _other(rng, WEATHERS, scene.weather)
    return replace(scene, weather=weather), weather, {}


def _style(rng: np.random.Generator, scene: Scene) -> _Change | None:
    if scene.style != "none":
        return None  # what a style took away cannot be known
    style = _other(rng, STYLES, "none")
    return replace(scene, style=style), "style", {"a_style": article(STYLES[style])}


def _tone(rng: np.random.Generator, scene: Scene) -> _Change:
    tone = _other(rng, TONES, "none")
    return replace(scene, tone=tone), tone, {}


_OPERATIONS: dict[str, _Draw] = {
    "replace": _replace, "remove": _remove, "add": _add, "recolour": _recolour, "resize": _resize,
    "move": _move, "swap": _swap, "count": _count, "variant": _variant, "background": _background,
    "time": _time, "weather": _weather, "style": _style, "tone": _tone,
}  # fmt: skip
# Emu Edit's name of each operation's task.
TASKS: dict[str, str] = {
    "replace": "local", "remove": "remove", "add": "add", "recolour": "texture", "resize": "local",
    "move": "local", "swap": "local", "count": "local", "variant": "local", "background": "background",
    "time": "global", "weather": "global", "style": "style", "tone": "color",
}  # fmt: skip
# How often each operation is drawn in training.
WEIGHTS: dict[str, float] = {
    "replace": 24, "remove": 9, "add": 12, "recolour": 8, "resize": 3, "move": 3, "swap": 2, "count": 3,
    "variant": 6, "background": 9, "time": 7, "weather": 5, "style": 7, "tone": 5,
}  # fmt: skip
PHOTO_WEIGHTS: dict[str, float] = {"style": 5, "tone": 4, "time": 2, "weather": 2}
