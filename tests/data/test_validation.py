import math
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data.edits import bare, picture, row, rows
from wordbrush.data.rows import Row, encode_png
from wordbrush.data.shards import write_shard
from wordbrush.data.sources import open_parts
from wordbrush.data.validation import find_problems
from wordbrush.data.webdataset import write_tar


def problems(folder: Path, data: list[Row]) -> list[str]:
    write_shard(folder / "train-0.parquet", data)
    return list(find_problems(open_parts(folder)))


def test_sound_data_has_no_problems(tmp_path: Path):
    assert problems(tmp_path, [*rows(9), bare(9)]) == []
    write_tar(tmp_path / "test-0.tar", rows(12)[10:])
    assert list(find_problems(open_parts(tmp_path))) == []


@pytest.mark.parametrize(
    ("changes", "hint"),
    [
        ({"edit_prompt": " \n"}, "edit_prompt is empty"),
        ({"clip_sim_dir": 1.5}, "clip_sim_dir is 1.5"),
        ({"clip_sim_0": math.nan}, "clip_sim_0 is nan"),
        ({"input_image": b"not a picture"}, "input_image: not a picture"),
        ({"edited_image": encode_png(picture(0))[:80]}, "edited_image: damaged picture"),
        ({"mask": b""}, "mask: the file is empty"),
        ({"edited_image": encode_png(picture(0, (8, 8)))}, "edited_image 8x8"),
        ({"mask": encode_png(picture(0, (24, 17)))}, "mask 24x17"),
    ],
)
def test_each_problem_is_one_line_with_its_place(tmp_path: Path, changes: dict[str, object], hint: str):
    found = problems(tmp_path, [row(0), row(1, **changes), row(2)])
    assert len(found) == 1
    assert found[0].startswith(f"{tmp_path}/train-0.parquet row 1: ")
    assert hint in found[0] and "\n" not in found[0]


def test_repetitions_are_found_across_files(tmp_path: Path):
    write_tar(tmp_path / "dev-0.tar", [row(0)])
    found = problems(tmp_path, [row(0, unit="other", seed=1), row(0, edit_prompt="else"), row(1)])
    assert [line.split(": ", 1)[1] for line in found] == [
        f"a repetition: the row came before, in {tmp_path}/dev-0.tar row 0",
        f"a repetition: its draw came before, in {tmp_path}/dev-0.tar row 0",
    ]


def test_a_damaged_file_does_not_hide_the_others(tmp_path: Path):
    write_shard(tmp_path / "a-0.parquet", rows(3))
    (tmp_path / "a-0.parquet").write_bytes((tmp_path / "a-0.parquet").read_bytes()[:200])
    found = problems(tmp_path, [row(5, edit_prompt="")])
    assert len(found) == 2
    assert "a-0.parquet: damaged" in found[0] and "train-0.parquet row 0" in found[1]


def test_columns_of_other_types_are_named(tmp_path: Path):
    write_shard(tmp_path / "train-0.parquet", rows(2))
    table = pq.read_table(tmp_path / "train-0.parquet")
    for column, kind in (("seed", pa.float64()), ("unit", pa.large_string())):
        table = table.set_column(table.schema.get_field_index(column), column, table[column].cast(kind))
    pq.write_table(table.drop_columns("task"), tmp_path / "train-0.parquet")
    found = list(find_problems(open_parts(tmp_path)))
    assert [line.split(": ", 1)[1] for line in found[:2]] == [
        "column unit is large_string, not string", "column seed is double, not int64"
    ]  # fmt: skip
    assert len(found) == 3 and "row 0: seed" in found[2]
