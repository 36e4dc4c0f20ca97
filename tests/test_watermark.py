"""The invisible watermark, by the real library."""

import io

import numpy as np
import pytest
from PIL import Image

from wordbrush import watermark
from wordbrush.errors import ImageError

pytest.importorskip("imwatermark", exc_type=ImportError)


@pytest.fixture
def large(picture: Image.Image) -> Image.Image:
    """Of sides that no block divides."""
    return picture.resize((351, 262), Image.Resampling.BICUBIC)


def test_the_mark_is_found_and_hardly_changes_anything(large: Image.Image):
    marked = watermark.put_in(large)
    assert watermark.is_in(marked)
    assert not watermark.is_in(large)
    change = np.abs(np.asarray(marked, int) - np.asarray(large, int))
    assert 0 < change.mean() < 3
    assert change.max() < 32
    assert (marked.size, marked.mode) == (large.size, "RGB")


@pytest.mark.parametrize(
    ("kind", "options"), [("PNG", {}), ("JPEG", {"quality": 75}), ("WEBP", {"quality": 90})]
)
def test_the_mark_outlives_files(large: Image.Image, kind: str, options: dict[str, int]):
    file = io.BytesIO()
    watermark.put_in(large).save(file, kind, **options)
    assert watermark.is_in(Image.open(file))


def test_edges_get_no_fringes():
    edge = Image.new("RGB", (300, 300), (30, 30, 200))
    edge.paste((220, 200, 40), (151, 0, 300, 300))
    change = np.abs(np.asarray(watermark.put_in(edge), int) - np.asarray(edge, int))
    assert change.max() < 32


def test_transparency_stays(large: Image.Image):
    alpha = Image.linear_gradient("L").resize(large.size)
    large.putalpha(alpha)
    marked = watermark.put_in(large)
    assert watermark.is_in(marked)
    assert marked.getchannel("A").tobytes() == alpha.tobytes()


def test_marking_again_changes_little(large: Image.Image):
    once = watermark.put_in(large)
    twice = watermark.put_in(once)
    assert watermark.is_in(twice)
    assert np.abs(np.asarray(once, int) - np.asarray(twice, int)).mean() < 1


def test_what_cannot_be_marked_is_one_clear_line(picture: Image.Image):
    with pytest.raises(ImageError, match="48 x 32 is too small for a watermark"):
        watermark.put_in(picture)
    assert not watermark.is_in(picture)
    with pytest.raises(ImageError, match="too flat and white to hold a watermark"):
        watermark.put_in(Image.new("RGB", (300, 300), "white"))
