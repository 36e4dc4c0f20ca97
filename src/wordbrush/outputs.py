"""Where results go: their names, the checks made before any computing, and writing them with provenance."""

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from wordbrush.errors import OutputError, UsageError

if TYPE_CHECKING:
    from wordbrush.images import Picture
    from wordbrush.types import EditResult

RESULTS = "results.json"
"""In a folder of results, written last."""
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
_LONGEST = {".jpg": 65_500, ".jpeg": 65_500, ".webp": 16_383}
"""Pixels of a side that these formats can hold."""


def default_output(picture: Path) -> Path:
    """`dog.jpg` -> `dog-edited.png`, next to the input."""
    return picture.with_name(f"{picture.stem}-edited.png")


def variation_paths(path: Path, count: int) -> list[Path]:
    """One path per variation: `out.png`, `out-2.png`, `out-3.png`, ..."""
    return [path, *(path.with_name(f"{path.stem}-{number}{path.suffix}") for number in range(2, count + 1))]


def check_outputs(paths: Sequence[Path], *, force: bool, inputs: Sequence[Path] = ()) -> None:
    """Refuse outputs that could not be written, before anything is computed for them.

    Raises:
        UsageError: A format that is not written, a file that exists where `force` is not given, a name that
            is given twice, or that of one of the `inputs`.
        OutputError: A folder that is missing or not writable.
    """
    taken = {os.path.realpath(path) for path in inputs}
    for path in paths:
        if os.path.realpath(path) in taken:
            raise UsageError(f"{path} is given twice: name another file for the result")
        taken.add(os.path.realpath(path))
        if path.suffix.lower() not in SUFFIXES:
            raise UsageError(f"cannot write {path}: the formats are {', '.join(SUFFIXES)}")
        try:
            is_folder, exists = path.is_dir(), os.path.lexists(path)
        except OSError as error:
            raise OutputError(f"cannot write {path}: {error.strerror}") from error
        if is_folder:
            raise UsageError(f"{path} is a folder: name a file in it")
        if exists and not force:
            raise UsageError(f"{path} exists: give another name with -o, or --force to overwrite it")
    for folder in {path.parent for path in paths}:
        check_folder(folder)


def check_size(paths: Sequence[Path], size: tuple[int, int]) -> None:
    """Refuse formats that cannot hold a picture of this width and height, before it is computed."""
    for path in paths:
        longest = _LONGEST.get(path.suffix.lower(), max(size))
        if max(size) > longest:
            raise UsageError(f"cannot write {path}: this format holds {longest} pixels a side; use .png")


def check_folder(folder: Path) -> None:
    """Raise OutputError unless a file can be made in `folder`.

    Tried rather than asked: permission bits say little on network drives, on Windows and to root.
    """
    if not folder.is_dir():
        raise OutputError(f"the folder {folder} does not exist")
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OutputError(f"cannot write into {folder}: {error.strerror}") from error


def make_folder(folder: Path, *, private: bool = False) -> None:
    """Make a folder for results, parents included, and check that it can be written.

    Args:
        folder: May be there.
        private: A new one is for its owner alone.

    Raises:
        OutputError: it cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700 if private else 0o777)
    except OSError as error:
        raise OutputError(f"cannot make the folder {folder}: {error.strerror}") from error
    check_folder(folder)


def write_texts(folder: Path, texts: Mapping[str, str]) -> None:
    """Write text files, whole or not at all each, in the place of older ones.

    Args:
        folder: Must be there.
        texts: File name -> content.

    Raises:
        OutputError: one cannot be written.
    """
    from wordbrush.provenance import atomic_file

    for name, text in texts.items():
        with atomic_file(folder / name, overwrite=True) as file:
            file.write(text.encode())


def check_results(folder: Path, *, force: bool) -> None:
    """Refuse a folder that holds results already, unless `force` is given.

    Raises:
        UsageError: it does.
    """
    if not force and (folder / RESULTS).exists():
        raise UsageError(f"{folder} holds results: name another folder, or --force to overwrite them")


def save_result(
    result: "EditResult",
    paths: Sequence[Path],
    *,
    source: "Picture",
    mask: "Picture | None" = None,
    quality: int = 95,
    overwrite: bool = False,
) -> None:
    """Write every variation of a result, each with what it takes to make that one again.

    Args:
        result: what an editor gave back.
        paths: one per variation.
        source: the picture that was edited.
        mask: the mask, if there was one.
        quality: of JPEG and WebP files, 1 to 100.
        overwrite: whether existing files may be replaced.
    """
    from wordbrush.provenance import save_image

    masked = {} if mask is None else {"mask_sha256": mask.sha256}
    for image, path, seed in zip(result.images, paths, result.seeds, strict=True):
        settings = {**result.settings, **masked, "seed": seed, "num_variations": 1}
        save_image(image, path, settings=settings, source=source, quality=quality, overwrite=overwrite)
