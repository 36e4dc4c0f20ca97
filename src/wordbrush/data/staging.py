"""What of a data set's folder is uploaded: shards, card, and what it was made from, without local paths."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path, PureWindowsPath
from shutil import copyfile
from typing import Any

from wordbrush.data.rows import DataError
from wordbrush.data.shards import find_shards

UPLOADED = ["README.md", "data/*.parquet", "draws.arrow", "run.json", "triplets.jsonl"]
"""All that `wordbrush data make` and `convert` write, as patterns of paths in the folder."""
_LOCAL = "/", "~", "./", "../"


def stage(folder: Path, target: Path, license: str | None = None) -> None:
    """Lay out what is uploaded of a data set; shards are linked, not copied.

    Args:
        folder: With a README.md and data/*.parquet, and what else of `UPLOADED` there is.
        target: An empty folder.
        license: Goes into the card, as the hub names it: apache-2.0, cc-by-4.0, ...

    Raises:
        DataError: There is no card or no shard, or run.json is damaged.
    """
    shards = [path for paths in find_shards(folder / "data").values() for path in paths]
    if not (folder / "README.md").is_file() or not shards:
        raise DataError(f"{folder} has no README.md and data/*.parquet: use `wordbrush data convert` first")
    whole = [path for name in ("draws.arrow", "triplets.jsonl") if (path := folder / name).is_file()]
    for path in [*shards, *whole]:
        link = target / path.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path.resolve())
    copyfile(folder / "README.md", target / "README.md")
    if license:
        _set_license(target / "README.md", license)
    if (folder / "run.json").is_file():
        _write_run(folder / "run.json", target / "run.json")


def _set_license(card: Path, license: str) -> None:
    from huggingface_hub.repocard import metadata_load, metadata_save

    metadata_save(card, (metadata_load(card) or {}) | {"license": license})


def _write_run(source: Path, target: Path) -> None:
    try:
        run = json.loads(source.read_bytes())
        run = without_paths(run, run.get("made_from", {}).get("contents", {}))
    except (OSError, ValueError, AttributeError) as error:
        raise DataError(f"{source} is damaged: delete it, or make the data set anew") from error
    target.write_text(json.dumps(run, indent=2), encoding="utf-8")


def without_paths(value: Any, local: Iterable[str]) -> Any:
    """JSON whose local paths, values and keys, are but the names of their files or folders.

    Args:
        value: Any JSON.
        local: What lies on this machine, though it may look like a hub id ("data/captions.parquet"). Whatever
            begins like a path ("/", "~", "./", "../", a drive) does, too. Of "A+B" each part is looked at. Of
            two with the same name the second one becomes "NAME (2)".
    """
    names: dict[str, str] = {}
    here = set(local)

    def named(path: str) -> str:
        if path not in names:
            name = PureWindowsPath(path).name
            twins = sum(PureWindowsPath(other).name == name for other in names)
            names[path] = f"{name} ({twins + 1})" if twins else name
        return names[path]

    def plain(text: str) -> str:
        if text not in here and "+" in text:
            return "+".join(map(plain, text.split("+")))
        is_path = text in here or text.startswith(_LOCAL) or PureWindowsPath(text).drive
        return named(text) if is_path else text

    def walk(value: Any) -> Any:
        if isinstance(value, dict):
            return {plain(str(key)): walk(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [walk(inner) for inner in value]
        return plain(value) if isinstance(value, str) else value

    return walk(value)
