"""Put two pictures of one size side by side: `python before_after.py BEFORE AFTER OUT`."""

import sys
from pathlib import Path

from PIL import Image, ImageOps


def before_after(before: Image.Image, after: Image.Image, *, gap: int = 8) -> Image.Image:
    """Return one RGB picture with `before` left, `after` right and `gap` white pixels between."""
    before = ImageOps.exif_transpose(before).convert("RGB")
    after = after.convert("RGB")
    sheet = Image.new("RGB", (before.width + gap + after.width, max(before.height, after.height)), "white")
    sheet.paste(before, (0, 0))
    sheet.paste(after, (before.width + gap, 0))
    return sheet


def main() -> None:
    before, after, out = (Path(argument) for argument in sys.argv[1:])
    with Image.open(before) as left, Image.open(after) as right:
        before_after(left, right).save(out)
    print(f"before and after: {out}")


if __name__ == "__main__":
    main()
