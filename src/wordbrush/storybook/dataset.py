"""Rendered edits on disk: shards of pictures (memory-mapped) and rows, made once and read by every recipe.

A shard is `NAME.npy`, uint8 (n, 2, S, S, 3): before and after, and `NAME.jsonl` with one row for each. It
appears whole or not at all, and is skipped when it exists: making a data set resumes by itself.
"""

from __future__ import annotations

import functools
import json
import multiprocessing
import os
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np
from PIL import Image

from wordbrush.errors import WordbrushError
from wordbrush.provenance import atomic_file
from wordbrush.storybook.edits import (
    WEIGHTS,
    SceneEdit,
    draw_edit,
    draw_operation,
    render_edit,
    sample_edit,
    sample_photo_edit,
)
from wordbrush.storybook.photographs import PhotoLibrary
from wordbrush.storybook.render import Renderer
from wordbrush.storybook.scenes import Split, scene_rng
from wordbrush.storybook.sprites import SpriteLibrary
from wordbrush.storybook.vision import UNSEEN, VisionEdit, draw_vision_edit, render_vision_edit

SHARD = 500
Pixels = np.ndarray[Any, np.dtype[np.uint8]]


@dataclass(frozen=True)
class RenderedEdits:
    """A read-only view of the shards of one folder.

    Attributes:
        pixels: One (n, 2, S, S, 3) uint8 memory map per shard.
        rows: instruction, source_caption, target_caption, operation, task; in the order of the pixels.
        shards: Their files.
    """

    pixels: list[Pixels]
    rows: list[dict[str, str]]
    shards: list[Path]

    def __len__(self) -> int:
        return len(self.rows)

    def pair(self, index: int) -> Pixels:
        """(2, S, S, 3) uint8."""
        number, row = self._place(index)
        return self.pixels[number][row]

    def edit(self, index: int) -> SceneEdit:
        """What the pair shows: it is drawn again from its number.

        Raises:
            WordbrushError: It is no edit of a drawn scene, or the row is another edit: it was rendered by
                another version.
        """
        number, row = self._place(index)
        shard = self.shards[number]
        made = _made(shard.parent)
        if made.kind not in _DRAW:
            raise WordbrushError(f"{shard.parent} holds edits of {made.kind}, not of drawn scenes")
        edit = _DRAW[made.kind](made.split, int(shard.stem) * len(self.pixels[0]) + row)
        if edit.instruction != self.rows[index]["instruction"]:
            raise WordbrushError(f"edit {row} of {shard} is not the one that its number gives: render anew")
        return edit

    def _place(self, index: int) -> tuple[int, int]:
        return divmod(index, len(self.pixels[0]))  # all shards are as long as the first one

    @classmethod
    def open(cls, *folders: Path) -> RenderedEdits:
        """Open all complete shards of the folders, in order.

        Raises:
            WordbrushError: The first folder is not there.
        """
        names = [name for folder in folders for name in sorted(folder.glob("*.npy"))]
        if not names and not folders[0].is_dir():
            raise WordbrushError(f"no folder {folders[0]}: make it with `wordbrush data storybook`")
        texts = [name.with_suffix(".jsonl").read_text() for name in names]
        rows = [json.loads(line) for text in texts for line in text.splitlines()]
        return cls([cast("Pixels", np.load(name, mmap_mode="r")) for name in names], rows, names)


Kind = Literal[
    "scenes", "things", "photographs", "vision", "super-resolution", "inpainting", "contours"
]  # fmt: skip
KINDS: tuple[Kind, ...] = get_args(Kind)
_THINGS = {name: WEIGHTS[name] for name in ("replace", "add", "resize", "move", "swap", "count")}
"""Edits that need the shapes of things, which are learned last."""
_THINGS_FROM = 1_000_000
"""The scenes of `things` are others than those of `scenes`."""
_Sample = tuple[SceneEdit | VisionEdit, Image.Image, Image.Image]
"""An edit, and the pictures before and after."""


@dataclass(frozen=True)
class _Made:
    """What a folder's shards are of."""

    kind: Kind = "scenes"
    split: Split = "train"
    size: int = 128


def _made(folder: Path) -> _Made:
    record = folder / "made.json"
    return _Made(**json.loads(record.read_text())) if record.exists() else _Made()


def make(
    folder: Path,
    count: int,
    *,
    kind: Kind = "scenes",
    split: Split = "train",
    size: int = 128,
    processes: int | None = None,
) -> RenderedEdits:
    """Render edits 0 .. count-1 of a split (rounded up to whole shards) that are not in the folder yet.

    Where no photographs can be had, there are no edits of the kind "photographs": the result is empty.

    Raises:
        WordbrushError: the folder holds edits of another kind, split or size.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _keep_apart(folder, _Made(kind, split, size))
    SpriteLibrary.load()  # fetched once, before the processes start
    if kind == "photographs" and not len(PhotoLibrary.load(split)):
        return RenderedEdits.open(folder)
    numbers = [n for n in range(-(-count // SHARD)) if not (folder / f"{n:05d}.npy").exists()]
    for number in _in_processes(partial(_make_shard, folder, kind, split, size), numbers, processes):
        print(f"rendered shard {number} of {folder}", flush=True)
    return RenderedEdits.open(folder)


def _keep_apart(folder: Path, made: _Made) -> None:
    """A folder's shards are all of one making, which it says."""
    record = folder / "made.json"
    if not record.exists():
        with atomic_file(record) as file:
            file.write(json.dumps(asdict(made)).encode() + b"\n")
    elif (found := _made(folder)) != made:
        raise WordbrushError(
            f"{folder} holds edits of {asdict(found)}, not of {asdict(made)}: name another folder"
        )


def _in_processes(work: Callable[[int], int], numbers: list[int], processes: int | None) -> Iterable[int]:
    with multiprocessing.get_context("spawn").Pool(processes or os.cpu_count()) as pool:
        yield from pool.imap_unordered(work, numbers)


@functools.cache
def _renderer(kind: Kind, split: Split, size: int) -> Renderer:
    """One renderer in each process: its sprites stay decoded from shard to shard."""
    photos = PhotoLibrary.load(split) if kind == "photographs" else None
    return Renderer(SpriteLibrary.load(), photos, size)


def _row(edit: SceneEdit | VisionEdit) -> dict[str, str]:
    return {
        "instruction": edit.instruction,
        "source_caption": edit.source_caption,
        "target_caption": edit.target_caption,
        "operation": edit.operation,
        "task": edit.task,
    }


def _draw_scene(split: Split, index: int) -> SceneEdit:
    return draw_edit(scene_rng(split, index), split)


def _scene(render: Renderer, split: Split, index: int) -> _Sample:
    found = sample_edit(render, split, index)
    return found.edit, found.before, found.after


def _draw_thing(split: Split, index: int) -> SceneEdit:
    rng = scene_rng(split, _THINGS_FROM + index)
    return draw_edit(rng, split, operation=draw_operation(rng, _THINGS))


def _thing(render: Renderer, split: Split, index: int) -> _Sample:
    found = render_edit(render, _draw_thing(split, index))
    return found.edit, found.before, found.after


def _photograph(render: Renderer, split: Split, index: int) -> _Sample:
    found = sample_photo_edit(render, split, index)
    return found.edit, found.before, found.after


def _vision(render: Renderer, split: Split, index: int, operation: str | None = None) -> _Sample:
    edit = draw_vision_edit(scene_rng(split, index), split, operation=operation)
    return edit, *render_vision_edit(render, edit)


_DRAW: dict[Kind, Callable[[Split, int], SceneEdit]] = {"scenes": _draw_scene, "things": _draw_thing}
_SAMPLE: dict[Kind, Callable[[Renderer, Split, int], _Sample]] = {
    "scenes": _scene, "things": _thing, "photographs": _photograph, "vision": _vision,
    **{cast("Kind", task): partial(_vision, operation=operation) for operation, task in UNSEEN.items()},
}  # fmt: skip


def _make_shard(folder: Path, kind: Kind, split: Split, size: int, number: int) -> int:
    render = _renderer(kind, split, size)
    samples = [_SAMPLE[kind](render, split, number * SHARD + i) for i in range(SHARD)]
    pixels = np.stack([np.stack([np.asarray(before), np.asarray(after)]) for _, before, after in samples])
    final = folder / f"{number:05d}.npy"
    final.with_suffix(".jsonl").write_text("".join(json.dumps(_row(edit)) + "\n" for edit, *_ in samples))
    with final.with_suffix(".partial").open("wb") as file:
        np.save(file, pixels)
    final.with_suffix(".partial").replace(final)
    return number
