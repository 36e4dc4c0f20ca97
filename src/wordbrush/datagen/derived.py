"""Pairs that follow from one picture: styles, colour and light, lettering, boxes, shapes, maps.

Emu Edit's paper (2311.10089) makes its pairs of these tasks so, from pictures that are there already: by
filters, by detectors and annotators, by rendering. What is put on can be taken off again, and a picture be
made from its map: both are pairs.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from wordbrush.data.rows import Row, decode, encode_png
from wordbrush.diffusion.runtime import resolve_device
from wordbrush.errors import UsageError
from wordbrush.perception.depth import DepthEstimator
from wordbrush.perception.grounding import Grounder, Mask, load_grounder
from wordbrush.perception.pose import PoseEstimator, draw_skeletons
from wordbrush.storybook.catalogue import STYLES, TONES
from wordbrush.storybook.styles import apply_style, apply_tone
from wordbrush.storybook.vision import (
    SLOT_COLOURS,
    WORDS,
    boxed,
    captions_of,
    coloured,
    filled,
    letter,
    sketch,
)
from wordbrush.storybook.wording import article, phrase

OPERATIONS: dict[str, tuple[str, ...]] = {
    "color": tuple(tone for tone in TONES if tone != "none"),
    "sketch": ("to_sketch", "from_sketch"),
    "text": ("text_add", "text_remove"),
    "depth": ("to_depth", "from_depth"),
    "style": tuple(style for style in STYLES if style != "none"),
    "normal": ("to_normal", "from_normal"),
    "pose": ("to_pose", "from_pose"),
    "detect": ("detect",),
    "segment": ("segment",),
    "segmentation": ("to_map", "from_map"),
}
"""Task -> what is done, one for each pair. An operation from_... needs the picture's caption."""
NEEDS = {
    "depth": "depth", "normal": "depth", "pose": "pose", "detect": "grounder", "segment": "grounder",
    "segmentation": "grounder",
}  # fmt: skip
"""Task -> the option that names the model which it is made with."""
_MAPS = {"normal": "surface normals", "pose": "pose"}
_TO_MAP = (
    "show the {what}", "turn it into the {what}", "convert the picture to its {what}", "find the {what}",
)  # fmt: skip
_FROM_MAP = (
    "make a picture from the {what}: {caption}", "{what} to picture: {caption}",
    "render the {what} as {caption}",
)  # fmt: skip
_RELIEF = 0.5
"""How far the nearest point of a picture is taken to be from its farthest, in short sides, for normals."""
_SHARES = (0.002, 0.9)
"""Of the picture that a thing which is found covers at least and at most: others are errors."""


@dataclass(frozen=True)
class Deriver:
    """Rows of edits -> rows of other tasks, of the pictures before those edits.

    Attributes:
        tasks: Some of `OPERATIONS`; of each a pair a row, where there is one: a thing may not be found.
        depth: Estimates it, for the tasks that need it.
        pose: Likewise.
        grounder: Likewise.
        things: What it looks for, in pictures whose caption names it.
        seed: Decides what is drawn.
    """

    tasks: Sequence[str]
    depth: DepthEstimator | None = None
    pose: PoseEstimator | None = None
    grounder: Grounder | None = None
    things: Sequence[str] = ()
    seed: int = 0

    @classmethod
    def load(
        cls,
        tasks: Sequence[str],
        *,
        depth: str | None = None,
        pose: str | None = None,
        grounder: str | None = None,
        things: Sequence[str] = (),
        seed: int = 0,
        device: str = "auto",
    ) -> Deriver:
        """With the models that the tasks need, by their folders or hub ids.

        Raises:
            UsageError: There is no such task; or its model, or what to look for, is not named.
            ModelError: A model is missing, or of another kind.
        """
        if unknown := [task for task in tasks if task not in OPERATIONS]:
            raise UsageError(f"--tasks: {unknown[0]!r} is none of {', '.join(OPERATIONS)}")
        given = {"depth": depth, "pose": pose, "grounder": grounder}
        needed = {NEEDS[task]: task for task in tasks if task in NEEDS}
        if missing := [name for name in needed if given[name] is None]:
            raise UsageError(f"--tasks {needed[missing[0]]} needs --{missing[0]} MODEL")
        if "grounder" in needed and not things:
            raise UsageError(
                f"--tasks {needed['grounder']} needs --things: what to look for, such as 'dog, car'"
            )
        place = resolve_device(device)
        return cls(
            tasks,
            DepthEstimator.load(depth, device=place) if depth and "depth" in needed else None,
            PoseEstimator.load(pose, device=place) if pose and "pose" in needed else None,
            load_grounder(grounder, device=place) if grounder and "grounder" in needed else None,
            things,
            seed,
        )

    def __call__(self, rows: Iterable[Row]) -> Iterator[Row]:
        """The pairs of each row; the same whatever other tasks are asked for."""
        for number, row in enumerate(rows):
            picture = decode(row.input_image)
            for task in self.tasks:
                rng = np.random.default_rng((13, self.seed, number, list(OPERATIONS).index(task)))
                if pair := self._pair(rng, task, picture, row, number):
                    yield pair

    def _pair(
        self, rng: np.random.Generator, task: str, picture: Image.Image, row: Row, number: int
    ) -> Row | None:
        names = [name for name in OPERATIONS[task] if row.source_caption or not name.startswith("from_")]
        operation = str(rng.choice(names))
        words = {"caption": row.source_caption or "", "word": str(rng.choice(WORDS))}
        named = self._named(words["caption"])
        if task in ("detect", "segment"):
            if not named:
                return None
            words["old"] = str(rng.choice(named))
            named = [words["old"]]
        changed = self._changed(task, operation, picture, words["word"], named)
        if changed is None:
            return None
        words["word"] = words["word"].lower()
        backwards = operation.startswith("from_") or operation == "text_remove"
        before, after = (changed, picture) if backwards else (picture, changed)
        captions = (None, None) if not row.source_caption else _captions(operation, words)
        return Row(
            input_image=encode_png(before),
            edit_prompt=_phrase(rng, task, operation, words),
            edited_image=encode_png(after),
            source_caption=captions[0],
            target_caption=captions[1],
            task=task,
            unit=row.unit or f"{number:07d}",
        )

    def _named(self, caption: str) -> list[str]:
        """The things that a caption names, in the singular or plural."""
        return [thing for thing in self.things if re.search(rf"\b{re.escape(thing)}(e?s)?\b", caption, re.I)]

    def _changed(
        self, task: str, operation: str, picture: Image.Image, word: str, things: Sequence[str]
    ) -> Image.Image | None:
        """The picture's other half; None where what it is about is not found."""
        match task:
            case "style":
                return apply_style(picture, operation)
            case "color":
                return apply_tone(picture, operation)
            case "sketch":
                return sketch(picture)
            case "text":
                return letter(picture, word)
            case "depth" | "normal":
                return self._map_of_depth(task, picture)
            case "pose":
                assert self.pose is not None  # `load` has seen to it
                people = self.pose(picture)
                return draw_skeletons(people, picture.size) if people else None
            case _:
                return self._marked(task, picture, self._found(picture, things))

    def _map_of_depth(self, task: str, picture: Image.Image) -> Image.Image:
        """Near is white, as the models of relative depth have it; or the normals."""
        assert self.depth is not None
        near = self.depth([picture])[0].numpy()
        if task == "normal":
            return normals(near)
        return Image.fromarray((near * 255).round().astype(np.uint8)).convert("RGB")

    def _found(self, picture: Image.Image, things: Sequence[str]) -> list[Mask]:
        """Of the things that are found: from the left to the right."""
        assert self.grounder is not None
        found = self.grounder.locate([picture] * len(things), things)
        masks = [one.mask for one in found if _SHARES[0] <= one.mask.mean() <= _SHARES[1]]
        return sorted(masks, key=lambda mask: float(np.nonzero(mask)[1].mean()))

    def _marked(self, task: str, picture: Image.Image, masks: Sequence[Mask]) -> Image.Image | None:
        if not masks:
            return None
        if task == "segmentation":
            colours = list(SLOT_COLOURS.values())
            return coloured(masks, [colours[number % len(colours)] for number in range(len(masks))])
        return boxed(picture, masks[0]) if task == "detect" else filled(picture, masks[0])


def normals(near: np.ndarray[Any, np.dtype[Any]]) -> Image.Image:
    """The surface normals of a depth map: red is to the right, green up, blue towards the viewer.

    Args:
        near: (H, W) in [0, 1], 1 being nearest; depth that is known up to scale gives normals up to relief.
    """
    down, right = np.gradient(near * _RELIEF * min(near.shape))
    vectors = np.stack([-right, down, np.ones_like(near)], axis=-1)
    vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
    return Image.fromarray(((vectors + 1) / 2 * 255).round().astype(np.uint8))


def _phrase(rng: np.random.Generator, task: str, operation: str, words: dict[str, str]) -> str:
    if task in _MAPS:
        wording = str(rng.choice(_FROM_MAP if operation.startswith("from_") else _TO_MAP))
        return wording.format(what=_MAPS[task], **words)
    if task == "style":
        return phrase(rng, task, "train", a_style=article(STYLES[operation]))
    return phrase(rng, operation, "train", **words)


def _captions(operation: str, words: dict[str, str]) -> tuple[str, str]:
    """Of the pictures before and after."""
    caption = words["caption"]
    if operation in TONES or operation in STYLES:
        return caption, f"{caption}, {(TONES | STYLES)[operation]}"
    way, _, kind = operation.partition("_")
    if kind in _MAPS:
        of_map = f"the {_MAPS[kind]} of {caption}"
        return (caption, of_map) if way == "to" else (of_map, caption)
    return captions_of(operation, **words)
