"""From captions to triplets: what every instruction writer has in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from wordbrush.datagen.checks import flaw, row_flaw
from wordbrush.triplets import Caption, Triplet, WrittenEdit

TRIES = 4
"""How often a caption is given to a writer, at most (InstructPix2Pix: 3 retries)."""


@dataclass(frozen=True)
class Rejected:
    """A caption for which nothing usable was written, and why not."""

    caption: Caption
    reason: str


class InstructionWriter(Protocol):
    """Invents an edit for each caption."""

    def write(self, captions: Sequence[Caption]) -> list[Triplet | Rejected]:
        """One outcome for each caption, in their order."""
        ...


def judge(caption: Caption, written: WrittenEdit) -> Triplet | Rejected:
    """What was written, as a triplet if nothing speaks against it."""
    triplet = Triplet(caption=caption.text, url=caption.url, task=caption.task, **written.model_dump())
    reason = row_flaw(triplet)
    return Rejected(caption, reason) if reason else triplet


def unfit(captions: Sequence[Caption]) -> dict[int, Triplet | Rejected]:
    """The places of the captions that no writer needs to be asked about, and why not."""
    reasons = {place: flaw(caption.text) for place, caption in enumerate(captions)}
    return {place: Rejected(captions[place], reason) for place, reason in reasons.items() if reason}
