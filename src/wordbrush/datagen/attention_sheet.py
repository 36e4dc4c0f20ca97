"""What attention control does to a pair of captions, and where each word looks, as one picture."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import fill
from typing import Any

import numpy as np
from PIL import Image

from wordbrush.attention.alignment import word_tokens
from wordbrush.attention.control import AttentionControl, AttentionStore, map_site
from wordbrush.attention.edits import instruct_pix2pix_pairs, prompt_to_prompt
from wordbrush.datagen.painting import Draw, Painter, Pixels
from wordbrush.sheet import Cell, draw_sheet

_SIDE = 256
"""Of a picture on the sheet, pixels."""
_COLUMNS = 40
"""Letters of a label's line."""
_HEAT = np.array([255.0, 60.0, 0.0])


def draw_attention(painter: Painter, caption: str, output: str, draws: Sequence[Draw]) -> Image.Image:
    """Both captions painted from the same noise, with and without control; below, where the words look.

    For each draw a row as in InstructPix2Pix's figure 3 (2211.09800): the first caption's picture, and the
    second's without control, with shared self-attention (InstructPix2Pix's generator), and with
    Prompt-to-Prompt (2208.01626). Then a row for each caption of the last draw: the mean cross-attention of
    each word under Prompt-to-Prompt, over its picture; red is most.

    Args:
        painter: Of a text-to-image model.
        caption: Of the first picture.
        output: Of the second.
        draws: At least one.

    Returns:
        A sheet, "RGB".

    Raises:
        ModelError: The GPU's memory is too small.
    """
    rows = [_pairs(painter, caption, output, draw) for draw in draws]
    return draw_sheet([*rows, *_words(painter, [caption, output], draws[-1])])


def _pairs(painter: Painter, caption: str, output: str, draw: Draw) -> list[Cell]:
    captions = [caption, output]
    free = painter(captions, [draw], AttentionControl([]))[0]
    shared = painter(captions, [draw], instruct_pix2pix_pairs(draw.p2p_threshold))[0]
    controlled = painter(captions, [draw], _prompt_to_prompt(painter, captions))[0]
    return [
        _cell(free[0], f"{caption}\nseed {draw.seed}"),
        _cell(free[1], f"{output}\nwithout control"),
        _cell(shared[1], f"{output}\nshared self-attention, p = {draw.p2p_threshold:.2f}"),
        _cell(controlled[1], f"{output}\nPrompt-to-Prompt"),
    ]


def _words(painter: Painter, captions: list[str], draw: Draw) -> list[list[Cell]]:
    site = map_site(painter.model.unet, painter.shape[1:])
    store = AttentionStore(site.queries)
    pictures = painter(captions, [draw], _prompt_to_prompt(painter, captions, store))[0]
    rows: list[list[Cell]] = []
    for number, text in enumerate(captions):
        tokens = word_tokens(painter.model.tokenizers[0], text)
        maps = store.word_maps(tokens, prompt=number, level=site.level).cpu().numpy()
        words = zip(text.split(), maps, strict=True)
        rows.append([_cell(_heated(pictures[number], attention), word) for word, attention in words])
    return rows


def _prompt_to_prompt(
    painter: Painter, captions: list[str], store: AttentionStore | None = None
) -> AttentionControl:
    first, second = (len(text.split()) for text in captions)
    method = "replace" if first == second else "refine"
    return prompt_to_prompt(painter.model.tokenizers[0], captions, method=method, store=store)


def _cell(pixels: Pixels, label: str) -> Cell:
    lines = "\n".join(fill(line, _COLUMNS) for line in label.split("\n"))
    return Cell(Image.fromarray(pixels).resize((_SIDE, _SIDE), Image.Resampling.LANCZOS), lines)


def _heated(pixels: Pixels, attention: Any) -> Pixels:
    """A picture, grey where a map (h, w) in [0, 1] is 0, red where it is 1."""
    height, width = pixels.shape[:2]
    small = Image.fromarray((attention * 255).astype(np.uint8))
    large = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))[..., None] / 255
    grey = pixels.mean(-1, keepdims=True).repeat(3, -1)
    return (grey * (1 - 0.75 * large) + _HEAT * 0.75 * large).astype(np.uint8)
