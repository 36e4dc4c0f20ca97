import io
import random
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Image as ImageFeature
from datasets import Value, load_dataset
from PIL import Image, PngImagePlugin

from tests.data.edits import bare, picture, row, rows
from wordbrush.data.rows import DataError, Row, decode, encode_png
from wordbrush.data.shards import (
    COLUMNS,
    find_shards,
    read_shard,
    shard_path,
    type_problems,
    write_card,
    write_shard,
    write_shards,
)
from wordbrush.errors import ImageError, OutputError


def write(folder: Path, data: list[Row], **options: Any) -> Path:
    write_shards(folder, "train", data, **options)
    write_card(folder, ["train"], "Edits")
    return folder


def test_what_is_written_is_read(tmp_path: Path):
    data = [*rows(9), bare(9)]
    assert write_shard(tmp_path / "a.parquet", data) == 10
    assert list(read_shard(tmp_path / "a.parquet")) == data
    assert write_shard(tmp_path / "none.parquet", []) == 0
    assert list(read_shard(tmp_path / "none.parquet")) == []


def test_equal_rows_give_equal_bytes(tmp_path: Path):
    write_shard(tmp_path / "a.parquet", rows(20))
    (tmp_path / "other").mkdir()
    write_shard(tmp_path / "other" / "b.parquet", iter(rows(20)))
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "other" / "b.parquet").read_bytes()
    write_shard(tmp_path / "a.parquet", rows(19))
    assert (tmp_path / "a.parquet").read_bytes() != (tmp_path / "other" / "b.parquet").read_bytes()


def test_equal_pixels_give_equal_bytes_without_metadata():
    noted = picture(0)
    noted.info = {"exif": b"Exif\0\0", "dpi": (72, 72), "Comment": "me"}
    assert encode_png(noted) == encode_png(picture(0))
    assert decode(encode_png(noted)).tobytes() == picture(0).tobytes()
    with Image.open(io.BytesIO(encode_png(noted))) as image:
        assert isinstance(image, PngImagePlugin.PngImageFile) and not image.text and "dpi" not in image.info


def test_transparency_is_decoded_over_white():
    clear = Image.new("RGBA", (2, 2), (255, 0, 0, 0))
    assert decode(encode_png(clear)).getpixel((0, 0)) == (255, 255, 255)


def test_datasets_opens_the_folder_with_its_columns(tmp_path: Path):
    data = rows(5)
    write(tmp_path / "edits", data)
    opened: Any = load_dataset(str(tmp_path / "edits"), cache_dir=str(tmp_path / "cache"))
    assert list(opened) == ["train"]
    train = opened["train"]
    assert list(train.features) == list(COLUMNS)
    for name, dtype in COLUMNS.items():
        assert train.features[name] == (ImageFeature() if dtype == "image" else Value(dtype)), name
    for found, wanted in zip(train, data, strict=True):
        assert found["edited_image"].tobytes() == decode(wanted.edited_image).tobytes()
        assert (found["mask"] is None) == (wanted.mask is None)
        assert all(found[name] == getattr(wanted, name) for name in COLUMNS if COLUMNS[name] != "image")


def test_datasets_streams_a_folder_of_several_shards_and_splits(tmp_path: Path):
    write_shards(tmp_path, "train", rows(8), shard_bytes=4000)
    write_shards(tmp_path, "test", rows(2))
    write_card(tmp_path, ["train", "test"], "Edits")
    assert len(find_shards(tmp_path)["train"]) > 2
    opened: Any = load_dataset(str(tmp_path), streaming=True)
    assert [found["edit_prompt"] for found in opened["train"]] == [r.edit_prompt for r in rows(8)]
    assert len(list(opened["test"])) == 2


def test_diffusers_training_script_finds_its_columns(tmp_path: Path):
    """As examples/instruct_pix2pix/train_instruct_pix2pix.py takes them: by place, in batches, converted."""
    opened: Any = load_dataset(str(write(tmp_path / "edits", rows(6))), cache_dir=str(tmp_path / "cache"))
    before, prompt, after = opened["train"].column_names[:3]

    def preprocess(examples: dict[str, Any]) -> dict[str, Any]:
        pixels = [
            np.concatenate(
                [np.array(i.convert("RGB").resize((8, 8))).transpose(2, 0, 1) for i in examples[name]]
            )
            for name in (before, after)
        ]
        examples["pixels"] = list(np.stack(pixels, 1).reshape(-1, 3, 2, 8, 8))
        return examples

    batch = opened["train"].with_transform(preprocess)[:4]
    assert np.stack(batch["pixels"]).shape == (4, 3, 2, 8, 8)
    assert batch[prompt] == [r.edit_prompt for r in rows(4)]


def test_shards_split_by_size_alone(tmp_path: Path):
    data = rows(12)
    assert write_shards(tmp_path, "train", iter(data), shard_bytes=3000) == 12
    shards = find_shards(tmp_path)["train"]
    assert shards == [shard_path(tmp_path, "train", number) for number in range(len(shards))]
    assert 2 < len(shards) < 12
    assert [r for shard in shards for r in read_shard(shard)] == data


def test_splits_are_found_by_name(tmp_path: Path):
    names = ("data/train-00000-of-00002-ab12.parquet", "data/dev-00000.parquet", "default/test/0000.parquet")
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        write_shard(tmp_path / name, rows(1))
    (tmp_path / "data" / ".train-00001.parquet.tmp").write_text("half")
    assert {split: len(paths) for split, paths in find_shards(tmp_path).items()} == {
        "train": 1,
        "dev": 1,
        "test": 1,
    }


def test_reading_and_writing_hold_a_few_rows_at_a_time(tmp_path: Path):
    noise = [random.Random(number).randbytes(200_000) for number in range(4)]
    held: list[int] = []

    def stream() -> Iterator[Row]:
        for number in range(300):  # 120 MB
            held.append(pa.total_allocated_bytes())
            yield Row(input_image=noise[number % 4], edit_prompt="x" * number, edited_image=noise[number % 3])

    start = pa.total_allocated_bytes()
    write_shard(tmp_path / "a.parquet", stream())
    assert max(held) - start < 40e6
    held.clear()
    for found, wanted in zip(read_shard(tmp_path / "a.parquet"), stream(), strict=True):
        assert found == wanted
        held.append(pa.total_allocated_bytes())
    assert max(held) - start < 40e6


def test_a_writer_that_fails_leaves_nothing(tmp_path: Path):
    def broken() -> Iterator[Row]:
        yield row(0)
        raise DataError("the source is damaged")

    with pytest.raises(DataError, match="the source is damaged"):
        write_shard(tmp_path / "a.parquet", broken())
    with pytest.raises(OutputError, match="none"):
        write_shard(tmp_path / "none" / "a.parquet", rows(1))
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_one_line_and_leaves_what_was_there(tmp_path: Path):
    write_shard(tmp_path / "a.parquet", rows(1))
    before = (tmp_path / "a.parquet").read_bytes()
    large = [row(0, input_image=random.Random(0).randbytes(1 << 20))] * 20
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 22, limits[1]))
    try:
        with pytest.raises(OutputError, match="too large"):
            write_shard(tmp_path / "a.parquet", large)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in tmp_path.iterdir()] == ["a.parquet"]
    assert (tmp_path / "a.parquet").read_bytes() == before


def test_cut_and_scrambled_files_are_one_line(tmp_path: Path):
    whole, path = tmp_path / "a.parquet", tmp_path / "b.parquet"
    write_shard(whole, rows(20))
    data = whole.read_bytes()
    for length in (0, 3, 100, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:length])
        for use in (lambda: list(read_shard(path)), lambda: type_problems(path)):
            with pytest.raises(DataError, match=r"b\.parquet: damaged") as caught:
                use()
            assert "\n" not in str(caught.value)
    rng = random.Random(0)
    for _ in range(30):
        broken = bytearray(data)
        for _ in range(40):
            broken[rng.randrange(len(data))] = rng.randrange(256)
        path.write_bytes(broken)
        try:
            list(read_shard(path))
        except DataError as error:
            assert "\n" not in str(error)


def test_foreign_columns_and_types_are_named(tmp_path: Path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"picture": [b"x"], "words": ["y"]}), path)
    with pytest.raises(DataError, match="columns picture, words"):
        list(read_shard(path))
    image = {"bytes": b"x", "path": None}
    whole = {"input_image": [image] * 2, "edit_prompt": ["a", "b"], "edited_image": [image] * 2}
    for name, values, hint in (
        ("seed", ["one", "two"], "row 0: seed"),
        ("edit_prompt", ["a", None], "row 1: edit_prompt"),
        ("edited_image", [image, {"bytes": None, "path": "/etc/passwd"}], "row 1: the picture edited_image"),
        ("edited_image", [image, None], "row 1: edited_image"),
    ):
        pq.write_table(pa.table(whole | {name: values}), path)
        with pytest.raises(DataError, match=hint):
            list(read_shard(path))


def test_hostile_pictures_are_refused():
    wide = encode_png(Image.new("L", (1, 1))).replace(b"\0\0\0\1\0\0\0\1", b"\0\xff\xff\xff\0\xff\xff\xff", 1)
    for data in (wide, b"", b"GIF89a", encode_png(picture(0))[:60], b"%!PS-Adobe-3.0 EPSF-3.0"):
        with pytest.raises(ImageError) as caught:
            decode(data)
        assert "\n" not in str(caught.value)
