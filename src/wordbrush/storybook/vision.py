"""Edits beyond scenes: boxes, shapes, depth, outlines, maps, pictures from those, lettering: all exact."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from wordbrush.storybook.render import Mask, Rendered, Renderer
from wordbrush.storybook.scenes import Scene, Split, allowed, draw_scene
from wordbrush.storybook.wording import caption, phrase, short

BOX_COLOUR = (255, 40, 40)
SHAPE_COLOUR = (255, 0, 255)
SLOT_COLOURS = {
    "left": (230, 60, 60),
    "middle": (60, 190, 75),
    "right": (65, 105, 225),
    "back": (250, 210, 50),
}
"""Of the segmentation map; the ground is black."""
CONTOUR_COLOUR = (0, 255, 255)
HOLE_COLOUR = (128, 128, 128)
WORDS = (
    "OPEN",
    "SALE",
    "HELLO",
    "STOP",
    "LOVE",
    "CAFE",
    "ZOO",
    "TAXI",
    "WOW",
    "FUN",
    "PARK",
    "SHOP",
    "YES",
    "NO",
)
_LINE = 2 / 128
"""Width of a box's line in sides of the picture."""
_LETTERS = 0.2
"""Height of the lettering, likewise."""
_COARSE = 4
"""How many times the pixels of a side are reduced before `upscale`."""


@dataclass(frozen=True)
class VisionEdit:
    """A task on a scene, not yet rendered; the fields that it shares with `SceneEdit` mean the same.

    Attributes:
        item: Number of the item in question, where there is one.
        word: The lettering, where there is some.
        hole: Left, top, right and bottom of what is missing, in sides of the picture, where something is.
    """

    operation: str
    task: str
    scene: Scene
    instruction: str
    source_caption: str
    target_caption: str
    item: int | None = None
    word: str | None = None
    hole: tuple[float, float, float, float] | None = None


def draw_vision_edit(
    rng: np.random.Generator, split: Split = "train", *, operation: str | None = None
) -> VisionEdit:
    """Draw a task of a drawn scene; the operation, if not given, by `WEIGHTS`."""
    if operation is None:
        shares = np.array(list(WEIGHTS.values()))
        operation = str(rng.choice(list(WEIGHTS), p=shares / shares.sum()))
    while True:
        scene = replace(draw_scene(rng, split), style="none", tone="none")
        if not allowed(scene, split):
            continue
        item = int(rng.integers(len(scene.items))) if operation in ("detect", "segment") else None
        word = str(rng.choice(WORDS)) if operation.startswith("text_") else None
        hole = _draw_hole(rng) if operation == "inpaint" else None
        words = {"caption": caption(scene)}
        words |= {} if item is None else {"old": short(rng, scene, item)}
        words |= {} if word is None else {"word": word.lower()}
        return VisionEdit(
            operation, (TASKS | UNSEEN)[operation], scene, phrase(rng, operation, split, **words),
            *captions_of(operation, **words), item, word, hole,
        )  # fmt: skip


def captions_of(operation: str, **words: str) -> tuple[str, str]:
    """Of the pictures before and after, by `caption` and what else the operation is about: `old`, `word`."""
    before, after = _CAPTIONS[operation]
    return before.format(**words), after.format(**words)


def _draw_hole(rng: np.random.Generator) -> tuple[float, float, float, float]:
    """A quarter to a half of each side, wherever it fits."""
    width, height = rng.uniform(0.25, 0.5, 2)
    left, top = rng.uniform(0, 1 - width), rng.uniform(0, 1 - height)
    return float(left), float(top), float(left + width), float(top + height)


def render_vision_edit(render: Renderer, edit: VisionEdit) -> tuple[Image.Image, Image.Image]:
    """The pictures before and after."""
    return vision_pictures(render(edit.scene), edit)


def vision_pictures(found: Rendered, edit: VisionEdit) -> tuple[Image.Image, Image.Image]:
    """The same of an edit whose scene is rendered."""
    before, after = _PICTURES[edit.operation]
    return before(found, edit), after(found, edit)


def _plain(found: Rendered, edit: VisionEdit) -> Image.Image:
    return found.image


def _box(found: Rendered, edit: VisionEdit) -> Image.Image:
    return boxed(found.image, found.masks[edit.item or 0])


def boxed(picture: Image.Image, mask: Mask) -> Image.Image:
    """A copy with a red box around what the mask (H, W) is true on; as it is if that is nothing."""
    picture = picture.copy()
    box = Image.fromarray(mask).getbbox()
    if box is not None:
        width = max(1, round(_LINE * picture.width))
        left, top, right, bottom = box
        ImageDraw.Draw(picture).rectangle((left, top, right - 1, bottom - 1), outline=BOX_COLOUR, width=width)
    return picture


def _shape(found: Rendered, edit: VisionEdit) -> Image.Image:
    return filled(found.image, found.masks[edit.item or 0])


def filled(picture: Image.Image, mask: Mask) -> Image.Image:
    """A copy that is magenta where the mask (H, W) is true."""
    pixels = np.array(picture)
    pixels[mask] = SHAPE_COLOUR
    return Image.fromarray(pixels)


def _depth(found: Rendered, edit: VisionEdit) -> Image.Image:
    """Near is white."""
    return Image.fromarray(((1 - found.depth) * 255).round().astype(np.uint8)).convert("RGB")


def _sketch(found: Rendered, edit: VisionEdit) -> Image.Image:
    return sketch(found.image)


def sketch(picture: Image.Image) -> Image.Image:
    """White outlines on black: the length of the gradient of the lightness, doubled.

    At 128 pixels; a larger picture is smoothed first, so that its outlines are those that it has there.
    """
    scale = max(1.0, max(picture.size) / 128)
    smooth = picture.convert("L").filter(ImageFilter.GaussianBlur((scale - 1) / 2))
    down, right = np.gradient(np.asarray(smooth, dtype=np.float32) / 255)
    strength = (4 * scale * np.hypot(down, right)).clip(0, 1)
    return Image.fromarray((strength * 255).astype(np.uint8)).convert("RGB")


def _map(found: Rendered, edit: VisionEdit) -> Image.Image:
    return coloured(found.masks, [SLOT_COLOURS[item.slot] for item in edit.scene.items])


def coloured(masks: Iterable[Mask], colours: Iterable[tuple[int, int, int]]) -> Image.Image:
    """A map of things (N, H, W), each in its colour; later ones over earlier ones, the ground is black."""
    found = list(masks)
    pixels = np.zeros((*found[0].shape, 3), dtype=np.uint8)
    for mask, colour in zip(found, colours, strict=True):
        pixels[mask] = colour
    return Image.fromarray(pixels)


def _lettered(found: Rendered, edit: VisionEdit) -> Image.Image:
    return letter(found.image, edit.word or "")


def letter(picture: Image.Image, word: str) -> Image.Image:
    """A copy with a word in white letters with a black rim, across the top."""
    picture, side = picture.copy(), min(picture.size)
    font = ImageFont.load_default(_LETTERS * side)
    place: Any = (picture.width / 2, 0.03 * side)
    rim = max(1, round(0.012 * side))
    ImageDraw.Draw(picture).text(
        place, word, fill="white", font=font, anchor="ma", stroke_width=rim, stroke_fill="black"
    )
    return picture


def _coarse(found: Rendered, edit: VisionEdit) -> Image.Image:
    """As a picture of a few pixels looks when it is stretched."""
    small = found.image.reduce(_COARSE)
    return small.resize(found.image.size, Image.Resampling.BICUBIC)


def _holed(found: Rendered, edit: VisionEdit) -> Image.Image:
    picture = found.image.copy()
    box: Any = tuple(round(share * picture.width) for share in edit.hole or ())
    picture.paste(HOLE_COLOUR, box)
    return picture


def _contoured(found: Rendered, edit: VisionEdit) -> Image.Image:
    pixels = np.array(found.image)
    pixels[contours(found)] = CONTOUR_COLOUR
    return Image.fromarray(pixels)


def contours(found: Rendered) -> Mask:
    """(H, W): the pixels along the inner rim of every thing."""
    lines = np.zeros(found.masks.shape[1:], dtype=bool)
    for mask in found.masks:
        inner = Image.fromarray(mask).convert("L").filter(ImageFilter.MinFilter(3))
        lines |= mask & (np.asarray(inner) == 0)
    return lines


_Draw = Callable[[Rendered, VisionEdit], Image.Image]
_PICTURES: dict[str, tuple[_Draw, _Draw]] = {
    "detect": (_plain, _box), "segment": (_plain, _shape),
    "to_depth": (_plain, _depth), "from_depth": (_depth, _plain),
    "to_sketch": (_plain, _sketch), "from_sketch": (_sketch, _plain),
    "to_map": (_plain, _map), "from_map": (_map, _plain),
    "text_add": (_plain, _lettered), "text_remove": (_lettered, _plain),
    "upscale": (_coarse, _plain), "inpaint": (_holed, _plain), "contour": (_plain, _contoured),
}  # fmt: skip
_CAPTIONS: dict[str, tuple[str, str]] = {
    "detect": ("{caption}", "{caption}, a box around the {old}"),
    "segment": ("{caption}", "{caption}, the {old} in one colour"),
    "to_depth": ("{caption}", "the depth map of {caption}"),
    "from_depth": ("the depth map of {caption}", "{caption}"),
    "to_sketch": ("{caption}", "the outlines of {caption}"),
    "from_sketch": ("the outlines of {caption}", "{caption}"),
    "to_map": ("{caption}", "the segmentation map of {caption}"),
    "from_map": ("the segmentation map of {caption}", "{caption}"),
    "text_add": ("{caption}", '{caption}, with the word "{word}"'),
    "text_remove": ('{caption}, with the word "{word}"', "{caption}"),
    "upscale": ("{caption}, blurred", "{caption}"),
    "inpaint": ("{caption}, with a grey box", "{caption}"),
    "contour": ("{caption}", "{caption}, with lines around the things"),
}
# Emu Edit's name of each operation's task.
TASKS: dict[str, str] = {
    "detect": "detect", "segment": "segment", "to_depth": "depth", "from_depth": "depth",
    "to_sketch": "sketch", "from_sketch": "sketch", "to_map": "segmentation", "from_map": "segmentation",
    "text_add": "text", "text_remove": "text",
}  # fmt: skip
UNSEEN: dict[str, str] = {"upscale": "super-resolution", "inpaint": "inpainting", "contour": "contours"}
"""Operations of tasks that no embedded model is trained on: for task inversion."""
# How often each operation is drawn in training.
WEIGHTS: dict[str, float] = {
    "detect": 3, "segment": 3, "to_depth": 1, "from_depth": 2, "to_sketch": 1, "from_sketch": 2, "to_map": 2,
    "from_map": 2, "text_add": 2, "text_remove": 2,
}  # fmt: skip
