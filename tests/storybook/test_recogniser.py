import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from wordbrush.errors import ModelError
from wordbrush.storybook.catalogue import COLOURS, PLACES, THING
from wordbrush.storybook.recogniser import (
    SIZE,
    WINDOW,
    Recogniser,
    agrees,
    facts,
    item_side,
    slot_windows,
    to_pixels,
)
from wordbrush.storybook.render import SLOT_PLACE, Renderer
from wordbrush.storybook.scenes import SLOTS, Item, Scene

CAR = Item("car", "left", colour="red")
SCENE = Scene("beach", (CAR, Item("face", "middle", variant="sad", size="large")), time="night")


@pytest.fixture(scope="module")
def tiny() -> Recogniser:
    torch.manual_seed(0)
    return Recogniser((4, 4, 4, 4), (4, 4, 4, 4)).eval()


def test_facts_are_what_a_scene_says():
    found = facts(SCENE)
    assert found["place"] == "beach" and found["time"] == "night" and found["style"] == "none"
    assert found["left.thing"] == "car" and found["left.colour"] == "red"
    assert found["middle.variant"] == "sad" and found["middle.side"] == pytest.approx(0.56)
    assert found["right.thing"] == found["back.thing"] == "none"
    assert "middle.colour" not in found and "right.side" not in found


def test_what_a_style_or_a_place_hides_is_no_fact():
    assert not {"time", "weather"} & set(facts(replace(SCENE, place="moon")))
    grey = facts(replace(SCENE, style="monochrome"))
    assert grey["left.thing"] == "car" and "left.colour" not in grey and "tone" not in grey
    assert not [name for name in facts(replace(SCENE, style="pixel")) if "." in name]


def test_only_items_that_can_be_seen_are_judged(render: Renderer):
    tiny_back = Item("snail", "back", size="small", scale=0.5)
    scene = Scene("desert", (tiny_back, Item("elephant", "middle", size="large")))
    found = facts(scene, render(scene).masks)
    assert "back.thing" not in found and found["middle.thing"] == "elephant"
    clear = Scene("desert", (CAR,))
    assert facts(clear, render(clear).masks) == facts(clear)


def test_sides_agree_within_their_tolerance_or_by_the_nearer_one():
    wanted = {"left.side": 0.4}
    assert agrees("left.side", {"left.side": 0.45}, wanted) and agrees(
        "left.side", {"left.side": 0.36}, wanted
    )
    assert not agrees("left.side", {"left.side": 0.5}, wanted)
    old = {"left.side": 0.56}
    middle = math.sqrt(0.4 * 0.56)
    assert agrees("left.side", {"left.side": middle - 0.01}, wanted, old)
    assert not agrees("left.side", {"left.side": middle + 0.01}, wanted, old)
    assert not agrees("place", {"place": "moon"}, {"place": "sea"})


def test_the_side_is_the_longer_side_of_the_sprite(render: Renderer):
    for thing in ("giraffe", "train", "face"):
        kind = THING[thing]
        item = Item(thing, "middle", variant=next(iter(kind.variants), None), scale=1.2)
        rows, columns = render(Scene("snow", (item,))).masks[0].nonzero()
        seen = max(rows.max() - rows.min(), columns.max() - columns.min()) + 1
        assert seen / SIZE == pytest.approx(item_side(item), abs=0.025)


def test_a_window_shows_its_slot_at_the_same_height():
    pixels = torch.zeros(1, 3, SIZE, SIZE)
    for slot in SLOTS:
        x, foot, _ = SLOT_PLACE[slot]
        pixels[..., round(foot * SIZE) - 1, round(x * SIZE)] = SLOTS.index(slot) + 1
    windows = slot_windows(pixels)
    assert windows.shape == (1, len(SLOTS), 3, WINDOW, WINDOW)
    for number in range(len(SLOTS)):
        assert (windows[0, number, :, WINDOW - 11, WINDOW // 2] == number + 1).all()


def test_reading_names_every_attribute_and_does_not_depend_on_the_batch(tiny: Recogniser, render: Renderer):
    pictures = [
        render(SCENE).image,
        render(replace(SCENE, place="sea")).image,
        render(SCENE).image.resize((200, 200)),
    ]
    together = tiny.read(pictures)
    assert set(together[0]) >= set(facts(SCENE))
    assert together[0]["place"] in PLACES and together[0]["left.colour"] in COLOURS
    for picture, read in zip(pictures, together, strict=True):
        alone = tiny.read([picture])[0]
        assert {k: v for k, v in alone.items() if isinstance(v, str)} == {
            k: v for k, v in read.items() if isinstance(v, str)
        }
    assert to_pixels(pictures[2:]).shape == (1, 3, SIZE, SIZE)


def test_saved_and_loaded_it_reads_the_same(tiny: Recogniser, render: Renderer, tmp_path: Path):
    tiny.save(tmp_path)
    again = Recogniser.load(tmp_path)
    pixels = to_pixels([render(SCENE).image])
    for name, scores in tiny.picture(pixels).items():
        torch.testing.assert_close(again.picture(pixels)[name], scores, atol=5e-3, rtol=1e-2)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "model.safetensors"}


def test_the_shipped_size_stays_within_its_budget():
    assert sum(value.numel() for value in Recogniser().state_dict().values()) * 2 < 2.5e6


def test_damaged_and_foreign_recognisers_are_refused(tiny: Recogniser, tmp_path: Path):
    with pytest.raises(ModelError, match="cannot load the recogniser"):
        Recogniser.load(tmp_path)
    tiny.save(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace('"dog"', '"hound"'))
    with pytest.raises(ModelError, match="another catalogue"):
        Recogniser.load(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(ModelError, match="cannot load the recogniser"):
        Recogniser.load(tmp_path)
