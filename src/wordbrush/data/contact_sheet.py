"""A page that shows edits to a person: one HTML file with everything inside, no script, nothing fetched."""

from __future__ import annotations

import random
from collections.abc import Iterable
from difflib import SequenceMatcher
from html import escape

from wordbrush.data.rows import Row, decode
from wordbrush.errors import ImageError
from wordbrush.html_page import html_page, jpeg_uri

_SIDE = 320  # pixels that a picture is shown with at most
_WORDS = 200  # of a caption
_LABELS = {
    "clip_sim_image": "pictures alike",
    "clip_sim_dir": "change as captioned",
    "clip_sim_0": "before, caption",
    "clip_sim_1": "after, caption",
}


def sample(rows: Iterable[Row], count: int, seed: int) -> tuple[list[Row], int]:
    """Draw rows at random from a stream, holding no more than are drawn (Vitter's algorithm R).

    Returns:
        At most `count` rows, in the order of the stream; and how many rows it had.
    """
    draw = random.Random(seed)
    drawn: list[tuple[int, Row]] = []
    total = 0
    for number, row in enumerate(rows):
        total = number + 1
        if number < count:
            drawn.append((number, row))
        elif (place := draw.randrange(total)) < count:
            drawn[place] = (number, row)
    return [row for _, row in sorted(drawn, key=lambda pair: pair[0])], total


def make_sheet(title: str, rows: Iterable[Row], total: int) -> str:
    """The page.

    Args:
        title: Its heading.
        rows: What to show; a picture that cannot be read is shown as the reason why.
        total: Rows of the data set.
    """
    cards = [_card(row) for row in rows]
    return html_page(title, f"{len(cards):,} of {total:,} edits", "\n".join(cards), _STYLE)


def _card(row: Row) -> str:
    pictures = {"before": row.input_image, "after": row.edited_image, "mask": row.mask}
    shown = "".join(_figure(name, data) for name, data in pictures.items() if data is not None)
    facts = {"": row.task, "unit ": row.unit, "turn ": row.turn, "seed ": row.seed}
    tags = "".join(f"<li>{escape(f'{name}{fact}')}</li>" for name, fact in facts.items() if fact is not None)
    return (
        f"<article><h2>{escape(row.edit_prompt)}</h2><div class=pictures>{shown}</div>"
        f"{_captions(row)}{_scores(row)}<ul class=facts>{tags}</ul></article>"
    )


def _figure(name: str, data: bytes) -> str:
    try:
        content = f'<img alt="{name}" src="{_data_uri(data)}">'
    except ImageError as error:
        content = f"<p class=broken>{escape(str(error))}</p>"
    return f"<figure>{content}<figcaption>{name}</figcaption></figure>"


def _data_uri(data: bytes) -> str:
    """Encoded anew: nothing of the original file but its pixels gets into the page."""
    picture = decode(data)
    picture.thumbnail((_SIDE, _SIDE))
    return jpeg_uri(picture)


def _captions(row: Row) -> str:
    if row.source_caption is None or row.target_caption is None:
        return ""
    before, after = (text.split()[:_WORDS] for text in (row.source_caption, row.target_caption))
    steps = SequenceMatcher(None, before, after, autojunk=False).get_opcodes()
    marked = [
        " ".join(_words("del", before[a:b], step != "equal") for step, a, b, _, _ in steps if a < b),
        " ".join(_words("ins", after[a:b], step != "equal") for step, _, _, a, b in steps if a < b),
    ]
    return f"<dl><dt>before</dt><dd>{marked[0]}</dd><dt>after</dt><dd>{marked[1]}</dd></dl>"


def _words(tag: str, words: list[str], changed: bool) -> str:
    text = escape(" ".join(words))
    return f"<{tag}>{text}</{tag}>" if changed else text


def _scores(row: Row) -> str:
    found = {name: getattr(row, name) for name in _LABELS if getattr(row, name) is not None}
    bars = "".join(
        f'<div class=score title="{name}"><span>{_LABELS[name]}</span>'
        f'<i style="--value:{max(0.0, min(1.0, value)):.3f}"></i><b>{value:.2f}</b></div>'
        for name, value in found.items()
    )
    return f"<div class=scores>{bars}</div>" if bars else ""


_STYLE = """\
:root {
  color-scheme: light dark;
  --ink: light-dark(#1d1d1f, #ececee);
  --soft: light-dark(#6e6e76, #a0a0a8);
  --paper: light-dark(#f4f3f0, #161618);
  --card: light-dark(#fff, #212124);
  --line: light-dark(#e3e1dc, #38383d);
  --blue: light-dark(#3867d6, #7f9df0);
  --red: light-dark(#b3423a, #f0938b);
  --green: light-dark(#2b7a4b, #7fcf9c);
}
* { box-sizing: border-box; margin: 0 }
body {
  background: var(--paper); color: var(--ink); padding: 2rem clamp(1rem, 4vw, 4rem);
  font: 15px/1.45 system-ui, sans-serif; overflow-wrap: anywhere;
}
header { margin-bottom: 1.5rem }
h1 { font-size: 1.6rem }
header p, dt, figcaption, .facts, .score span { color: var(--soft) }
main { display: grid; gap: 1.25rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 24rem), 1fr)) }
article {
  background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 1rem;
  display: flex; flex-direction: column; gap: .75rem;
}
h2 { font-size: 1.05rem; font-weight: 600 }
.pictures { display: flex; gap: .5rem }
figure { flex: 1 1 0; min-width: 0 }
figure img { width: 100%; display: block; border-radius: 6px }
figcaption { font-size: .78rem; text-align: center; margin-top: .2rem }
.broken { color: var(--red); border: 1px dashed; border-radius: 6px; padding: .75rem; font-size: .85rem }
dl { display: grid; grid-template-columns: auto 1fr; gap: .15rem .6rem; font-size: .88rem }
del { color: var(--red); text-decoration: none }
ins { color: var(--green); text-decoration: none; font-weight: 600 }
.scores { display: grid; gap: .2rem; font-size: .8rem }
.score { display: grid; grid-template-columns: 9.5rem 1fr 2.6rem; align-items: center; gap: .5rem }
.score i {
  height: 6px; border-radius: 3px;
  background: linear-gradient(90deg, var(--blue) calc(100% * var(--value)), var(--line) 0);
}
.score b { font-variant-numeric: tabular-nums; font-weight: 500; text-align: right }
.facts { list-style: none; padding: 0; margin-top: auto; display: flex; flex-wrap: wrap; gap: .4rem }
.facts li { border: 1px solid var(--line); border-radius: 99px; padding: .05rem .55rem }
.facts { font-size: .78rem }
"""
