"""Whether an instruction writer draws the right conclusion from an edit: the caption afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path

from wordbrush.diffusion.runtime import resolve_device
from wordbrush.evaluation.metrics import Mean
from wordbrush.language_model import complete, load_language_model
from wordbrush.storybook.edits import draw_edit
from wordbrush.storybook.scenes import scene_rng
from wordbrush.triplets import EDIT_END, STOP, Triplet, normalise, prompt

_BATCH = 64
_FIRST = 10_000_000
"""Of the scenes; no recipe trains on so many."""
_TOKENS = 128


def outputs_right(name: str | Path, num: int, device: str = "auto") -> Mean:
    """The share of given edits whose output caption a writer gets right to the word, greedily.

    Args:
        name: Of the writer, as `load_language_model` finds it.
        num: Edits (at least one), of scenes that it was not trained on, in phrasings that it was: as its own.
        device: As of `wordbrush.load`.

    Raises:
        ModelError: There is no such writer.
        DeviceError: There is no such device.
    """
    model, tokenizer = load_language_model(name)
    model = model.eval().to(resolve_device(device))
    triplets = list(islice(_triplets(), num))
    right: list[float] = []
    for start in range(0, num, _BATCH):
        batch = triplets[start : start + _BATCH]
        given = [prompt(t.caption, t.task) + t.edit + EDIT_END for t in batch]
        answers = complete(model, tokenizer, given, max_new_tokens=_TOKENS)
        for triplet, answer in zip(batch, answers, strict=True):
            output = answer.partition(STOP)[0].split(EDIT_END)[-1]
            right.append(float(normalise(output) == normalise(triplet.output)))
    found = Mean.of(right)
    assert found is not None
    return found


def _triplets() -> Iterator[Triplet]:
    """Edits that the captions tell: moves and swaps keep them."""
    drawn = (draw_edit(scene_rng("train", number), "train").triplet for number in count(_FIRST))
    return (t for t in drawn if normalise(t.caption) != normalise(t.output))
