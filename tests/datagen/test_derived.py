"""Pairs that follow from one picture: each is exact, in both directions."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageChops

from tests.training.edits import rows
from wordbrush.cli import main
from wordbrush.data.rows import Row, decode, encode_png
from wordbrush.data.shards import write_card, write_shards
from wordbrush.data.sources import open_parts, read_rows
from wordbrush.datagen.derived import OPERATIONS, Deriver, normals
from wordbrush.errors import UsageError
from wordbrush.perception.grounding import Located
from wordbrush.storybook.styles import apply_tone
from wordbrush.storybook.vision import SLOT_COLOURS, boxed, filled, sketch
from wordbrush.storybook.wording import phrasings
from wordbrush.tasks import TASKS


def captioned(count: int) -> list[Row]:
    return [
        row.model_copy(update={"source_caption": f"thing {i}"})
        for i, row in enumerate(rows(count, (128, 96)))
    ]


def pictures(row: Row) -> tuple[Image.Image, Image.Image]:
    return decode(row.input_image), decode(row.edited_image)


def same(one: Image.Image, other: Image.Image) -> bool:
    return ImageChops.difference(one, other).getbbox() is None


def test_each_pair_is_a_picture_and_what_follows_from_it():
    given = captioned(16)
    tasks = ["color", "sketch", "text", "style"]
    found = list(Deriver(tasks)(given))
    assert [row.task for row in found] == tasks * 16 and set(OPERATIONS) <= set(TASKS)
    seen: set[str] = set()
    for number, row in enumerate(found):
        plain = decode(given[number // 4].input_image)
        before, after = pictures(row)
        backwards = same(after, plain)
        assert backwards != same(before, plain)
        assert row.source_caption != row.target_caption
        assert (row.target_caption if backwards else row.source_caption) == f"thing {number // 4}"
        seen.add(f"{row.task} {backwards}")
        if row.task == "sketch":
            assert same(before if backwards else after, sketch(plain))
        if row.task == "color":
            assert any(same(after, apply_tone(plain, tone)) for tone in OPERATIONS["color"])
    assert seen == {"color False", "sketch False", "sketch True", "text False", "text True", "style False"}


def test_a_task_gives_the_same_pairs_beside_others_and_other_seeds_other_ones():
    given = captioned(6)
    alone = list(Deriver(["text"])(given))
    assert alone == list(Deriver(["color", "text"])(given))[1::2]
    assert alone != list(Deriver(["text"], seed=1)(given))


def test_without_a_caption_no_picture_is_to_be_made_from_its_outlines():
    bare = [row.model_copy(update={"source_caption": None}) for row in rows(8, (128, 96))]
    for row in Deriver(["sketch"])(bare):
        assert row.edit_prompt.lower() in phrasings("to_sketch", "train") and row.target_caption is None


def test_outlines_of_a_larger_picture_are_those_of_the_smaller():
    small = Image.new("RGB", (128, 128), "black")
    small.paste("white", (32, 32, 96, 96))
    large = small.resize((512, 512), Image.Resampling.NEAREST)
    lines = [np.asarray(sketch(p).resize((128, 128), Image.Resampling.BOX), float) for p in (small, large)]
    there = lines[0][..., 0] > 128
    assert there.mean() < 0.05
    assert lines[1][..., 0][there].mean() > 5 * lines[1][..., 0][~there].mean()


def test_depth_needs_a_model_and_tasks_are_named():
    with pytest.raises(UsageError, match="needs --depth"):
        Deriver.load(["depth"])
    with pytest.raises(UsageError, match="'posture' is none of color"):
        Deriver.load(["posture"])
    with pytest.raises(UsageError, match="needs --pose"):
        Deriver.load(["text", "pose"])
    with pytest.raises(UsageError, match="needs --things"):
        Deriver.load(["detect"], grounder="some/model")


class Bright:
    """Finds everything by its colour: a lamp is white, a coal is black."""

    def locate(self, pictures: Sequence[Image.Image], names: Sequence[str]) -> list[Located]:
        found: list[Located] = []
        for picture, name in zip(pictures, names, strict=True):
            grey = np.asarray(picture.convert("L"))
            mask = grey > 250 if name == "lamp" else grey < 5
            found.append(Located(mask, float(mask.any())))
        return found


def things() -> list[Row]:
    """Grey pictures of a lamp to the right of a coal."""
    picture = Image.new("RGB", (64, 48), (128, 128, 128))
    picture.paste((255, 255, 255), (40, 10, 56, 30))
    picture.paste((0, 0, 0), (4, 20, 20, 40))
    captions = ["two lamps beside a coal", "a lamp", "a scoalp", None]
    (row,) = rows(1, (64, 48))
    return [
        row.model_copy(update={"input_image": encode_png(picture), "source_caption": words})
        for words in captions
    ]


def test_marks_are_of_things_that_the_caption_names():
    given = things()
    plain = decode(given[0].input_image)
    tasks = ["detect", "segment", "segmentation"]
    found = list(Deriver(tasks, grounder=Bright(), things=["lamp", "coal"])(given))
    assert [(row.unit, row.task) for row in found] == [
        (f"{unit:07d}", task) for unit in (0, 1) for task in tasks
    ]
    box, shape = found[3:5]  # of the picture whose caption names the lamp alone
    lamp = np.asarray(plain.convert("L")) > 250
    for row, marked in ((box, boxed(plain, lamp)), (shape, filled(plain, lamp))):
        before, after = pictures(row)
        assert same(before, plain) and same(after, marked) and not same(after, plain)
        assert "lamp" in row.edit_prompt.lower() and "the lamp" in (row.target_caption or "")
    both = found[2]
    seen = {tuple(pixel) for half in pictures(both) for pixel in np.asarray(half).reshape(-1, 3)}
    assert {SLOT_COLOURS["left"], SLOT_COLOURS["middle"], (0, 0, 0)} <= seen


def test_normals_of_planes():
    flat = np.asarray(normals(np.full((8, 12), 0.3)))
    assert (flat == (128, 128, 255)).all()
    towards_the_left = np.asarray(normals(np.tile(np.linspace(1, 0, 12), (8, 1))))[..., 0]
    assert (towards_the_left == towards_the_left[0, 0]).all() and towards_the_left[0, 0] > 128
    towards_the_bottom = np.asarray(normals(np.tile(np.linspace(0, 1, 8)[:, None], (1, 12))))[..., 1]
    assert towards_the_bottom[0, 0] > 128


def test_the_command_writes_a_data_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write_shards(tmp_path / "edits", "train", captioned(4))
    write_card(tmp_path / "edits", ["train"], "Edits")
    with pytest.raises(SystemExit) as ended:
        main(["data", "derive", str(tmp_path / "edits"), str(tmp_path / "new"), "--tasks", "color,text"])
    assert ended.value.code == 0 and "8 rows in" in capsys.readouterr().out
    assert list(read_rows(open_parts(tmp_path / "new"))) == list(Deriver(["color", "text"])(captioned(4)))
