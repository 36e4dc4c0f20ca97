"""Puts tables and pictures that evaluations made into the pages that show them.

    python docs/tables.py            # or `make tables`

A page names the file of a table, and what stands between the two comments becomes what the file holds
(indented, as here, they are an example):

    <!-- table: out/evaluate-storybook/table.md -->
    <!-- end of table -->

and the file of a picture; that becomes the file which the picture below the comment is read from, as a JPEG
if it is called one:

    <!-- picture: out/figure8/trade-off.svg -->
    ![What is kept](pictures/figure8.svg)

What has no file there stays as it is.
"""

import re
import shutil
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^(<!-- table: (\S+) -->\n)(.*?)^(<!-- end of table -->)", re.DOTALL | re.MULTILINE)
PICTURE = re.compile(r"^<!-- picture: (\S+) -->\n!\[[^]]*\]\((\S+)\)", re.MULTILINE)
HALVES = ("table: ", "end of table ")


def blocks(text: str) -> dict[str, str]:
    """The tables of a page, by their files; raises a ValueError where a comment lacks its other half."""
    found = BLOCK.findall(text)
    if not all(len(found) == len(re.findall(f"^<!-- {half}", text, re.MULTILINE)) for half in HALVES):
        raise ValueError("a table's comment lacks its other half")
    return {file: table for _, file, table, _ in found}


def refresh(page: Path, root: Path) -> list[str]:
    """Renew a page's tables and pictures from their files below `root`; says what became of each."""
    text, said = page.read_text(encoding="utf-8"), list[str]()

    def renewed(block: re.Match[str]) -> str:
        start, file, _, end = block.groups()
        if not (root / file).is_file():
            said.append(f"{page.name}: no {file}, its table stays as it is")
            return block[0]
        said.append(f"{page.name}: {file}")
        return f"{start}{(root / file).read_text(encoding='utf-8').strip()}\n{end}"

    blocks(text)  # all are whole
    page.write_text(BLOCK.sub(renewed, text), encoding="utf-8")
    return said + [_copied(page, root, *names) for names in PICTURE.findall(text)]


def _copied(page: Path, root: Path, file: str, shown: str) -> str:
    if not (root / file).is_file():
        return f"{page.name}: no {file}, its picture stays as it is"
    if Path(file).suffix == Path(shown).suffix:
        shutil.copyfile(root / file, page.parent / shown)
    else:  # a PNG of pictures is five times as large
        Image.open(root / file).convert("RGB").save(page.parent / shown, quality=88, optimize=True)
    return f"{page.name}: {file}"


if __name__ == "__main__":
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        for line in refresh(page, ROOT):
            print(line)
