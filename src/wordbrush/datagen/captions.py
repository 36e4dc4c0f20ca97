"""Captions to write instructions for: streamed from files or the hub and filtered, or the storybook's own."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from itertools import count
from pathlib import Path
from typing import Any

from wordbrush.datagen.caption_text import noise, tidy
from wordbrush.datagen.checks import MAX_CHARS, unsafe
from wordbrush.errors import UsageError, one_line
from wordbrush.languages.detection import identifier
from wordbrush.storybook.scenes import Split, draw_scene, scene_rng
from wordbrush.storybook.wording import caption as describe
from wordbrush.triplets import Caption, normalise

_FORMATS = {".txt": "text", ".csv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}
_PACKED = ".gz"
_TEXT_COLUMNS = ("caption", "text", "TEXT", "input")
_URL_COLUMNS = ("url", "URL")
_UNLIKELY = 30.0  # times as likely as the wanted language must another one be


def read_captions(
    source: str | Path, *, split: str = "train", column: str | None = None, shuffle_seed: int | None = None
) -> Iterator[Caption]:
    """Captions one by one, tidied, without holding more than a block of them.

    Args:
        source: a file of text (one caption a line), CSV, JSON, JSONL or parquet, also packed by gzip; a
            folder that `datasets` reads; or a data set of the hub.
        split: of a folder or a data set.
        column: the name of the captions' column; the first of caption, text, TEXT, input if not given. Where
            a row has a list of captions, the first one is taken. The addresses are taken from url or URL, if
            there is one.
        shuffle_seed: of a permutation of all captions, for which the whole source is read first, and
            `datasets` keeps a copy of it in its cache. Streamed, in their own order, if not given.

    Raises:
        UsageError: the source cannot be read or is of no known format, or it has no such column or something
            other than text in it.
    """
    try:
        for row in _rows(str(source), split, shuffle_seed):
            yield _caption(row, column)
    except UsageError as error:
        raise UsageError(f"{source}: {error}") from error
    except Exception as error:  # the readers of many formats raise many kinds
        raise UsageError(f"cannot read captions from {source}: {one_line(error)}") from error


def _rows(source: str, split: str, shuffle_seed: int | None) -> Iterable[dict[str, Any]]:
    from datasets import disable_progress_bars, load_dataset  # takes seconds

    if not sys.stderr.isatty():
        disable_progress_bars()
    kind = _format(Path(source))
    where: dict[str, Any] = {"path": source, "split": split}
    if kind:
        where = {"path": kind, "data_files": source, "split": "train"}
    if shuffle_seed is None:
        return load_dataset(**where, streaming=True)
    return load_dataset(**where).shuffle(seed=shuffle_seed)


def _format(path: Path) -> str | None:
    """The reader of a file; None of what is no file by its name: a folder, or a data set of the hub."""
    kind = _FORMATS.get(Path(path.name.lower().removesuffix(_PACKED)).suffix)
    if path.is_dir():
        return None
    if kind is None and path.is_file():
        raise UsageError(f"a file of captions is {', '.join(_FORMATS)}, or one of these with {_PACKED}")
    return kind


def _caption(row: dict[str, Any], column: str | None) -> Caption:
    names = (column,) if column else _TEXT_COLUMNS
    found = next((name for name in names if name in row), None)
    if found is None:
        raise UsageError(f"no column {' or '.join(names)} but {', '.join(row)}: name the captions' column")
    url = next((row[name] for name in _URL_COLUMNS if row.get(name)), "")
    return Caption(text=tidy(_text(row[found], found)), url=str(url))


def _text(value: Any, column: str) -> str:
    """A caption as it stands in the file, "" where there is none; of a list of them the first."""
    first = next(iter(value), None) if isinstance(value, list) else value
    if isinstance(first, str | None):
        return first or ""
    raise UsageError(f"the column {column} holds {type(first).__name__}, not text: name the captions' column")


def storybook_captions(split: Split = "train", start: int = 0) -> Iterator[Caption]:
    """The captions of the storybook's scenes number `start`, `start` + 1, ..., without end."""
    for number in count(start):
        yield Caption(text=describe(draw_scene(scene_rng(split, number), split)))


class CaptionFilter:
    """Passes on the captions that are fit to be edited, and counts why it drops the others.

    Args:
        language: an ISO 639-1 code, or None for any. A caption is dropped when another language is more than
            30 times as likely; names, which say little of their language, stay.
        min_chars: characters that a caption has at least.
        max_chars: characters that a caption has at most.

    Attributes:
        counts: "kept", and each reason to drop: "too short", "too long", those of `noise`, "unsafe",
            "other language", "repeated caption", "repeated URL".

    Raises:
        UsageError: the language is not known.
    """

    def __init__(
        self, language: str | None = "en", *, min_chars: int = 3, max_chars: int = MAX_CHARS
    ) -> None:
        if language is not None and language not in identifier().labels:
            raise UsageError(
                f"cannot tell the language {language!r}: one of {', '.join(identifier().labels)}"
            )
        self.language, self.min_chars, self.max_chars = language, min_chars, max_chars
        self.counts: Counter[str] = Counter()
        self._seen: set[bytes] = set()

    def __call__(self, captions: Iterable[Caption]) -> Iterator[Caption]:
        """The captions to keep, as they come."""
        for caption in captions:
            reason = self._reason(caption)
            self.counts[reason or "kept"] += 1
            if reason is None:
                yield caption

    def _reason(self, caption: Caption) -> str | None:
        if len(caption.text) < self.min_chars:
            return "too short"
        if len(caption.text) > self.max_chars:
            return "too long"
        if reason := noise(caption.text):
            return reason
        if unsafe(caption.text):
            return "unsafe"
        if self._language_differs(caption.text):
            return "other language"
        return self._repeated(caption)

    def _repeated(self, caption: Caption) -> str | None:
        keys = {"repeated caption": _digest(normalise(caption.text))}
        if caption.url:
            keys["repeated URL"] = _digest(f"url {caption.url}")
        reason = next((reason for reason, key in keys.items() if key in self._seen), None)
        if reason is None:
            self._seen.update(keys.values())
        return reason

    def _language_differs(self, text: str) -> bool:
        if self.language is None:
            return False
        ranked = identifier().rank(text)
        return ranked[0][1] > _UNLIKELY * dict(ranked)[self.language]


def _digest(text: str) -> bytes:
    """10 bytes: of a hundred million texts, two are taken for the same with a probability below 1 %."""
    return blake2b(text.encode(errors="surrogatepass"), digest_size=10).digest()
