"""Which language is an instruction in? By its letters, then by the tables' words, then by py3langid."""

from __future__ import annotations

import importlib.util
import re
from functools import cache
from typing import Any

from wordbrush.languages.vocabulary import Table, english, fold, labels, languages, table, tidy

_SCRIPTS = (
    ("ja", r"[\u3040-\u30ff]"), ("ko", r"[\uac00-\ud7af\u1100-\u11ff]"), ("zh", r"[\u4e00-\u9fff]"),
    ("th", r"[\u0e00-\u0e7f]"), ("hi", r"[\u0900-\u097f]"), ("bn", r"[\u0980-\u09ff]"),
    ("uk", r"[іїєґ]"), ("ru", r"[\u0400-\u04ff]"),
)  # fmt: skip
_QUOTED = re.compile(r"[“„«「『\"].*?[”“»」』\"]")
_CERTAIN = 0.98


def detect(text: str, *, every: bool = False) -> str:
    """The language's code; "en" whenever English is as likely as anything else.

    Args:
        text: An instruction; what stands in quotes does not count.
        every: Not only the languages of the tables and of emojibase, but all that py3langid knows.
    """
    plain = _QUOTED.sub(" ", text)
    for language, letters in _SCRIPTS:
        if re.search(letters, plain.casefold()):
            return language
    words = re.findall(r"\w+", fold(plain))
    shares = {language: coverage(plain, table(language)) for language in languages()}
    best = max(shares, key=lambda language: shares[language])
    ours = _share(words, _english_words())
    if shares[best] > ours and shares[best] >= 0.5:
        return best
    if ours >= 0.5 or not words:
        return "en"
    return _by_model(plain, every)


def coverage(text: str, known: Table) -> float:
    """Share of a text's words that a table knows."""
    if not known.spaces:
        return 0.0
    simple = known.filler | known.lexicon | {w for form in known.words for w in form.split()}
    words = tidy(text, True).split()
    return _share(words, simple | {word for word in words if known.against(word)})


def _share(words: list[str], known: frozenset[str] | set[str]) -> float:
    return sum(word in known for word in words) / max(1, len(words))


def certain(text: str, language: str) -> bool:
    """Whether a text can hardly be English with a foreign name in it, such as "art nouveau" or "a sombrero".

    Foreign letters say so; of Latin ones a word of the language's grammar that is no English word; and where
    no table has that grammar, three words or more.
    """
    words = re.findall(r"\w+", fold(_QUOTED.sub(" ", text)))
    if not all(word.isascii() for word in words):
        return True
    if language not in languages():
        return len(words) > 2
    known = table(language)
    grammar = known.filler | known.particles | known.lexicon | {*known.against(" ".join(words))}
    return bool({*words} & grammar - _english_words())


@cache
def _english_words() -> frozenset[str]:
    """Those of the English table, and of the things' names."""
    raw = english()
    wordings = [wording for some in raw["english"].values() for wording in some]
    names = {thing for things in labels().values() for thing in things}
    texts = [raw["words"], *wordings, *raw["styles"].values(), *raw["places"].values(), *names]
    return frozenset(re.findall(r"\w+", " ".join([*texts, *raw["plurals"].values()])))


def _by_model(text: str, every: bool) -> str:
    """By py3langid, if it is installed and certain; else English."""
    if importlib.util.find_spec("py3langid") is None:
        return "en"
    language, share = identifier().classify(text)
    return language if (every or language in labels()) and share > _CERTAIN else "en"


@cache
def identifier() -> Any:
    """py3langid's, with probabilities: 4 MB in its wheel, 0.1 ms a text; extras: `languages`, `data`."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
