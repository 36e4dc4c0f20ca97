"""Which generated pairs are kept: InstructPix2Pix's filter by CLIP (2211.09800, section 3.1.2)."""

from __future__ import annotations

import json
import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby

from pydantic import BaseModel, ConfigDict, Field

from wordbrush.data.rows import DataError, Row, Similarities


class Thresholds(BaseModel):
    """The least score of each kind that is kept, in the order in which they are asked, and how many pairs.

    The defaults are the paper's; the released code takes 0.7 for `clip_sim_image`. They suit OpenAI's
    ViT-L/14: another CLIP needs others, see `calibrate`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    clip_sim_image: float = Field(default=0.75, ge=-1, le=1, description="the two pictures are alike")
    clip_sim_dir: float = Field(default=0.2, ge=-1, le=1, description="they differ as their captions do")
    clip_sim_0: float = Field(default=0.2, ge=-1, le=1, description="the first shows its caption")
    clip_sim_1: float = Field(default=0.2, ge=-1, le=1, description="the second shows its caption")
    keep: int = Field(default=4, ge=1, description="pairs of one unit that are kept, by clip_sim_dir")

    def failure(self, scores: Similarities) -> str | None:
        """The first score that is too low (or not a number); None where all are high enough."""
        return next((n for n in PREDICATES if not getattr(scores, n) >= getattr(self, n)), None)


PREDICATES = tuple(name for name in Thresholds.model_fields if name != "keep")


@dataclass(frozen=True)
class Funnel:
    """Where pairs went; funnels of several units add up.

    Attributes:
        drawn: All pairs.
        failed: How many fell at each predicate, in order; a pair counts at the first. Grounded pairs may
            fall before, at what was found in the pictures (see `grounded.Flaw`).
        surplus: Good ones beyond those that a unit keeps.
    """

    drawn: int = 0
    failed: dict[str, int] = field(default_factory=lambda: dict.fromkeys(PREDICATES, 0))
    surplus: int = 0

    @classmethod
    def from_json(cls, text: str | bytes) -> Funnel:
        """As `to_json` gave it."""
        return cls(**json.loads(text))

    def to_json(self) -> str:
        """In one line; a text rather than a mapping, which would get all the keys of those beside it."""
        return json.dumps(asdict(self))

    @property
    def kept(self) -> int:
        """What is left."""
        return self.drawn - sum(self.failed.values()) - self.surplus

    def __add__(self, other: Funnel) -> Funnel:
        names = dict.fromkeys([*PREDICATES, *self.failed, *other.failed])
        failed = {name: self.failed.get(name, 0) + other.failed.get(name, 0) for name in names}
        return Funnel(self.drawn + other.drawn, failed, self.surplus + other.surplus)


def find_failures(
    scores: Sequence[Similarities], thresholds: Thresholds, flaws: Sequence[str | None] = ()
) -> list[str | None]:
    """What each pair falls at, as for `select`; None: nothing."""
    known = flaws or [None] * len(scores)
    return [flaw or thresholds.failure(score) for flaw, score in zip(known, scores, strict=True)]


def select(
    scores: Sequence[Similarities], thresholds: Thresholds, flaws: Sequence[str | None] = ()
) -> tuple[list[int], Funnel]:
    """Filter the pairs of one unit.

    Args:
        scores: Of each pair.
        thresholds: What they must reach.
        flaws: What speaks against each pair before its scores do; empty: against none anything.

    Returns:
        The indices of the pairs that are kept, the highest `clip_sim_dir` first (of equals the earlier); and
        where the others went.
    """
    failures = find_failures(scores, thresholds, flaws)
    good = [i for i, failure in enumerate(failures) if failure is None]
    good.sort(key=lambda i: -scores[i].clip_sim_dir)
    counts = Counter(failures)
    names = dict.fromkeys([*PREDICATES, *(name for name in failures if name)])
    failed = {name: counts[name] for name in names}
    return good[: thresholds.keep], Funnel(len(scores), failed, max(0, len(good) - thresholds.keep))


def filter_rows(rows: Iterable[Row], thresholds: Thresholds) -> Iterator[Row]:
    """Filter the rows of a data set as `select` filters the pairs they were, without painting them again.

    Args:
        rows: With their scores; those of a unit one after the other.
        thresholds: Only higher ones than the set was made with have a say.

    Raises:
        DataError: A row has no unit or not all scores.
    """
    for unit, group in groupby(rows, lambda row: row.unit):
        made = list(group)
        scores = [score for row in made if (score := row.similarities)]
        if unit is None or len(scores) < len(made):
            raise DataError("only sets of `data make` can be filtered: a row has no unit or no scores")
        kept, _ = select(scores, thresholds)
        yield from (made[i] for i in kept)


def first_units(rows: Iterable[Row], count: int) -> Iterator[Row]:
    """The rows of the first units of a data set; where rows have none each is its own."""
    seen = set[str]()
    for number, row in enumerate(rows):
        seen.add(row.unit or f"row {number}")
        if len(seen) > count:
            return
        yield row


@dataclass(frozen=True)
class Calibration:
    """Thresholds for one CLIP, and the shares of true and of mismatched pairs that pass all of them."""

    thresholds: Thresholds
    true_share: float
    mismatched_share: float


def calibrate(
    true: Sequence[Similarities], mismatched: Sequence[Similarities], *, share: float = 0.9, keep: int = 4
) -> Calibration:
    """Thresholds at which a share of the true pairs passes.

    All four stand at the same quantile of the true pairs' scores, the highest at which at least `share` of
    these pairs pass all four at once.

    Args:
        true: Scores of pairs that are as they should be.
        mismatched: Scores of the same pairs with other captions or pictures; only measured.
        share: In (0, 1].
        keep: Goes into the thresholds as it is.

    Raises:
        ValueError: There are no true pairs, or the share is out of range.
    """
    if not true or not 0 < share <= 1:
        raise ValueError(f"cannot calibrate with {len(true)} pairs and a share of {share}")
    ordered = {name: sorted(getattr(score, name) for score in true) for name in PREDICATES}
    # A pair passes the values of rank r if none of its own ranks is lower.
    ranks = sorted(
        min(bisect_right(ordered[name], getattr(score, name)) - 1 for name in PREDICATES) for score in true
    )
    rank = ranks[len(true) - math.ceil(share * len(true))]
    thresholds = Thresholds(**{name: ordered[name][rank] for name in PREDICATES}, keep=keep)
    return Calibration(thresholds, _share(true, thresholds), _share(mismatched, thresholds))


def _share(scores: Sequence[Similarities], thresholds: Thresholds) -> float:
    passed = sum(thresholds.failure(score) is None for score in scores)
    return passed / len(scores) if scores else 0.0
