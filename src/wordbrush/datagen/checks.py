"""Reasons to reject rows: malformed, unchanged, unsafe, or too much like a row that was kept before.

The checks of one row are pure predicates: they give the reason in words, or None. Only what compares rows
with each other remembers those it kept.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image

from wordbrush.tasks import TASKS
from wordbrush.triplets import EDIT_END, PROMPT_END, Triplet, normalise

Vectors = np.ndarray[Any, np.dtype[np.float32]]
Embed = Callable[[Sequence[str]], Vectors]
"""N texts -> (N, D) vectors whose cosine says how alike two texts are."""

MAX_CHARS = 300
"""Of each text of a row: about what Stable Diffusion's text encoder reads of it, 75 tokens."""

# Nudity and sex, sexual violence, gore, self-harm: words that nearly always make a caption unfit to be
# painted. A first net with wide meshes: it knows no slurs, no other language and no context, so a data set
# for the public needs a moderation model besides.
UNSAFE_WORDS = (
    "bdsm", "beheaded", "beheading", "bestiality", "blowjob", "bondage", "boobs", "child abuse", "cumshot",
    "decapitated", "decapitation", "dildo", "disembowelled", "erotic", "erotica", "fetish", "genitals",
    "gore", "gory", "hentai", "incest", "masturbating", "masturbation", "molested", "mutilated", "mutilation",
    "naked", "nipples", "nsfw", "nude", "nudes", "nudity", "orgasm", "orgy", "penis", "porn", "porno",
    "pornographic", "pornography", "pornstar", "rape", "raped", "raping", "rapist", "self-harm", "semen",
    "sex", "sexual", "sexually", "sexy", "slut", "striptease", "suicide", "topless", "torture", "tortured",
    "undressed", "upskirt", "vagina", "whore", "xxx",
)  # fmt: skip
_UNSAFE = re.compile(rf"(?<!\w)(?:{'|'.join(UNSAFE_WORDS)})(?!\w)", re.IGNORECASE)
_SLICE, _KEPT = 256, 1 << 14  # rows that are compared at once, and with how many


def unsafe(*texts: str) -> str | None:
    """Whether one of the texts holds one of `UNSAFE_WORDS`, as a whole word."""
    found = next(filter(None, map(_UNSAFE.search, texts)), None)
    return f"unsafe: {found[0].lower()}" if found else None


def malformed(text: str) -> str | None:
    """Whether a text is missing, too long, of several lines, or holds a separator of the writers' format."""
    if not any(map(str.isalnum, text)):
        return "malformed: no words"
    if len(text) > MAX_CHARS:
        return f"malformed: more than {MAX_CHARS} characters"
    if len(text.splitlines()) > 1 or any(mark.strip() in text for mark in (PROMPT_END, EDIT_END)):
        return "malformed: not one line of plain text"
    return None


def unchanged(triplet: Triplet) -> str | None:
    """Whether both captions say the same (InstructPix2Pix's rule, by `normalise`)."""
    same = normalise(triplet.caption) == normalise(triplet.output)
    return "unchanged: both captions are the same" if same else None


def flaw(*texts: str) -> str | None:
    """The first reason against one of the texts."""
    return next(filter(None, map(malformed, texts)), None) or unsafe(*texts)


def ungrounded(triplet: Triplet) -> str | None:
    """Whether a row of a task does not say, in its captions' words, which things it is about."""
    if not triplet.task:
        return None
    if triplet.task not in TASKS:
        return "malformed: no task"
    texts = {"original": (triplet.original, triplet.caption), "edited": (triplet.edited, triplet.output)}
    for name in TASKS[triplet.task].objects:
        thing, text = map(normalise, texts[name])
        if not thing or thing not in text:
            return f"ungrounded: the {name} object is not in the caption"
    return None


def row_flaw(triplet: Triplet) -> str | None:
    """The first reason against a row taken by itself."""
    texts = triplet.caption, triplet.edit, triplet.output
    return flaw(*texts) or unchanged(triplet) or ungrounded(triplet)


def hashed_ngrams(texts: Sequence[str]) -> Vectors:
    """Counts of byte trigrams, hashed with signs into 256 places: (N, 256) float32.

    The default, for it needs no model and no language, and what repeats in generated rows is wording. It
    does not see that two wordings mean the same: a sentence encoder does. (The storybook's own text
    encoder is no choice for data at large: it knows only the storybook's words.)
    """
    return np.stack([_hashed_ngrams(f"  {normalise(text)}  ".encode()) for text in texts])


def _hashed_ngrams(text: bytes) -> Vectors:
    code = np.frombuffer(text, dtype=np.uint8).astype(np.uint32)
    mixed = (code[:-2] << 16 | code[1:-1] << 8 | code[2:]) * np.uint32(2654435761)  # modulo 2**32
    signs = 1.0 - 2.0 * (mixed >> 23 & 1)
    return np.bincount(mixed >> 24, weights=signs, minlength=256).astype(np.float32)


class _Rows:
    """Rows of one width, appended to an array that grows by doubling."""

    def __init__(self, width: int, dtype: type[np.generic]) -> None:
        self._array: Any = np.empty((64, width), dtype=dtype)
        self._count = 0

    @property
    def all(self) -> Any:
        """(n, width), a view."""
        return self._array[: self._count]

    def append(self, rows: Any) -> None:
        end = self._count + len(rows)
        if end > len(self._array):
            grown = np.empty((2 * end, self._array.shape[1]), dtype=self._array.dtype)
            grown[: self._count] = self.all
            self._array = grown
        self._array[self._count : end] = rows
        self._count = end


class TextDuplicates:
    """Finds rows whose texts repeat, or nearly repeat, those of a row that it kept.

    Two rows are near when the cosine of their edits is at least `threshold`, and so is the mean of that one
    and of the cosines of their captions and of their outputs: so one caption, however long, may have many
    edits, and one edit serve many captions. Every row is compared with all that were kept: the time grows
    with the square of their number.

    Args:
        embed: texts -> vectors.
        threshold: from 0 to 1.
    """

    def __init__(self, embed: Embed = hashed_ngrams, threshold: float = 0.95) -> None:
        self.embed, self.threshold = embed, threshold
        self._texts: set[tuple[str, str, str]] = set()
        self._kept: _Rows | None = None

    def add(
        self, triplets: Sequence[Triplet], on_row: Callable[[], object] = lambda: None
    ) -> list[str | None]:
        """A reason for each row; those without one are kept, in order, and later rows compared with them.

        `on_row` is called for each row that was compared.
        """
        reasons: list[str | None] = []
        for start in range(0, len(triplets), _SLICE):
            for reason in self._add(triplets[start : start + _SLICE]):
                reasons.append(reason)
                on_row()
        return reasons

    def _add(self, rows: Sequence[Triplet]) -> list[str | None]:
        vectors = self._embed(rows)
        self._kept = self._kept or _Rows(vectors.shape[1], np.float32)
        kept = self._kept.all
        parts = (kept[start : start + _KEPT] for start in range(0, len(kept), _KEPT))
        nearest = np.zeros(len(rows), np.float32)
        for part in parts:
            nearest = np.maximum(nearest, _likeness(vectors, part).max(axis=1))
        among = _likeness(vectors, vectors)
        reasons: list[str | None] = []
        for i, row in enumerate(rows):
            fresh = [j for j, reason in enumerate(reasons) if reason is None]
            near = max(nearest[i], among[i, fresh].max(initial=0.0))
            reasons.append(self._reason(row, float(near)))
        self._kept.append(vectors[[reason is None for reason in reasons]])
        return reasons

    def _reason(self, row: Triplet, near: float) -> str | None:
        key = (normalise(row.caption), normalise(row.edit), normalise(row.output))
        if key in self._texts:
            return "duplicate: the same texts"
        if near >= self.threshold:
            return "duplicate: nearly the same texts"
        self._texts.add(key)
        return None

    def _embed(self, rows: Sequence[Triplet]) -> Vectors:
        """(N, 3 D): three vectors of length 1, one behind the other."""
        columns = [row.caption for row in rows], [row.edit for row in rows], [row.output for row in rows]
        return np.concatenate([_unit(self.embed(column)) for column in columns], axis=1)


def _likeness(rows: Vectors, others: Vectors) -> Vectors:
    """(N, 3 D) and (M, 3 D) -> (N, M): the mean of the three cosines, but at most that of the edits."""
    edits = (np.split(x, 3, axis=1)[1] for x in (rows, others))
    return np.minimum(rows @ others.T / 3, next(edits) @ next(edits).T)


def _unit(vectors: Vectors) -> Vectors:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)


def difference_hash(image: Image.Image) -> int:
    """64-bit dHash: which of two neighbours is brighter, in the picture at 9 x 8 pixels and in grey.

    Scaling, compression and small changes of colour leave most bits alone; unlike pictures differ in about
    half of them.
    """
    grey = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.LANCZOS))
    return int.from_bytes(np.packbits(grey[:, 1:] > grey[:, :-1]).tobytes())


class ImageDuplicates:
    """Finds rows whose pictures all look like those of a row that it kept.

    Args:
        num_images: pictures of a row: 2 for before and after.
        distance: bits of 64 in which the hashes of two like pictures may differ, at most.
    """

    def __init__(self, num_images: int = 2, distance: int = 4) -> None:
        self.distance = distance
        self._kept = _Rows(num_images, np.uint64)

    def add(self, *images: Image.Image) -> str | None:
        """A reason against a row of pictures, or None: then it is kept, and later rows compared with it."""
        hashes = np.array([difference_hash(image) for image in images], dtype=np.uint64)
        apart = np.bitwise_count(self._kept.all ^ hashes).max(axis=1)
        if (apart <= self.distance).any():
            return "duplicate: nearly the same pictures"
        self._kept.append(hashes[None])
        return None
