"""Reports as one HTML file with everything inside: no script, nothing fetched."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from PIL import Image

from wordbrush.html_page import html_page, jpeg_uri


def page(title: str, abstract: str, sections: Sequence[str]) -> str:
    """The whole file; `sections` are HTML, title and abstract are text."""
    return html_page(title, abstract, "\n".join(sections), _STYLE)


def section(heading: str, *parts: str) -> str:
    """A heading over parts that are HTML."""
    return f"<section><h2>{escape(heading)}</h2>{''.join(parts)}</section>"


def paragraph(text: str) -> str:
    """A paragraph of plain text."""
    return f"<p>{escape(text)}</p>"


def figure(svg: str, caption: str) -> str:
    """A drawing with a caption under it, which is text."""
    return f"<figure>{svg}<figcaption>{escape(caption)}</figcaption></figure>"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], caption: str = "") -> str:
    """A table of texts; all but the first column are set as numbers."""
    first = f"<caption>{escape(caption)}</caption>" if caption else ""
    titles = "".join(f"<th scope=col>{escape(cell)}</th>" for cell in head)
    lines = "".join(
        f"<tr><th scope=row>{escape(name)}</th>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>"
        for name, *cells in rows
    )
    return (
        f"<div class=wide><table>{first}<thead><tr>{titles}</tr></thead><tbody>{lines}</tbody></table></div>"
    )


def picture_grid(
    columns: Sequence[str], rows: Sequence[tuple[str, Sequence[Image.Image | None]]], side: int, caption: str
) -> str:
    """Rows of pictures under the names of their columns.

    Args:
        columns: One name for each picture of a row; may be empty.
        rows: The name of each row, and its pictures; None leaves a place empty.
        side: Pixels that the long side of a picture is stored with at most.
        caption: Text under the grid.
    """
    head = "".join(f"<th scope=col>{escape(name)}</th>" for name in columns)
    body = "".join(
        f"<tr><th scope=row>{escape(name)}</th>{''.join(_cell(picture, side) for picture in pictures)}</tr>"
        for name, pictures in rows
    )
    top = f"<thead><tr><th></th>{head}</tr></thead>" if columns else ""
    most = max((len(pictures) for _, pictures in rows), default=0)
    width = f"min-width: {_NAME + 4.6 * most:g}rem; max-width: {_NAME + 10 * most:g}rem"
    grid = f'<table style="{width}">{top}<tbody>{body}</tbody></table>'
    about = f"<figcaption>{escape(caption)}</figcaption>"
    return f"<figure class=pictures><div class=wide>{grid}</div>{about}</figure>"


def _cell(picture: Image.Image | None, side: int) -> str:
    return f'<td><img alt="" src="{data_uri(picture, side)}"></td>' if picture else "<td></td>"


def data_uri(picture: Image.Image, side: int) -> str:
    """The picture as JPEG inside a URI, its long side at most `side` pixels."""
    small = picture.convert("RGB")
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    return jpeg_uri(small)


_NAME = 8.5
"""Width of the names of a grid's rows, in letters' heights; its pictures are equally wide."""
_STYLE = """\
* { box-sizing: border-box; margin: 0 }
body {
  background: #fff; color: #1b1b1d; max-width: 64rem; margin: 0 auto; padding: 3rem 1.5rem 5rem;
  font: 17px/1.5 "Source Serif 4", "Noto Serif", "DejaVu Serif", Georgia, serif; overflow-wrap: anywhere;
}
header { border-bottom: 1px solid #1b1b1d; padding-bottom: 1.25rem; margin-bottom: 2rem }
h1 { font-size: 1.9rem; line-height: 1.2; font-weight: 600; margin-bottom: .6rem }
h2 { font-size: 1.25rem; font-weight: 600; margin: 2.5rem 0 .75rem }
p { max-width: 46rem; margin: .6rem 0 }
figure { margin: 1.25rem 0 }
figure svg { max-width: 100%; height: auto; display: block }
figcaption, caption {
  color: #55555c; font-size: .88rem; line-height: 1.4; max-width: 46rem; margin-top: .6rem; text-align: left;
}
caption { margin: 0 0 .5rem }
.wide { overflow-x: auto }
table { border-collapse: collapse; font-size: .84rem; line-height: 1.35 }
table { border-top: 1.5px solid #1b1b1d; border-bottom: 1.5px solid #1b1b1d }
thead tr { border-bottom: 1px solid #1b1b1d }
th, td { padding: .28rem .55rem; text-align: right; font-variant-numeric: tabular-nums; font-weight: 400 }
th:first-child { text-align: left; padding-left: 0 }
th { overflow-wrap: normal }
td, tbody th { white-space: nowrap }
thead th { vertical-align: bottom }
.wide + .wide { margin-top: 1.5rem }
.pictures table { border: 0; font-size: .78rem; table-layout: fixed; width: 100% }
.pictures thead tr { border: 0 }
.pictures th, .pictures td { padding: 1px; text-align: center; vertical-align: middle }
.pictures thead th:first-child, .pictures tbody th { width: 8.5rem }
.pictures tbody th { text-align: left; padding-right: .6rem; color: #55555c; white-space: normal }
.pictures img { display: block; width: 100%; max-width: 160px }
"""
