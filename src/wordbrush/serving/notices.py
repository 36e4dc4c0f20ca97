"""What the page says about an edit, as small pieces of HTML."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from PIL import Image

from wordbrush.editors.sequential import ORIGINAL, Session, Turn
from wordbrush.serving import wand
from wordbrush.serving.history import data_url
from wordbrush.serving.watching import Progress

_PREVIEW_SIDE = 640
_CANVAS_SIDE = 1280


def line(text: str, remarks: Sequence[str] = ()) -> str:
    """One line, and what else there is to know below it."""
    below = "".join(f'<p class="remark">{escape(remark)}</p>' for remark in remarks)
    return f"<p>{escape(text)}</p>{below}" if text else below


def made(turns: Sequence[Turn], seconds: float) -> str:
    """What came out of an edit."""
    seeds = f"seed {turns[0].request.seed}"
    if len(turns) > 1:
        seeds = f"{len(turns)} variations, seeds {turns[0].request.seed} to {turns[-1].request.seed}"
    remarks = [*tasks(turns[0]), *turns[0].warnings]
    return line(f"{words(turns[0])} · {seeds} · {seconds:.1f} s", remarks)


def about(session: Session) -> str:
    """Which picture is shown."""
    if session.current == ORIGINAL:
        return line("The original: say what should change.")
    turn = session.turn(session.current)
    return line(f"{words(turn)} · turn {turn.number} · seed {turn.request.seed}")


def words(turn: Turn) -> str:
    """What was asked, in quotation marks, as it was said."""
    return f"“{turn.settings.get('said') or turn.request.instruction or turn.request.target_caption}”"


def tasks(turn: Turn) -> list[str]:
    """What an editor of many tasks took the instruction for, with its second thought."""
    ranked = turn.settings.get("tasks", [])
    return [f"Taken as: {', '.join(f'{name} ({share:.0%})' for name, share in ranked)}"] if ranked else []


def english(turn: Turn) -> str:
    """What an instruction of another language was read as; "" where it was English."""
    return str(turn.settings.get("instruction", "")) if "said" in turn.settings else ""


def emerging(picture: Image.Image, progress: Progress) -> str:
    """A picture on its way, with a bar."""
    if progress.total:
        far = f'max="{progress.total}" value="{progress.done}"'
        caption = f"{progress.done} of {progress.total}"
    else:
        far, caption = "", "Getting ready"
    return (
        f'<figure class="emerging"><img src="{data_url(picture, _PREVIEW_SIDE)}" alt="The emerging picture">'
        f'<progress {far} aria-label="Editing"></progress><figcaption>{caption}</figcaption></figure>'
    )


def masked(mask: Image.Image | None) -> str:
    """How much of the picture may change."""
    if mask is None:
        return ""
    return line(f"Masked: only {max(wand.share(mask), 0.01):.0%} of the picture may change.")


def painter(picture: Image.Image, mask: Image.Image | None, width: float) -> str:
    """A picture to be painted on; `width` is the brush's, in fractions of the short side, 0 for clicks."""
    shown = data_url(wand.veil(picture, mask), _CANVAS_SIDE)
    return (
        f'<div class="painter"><img src="{shown}" alt="Your picture, with what may change under a veil">'
        f'<canvas data-width="{width:g}"></canvas></div>'
    )
