"""Edits to evaluate by: pictures with an instruction and the captions before and after it."""

from __future__ import annotations

import functools
import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from PIL import Image

from wordbrush.data.contact_sheet import sample
from wordbrush.data.rows import Row, decode
from wordbrush.data.sources import open_parts, read_rows
from wordbrush.errors import UsageError
from wordbrush.storybook.edits import SceneEdit, draw_edit
from wordbrush.storybook.render import Renderer
from wordbrush.storybook.scenes import Scene, scene_rng
from wordbrush.storybook.sprites import SpriteLibrary


@dataclass(frozen=True)
class Example:
    """An edit that an editor is to make.

    Attributes:
        instruction: What to do.
        source_caption: Of the picture before.
        target_caption: Of the picture after; another one.
        open: A short side in pixels -> the picture before, "RGB", of that size.
        digest: SHA-256 of all that decides the picture.
    """

    instruction: str
    source_caption: str
    target_caption: str
    open: Callable[[int], Image.Image]
    digest: str


def digest_of(examples: Iterable[Example]) -> str:
    """SHA-256 of the texts and pictures of all."""
    texts = (f"{e.instruction}\0{e.source_caption}\0{e.target_caption}\0{e.digest}\n" for e in examples)
    return hashlib.sha256("".join(texts).encode()).hexdigest()


def storybook_examples(count: int, seed: int = 0) -> list[Example]:
    """Held-out edits of the storybook, of all kinds whose captions differ; rendered at any size.

    Raises:
        SpritesError: The sprites cannot be fetched.
    """
    SpriteLibrary.load()  # now rather than in the middle
    drawn = (draw_edit(scene_rng("test", number), "test") for number in itertools.count(seed * 1_000_000))
    with_words = (edit for edit in drawn if edit.source_caption != edit.target_caption)
    return [_of_scene(edit) for edit in itertools.islice(with_words, count)]


def _of_scene(edit: SceneEdit) -> Example:
    digest = hashlib.sha256(repr(edit.before).encode()).hexdigest()
    words = edit.instruction, edit.source_caption, edit.target_caption
    return Example(*words, partial(_render, edit.before), digest)


def _render(scene: Scene, size: int) -> Image.Image:
    return _renderer(size)(scene).image


@functools.lru_cache(maxsize=4)
def _renderer(size: int) -> Renderer:
    return Renderer(SpriteLibrary.load(), size=size)


def dataset_examples(source: Path, count: int, *, split: str | None = None, seed: int = 0) -> list[Example]:
    """Rows of a data set, drawn at random: one of each unit, and only those whose captions differ.

    Args:
        source: Of any layout that `wordbrush data` knows.
        count: How many, if there are as many.
        split: Only rows of this one; all if not given.
        seed: Of the draw.

    Raises:
        DataError: The source is damaged.
        UsageError: It has no such split, or no row with two captions.
    """
    parts = [part for part in open_parts(source) if split in (None, part.split)]
    if not parts:
        raise UsageError(f"{source} has no split {split!r}")
    rows, _ = sample(_usable(read_rows(parts)), count, seed)
    if not rows:
        raise UsageError(f"{source} has no row with captions of the pictures before and after the edit")
    return [_of_row(row) for row in rows]


def _usable(rows: Iterable[Row]) -> Iterator[Row]:
    seen: set[str] = set()
    for row in rows:
        if row.unit in seen or not row.source_caption or not row.target_caption:
            continue
        if row.source_caption != row.target_caption:
            seen |= {row.unit} if row.unit else set()
            yield row


def _of_row(row: Row) -> Example:
    digest = hashlib.sha256(row.input_image).hexdigest()
    captions = row.source_caption or "", row.target_caption or ""
    return Example(row.edit_prompt, *captions, partial(_decode, row.input_image), digest)


def _decode(encoded: bytes, size: int) -> Image.Image:
    return resize_short(decode(encoded), size)


def resize_short(picture: Image.Image, size: int) -> Image.Image:
    """The picture with a short side of `size` pixels."""
    if min(picture.size) == size:
        return picture
    factor = size / min(picture.size)
    width, height = (max(1, round(side * factor)) for side in picture.size)
    return picture.resize((width, height), Image.Resampling.LANCZOS)
