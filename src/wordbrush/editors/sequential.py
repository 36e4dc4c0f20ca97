"""Many turns on one picture without decay: Emu Edit's threshold (2311.10089), and a tree of turns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from wordbrush import images
from wordbrush.errors import ImageError, UsageError
from wordbrush.models import own_settings
from wordbrush.types import Editor, EditRequest, OnStep
from wordbrush.watermark import put_in_again

ALPHA = 0.03
"""The paper's threshold; its scale is not stated, here channels are in [0, 1]."""
LOW_PASS = 0.01
"""The paper names no filter: here the standard deviation of a Gaussian, in short sides of the picture."""
ORIGINAL = 0
"""The number of the picture that a session began with."""


def keep_unchanged(
    before: Image.Image, after: Image.Image, *, alpha: float = ALPHA, low_pass: float = LOW_PASS
) -> Image.Image:
    """Of a new picture, take only the pixels that changed; elsewhere keep the old ones byte for byte.

    With d = |before - after| summed over red, green and blue, a pixel stays where the Gaussian mean of d is
    below alpha (Emu Edit, 2311.10089, "Sequential edits").

    Args:
        before: "RGB" or "RGBA".
        after: of the same size and mode.
        alpha: At least 0; 0 always takes the new picture.
        low_pass: Standard deviation of the Gaussian in short sides of the picture; 0 looks at single pixels.

    Raises:
        UsageError: A negative `alpha` or `low_pass`.
        ImageError: Pictures of two sizes or modes.
    """
    _check(alpha, low_pass)
    if (before.size, before.mode) != (after.size, after.mode):
        raise ImageError(
            f"a turn must keep the picture's size and mode: it was {before.size} {before.mode}, "
            f"now {after.size} {after.mode}"
        )
    old, new = (images.from_pil(picture.convert("RGB")) for picture in (before, after))
    change = (old - new).abs().sum(1, keepdim=True) / 2  # from [-1, 1] to [0, 1]
    sigma = low_pass * min(before.size)
    if sigma:
        change = images.blur(change, sigma)
    stays = (change < alpha)[0, 0].numpy()
    return Image.composite(before, after, Image.fromarray((stays * 255).astype(np.uint8)))


def _check(alpha: float, low_pass: float) -> None:
    if alpha < 0 or low_pass < 0:
        raise UsageError(f"alpha {alpha} and low_pass {low_pass} must be at least 0")


def thresholds(
    model: str | Path, alpha: float | None = None, low_pass: float | None = None
) -> tuple[float, float]:
    """`alpha` and `low_pass` of a session: what is given, else as the checkpoint says, else the defaults.

    The more a model changes of what it is to keep, the higher its threshold has to be.

    Args:
        model: As for `wordbrush.load`; its folder's `wordbrush.json` may have them as "turns".
        alpha: See `keep_unchanged`.
        low_pass: See `keep_unchanged`.

    Raises:
        ModelError: That file is damaged.
    """
    own = own_settings(model, "turns")
    return (
        own.get("alpha", ALPHA) if alpha is None else alpha,
        own.get("low_pass", LOW_PASS) if low_pass is None else low_pass,
    )


@dataclass(frozen=True, eq=False)
class Turn:
    """One edit of a session.

    Attributes:
        number: Counts from 1; the original is 0.
        parent: Number of the turn that it edited.
        request: What was asked, of the parent's picture, with this turn's seed; its mask locks a region.
        image: What came out, unchanged pixels kept.
        settings: The record that reproduces it.
        warnings: What the editor remarked; a session's file does not keep it.
    """

    number: int
    parent: int
    request: EditRequest
    image: Image.Image
    settings: dict[str, Any]
    warnings: Sequence[str] = ()

    @property
    def summary(self) -> str:
        """The turn in a line."""
        asked = self.request
        words = asked.instruction or asked.target_caption
        return f"{self.number} from {self.parent}: {words} (seed {asked.seed})"


@dataclass
class Session:
    """A picture and its turns, as a tree: undo and go on, and a new branch grows beside the old one.

    Attributes:
        original: The picture that it began with, "RGB" or "RGBA".
        alpha: See `keep_unchanged`; None keeps nothing and takes every picture as the editor gave it.
        low_pass: See `keep_unchanged`.
        turns: Every turn that was ever made; turn n at place n - 1.
        current: Number of the turn that is edited next.

    Raises:
        UsageError: A negative `alpha` or `low_pass`.
    """

    original: Image.Image
    alpha: float | None = ALPHA
    low_pass: float = LOW_PASS
    turns: list[Turn] = field(default_factory=list[Turn])
    current: int = ORIGINAL

    def __post_init__(self) -> None:
        _check(self.alpha or 0, self.low_pass)

    @property
    def summary(self) -> str:
        """The turns, a line each, the current one marked."""
        lines = ["* 0 original" if self.current == ORIGINAL else "  0 original"]
        lines += [f"{'*' if turn.number == self.current else ' '} {turn.summary}" for turn in self.turns]
        return "\n".join(lines)

    def image(self, number: int | None = None) -> Image.Image:
        """The picture of a turn, by default of the current one.

        Raises:
            UsageError: There is no such turn.
        """
        number = self.current if number is None else number
        return self.original if number == ORIGINAL else self.turn(number).image

    def turn(self, number: int) -> Turn:
        """A turn by its number.

        Raises:
            UsageError: There is no such turn.
        """
        if not 1 <= number <= len(self.turns):
            raise UsageError(f"there is no turn {number}: the last one is {len(self.turns)}")
        return self.turns[number - 1]

    def edit(self, editor: Editor, request: EditRequest, *, on_step: OnStep | None = None) -> list[Turn]:
        """Edit the current picture; every variation is a turn, and the first becomes the current one.

        Args:
            editor: Of any method.
            request: Its picture is replaced by the current one. Its mask locks a region for this turn.
            on_step: As in `Editor.edit`; a cancelled edit leaves the session as it was.
        """
        before, parent = self.image(), self.current
        request = replace(request, image=before)
        result = editor.edit(request, on_step=on_step)
        made: list[Turn] = []
        for number, (image, seed) in enumerate(
            zip(result.images, result.seeds, strict=True), len(self.turns) + 1
        ):
            asked = replace(request, seed=seed, num_variations=1)
            settings = result.settings | {"seed": seed, "num_variations": 1}
            kept = put_in_again(self._keep(before, image), settings)
            made.append(Turn(number, parent, asked, kept, settings, result.warnings))
        self.turns += made
        self.current = made[0].number
        return made

    def _keep(self, before: Image.Image, after: Image.Image) -> Image.Image:
        if self.alpha is None:
            return after
        return keep_unchanged(before, after, alpha=self.alpha, low_pass=self.low_pass)

    def go_to(self, number: int) -> None:
        """Make a turn, or the original (0), the one that is edited next.

        Raises:
            UsageError: There is no such turn.
        """
        self.image(number)
        self.current = number

    def undo(self) -> None:
        """Go to the current turn's parent; the turn stays in the tree.

        Raises:
            UsageError: The current picture is the original.
        """
        if self.current == ORIGINAL:
            raise UsageError("nothing to undo: this is the original")
        self.current = self.turn(self.current).parent

    def path(self, number: int | None = None) -> list[Turn]:
        """The turns from the original to one, by default to the current one."""
        number = self.current if number is None else number
        found: list[Turn] = []
        while number != ORIGINAL:
            found.append(self.turn(number))
            number = found[-1].parent
        return found[::-1]

    def replay(
        self, editor: Editor, numbers: Sequence[int] | None = None, *, on_step: OnStep | None = None
    ) -> list[Turn]:
        """Make turns anew from the original, one on the other, as a branch of their own.

        With another editor, the same session in another model or settings; with some of the numbers, the
        session without the others.

        Args:
            editor: Makes every turn.
            numbers: Turns in their new order; by default the path to the current one.
            on_step: As in `Editor.edit`; an exception raised in it leaves the session as it was.
        """
        old = self.path() if numbers is None else [self.turn(number) for number in numbers]
        count, current = len(self.turns), self.current
        self.current = ORIGINAL
        try:
            return [self.edit(editor, turn.request, on_step=on_step)[0] for turn in old]
        except BaseException:
            del self.turns[count:]
            self.current = current
            raise
