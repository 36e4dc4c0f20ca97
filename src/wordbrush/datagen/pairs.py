"""From a pair of captions to pairs of pictures: InstructPix2Pix's generator (2211.09800, section 3.1.2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from wordbrush.attention.edits import instruct_pix2pix_pairs
from wordbrush.data.rows import SCORES
from wordbrush.datagen.painting import Draw, Painter, Pixels, in_batches
from wordbrush.perception.clip import Clip, pair_similarities


class PairGenerator:
    """Paints pairs of pictures that show two captions and are otherwise alike.

    Both pictures of a pair share self-attention in the first part of the steps.

    Args:
        painter: Of the pictures.
    """

    def __init__(self, painter: Painter) -> None:
        self.painter = painter

    def __call__(self, caption: str, output: str, draws: Sequence[Draw]) -> Pixels:
        """Paint a pair for each draw, `batch_size` at a time.

        A pair depends on its draw alone, within float tolerance; to the last bit if also its place among the
        draws is the same.

        Args:
            caption: Of the first pictures.
            output: Of the second ones.
            draws: At least one.

        Returns:
            (N, 2, H, W, 3) uint8.

        Raises:
            ModelError: The GPU's memory is too small.
        """
        made: list[Pixels] = []
        for batch in in_batches(draws, self.painter.settings.batch_size):
            control = instruct_pix2pix_pairs([draw.p2p_threshold for draw in batch])
            made.append(self.painter([caption, output], batch, control))
        return np.concatenate(made)


def score_pairs(clip: Clip, pixels: Pixels, caption: str, output: str) -> dict[str, np.ndarray[Any, Any]]:
    """The filter's four scores, as of the files in which the pictures will be read.

    Args:
        clip: Scores them.
        pixels: (N, 2, H, W, 3).
        caption: Of the first pictures.
        output: Of the second ones.

    Returns:
        (N,) for each of `rows.SCORES`.
    """
    if not len(pixels):
        return {name: np.zeros(0) for name in SCORES}
    pictures = [Image.fromarray(picture) for pair in pixels for picture in pair]
    before, after = clip.embed_images(pictures).unflatten(0, (-1, 2)).unbind(1)
    source, target = clip.embed_texts([caption, output]).expand(len(pixels), 2, -1).unbind(1)
    scores = pair_similarities(before, after, source, target)
    return {name: column.numpy() for name, column in scores.items()}
