"""Pictures and instructions to begin with; the embedded model makes each of these edits."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

_FOLDER = Path(str(files("wordbrush"))) / "assets" / "examples"

PICTURES: tuple[tuple[Path, str], ...] = (
    (_FOLDER / "meadow.webp", "make it night"),
    (_FOLDER / "beach.webp", "make it sunset"),
    (_FOLDER / "meadow.webp", "let it snow"),
    (_FOLDER / "beach.webp", "make it a black and white photo"),
)
"""A picture, and what to say about it."""

INSTRUCTIONS = (
    "make it night",
    "let it snow",
    "make it sunset",
    "turn it into a pencil sketch",
    "remove the dog",
    "change the background to a beach",
    "haz que nieve",
    "mach es zu einer Bleistiftskizze",
)
