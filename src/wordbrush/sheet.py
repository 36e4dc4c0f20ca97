"""Pictures in rows, with a text over each, as one picture to look at."""

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

_SIDE = 256
_GAP, _LINE = 8, 16
_FRAME = (56, 103, 214)
_NOTHING = (236, 236, 238)


@dataclass(frozen=True)
class Cell:
    """A place of the sheet."""

    picture: Image.Image | None
    """None leaves the place grey."""
    label: str
    """Over it; may have several lines."""
    framed: bool = False


def draw_sheet(rows: Sequence[Sequence[Cell]]) -> Image.Image:
    """The sheet ("RGB"), its pictures made to fit into 256 x 256.

    Args:
        rows: one or more, of any lengths.
    """
    cells = [cell for row in rows for cell in row]
    small = {id(cell): _shrunk(cell.picture) for cell in cells}
    lines = max(cell.label.count("\n") + 1 for cell in cells)
    width = max(picture.width for picture in small.values()) + _GAP
    height = max(picture.height for picture in small.values()) + lines * _LINE + _GAP
    sheet = Image.new("RGB", (width * max(map(len, rows)) + _GAP, height * len(rows) + _GAP), "white")
    for i, row in enumerate(rows):
        for j, cell in enumerate(row):
            _place(sheet, cell, small[id(cell)], (_GAP + j * width, _GAP + i * height), lines * _LINE)
    return sheet


def _shrunk(picture: Image.Image | None) -> Image.Image:
    if picture is None:
        return Image.new("RGB", (_SIDE, _SIDE), _NOTHING)
    small = picture.convert("RGB")
    small.thumbnail((_SIDE, _SIDE))
    return small


def _place(sheet: Image.Image, cell: Cell, small: Image.Image, corner: tuple[int, int], label: int) -> None:
    draw, (x, y) = ImageDraw.Draw(sheet), corner
    if cell.framed:
        box = (x - 4, y - 4, x + small.width + 3, y + small.height + label + 3)
        draw.rectangle(box, outline=_FRAME, width=3)
    colour = _FRAME if cell.framed else "black"
    draw.multiline_text((x, y), cell.label, fill=colour, font=ImageFont.load_default(12))
    sheet.paste(small, (x, y + label))
