"""Instructions into English by tables: words and phrases that are looked up, and nothing is downloaded."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from threading import Thread

from wordbrush.languages.detection import certain, detect
from wordbrush.languages.nearest import Encoder, load_encoder, nearest
from wordbrush.languages.translation import Translation, TranslationError
from wordbrush.languages.vocabulary import Phrase, Table, Word, english, table, tidy

_QUOTED = re.compile(r"[“”„«「『\"]\s*([^“”„«»「」『』\"]+?)\s*[“”»」』\"]")
_STOP = re.compile(r"[,;.!?，、。；！？\n]+")
_STRICT = ("remove", "text_remove", "weather", "tone")
"""What takes something away, or has an opposite: nothing may be left over that is not understood."""
_REMOVING = ("remove", "remove_at", "text_remove", "dispel")
_OF_THE_PICTURE = ("place", "time", "weather", "style", "tone")
_MOST_ORDERS = 4
_MOST = 16  # meanings of one instruction whose words have several
_ARTICLE_AN = ("a", "e", "i", "o", "u")


@dataclass(frozen=True)
class Span:
    """A known word of an instruction; a thing with what describes it."""

    start: int
    end: int
    word: Word
    described: str = ""
    """`small red `, in front of the thing's name."""


@dataclass(frozen=True)
class Reading:
    """One way to understand an instruction.

    Attributes:
        operation: A key of the English table.
        words: Placeholder -> what stands there, in English.
        rest: What of the instruction it does not explain.
    """

    operation: str
    words: dict[str, str]
    rest: tuple[str, ...] = ()
    explained: int = 0
    """How many letters of the instruction its phrase has; of two that fit, the longer one is meant."""

    @property
    def cost(self) -> tuple[int, int]:
        """The best reading has the lowest."""
        return len("".join(self.rest)), -self.explained

    def english(self, index: int = 0) -> str:
        """The reading as an English instruction; other wordings by their index."""
        wording = english()["english"][self.operation][index]
        return wording.format(**_in_english(self.words))


class TableTranslator:
    """Looks an instruction up: its words, then a phrase around them, then a phrase that is near in meaning.

    Args:
        encoder: Compares meanings; None where the extra `languages` is not installed.
    """

    def __init__(self, encoder: Encoder | None = None) -> None:
        self.encoder = encoder

    @classmethod
    def load(cls) -> TableTranslator:
        """With the sentence encoder, if it is installed."""
        return cls(load_encoder())

    def warm_up(self) -> Thread:
        """Load in a thread what the first instruction would wait for; what is wrong shows when that comes."""
        thread = Thread(target=self._load_all, name="translator", daemon=True)
        thread.start()
        return thread

    def _load_all(self) -> None:
        with suppress(Exception):
            detect("wordbrush")  # in no table: all are read, and then the model that tells languages apart
            if self.encoder is not None:
                self.encoder.encode(["wordbrush"])

    def translate(self, text: str) -> Translation:
        """One instruction; English is given back as it is, and so is what may be it and is not understood.

        Raises:
            TranslationError: A part of it is not understood.
        """
        language = detect(text)
        if language == "en":
            return Translation(text, "en", "as it is")
        try:
            return self._translate(text, language)
        except TranslationError:
            if certain(text, language):
                raise
            return Translation(text, "en", "as it is")

    def _translate(self, text: str, language: str) -> Translation:
        known = table(language)
        plain, quoted = _without_quotes(text)
        tidied = tidy(plain, known.spaces)
        best = _best(tidied, known, quoted)
        if best is not None and not best.rest:
            return Translation(best.english(), language, "tables")
        if not quoted and (orders := _orders(plain, known)):
            return Translation(" and ".join(orders), language, "tables")
        found = self._near(text, tidied, known, quoted, best)
        if found is None:
            raise TranslationError(_complaint(text, language, tidied, known, best))
        return Translation(found.english(), language, "tables and encoder", found.rest)

    def _near(
        self, text: str, tidied: str, known: Table, quoted: str, best: Reading | None
    ) -> Reading | None:
        # What could turn the meaning around is not for the encoder: to it, "stop the rain" is "make it rain".
        if self.encoder is None or (best is None and known.against(_without_words(tidied, known))):
            return None
        unknown = unexplained(tidied, known)
        if best is not None:
            candidates = [best]
        else:
            candidates = [replace(reading, rest=unknown) for reading in possible(tidied, known, quoted)]
        wordings = [
            (reading, reading.english(index))
            for reading in candidates
            for index in range(len(english()["english"][reading.operation]))
        ]
        found = nearest(self.encoder, text, wordings, sure=best is not None, unknown=bool(unknown))
        return None if found is not None and found.rest and found.operation.startswith(_STRICT) else found


def _best(text: str, known: Table, quoted: str = "") -> Reading | None:
    return min(readings(text, known, quoted), key=lambda reading: reading.cost, default=None)


def _exact(text: str, known: Table) -> Reading | None:
    best = _best(text, known)
    return best if best is not None and not best.rest else None


def _orders(text: str, known: Table) -> list[str]:
    """Several orders in one text, each in English; none if there are not several.

    Raises:
        TranslationError: A part of several is not wholly understood.
    """
    parts: list[str] = []
    for piece in (tidy(piece, known.spaces) for piece in _STOP.split(text)):
        parts += [piece] if _exact(piece, known) else _joined(piece, known)
    parts = [part for part in parts if find(part, known) or _strange(part, known, known.filler)]
    if sum(bool(find(part, known)) for part in parts) < 2:
        return []
    if len(parts) > _MOST_ORDERS:
        raise TranslationError(f"not understood ({known.language}): more than {_MOST_ORDERS} orders at once")
    # What stands once, before or behind, may be meant for each: "entferne den Hund und die Katze".
    sides = [_outside(part, known) for part in parts]
    gap = " " if known.spaces else ""
    found: list[str] = []
    for index, part in enumerate(parts):
        forms = [part, *(f"{head}{gap}{part}" for head, _ in sides[:index] if head)]
        forms += [f"{part}{gap}{tail}" for _, tail in sides[index + 1 :] if tail]
        meant = {order.english() for form in forms if (order := _exact(form, known))}
        if len(meant) != 1:  # "quita el perro y la lluvia" is no wish for rain
            raise TranslationError(_complaint(part, known.language, part, known, _best(part, known)))
        found += meant
    return list(dict.fromkeys(found))


def _joined(text: str, known: Table) -> list[str]:
    """The text in parts, cut at the joining words between known words."""
    spans = find(text, known)
    parts: list[str] = []
    start = 0
    for first, second in itertools.pairwise(spans):
        if found := known.joiners.search(text, first.end, second.start):
            parts.append(text[start : found.start()].strip())
            start = found.end()
    return [*parts, text[start:].strip()]


def _outside(text: str, known: Table) -> tuple[str, str]:
    """What stands before the first known word of a text, and behind the last."""
    spans = find(text, known)
    return (text[: spans[0].start].strip(), text[spans[-1].end :].strip()) if spans else ("", "")


def _without_words(text: str, known: Table) -> str:
    for span in reversed(find(text, known)):
        text = f"{text[: span.start]}\n{text[span.end :]}"
    return text


def readings(text: str, known: Table, quoted: str = "") -> Iterator[Reading]:
    """Every reading whose words and phrase stand in the text, in order."""
    text, spans = _once(text, known)
    for chosen in _groupings(text, spans, known):
        for phrase in known.phrases:
            reading = _match(phrase, text, chosen, known, quoted)
            if reading is not None:
                yield reading


def find(text: str, known: Table) -> list[Span]:
    """The known words of a tidied text, the longest first where they overlap."""
    found: list[Span] = []
    start = 0
    longest = max(map(len, known.words), default=0)
    while start < len(text):
        end = _longest(text, start, known, longest)
        if end is None:
            start += 1
            continue
        word = known.words.get(text[start:end])
        if word is not None:
            found.append(Span(start, end, word))
        start = end
    return found


def _longest(text: str, start: int, known: Table, longest: int) -> int | None:
    if known.spaces and start and text[start - 1] != " ":
        return None
    for end in range(min(len(text), start + longest), start, -1):
        inside = known.spaces and known.language != "ko" and end < len(text) and text[end] != " "
        if not inside and text[start:end] in known.words:
            return end
    return None


def _groupings(text: str, spans: Sequence[Span], known: Table) -> Iterator[list[Span]]:
    """Each meaning of the words: as they are, then with colours and sizes taken to the things beside."""
    options = [[span.word, *filter(None, [known.seconds.get(text[span.start : span.end])])] for span in spans]
    for words in itertools.islice(itertools.product(*options), _MOST):
        meant = [replace(span, word=word) for span, word in zip(spans, words, strict=True)]
        yield meant
        merged: list[Span] = []
        for span in meant:
            if merged and (joined := _join(text, merged[-1], span, known)):
                merged[-1] = joined
            else:
                merged.append(span)
        if len(merged) < len(meant):
            yield merged


def _once(text: str, known: Table) -> tuple[str, list[Span]]:
    """The text without what says the same again (太暗了，亮一点: too dark, brighter), and its known words."""
    kept: list[Span] = []
    for span in find(text, known):
        if span.word.kind in _OF_THE_PICTURE and span.word in [other.word for other in kept]:
            text = text[: span.start] + "\n" * (span.end - span.start) + text[span.end :]
        else:
            kept.append(span)
    return text, kept


def _join(text: str, first: Span, second: Span, known: Table) -> Span | None:
    between = text[first.end : second.start].split() if known.spaces else [text[first.end : second.start]]
    if any(part and part not in known.particles for part in between):
        return None
    kinds = {first.word.kind, second.word.kind}
    if kinds not in ({"thing", "colour"}, {"thing", "size"}):
        return None
    thing, other = (first, second) if first.word.kind == "thing" else (second, first)
    if thing.described:
        return None
    return Span(first.start, second.end, thing.word, f"{other.word.value} ")


def _match(phrase: Phrase, text: str, spans: Sequence[Span], known: Table, quoted: str) -> Reading | None:
    names = [name for name in phrase.names if name != "word"]
    if ("word" in phrase.names) != bool(quoted) or tuple(span.word.kind for span in spans) != tuple(
        kind for kind in phrase.kinds if kind != "word"
    ):
        return None
    filler = known.filler - known.changing if phrase.operation in _REMOVING else known.filler
    rest: list[str] = []
    explained = 0
    if quoted:  # the text around a quoted word is looked at as a whole
        gaps, literals = [text], [re.compile(".*?".join(p.pattern for p in phrase.literals if p.pattern))]
    else:
        edges = [0, *(edge for span in spans for edge in (span.start, span.end)), len(text)]
        gaps = [text[a:b] for a, b in zip(edges[::2], edges[1::2], strict=True)]
        literals = list(phrase.literals)
    for gap, literal in zip(gaps, literals, strict=True):
        found = literal.search(gap)
        if found is None:
            return None
        left = _cut(gap, found)
        if known.against(left):
            return None
        rest += _strange(left, known, filler)
        explained += sum(map(len, found.groups()))
    words = {name: span.described + span.word.value for name, span in zip(names, spans, strict=True)}
    operation = phrase.operation
    if operation == "dispel":
        return _dispelled(words["weather"], rest, explained)
    if operation in ("time", "weather", "tone"):
        operation = f"{operation}.{words[operation]}"
    elif operation == "change":
        operation = words.pop("change")
    if operation == "pose" and words.get("thing") == "face":
        return None
    return Reading(operation, words | ({"word": quoted} if quoted else {}), tuple(rest), explained)


def _dispelled(weather: str, rest: list[str], explained: int) -> Reading | None:
    """What takes bad weather away; the absence of fine weather is no weather of the storybook."""
    return None if weather == "clear" else Reading("weather.clear", {}, tuple(rest), explained)


def _cut(gap: str, found: re.Match[str]) -> str:
    """The gap without what the literal's groups matched."""
    kept = list(gap)
    for index in range(1, len(found.groups()) + 1):
        kept[slice(*found.span(index))] = ["\n"] * (found.end(index) - found.start(index))
    return "".join(kept)


def _strange(text: str, known: Table, filler: frozenset[str]) -> list[str]:
    """What of a text is no filler."""
    words = sorted(filler | known.particles, key=len, reverse=True)
    if words:
        edge = r"\b" if known.spaces else ""
        text = re.sub(f"{edge}(?:{'|'.join(map(re.escape, words))}){edge}", "\n", text)
    return [part.strip() for part in text.split("\n") if part.strip()]


def unexplained(text: str, known: Table) -> tuple[str, ...]:
    """What of a text is in no table of its language."""
    return tuple(_strange(_without_words(text, known), known, known.filler | known.lexicon))


def possible(text: str, known: Table, quoted: str = "") -> Iterator[Reading]:
    """Every reading that uses exactly the known words, whatever else the text says."""
    for spans in _groupings(*_once(text, known), known):
        kinds = sorted(span.word.kind for span in spans)
        for operation, names in _SIGNATURES.items():
            wanted = sorted(name for name in names if name != "word")
            if kinds != wanted or ("word" in names) != bool(quoted):
                continue
            filled: dict[str, str] = {"word": quoted} if quoted else {}
            left = list(spans)
            for name in names:
                span = next((s for s in left if s.word.kind == name), None)
                if span is not None:
                    left.remove(span)
                    filled[name] = span.described + span.word.value
            yield Reading(operation, filled)


# Not those of two things: which one replaces the other is never guessed.
_SIGNATURES: dict[str, tuple[str, ...]] = {
    "remove": ("thing",), "remove_at": ("thing", "slot"), "add_at": ("thing", "slot"), "add": ("thing",),
    "recolour": ("thing", "colour"), "bigger": ("thing",), "smaller": ("thing",), "move": ("thing", "slot"),
    "count": ("number", "thing"), "pose": ("thing", "pose"),
    "expression": ("thing", "expression"), "expression_alone": ("expression",), "background": ("place",),
    "style": ("style",), "detect": ("thing",), "segment": ("thing",), "text_add": ("word",),
    "text_remove": (), "to_depth": (), "to_sketch": (), "to_map": (),
    **{f"time.{value}": () for value in ("day", "sunset", "night")},
    **{f"weather.{value}": () for value in ("clear", "rain", "snowfall", "fog")},
    **{f"tone.{value}": () for value in (
        "bright", "dark", "vivid", "pale", "warm", "cool", "contrast", "blur", "sharp",
    )},
}  # fmt: skip


def _complaint(text: str, language: str, tidied: str, known: Table, best: Reading | None) -> str:
    parts = unexplained(tidied, known) or (best.rest if best is not None else ())
    parts = parts or tuple(known.against(_without_words(tidied, known)))
    what = ", ".join(f"“{part}”" for part in parts) or f"what “{text}” asks for"
    return f"not understood ({language}): {what}; say it in English, or name a --translator"


def _without_quotes(text: str) -> tuple[str, str]:
    """The text without a quoted word, and that word."""
    found = _QUOTED.search(text)
    if found is None:
        return text, ""
    return f"{text[: found.start()]} {text[found.end() :]}", found[1]


def _in_english(words: dict[str, str]) -> dict[str, str]:
    """Every form of the words that an English phrase may ask for."""
    known = english()
    found = dict(words)
    for name in ("old", "new", "thing"):
        if name in words:
            found[f"a_{name}"] = _article(words[name])
    if "thing" in words:
        found["things"] = known["plurals"].get(words["thing"], words["thing"] + "s")
    if "slot" in words:
        found["at_slot"] = "in the middle" if words["slot"] == "middle" else f"on the {words['slot']}"
    if "place" in words:
        found["a_place"] = known["places"][words["place"]]
    if "style" in words:
        found["a_style"] = _article(known["styles"][words["style"]])
    return found


def _article(noun: str) -> str:
    return f"{'an' if noun.startswith(_ARTICLE_AN) and not noun.startswith(('uf', 'uni')) else 'a'} {noun}"
