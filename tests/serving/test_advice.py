"""Which knob to turn when nothing, or too much, changed."""

from typing import Any

import pytest
from PIL import Image, ImageDraw, ImageEnhance

from wordbrush.editors.settings import (
    EmuEditSettings,
    ImagicSettings,
    InstructPix2PixSettings,
    SDEditSettings,
    Text2LiveSettings,
)
from wordbrush.serving.advice import LITTLE, STRANGE, Change, advise, measure

NOTHING, TOO_MUCH, FINE = Change(0.0, 1.0), Change(0.3, 0.0), Change(0.2, 0.9)


@pytest.mark.parametrize(
    ("change", "settings", "expected"),
    [
        (NOTHING, InstructPix2PixSettings(), {"text_scale": 11.25}),
        (NOTHING, InstructPix2PixSettings(text_scale=12), {"image_scale": 1.25}),
        (NOTHING, SDEditSettings(text_scale=15, strength=0.6), {"strength": 0.7}),
        (TOO_MUCH, InstructPix2PixSettings(), {"image_scale": 2.0}),
        (TOO_MUCH, InstructPix2PixSettings(image_scale=3), {"text_scale": 5.25}),
        (TOO_MUCH, EmuEditSettings(), {"image_scale": 2.0}),
        (TOO_MUCH, SDEditSettings(strength=0.5), {"strength": 0.35}),
        (TOO_MUCH, ImagicSettings(), {"eta": 0.5}),
    ],
)
def test_advice_is_a_setting_of_the_method(change: Change, settings: Any, expected: dict[str, float]):
    advice = advise(change, settings)
    assert advice is not None and advice.settings == expected
    [(name, value)] = expected.items()
    assert f"Set {name.replace('_', ' ')} to {value:g}." in advice.text


@pytest.mark.parametrize("change", [NOTHING, TOO_MUCH, FINE])
def test_no_advice_where_there_is_none(change: Change):
    assert advise(change, Text2LiveSettings()) is None
    assert advise(FINE, InstructPix2PixSettings()) is None


def test_night_keeps_the_picture_and_another_scene_does_not():
    scene, other = (Image.new("RGB", (128, 128), "skyblue") for _ in range(2))
    ImageDraw.Draw(scene).ellipse((20, 20, 70, 90), fill="tomato")
    ImageDraw.Draw(other).polygon([(70, 120), (120, 120), (110, 60)], fill="green")
    assert measure(scene, scene).amount == 0
    night = measure(scene, ImageEnhance.Brightness(scene).enhance(0.4))
    assert night.amount > LITTLE and night.likeness > STRANGE
    assert measure(scene, other).likeness < STRANGE


def test_only_what_might_change_counts():
    before, after = (Image.new("RGB", (64, 64), "white") for _ in range(2))
    after.paste("black", (0, 0, 8, 64))
    mask = Image.new("L", (64, 64))
    mask.paste(255, (0, 0, 8, 64))
    assert measure(before, after, mask).amount == pytest.approx(8 * measure(before, after).amount, rel=0.01)
