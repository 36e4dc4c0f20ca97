"""The tree of a session's turns as HTML."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from PIL import Image

from wordbrush.editors.sequential import ORIGINAL, Session, Turn
from wordbrush.html_page import jpeg_uri

_SIDE = 96

LISTEN = """
element.addEventListener('click', event => {
    const button = event.target.closest('button[data-turn]');
    if (button) trigger(button.dataset.event, {number: Number(button.dataset.turn)});
});
"""
"""Script of the page: a click on a turn is its `select`, one on "again" its `retry`."""


def tree(session: Session) -> str:
    """Every turn as a button that goes there; branches are indented, the newest line goes straight on."""
    items = (_item(session, number, depth) for number, depth in lines(session))
    return f'<ul class="tree" aria-label="History">{"".join(items)}</ul>'


def lines(session: Session) -> list[tuple[int, int]]:
    """(Number of a turn, its depth) from top to bottom; a branch is deeper than the line it leaves."""
    children: dict[int, list[int]] = {}
    for turn in session.turns:
        children.setdefault(turn.parent, []).append(turn.number)
    return list(_walk(children))


def _walk(children: dict[int, list[int]]) -> Iterator[tuple[int, int]]:
    """Without recursion: a session from a file may be thousands of turns deep."""
    waiting = [(ORIGINAL, 0)]
    while waiting:
        number, depth = waiting.pop()
        yield number, depth
        below = children.get(number, [])
        waiting += [(child, depth if child == below[-1] else depth + 1) for child in reversed(below)]


def _item(session: Session, number: int, depth: int) -> str:
    current = ' aria-current="step"' if number == session.current else ""
    turn = None if number == ORIGINAL else session.turn(number)
    title, detail = _words(turn)
    again = (
        ""
        if turn is None
        else f'<button type="button" class="again" data-event="retry" data-turn="{number}" '
        f'title="Edit this again: changes go into a branch beside it" '
        f'aria-label="Edit turn {number} again">↻</button>'
    )
    return (
        f'<li style="--depth: {min(depth, 4)}"{current}>'
        f'<button type="button" class="turn" data-event="select" data-turn="{number}">'
        f'<img src="{data_url(session.image(number), _SIDE)}" alt="">'
        f"<span><b>{escape(title)}</b><small>{escape(detail)}</small></span></button>{again}</li>"
    )


def _words(turn: Turn | None) -> tuple[str, str]:
    if turn is None:
        return "Original", "The picture you began with"
    asked = turn.request
    title = asked.instruction or asked.target_caption
    return str(turn.settings.get("said", title)), f"{turn.number} · from {turn.parent} · seed {asked.seed}"


def data_url(picture: Image.Image, side: int) -> str:
    """A picture within a page, at most that many pixels a side: no file of it is left anywhere."""
    small = picture.convert("RGB")
    small.thumbnail((side, side), Image.Resampling.BOX)
    return jpeg_uri(small, quality=85)
