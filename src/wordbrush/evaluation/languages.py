"""How often does an instruction in another language, turned into English, still ask for the same edit?"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from wordbrush.errors import UsageError, WordbrushError
from wordbrush.languages.translation import Translator
from wordbrush.storybook.catalogue import COLOURS, PLACES, STYLES, THINGS
from wordbrush.storybook.scenes import SIZES
from wordbrush.storybook.wording import NUMBERS, PHRASINGS, SYNONYMS, place_words

Meaning = tuple[str, tuple[tuple[str, str], ...]]
"""An operation of the storybook, and what it is done to or with."""


@dataclass(frozen=True)
class Row:
    """An instruction and its English counterpart, by hand."""

    language: str
    text: str
    english: str


@dataclass
class Tally:
    """Of one language; `wrong` and `refused` hold (text, expected, found)."""

    num: int = 0
    same: int = 0
    wrong: list[tuple[str, str, str]] = field(default_factory=list[tuple[str, str, str]])
    refused: list[tuple[str, str, str]] = field(default_factory=list[tuple[str, str, str]])


def read_rows(path: Path) -> list[Row]:
    """One JSON object a line: language, text, english.

    Raises:
        UsageError: The file cannot be read, or the storybook's phrasings do not cover an English counterpart.
    """
    try:
        rows = [Row(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError, TypeError) as error:
        raise UsageError(f"cannot read {path}: one object a line, with language, text, english") from error
    if bad := next((row for row in rows if not meanings(row.english)), None):
        raise UsageError(f"{path}: {bad.english!r} is not among the storybook's phrasings")
    return rows


def measure(translator: Translator, rows: Sequence[Row]) -> dict[str, Tally]:
    """Translate every row; language -> what came of it."""
    found: defaultdict[str, Tally] = defaultdict(Tally)
    for row in rows:
        tally = found[row.language]
        tally.num += 1
        try:
            english = translator.translate(row.text).english
        except WordbrushError as error:
            tally.refused.append((row.text, row.english, str(error)))
            continue
        if meanings(english) & meanings(row.english):
            tally.same += 1
        else:
            tally.wrong.append((row.text, row.english, english))
    return dict(found)


def to_markdown(found: Mapping[str, Tally]) -> str:
    """A table, and each instruction that did not come out right."""
    lines = ["| language | instructions | the same edit | another one | refused |", "|---|---|---|---|---|"]
    counts: dict[str, tuple[int, ...]] = {
        name: (t.num, t.same, len(t.wrong), len(t.refused)) for name, t in found.items()
    }
    counts["all"] = tuple(map(sum, zip(*counts.values(), strict=True)))
    lines += [f"| {name} | " + " | ".join(map(str, row)) + " |" for name, row in counts.items()]
    rest = [row for tally in found.values() for row in (*tally.wrong, *tally.refused)]
    lines += ["", *(f"- {text}: “{wanted}” became “{made}”" for text, wanted, made in rest)]
    return "\n".join(lines).rstrip() + "\n"


def meanings(text: str) -> frozenset[Meaning]:
    """What an English instruction can ask for, by the storybook's phrasings; empty if none fits."""
    plain = " ".join(text.casefold().strip(" .!?").split())
    return frozenset(_readings(plain))


_SAME = {"plural": "old", "place_phrase": "place", "at_slot": "slot"}


def _readings(text: str) -> Iterator[Meaning]:
    for operation, pattern in _patterns():
        if found := pattern.fullmatch(text):
            slots = {name.removeprefix("a_"): _plain(value) for name, value in found.groupdict().items()}
            slots = {_SAME.get(name, name): value for name, value in slots.items()}
            if operation == "swap":
                slots = dict(zip(("old", "other"), sorted(slots.values()), strict=True))
            yield ("add" if operation == "add_anywhere" else operation), tuple(sorted(slots.items()))


@cache
def _patterns() -> list[tuple[str, re.Pattern[str]]]:
    describe = f"(?:(?:{'|'.join((*SIZES, *COLOURS))}) )*"
    thing = describe + _any(_canonical())
    variant = _any({name for kind in THINGS for name in kind.variants})
    at_slot = "(?:on the (?:left|right|back)|in the middle)"
    slots = {
        "old": f"{thing}(?: {at_slot})?", "other": thing, "plural": thing, "a_new": f"(?:an? )?{thing}",
        "a_old": f"(?:an? )?{thing}",
        "colour": _any(COLOURS), "a_colour": f"an? {_any(COLOURS)}", "number": _any(NUMBERS),
        "slot": "(?:left|right|middle|back)", "at_slot": at_slot,
        "variant": variant, "a_variant": f"an? {variant}",
        "a_style": f"an? {_any(s for s in STYLES.values() if s)}",
        "a_place": _any(place_words(place)["a_place"] for place in PLACES),
        "place_phrase": _any(PLACES.values()),
        "word": "[^\"]+", "caption": ".+",
    }  # fmt: skip
    found: list[tuple[str, re.Pattern[str]]] = []
    for operation, wordings in PHRASINGS.items():
        for wording in wordings:
            parts = re.split(r"\{(\w+)\}", wording)
            parts[::2] = map(re.escape, parts[::2])
            parts[1::2] = [f"(?P<{name}>{slots[name]})" for name in parts[1::2]]
            found.append((operation, re.compile("".join(parts))))
    return found


def _any(words: Iterable[str]) -> str:
    listed = sorted(words, key=len, reverse=True)
    return f"(?:{'|'.join(map(re.escape, listed))})"


@cache
def _canonical() -> dict[str, str]:
    """Every name of a thing, plurals and synonyms too -> its name in the storybook."""
    found: dict[str, str] = {}
    for kind in THINGS:
        for name in (kind.name, kind.plural, *SYNONYMS.get(kind.name, ())):
            found.setdefault(name, kind.name)
    return found


def _plain(value: str) -> str:
    """A slot's words without an article, things by their own names, places and slots by one name."""
    for place in PLACES:
        if value in place_words(place).values():
            return place
    value = re.sub(r"^(?:an? |on the |in the )", "", value)
    if which := re.search(r" (?:on|in) the \w+$", value):  # the dog on the left
        return _plain(value[: which.start()]) + which[0]
    longest = max((n for n in _canonical() if value.endswith(n)), key=len, default="")
    return value.removesuffix(longest) + _canonical()[longest] if longest else value
