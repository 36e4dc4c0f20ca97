"""Pairs that follow from one picture: each is exact, in both directions."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageChops

from tests.training.edits import rows
from wordbrush.cli import main
from wordbrush.data.rows import Row, decode
from wordbrush.data.shards import write_card, write_shards
from wordbrush.data.sources import open_parts, read_rows
from wordbrush.datagen.derived import OPERATIONS, Deriver
from wordbrush.errors import UsageError
from wordbrush.storybook.styles import apply_tone
from wordbrush.storybook.vision import sketch
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
    found = list(Deriver(["color", "sketch", "text"])(given))
    assert [row.task for row in found] == ["color", "sketch", "text"] * 16 and set(OPERATIONS) <= set(TASKS)
    seen: set[str] = set()
    for number, row in enumerate(found):
        plain = decode(given[number // 3].input_image)
        before, after = pictures(row)
        backwards = same(after, plain)
        assert backwards != same(before, plain)
        assert row.source_caption != row.target_caption
        assert (row.target_caption if backwards else row.source_caption) == f"thing {number // 3}"
        seen.add(f"{row.task} {backwards}")
        if row.task == "sketch":
            assert same(before if backwards else after, sketch(plain))
        if row.task == "color":
            assert any(same(after, apply_tone(plain, tone)) for tone in OPERATIONS["color"])
    assert seen == {"color False", "sketch False", "sketch True", "text False", "text True"}


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
        Deriver.load(["depth"], depth=None, seed=0, device="cpu")
    with pytest.raises(UsageError, match="'pose' is none of color"):
        Deriver.load(["pose"], depth=None, seed=0, device="cpu")


def test_the_command_writes_a_data_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write_shards(tmp_path / "edits", "train", captioned(4))
    write_card(tmp_path / "edits", ["train"], "Edits")
    with pytest.raises(SystemExit) as ended:
        main(["data", "derive", str(tmp_path / "edits"), str(tmp_path / "new"), "--tasks", "color,text"])
    assert ended.value.code == 0 and "8 rows in" in capsys.readouterr().out
    assert list(read_rows(open_parts(tmp_path / "new"))) == list(Deriver(["color", "text"])(captioned(4)))
