"""Masks by clicks and strokes."""

import numpy as np
from PIL import Image, ImageDraw

from wordbrush.serving import wand


def scene() -> Image.Image:
    """A red disc with a white spot, and another red one, over a sky that grows lighter."""
    rows = np.linspace(120, 220, 200)[:, None, None] * np.array([0.5, 0.8, 1.0])
    picture = Image.fromarray(np.broadcast_to(rows, (200, 300, 3)).astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    draw.ellipse((40, 60, 120, 140), fill="red")
    draw.ellipse((70, 90, 90, 110), fill="white")
    draw.ellipse((200, 60, 260, 120), fill="red")
    return picture


def test_a_click_takes_the_thing_with_its_spots_and_not_the_next_one():
    mask = np.asarray(wand.click_area(scene(), (50, 100))) > 0
    assert mask[100, 50] and mask[100, 80] and not mask[90, 230] and not mask[20, 20]
    assert abs(mask.sum() / (np.pi * 40**2) - 1) < 0.2


def test_a_click_on_a_gradient_takes_all_of_it():
    mask = np.asarray(wand.click_area(scene(), (150, 20))) > 0
    assert mask[5, 5] and mask[190, 290]


def test_strokes_are_added_and_removed():
    size = (100, 50)
    stroke = wand.draw_stroke(size, [(0.2, 0.5), (0.8, 0.5)], 0.2)
    assert 0.1 < wand.share(stroke) < 0.2
    both = wand.add(stroke, wand.draw_stroke(size, [(0.5, 0.1)], 0.1))
    assert wand.share(both) > wand.share(stroke)
    assert wand.remove(both, Image.new("L", size, 255)) is None
    assert wand.remove(None, stroke) is None


def test_the_veil_shows_what_may_change():
    picture = Image.new("RGB", (10, 10), "white")
    mask = wand.draw_stroke((10, 10), [(0.0, 0.0)], 0.2)
    veiled = wand.veil(picture, mask)
    assert veiled.getpixel((0, 0)) != (255, 255, 255) and veiled.getpixel((9, 9)) == (255, 255, 255)
