"""The layout of InstructPix2Pix's own data sets (generate_img_dataset.py and edit_dataset.py of its code).

    seeds.json                   [["0000000", ["17", "4"]], ...]: each folder and the seeds in it, sorted
    0000000/prompt.json          {"input": caption, "edit": instruction, "output": caption}
    0000000/17_0.jpg, 17_1.jpg   before and after, quality 100
    0000000/metadata.jsonl       a line for each pair: seed, p2p_threshold, cfg_scale and CLIP's scores

A folder holds the pairs of one caption pair. What this layout has no place for (unit, task, turn, mask) is
written into further keys of `prompt.json` and into `17_mask.png`, which the original's reader passes by.
Where the pairs of one seed have several kinds of mask, a pair goes by both: `17-box_0.jpg`.
"""

from __future__ import annotations

import io
import json
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from wordbrush import images
from wordbrush.data.rows import SCORES, DataError, Row, decode, encode_png, make_row, suffix
from wordbrush.errors import ImageError, OutputError, one_line
from wordbrush.outputs import make_folder
from wordbrush.provenance import atomic_file

SEEDS = "seeds.json"
SPLITS = {"train": (0.0, 0.9), "val": (0.9, 0.9 + 0.05), "test": (0.9 + 0.05, 1.0)}
"""Split -> the shares of the folders between which its own lie, as edit_dataset.py cuts them."""
_NAME = re.compile(r"[\w-]+")  # of a folder or a seed: nothing that leads elsewhere
_EXTRA = ("unit", "task", "turn")


def write_original(folder: Path, rows: Iterable[Row]) -> None:
    """Write rows in the original layout; JPEG pictures are copied, others encoded at quality 100.

    Rows of equal texts and unit share a folder. A row without a seed gets its number there.

    Raises:
        DataError: Two rows of a folder have one seed, or a picture cannot be read.
        OutputError: A file cannot be written.
    """
    make_folder(folder)
    prompts: dict[str, int] = {}
    seeds: defaultdict[str, list[str]] = defaultdict(list)
    for row in rows:
        prompt = _prompt(row)
        name = f"{prompts.setdefault(json.dumps(prompt), len(prompts)):07d}"
        seed = _draw_name(len(seeds[name]) if row.seed is None else row.seed, row.mask_kind)
        if seed in seeds[name]:
            raise DataError(
                f"two rows of {row.edit_prompt!r} have the seed {seed}: this layout cannot hold both"
            )
        if not seeds[name]:
            make_folder(folder / name)
            own = {key: value for key, value in prompt.items() if (key, value) != ("unit", name)}
            _write(folder / name / "prompt.json", json.dumps(own).encode())
        try:
            _write_pair(folder / name, seed, row)
        except ImageError as error:
            raise DataError(f"{row.edit_prompt!r}, seed {seed}: {error}") from error
        seeds[name].append(seed)
    listed = [[name, sorted(found, key=lambda seed: f"{seed}_")] for name, found in sorted(seeds.items())]
    _write(folder / SEEDS, json.dumps(listed).encode())


def read_original(folder: Path) -> Iterator[Row]:
    """The rows of a data set in the original layout, folder by folder, the best pair of each first.

    Raises:
        DataError: A file is missing, damaged or not as the layout says.
    """
    for name, seeds in listed_seeds(folder):
        yield from _read_prompt(folder / name, set(seeds))


def listed_seeds(folder: Path, split: str | None = None) -> list[tuple[str, list[str]]]:
    """The folders of a split, or all, and the seeds in each.

    Raises:
        DataError: seeds.json is missing or damaged, or names what does not belong there.
    """
    listed = [_listed(folder / SEEDS, entry) for entry in _json(folder / SEEDS, list)]
    start, end = (math.floor(share * len(listed)) for share in (SPLITS[split] if split else (0.0, 1.0)))
    return listed[start:end]


def _listed(path: Path, entry: Any) -> tuple[str, list[str]]:
    try:
        name, seeds = entry
        if all(_NAME.fullmatch(text) for text in (name, *seeds)):
            return name, seeds
    except (TypeError, ValueError):
        pass
    raise DataError(f"{path}: not a list of folders and their seeds")


def _prompt(row: Row) -> dict[str, Any]:
    texts = {"input": row.source_caption, "edit": row.edit_prompt, "output": row.target_caption}
    texts |= {name: getattr(row, name) for name in _EXTRA}
    return {name: value for name, value in texts.items() if value is not None}


def _write_pair(folder: Path, seed: str, row: Row) -> None:
    _write(folder / f"{seed}_0.jpg", _jpeg(row.input_image))
    _write(folder / f"{seed}_1.jpg", _jpeg(row.edited_image))
    if row.mask is not None:
        mask = row.mask if suffix(row.mask) == "png" else encode_png(decode(row.mask))
        _write(folder / f"{seed}_mask.png", mask)
    values: dict[str, Any] = {"seed": int(seed.split("-")[0]), "mask_kind": row.mask_kind}
    values |= {"p2p_threshold": row.p2p_threshold, "cfg_scale": row.guidance_scale}
    values |= {name: getattr(row, name) for name in SCORES}
    line = json.dumps({name: value for name, value in values.items() if value is not None})
    path = folder / "metadata.jsonl"
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}") from error


def _read_prompt(folder: Path, seeds: set[str]) -> Iterator[Row]:
    prompt = _json(folder / "prompt.json", dict)
    known = _metadata(folder / "metadata.jsonl")
    for seed in [*(seed for seed in known if seed in seeds), *sorted(seeds - set(known))]:
        values = known.get(seed, {})
        mask = folder / f"{seed}_mask.png"
        columns = {
            "input_image": _bytes(folder / f"{seed}_0.jpg"),
            "edit_prompt": prompt.get("edit"),
            "edited_image": _bytes(folder / f"{seed}_1.jpg"),
            "source_caption": prompt.get("input", prompt.get("caption")),
            "target_caption": prompt.get("output"),
            "unit": folder.name,
            "mask": _bytes(mask) if mask.exists() else None,
            "mask_kind": values.get("mask_kind"),
            "seed": values["seed"] if "mask_kind" in values else int(seed) if seed.isdecimal() else None,
            "p2p_threshold": values.get("p2p_threshold"),
            "guidance_scale": values.get("cfg_scale"),
        }
        columns |= {name: prompt[name] for name in _EXTRA if name in prompt}
        columns |= {name: values.get(name) for name in SCORES}
        yield make_row(f"{folder} seed {seed}", columns)


def _metadata(path: Path) -> dict[str, dict[str, Any]]:
    """What is known of each seed, in the order of the file; nothing where there is none."""
    if not path.exists():
        return {}
    lines = [line for line in _bytes(path).splitlines() if line.strip()]
    rows: list[dict[str, Any]] = [_parse(path, line, dict) for line in lines]
    return {_draw_name(row.get("seed"), row.get("mask_kind")): row for row in rows}


def _draw_name(seed: Any, mask_kind: Any) -> str:
    """What the files of a pair begin with."""
    return str(seed) if mask_kind is None else f"{seed}-{mask_kind}"


def _jpeg(picture: bytes) -> bytes:
    """As the original's `image.save(..., quality=100)`."""
    if suffix(picture) == "jpg":
        return picture
    file = io.BytesIO()
    decode(picture).save(file, "JPEG", quality=100)
    return file.getvalue()


def _write(path: Path, data: bytes) -> None:
    with atomic_file(path) as file:
        file.write(data)


def _bytes(path: Path) -> bytes:
    try:
        if not path.is_file() or path.stat().st_size > images.MAX_BYTES:
            raise DataError(f"{path}: missing, or no file that belongs here")
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error


def _json(path: Path, kind: type[Any]) -> Any:
    return _parse(path, _bytes(path), kind)


def _parse(path: Path, text: bytes, kind: type[Any]) -> Any:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON ({one_line(error)})") from error
    if not isinstance(value, kind):
        raise DataError(f"{path}: not a JSON {'object' if kind is dict else 'list'}")
    return value
