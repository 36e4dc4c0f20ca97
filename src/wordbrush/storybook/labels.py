"""What the storybook's things are called in other languages, by emojibase: makes `languages/labels.json`.

Run it again with `python -m wordbrush.storybook.labels` after a change of the catalogue.
"""

from __future__ import annotations

import json
import tarfile
from importlib.resources import files
from pathlib import Path
from typing import Any, cast

from wordbrush.storybook.catalogue import THINGS, Thing
from wordbrush.storybook.sprites import NAMES, fetch

_OTHER = {"man": "man", "woman": "woman", "face": "grinning face"}


def label_of(thing: Thing) -> str:
    """The label whose translation names the thing alone: without a gender, a pose or an expression."""
    label = _OTHER.get(thing.name, thing.label)
    return label.removeprefix("man ") if thing.hidden else label


def labels(tarball: Path) -> dict[str, dict[str, str]]:
    """Language -> thing -> its label in that language, for every language of emojibase but English."""
    with tarfile.open(tarball) as tar:
        names = sorted(name for name in tar.getnames() if name.endswith("/data.json"))
        tables = {name.split("/")[1]: _read(tar, name) for name in names}
    codes = {label: code for code, label in tables["en"].items()}
    wanted = {thing.name: codes[label_of(thing)] for thing in THINGS}
    return {
        language: {name: table[code] for name, code in wanted.items() if code in table}
        for language, table in tables.items()
        if not language.startswith("en")
    }


def _read(tar: tarfile.TarFile, name: str) -> dict[str, str]:
    """Hexcode -> label."""
    stream = tar.extractfile(name)
    assert stream is not None
    entries = cast("list[dict[str, Any]]", json.load(stream))
    return {entry["hexcode"]: entry["label"] for entry in entries}


def main() -> None:
    """Write the file anew."""
    path = Path(str(files("wordbrush"))) / "languages" / "labels.json"
    text = json.dumps(labels(fetch(NAMES)), ensure_ascii=False, indent=0, sort_keys=True)
    path.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
