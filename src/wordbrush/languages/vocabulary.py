"""The tables of one language: its words by what they mean, and its phrases by what they ask for."""

from __future__ import annotations

import json
import re
import tomllib
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

SLOTS = (
    "colour", "number", "slot", "size", "place", "time", "weather", "style", "tone", "pose", "expression",
    "change",
)  # fmt: skip
"""What a word of a table can be, besides a thing."""
VARIANTS = {"es-mx": "es", "zh-hant": "zh"}
"""emojibase's names of languages that share the tables of another one."""

_PLACEHOLDER = re.compile(r"\{(\w+)\}")
_NOTHING = r"(?!)"
_UNSPACED = ("ja", "th", "zh")


def fold(text: str) -> str:
    """Without case, accents of Latin letters, and the differences of full and half width."""
    letters: list[str] = []
    for letter in unicodedata.normalize("NFKC", text).casefold():
        base = unicodedata.normalize("NFD", letter)[0]
        letters.append(base if base.isascii() else letter)
    return "".join(letters).replace("œ", "oe")


def tidy(text: str, spaces: bool) -> str:
    """Folded, signs away; words apart by one blank where the language writes blanks, else all together."""
    words = re.findall(r"\w+", fold(text))
    return " ".join(words) if spaces else "".join(words)


@dataclass(frozen=True)
class Word:
    """What a word means: of a kind ("thing", "colour", ...), by its name in the storybook."""

    kind: str
    value: str


@dataclass(frozen=True)
class Phrase:
    """One way to ask for an operation: literals and placeholders in turn, a literal at both ends.

    Attributes:
        operation: What it asks for.
        literals: Patterns for the text before, between and behind the placeholders.
        names: The placeholders.
        kinds: The kind of word that each takes.
    """

    operation: str
    literals: tuple[re.Pattern[str], ...]
    names: tuple[str, ...]
    kinds: tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """All that is known of a language."""

    language: str
    spaces: bool
    words: dict[str, Word]
    seconds: dict[str, Word]
    """What a word can mean besides: French "rose" is a flower and a colour."""
    filler: frozenset[str]
    particles: frozenset[str]
    changing: frozenset[str]
    """Filler that is none beside a removal: "do not want to *change* the dog"."""
    contraries: re.Pattern[str]
    """Finds negations, exceptions, and words of removing or lessening, in its first group."""
    phrases: tuple[Phrase, ...]
    lexicon: frozenset[str]
    """Every word of the literals."""
    joiners: re.Pattern[str]
    """Finds words that join two orders or two things."""

    def against(self, text: str) -> list[str]:
        """The words of a tidied text that could turn what it asks for into its contrary."""
        return [found[1] for found in self.contraries.finditer(text) if found[1]]


def languages() -> tuple[str, ...]:
    """Those with phrases of their own."""
    folder = files("wordbrush") / "languages" / "tables"
    return tuple(sorted(path.name[:-5] for path in folder.iterdir() if path.name != "en.toml"))


@cache
def english() -> dict[str, Any]:
    """The English table: what a translation is put together from."""
    return _read("en")


@cache
def labels() -> dict[str, dict[str, str]]:
    """Language -> thing -> emojibase's label (see `wordbrush.storybook.labels`)."""
    path = files("wordbrush") / "languages" / "labels.json"
    return json.loads(path.read_text(encoding="utf-8"))


@cache
def table(language: str) -> Table:
    """The table of a language; of one that only emojibase knows, with things alone."""
    raw = _read(language) if language in languages() else {}
    spaces = bool(raw.get("spaces", language not in _UNSPACED))
    phrases, lexicon = _phrases(raw, spaces)
    short = {name: _tidied(raw.get(name, ()), spaces) for name in ("filler", "particles", "changing")}
    words, seconds = _words(language, raw, spaces)
    contraries = _contraries(raw.get("contraries", ()), short["filler"], spaces)
    joining = [_whole(tidy(word, spaces), spaces) for word in raw.get("joiners", ())]
    joiners = re.compile("|".join(joining) or _NOTHING)
    return Table(
        language, spaces, words, seconds, **short, contraries=contraries, phrases=phrases, lexicon=lexicon,
        joiners=joiners,
    )  # fmt: skip


def _contraries(words: Sequence[str], filler: frozenset[str], spaces: bool) -> re.Pattern[str]:
    """Where blanks are written, `quit*` is all words that begin so; elsewhere any part of the text counts.

    Filler that only looks like a contrary (zh 能不能, "can you") is passed over.
    """
    listed = [(tidy(word, spaces), word.endswith("*")) for word in words]
    contrary = "|".join(_whole(word, spaces, begins) for word, begins in listed) or _NOTHING
    plain = re.compile(contrary)
    harmless = [word for word in filler if (found := plain.search(word)) and found[0] != word]
    harmless.sort(key=len, reverse=True)
    return re.compile("|".join([*(_whole(word, spaces) for word in harmless), f"({contrary})"]))


def _whole(word: str, spaces: bool, begins: bool = False) -> str:
    end = r"\w*\b" if begins else r"\b"
    return rf"\b{re.escape(word)}{end}" if spaces else re.escape(word)


def _read(language: str) -> dict[str, Any]:
    path = files("wordbrush") / "languages" / "tables" / f"{language}.toml"
    return tomllib.loads(path.read_text(encoding="utf-8"))


def _tidied(words: Any, spaces: bool) -> frozenset[str]:
    return frozenset(tidy(word, spaces) for word in words)


def _words(language: str, raw: dict[str, Any], spaces: bool) -> tuple[dict[str, Word], dict[str, Word]]:
    found: dict[str, Word] = {}
    seconds: dict[str, Word] = {}
    named = {name: list(values) for name, values in raw.get("things", {}).items()}
    for variant in (language, *(other for other, base in VARIANTS.items() if base == language)):
        for name, label in labels().get(variant, {}).items():
            named.setdefault(name, []).extend(_clean(label))
    groups = {"thing": named} | {kind: raw.get(kind, {}) for kind in SLOTS}
    # A written form wins over one that an ending makes.
    for made in (False, True):
        for kind, values in groups.items():
            for value, forms in values.items():
                for form in forms:
                    for inflected in _forms(tidy(form, spaces), raw.get("endings", ())) if made else [form]:
                        text, word = tidy(inflected, spaces), Word(kind, value)
                        if found.setdefault(text, word).kind != kind and not made:
                            seconds[text] = word
    found.pop("", None)
    return found, seconds


def _clean(label: str) -> list[str]:
    """A label's forms: without what stands in brackets, and both sides of a slash."""
    return [part.strip() for part in re.sub(r"\(.*?\)", "", label).split("/") if not part.startswith("-")]


def _forms(word: str, endings: Any) -> list[str]:
    """The word with each ending, at its first word and at its last one."""
    head, *rest = word.split(" ")
    found: list[str] = []
    for old, new in endings:
        if head.endswith(old):
            found.append(" ".join([head.removesuffix(old) + new, *rest]))
        if rest and word.endswith(old):
            found.append(word.removesuffix(old) + new)
    return found


def _phrases(raw: dict[str, Any], spaces: bool) -> tuple[tuple[Phrase, ...], frozenset[str]]:
    verbs = {f"<{name}>": f"({text})" for name, text in raw.get("verbs", {}).items()}
    phrases: list[Phrase] = []
    lexicon: set[str] = set()
    for operation, templates in raw.get("phrases", {}).items():
        for template in templates:
            for mark, text in verbs.items():
                template = template.replace(mark, text)
            literals = _PLACEHOLDER.split(template)[::2]
            names = tuple(_PLACEHOLDER.findall(template))
            lexicon.update(word for text in literals for word in re.split(r"[()| ]+", fold(text)) if word)
            kinds = tuple("thing" if name in ("old", "new") else name for name in names)
            patterns = tuple(_pattern(text, spaces) for text in literals)
            phrases.append(Phrase(operation, patterns, names, kinds))
    return tuple(phrases), frozenset(lexicon)


def _pattern(literal: str, spaces: bool) -> re.Pattern[str]:
    """A literal's words and (one|or|another), in order, with only what is skipped between."""
    groups = re.findall(r"\([^)]*\)|[^\s()]+", fold(literal))
    options = [[tidy(word, spaces) for word in group.strip("()").split("|")] for group in groups]
    edge = r"\b" if spaces else ""
    joined = [f"{edge}(?:{'|'.join(sorted(words, key=len, reverse=True))}){edge}" for words in options]
    return re.compile(".*?".join(f"({part})" for part in joined))
