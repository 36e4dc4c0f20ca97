"""One HTML file with everything inside: no script, nothing fetched."""

from __future__ import annotations

import base64
import io
from html import escape

from PIL import Image

_PAGE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
<header><h1>{title}</h1><p>{lead}</p></header>
<main>
{body}
</main>
</body>
</html>
"""


def html_page(title: str, lead: str, body: str, style: str) -> str:
    """The whole file.

    Args:
        title: Text.
        lead: Text under the title.
        body: HTML.
        style: CSS.
    """
    return _PAGE.format(title=escape(title), lead=escape(lead), body=body, style=style)


def jpeg_uri(picture: Image.Image, *, quality: int = 92) -> str:
    """The picture ("RGB") as JPEG inside a URI."""
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=quality, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
