"""A scene: a description, drawn from a seed, that `render` turns into pixels and `wording` into a caption.

Everything that is not described (cloud shapes, skin tones) hangs on `Scene.seed`
and on the hidden fields of its items, so an edit that changes one field leaves all other pixels as they were.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from wordbrush.storybook.catalogue import COLOURS, INDOORS, PLACES, STYLES, THING, THINGS, TIMES, WEATHERS
from wordbrush.storybook.sprites import Look

Split = Literal["train", "test"]
SLOTS = ("left", "middle", "right", "back")
SIZES: dict[str, float] = {"small": 0.62, "normal": 1.0, "large": 1.4}
_HELD_OUT_SHARE = 12  # one (object, place) pair in so many is never seen in training


@dataclass(frozen=True)
class Item:
    """One thing in a scene. `scale`, `dx`, `dy`, `flip`, `skin` and `hidden` are never mentioned in words."""

    thing: str
    slot: str
    colour: str | None = None
    variant: str | None = None
    size: str = "normal"
    scale: float = 1.0
    dx: float = 0.0
    dy: float = 0.0
    flip: bool = False
    skin: int | None = None
    hidden: int = 0

    @property
    def look(self) -> Look:
        """Which sprite draws it."""
        kind = THING[self.thing]
        label = kind.variants[self.variant] if self.variant else kind.label
        if kind.hidden:
            label = kind.hidden[self.hidden % len(kind.hidden)]
        colour = None if self.colour == kind.hue else self.colour
        return Look(label, self.skin, colour, self.flip)

    @property
    def kind(self) -> tuple[str, str | None, str | None, str]:
        """What words can tell: thing, colour, variant, size."""
        return (self.thing, self.colour, self.variant, self.size)


@dataclass(frozen=True)
class Scene:
    """A picture's description.

    `photo` replaces place and items by a crop of a photograph (for style, tone and weather edits).
    """

    place: str
    items: tuple[Item, ...] = ()
    time: str = "day"
    weather: str = "clear"
    style: str = "none"
    tone: str = "none"
    seed: int = 0
    photo: int | None = None

    def free_slots(self) -> list[str]:
        """Slots without an item, in drawing order of `SLOTS`."""
        taken = {item.slot for item in self.items}
        return [slot for slot in SLOTS if slot not in taken]

    def with_item(self, index: int, **changes: object) -> Scene:
        """The scene with fields of one item changed."""
        return self.with_items_at(index, replace(self.items[index], **changes))

    def with_items_at(self, index: int, *items: Item) -> Scene:
        """The scene with other items, or none, in the place of one."""
        return replace(self, items=(*self.items[:index], *items, *self.items[index + 1 :]))


def held_out(thing: str, place: str) -> bool:
    """Whether the (object, place) pair is kept out of training altogether."""
    return hashlib.sha256(f"{thing}/{place}".encode()).digest()[0] % _HELD_OUT_SHARE == 0


def allowed(scene: Scene, split: Split) -> bool:
    """Whether a scene may be shown to a model: training never sees a held-out pair."""
    return split == "test" or not any(held_out(item.thing, scene.place) for item in scene.items)


def scene_rng(split: Split, seed: int) -> np.random.Generator:
    """The random stream of one scene; the splits never share one."""
    return np.random.default_rng((0 if split == "train" else 1, seed))


def draw_item(rng: np.random.Generator, slot: str, *, crowd: int, thing: str | None = None) -> Item:
    """Draw an item; `crowd` is the number of items that share the scene (one alone is larger)."""
    kind = THING[thing] if thing else THINGS[int(rng.integers(len(THINGS)))]
    colour = None
    if kind.hue:
        colour = kind.hue if rng.random() < 0.3 else str(rng.choice(list(COLOURS)))
    return Item(
        thing=kind.name,
        slot=slot,
        colour=colour,
        variant=str(rng.choice(list(kind.variants))) if kind.variants else None,
        size=str(rng.choice(list(SIZES), p=(0.12, 0.76, 0.12))),
        scale=1.25 if crowd == 1 else 0.9375,
        skin=int(rng.integers(5)) if kind.skins else None,
        hidden=int(rng.integers(2)),
    )


def _draw_slots(rng: np.random.Generator, count: int) -> list[str]:
    if count == 1:
        return ["middle"] if rng.random() < 0.6 else [str(rng.choice(["left", "right"]))]
    if count == 2 and rng.random() >= 0.7:
        return [str(slot) for slot in rng.permutation(["left", "middle"])]
    if count == 2:
        return ["left", "right"]
    return list(SLOTS[:count])


def _draw_items(rng: np.random.Generator) -> tuple[Item, ...]:
    count = int(rng.choice([1, 2, 3, 4], p=(0.45, 0.38, 0.12, 0.05)))
    slots = _draw_slots(rng, count)
    items = [draw_item(rng, slot, crowd=count) for slot in slots]
    if count > 1 and rng.random() < 0.25:  # the same thing several times
        items = [replace(items[0], slot=item.slot) for item in items]
    return tuple(items)


def draw_photo_scene(rng: np.random.Generator, num_photos: int) -> Scene:
    """Draw a crop of one of the photographs."""
    return Scene(place="photo", photo=int(rng.integers(num_photos)), seed=int(rng.integers(2**31)))


def draw_scene(rng: np.random.Generator, split: Split = "train") -> Scene:
    """Draw a scene of the split."""
    while True:
        place = str(rng.choice(list(PLACES)))
        outdoors = place not in INDOORS
        scene = Scene(
            place=place,
            items=_draw_items(rng),
            time=str(rng.choice(list(TIMES), p=(0.6, 0.2, 0.2))) if outdoors else "day",
            weather=str(rng.choice(list(WEATHERS), p=(0.76, 0.08, 0.08, 0.08))) if outdoors else "clear",
            style="none" if rng.random() < 0.88 else str(rng.choice(list(STYLES)[1:])),
            seed=int(rng.integers(2**31)),
        )
        if allowed(scene, split):
            return scene
