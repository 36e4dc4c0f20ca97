"""Layouts into each other, and the columns of others' data sets."""

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

from tests.data.edits import jpeg, picture, row, rows
from tests.world import make_small_shards, sprites  # noqa: F401
from wordbrush.data.rows import DataError, Row, decode
from wordbrush.data.shards import read_shard, write_shards
from wordbrush.data.sources import LAYOUTS, convert, open_parts, read_rows
from wordbrush.data.webdataset import write_tar
from wordbrush.errors import OutputError, UsageError
from wordbrush.storybook.dataset import make
from wordbrush.storybook.sprites import SpriteLibrary


def read(folder: Path) -> list[Row]:
    return list(read_rows(open_parts(folder)))


def hub_folder(
    folder: Path, features: dict[str, Any], data: dict[str, list[Any]], split: str = "train"
) -> Path:
    """A data set as `datasets` writes it, with pictures inside."""
    typed: Any = datasets.Features(features)
    found = datasets.Dataset.from_dict(data, features=typed)
    (folder / "data").mkdir(parents=True, exist_ok=True)
    found.to_parquet(str(folder / "data" / f"{split}-00000-of-00001.parquet"))
    return folder


@pytest.fixture
def edits(tmp_path: Path) -> Path:
    """JPEG pictures, of which every layout keeps the bytes; two splits."""
    for split, start in (("test", 0), ("train", 4)):
        data = [
            row(n, input_image=jpeg(picture(n)), edited_image=jpeg(picture(99 - n)))
            for n in range(start, start + 4)
        ]
        write_shards(tmp_path / "edits", split, data)
    return tmp_path / "edits"


def test_rows_survive_every_layout_in_turn(edits: Path, tmp_path: Path):
    source, wanted = edits, [r for r in read(edits) if int(r.edit_prompt.split()[-1]) >= 4]
    for number, layout in enumerate(
        ("webdataset", "original", "webdataset", "parquet", "original", "parquet")
    ):
        split = "train" if number == 0 else None
        assert convert(source, tmp_path / str(number), layout, split=split) == 4
        source = tmp_path / str(number)
        assert read(source) == wanted
    assert set(LAYOUTS) == {"webdataset", "original", "parquet"}


def test_splits_stay_apart(edits: Path, tmp_path: Path):
    assert convert(edits, tmp_path / "tars", "webdataset") == 8
    assert convert(tmp_path / "tars", tmp_path / "again", "parquet") == 8
    assert [part.split for part in open_parts(tmp_path / "again")] == ["test", "train"]
    for split, shard in (("test", 0), ("train", 1)):
        name = f"{split}-00000.parquet"
        assert (tmp_path / "again/data" / name).read_bytes() == (edits / "data" / name).read_bytes(), shard
    opened: Any = datasets.load_dataset(str(tmp_path / "again"), streaming=True)
    assert set(opened) == {"test", "train"}
    with pytest.raises(UsageError, match="--split"):
        convert(edits, tmp_path / "original", "original")
    with pytest.raises(UsageError, match="no split 'dev'"):
        convert(edits, tmp_path / "original", "original", split="dev")
    assert not (tmp_path / "original").exists()


def test_a_single_file_is_a_source(edits: Path, tmp_path: Path):
    assert len(read(edits / "data" / "test-00000.parquet")) == 4
    write_tar(tmp_path / "train-000000.tar", rows(3))
    assert read(tmp_path / "train-000000.tar") == rows(3)


def test_magicbrush(tmp_path: Path):
    """Columns and types by its card."""
    pictures = {name: datasets.Image() for name in ("source_img", "mask_img", "target_img")}
    features = {"img_id": datasets.Value("string"), "turn_index": datasets.Value("int32"), **pictures,
                "instruction": datasets.Value("string")}  # fmt: skip
    data = {"img_id": ["7", "7"], "turn_index": [1, 2], "instruction": ["add a hat", "make it red"],
            "source_img": [picture(0), picture(1)], "mask_img": [picture(2), None],
            "target_img": [picture(1), picture(3)]}  # fmt: skip
    hub_folder(tmp_path / "a", features, data)
    found = read(hub_folder(tmp_path / "a", features, data, "dev"))
    assert [part.split for part in open_parts(tmp_path / "a")] == ["dev", "train"]
    assert [(r.unit, r.turn, r.edit_prompt) for r in found[:2]] == [
        ("7", 1, "add a hat"),
        ("7", 2, "make it red"),
    ]
    assert (
        decode(found[0].edited_image).tobytes()
        == picture(1).tobytes()
        == decode(found[1].input_image).tobytes()
    )
    assert found[0].mask is not None and found[1].mask is None


def test_emu_edit(tmp_path: Path):
    """Columns by its card; its test set alone has no results, and so no pairs."""
    text = {name: datasets.Value("string") for name in
            ("instruction", "task", "split", "hash", "input_caption", "output_caption")}  # fmt: skip
    features = {**text, "idx": datasets.Value("int64"), "image": datasets.Image()}
    data = {"instruction": ["x"], "task": ["add"], "split": ["test"], "hash": ["ab"], "input_caption": ["a dog"],  # noqa: E501
            "output_caption": ["a cat"], "idx": [3], "image": [picture(0)]}  # fmt: skip
    with pytest.raises(DataError, match="no pictures after the edit: .* evaluate benchmark"):
        read(hub_folder(tmp_path / "a", features, data, "test"))
    features["edited_image"], data["edited_image"] = datasets.Image(), [picture(1)]
    (found,) = read(hub_folder(tmp_path / "b", features, data, "test"))
    assert (found.edit_prompt, found.task, found.unit) == ("x", "add", "ab")
    assert (found.source_caption, found.target_caption) == ("a dog", "a cat")
    assert decode(found.edited_image).tobytes() == picture(1).tobytes()


def test_tedbench_is_for_evaluation_only(tmp_path: Path):
    features = {"original_image": datasets.Image(), "target_text": datasets.Value("string")}
    data = {"original_image": [picture(0)], "target_text": ["a dog that sits"]}
    with pytest.raises(DataError, match="evaluation only"):
        read(hub_folder(tmp_path / "parquet", features, data, "val"))
    (tmp_path / "listed").mkdir()
    (tmp_path / "listed/input_list.json").write_text("[]")
    with pytest.raises(DataError, match="evaluation only"):
        read(tmp_path / "listed")


def test_instruct_pix2pix_of_the_hub(tmp_path: Path):
    text = {name: datasets.Value("string") for name in ("original_prompt", "edit_prompt", "edited_prompt")}
    features = {**text, "original_image": datasets.Image(), "edited_image": datasets.Image()}
    data = {"original_prompt": ["a"], "edit_prompt": ["b"], "edited_prompt": ["c"],
            "original_image": [picture(0)], "edited_image": [picture(1)]}  # fmt: skip
    (found,) = read(hub_folder(tmp_path / "a", features, data))
    assert (found.source_caption, found.edit_prompt, found.target_caption) == ("a", "b", "c")
    assert convert(tmp_path / "a", tmp_path / "b", "parquet") == 1
    assert read(tmp_path / "b") == [found]


def test_rendered_edits_of_the_storybook(
    tmp_path: Path,
    sprites: SpriteLibrary,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
):
    make_small_shards(monkeypatch, sprites, 3)
    rendered = make(tmp_path / "edits", 6, size=32)
    convert(tmp_path / "edits", tmp_path / "parquet", "parquet")
    found = read(tmp_path / "parquet")
    assert len(found) == len({r.unit for r in found}) == 6
    for number, r in enumerate(found):
        pair = [np.asarray(decode(data)) for data in (r.input_image, r.edited_image)]
        np.testing.assert_array_equal(np.stack(pair), rendered.pair(number))
        texts = {"instruction": r.edit_prompt, "source_caption": r.source_caption,
                 "target_caption": r.target_caption, "task": r.task}  # fmt: skip
        assert texts == {name: rendered.rows[number][name] for name in texts}
    (tmp_path / "edits" / "00001.npy").write_bytes(b"cut")
    with pytest.raises(DataError, match="damaged rendered edits"):
        read(tmp_path / "edits")


def test_a_conversion_that_fails_leaves_nothing(edits: Path, tmp_path: Path):
    shard = edits / "data" / "train-00000.parquet"
    shard.write_bytes(shard.read_bytes()[:-30])
    for layout in LAYOUTS:
        with pytest.raises((DataError, UsageError)):
            convert(edits, tmp_path / "out", layout)
    assert [path.name for path in tmp_path.iterdir()] == ["edits"]


def test_wrong_uses_are_refused(edits: Path, tmp_path: Path):
    for source, folder, layout, kind, hint in (
        (edits, tmp_path / "out", "zip", UsageError, "webdataset"),
        (edits, edits, "parquet", UsageError, "exists"),
        (edits, tmp_path / "none" / "out", "parquet", OutputError, "none"),
        (tmp_path / "none", tmp_path / "out", "parquet", DataError, "no data set"),
        (tmp_path, tmp_path / "out", "parquet", None, ""),
    ):
        if kind is None:
            assert convert(source, folder, layout) == 8
            continue
        with pytest.raises(kind, match=hint):
            convert(source, folder, layout)


def test_only_small_pieces_of_a_source_are_read_at_once(edits: Path):
    (part, _) = open_parts(edits)
    assert next(part.read()) == next(read_shard(part.path))
    with pytest.raises(DataError, match="no data set"):
        open_parts(Path(__file__))


def test_pictures_in_the_original_layout_are_what_pillow_reads(edits: Path, tmp_path: Path):
    convert(edits, tmp_path / "a", "original", split="test")
    with Image.open(next((tmp_path / "a").rglob("*_0.jpg"))) as image:
        assert image.size == (24, 16)
