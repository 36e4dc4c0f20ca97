"""The examples run as they stand."""

import runpy
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_notebook_runs_and_shows_the_edit():
    notebook = nbformat.read(EXAMPLES / "edit.ipynb", as_version=4)
    client = NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(EXAMPLES)}})
    client.execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 3


def test_before_after_keeps_both_pictures():
    before_after = runpy.run_path(str(EXAMPLES / "before_after.py"))["before_after"]
    sheet = before_after(Image.new("RGB", (5, 7), "red"), Image.new("RGBA", (5, 7), "blue"), gap=2)
    assert sheet.size == (12, 7)
    assert (sheet.getpixel((0, 6)), sheet.getpixel((5, 0)), sheet.getpixel((11, 0))) == (
        (255, 0, 0),
        (255, 255, 255),
        (0, 0, 255),
    )


def test_every_example_picture_is_small_and_can_be_edited():
    for path in EXAMPLES.glob("*.png"):
        with Image.open(path) as picture:
            picture.load()
        assert path.stat().st_size < 2_000_000
