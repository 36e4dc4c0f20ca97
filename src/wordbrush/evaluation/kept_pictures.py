"""The pictures that an evaluation has made, as files, so that it goes on where it was killed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from wordbrush.evaluation.journal import Journal
from wordbrush.images import open_image
from wordbrush.progress import Show, silent
from wordbrush.provenance import atomic_file
from wordbrush.types import Editor, EditRequest

Paint = Callable[[Sequence[int]], Sequence[Image.Image]]
"""Numbers -> their pictures, "RGB"; a picture does not depend on what else is in the call."""


class KeptPictures:
    """The finished pictures of one evaluation, PNG files in its folder's `pictures`.

    Args:
        folder: Made if missing.
        about: JSON values: all that decides the pictures. A folder with pictures of anything else is refused.

    Raises:
        UsageError: The folder holds another evaluation.
        OutputError: It cannot be written.
    """

    def __init__(self, folder: Path, about: Mapping[str, Any]) -> None:
        self.folder = Journal(folder, about).folder / "pictures"

    def make(
        self, name: str, count: int, paint: Paint, show: Show = silent, *, at_once: int = 16
    ) -> list[Image.Image]:
        """Pictures 0 .. count-1 of some kind, painting those that are not there yet.

        Args:
            name: Of the kind; files are called NAME-0000.png and so on.
            count: How many.
            paint: Makes them.
            show: Told how far it is.
            at_once: How many numbers `paint` is given, at most.
        """
        paths = [self.folder / f"{name}-{number:04d}.png" for number in range(count)]
        todo = [number for number, path in enumerate(paths) if not path.exists()]
        for start in range(0, len(todo), at_once):
            show(f"Painting: {name}", count - len(todo) + start, count)
            part = todo[start : start + at_once]
            for number, picture in zip(part, paint(part), strict=True):
                save_png(picture, paths[number])
        return [open_image(path).image.convert("RGB") for path in paths]

    def edit(
        self, name: str, editor: Editor, requests: Sequence[EditRequest], show: Show = silent
    ) -> list[Image.Image]:
        """The first result of every request; see `make`."""

        def paint(numbers: Sequence[int]) -> list[Image.Image]:
            return [result.images[0] for result in editor.edit_batch([requests[k] for k in numbers])]

        return self.make(name, len(requests), paint, show)


def paint_all(
    name: str, count: int, paint: Paint, show: Show = silent, *, at_once: int = 16
) -> list[Image.Image]:
    """`KeptPictures.make`, of pictures that are not kept."""
    found: list[Image.Image] = []
    for start in range(0, count, at_once):
        show(f"Painting: {name}", start, count)
        found += paint(range(start, min(start + at_once, count)))
    return found


def save_png(picture: Image.Image, path: Path) -> None:
    """Whole or not at all; the folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path, overwrite=True) as file:
        picture.convert("RGB").save(file, "PNG", compress_level=3)


def save_jpeg(picture: Image.Image, path: Path, quality: int = 92) -> None:
    """Whole or not at all; the folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path, overwrite=True) as file:
        picture.convert("RGB").save(file, "JPEG", quality=quality, subsampling=0)


def open_jpeg(path: Path) -> Image.Image:
    """What `save_jpeg` wrote, "RGB"."""
    with Image.open(path) as picture:
        return picture.convert("RGB")


def shown_path(folder: Path, arm: int, number: int) -> Path:
    """Where a report finds the picture of an edit by one of several editors."""
    return folder / "pictures" / f"{arm:02d}-{number:04d}.jpg"
