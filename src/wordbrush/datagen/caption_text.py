"""The text of a caption from the web: how it is tidied, and what speaks against it."""

from __future__ import annotations

import re
from html import unescape
from unicodedata import category, normalize

_TAG = re.compile(r"</?[A-Za-z][^<>]*>|<!--.*?-->")
_ADDRESS = re.compile(
    r"\b(?:https?|ftp)://|\bwww\.\w|\w@[\w-]+\.\w|\b[\w-]+\.(?:com|net|org)\b", re.IGNORECASE
)
_FILE_NAME = re.compile(
    r"[\w)-]\.(?:jpe?g|png|gif|webp|bmp|tiff?|svg|psd|eps|pdf|mp4|mov|avi)\b", re.IGNORECASE
)
_OFFER = re.compile(
    r"[$€£¥₹] ?\d|\d ?[€£]|\d ?% off\b|\bfree (?:shipping|delivery)\b|\b(?:buy|shop|order) now\b"
    r"|\badd to cart\b",
    re.IGNORECASE,
)
# Han, kana, Thai, Lao, Tibetan, Burmese, Khmer: no spaces between words.
_UNSPACED = re.compile(
    "[\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff\u3041-\u30ff\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff]"
)


def tidy(text: str) -> str:
    """One line of plain text, so that what looks alike is alike, and nothing hides in a word.

    HTML entities (also those that were escaped twice) become characters, compatible forms the usual ones
    (NFKC: full-width letters, ligatures, other spaces); tags, control and format characters (soft hyphens,
    zero-width ones) go, and white space becomes single spaces.
    """
    text = normalize("NFKC", unescape(unescape(text)))
    text = "".join(char for char in text if char.isspace() or category(char) not in ("Cc", "Cf"))
    return " ".join(_TAG.sub(" ", text).split())


def noise(text: str) -> str | None:
    """What a tidied caption has that describes no picture, or None.

    - "address": of the web or of e-mail.
    - "file name": of a picture, a video or a PDF.
    - "price or offer": an amount of money, or a shop's phrase such as "free shipping". A price that stands
      in the picture is lost, too.
    - "few words": fewer than two words of letters. A word has at least as many letters as digits; in scripts
      that put no spaces between words, each letter counts as one.
    """
    for reason, pattern in (("address", _ADDRESS), ("file name", _FILE_NAME), ("price or offer", _OFFER)):
        if pattern.search(text):
            return reason
    return "few words" if _words(text) < 2 else None


def _words(text: str) -> int:
    """How many words of letters there are."""
    unspaced = sum(char.isalpha() for char in _UNSPACED.findall(text))
    counts = [
        (sum(map(str.isalpha, word)), sum(map(str.isdigit, word)))
        for word in _UNSPACED.sub(" ", text).split()
    ]
    return unspaced + sum(letters >= max(digits, 1) for letters, digits in counts)
