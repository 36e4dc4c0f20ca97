"""Edits in every layout, read at any place."""

import json
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data.hub_files import REPO, Hub
from tests.training.edits import picture, rows
from wordbrush.data.blocks import open_blocks, picture_sizes
from wordbrush.data.original import write_original
from wordbrush.data.rows import DataError, Row, decode, encode_png
from wordbrush.data.shards import write_shards
from wordbrush.data.webdataset import write_tars

ROWS = rows(9)
WRITERS: dict[str, Callable[[Path], object]] = {
    "parquet": lambda folder: write_shards(folder, "train", ROWS, shard_bytes=4000),
    "tar": lambda folder: write_tars(folder, "train", ROWS, shard_bytes=4000),
    "original": lambda folder: write_original(folder, rows(10)),  # of which the first nine are for training
}


@pytest.mark.parametrize("layout", WRITERS)
def test_every_layout_is_read_in_order_block_by_block(
    layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("wordbrush.data.blocks._ROWS", 2)
    WRITERS[layout](tmp_path / "data")
    blocks = open_blocks([str(tmp_path / "data")])
    assert len(blocks) > 2 and sum(block.count for block in blocks) == 9
    backwards = [block.read() for block in reversed(blocks)]  # none needs what lies before it
    edits = [edit for block in reversed(backwards) for edit in block]
    assert [edit.instruction for edit in edits] == [row.edit_prompt for row in ROWS]
    assert [block.count for block in blocks] == [len(block) for block in reversed(backwards)]
    for edit, row in zip(edits, ROWS, strict=True):
        for found, data in zip(edit.pictures(), (row.input_image, row.edited_image), strict=True):
            difference = np.asarray(found, float) - np.asarray(decode(data), float)
            assert np.abs(difference).mean() < (3 if layout == "original" else 1e-9)  # which is JPEG


def test_sources_are_joined_and_splits_are_told_apart(tmp_path: Path):
    for split, part in (("train", ROWS[:3]), ("test", ROWS[3:5])):
        write_shards(tmp_path / "a", split, part)
    write_tars(tmp_path / "b", "train", ROWS[5:])
    sources = [str(tmp_path / "a"), str(tmp_path / "b")]

    def read(*names: str, split: str = "train") -> list[str]:
        return [edit.instruction for block in open_blocks(names, split) for edit in block.read()]

    assert read(*sources) == [row.edit_prompt for row in (*ROWS[:3], *ROWS[5:])]
    assert read(sources[0], split="test") == [row.edit_prompt for row in ROWS[3:5]]
    assert read(sources[1], split="test") == [row.edit_prompt for row in ROWS[5:]]  # all that there is
    with pytest.raises(DataError, match=r"no split 'dev': it has test, train"):
        open_blocks(sources, "dev")


def test_the_original_layout_is_cut_as_its_own_reader_does(tmp_path: Path):
    """By edit_dataset.py, shares of 0.9, 0.05 and 0.05 of the folders, each place rounded down."""
    write_original(tmp_path, rows(47))
    found = {
        split: [
            int(edit.instruction.split()[-1])
            for block in open_blocks([str(tmp_path)], split)
            for edit in block.read()
        ]
        for split in ("train", "val", "test")
    }
    assert found == {"train": [*range(42)], "val": [42, 43], "test": [44, 45, 46]}
    with pytest.raises(DataError, match="no split 'dev': it has train, val, test"):
        open_blocks([str(tmp_path)], "dev")


def test_other_columns_of_the_hub_are_known(tmp_path: Path):
    cell = {"bytes": encode_png(picture(0)), "path": None}
    columns = {"source_img": [cell], "instruction": ["make it so"], "target_img": [cell], "mask_img": [cell]}
    pq.write_table(pa.table(columns), tmp_path / "train-00000-of-00001.parquet")
    (block,) = open_blocks([str(tmp_path)])
    assert block.read()[0].instruction == "make it so"


def test_sizes_are_those_of_the_pictures(tmp_path: Path):
    write_shards(tmp_path / "data", "train", rows(4, (40, 36), (20, 50)))
    picture_sizes(open_blocks([str(tmp_path / "data")]), tmp_path / "sizes.npy")
    assert np.load(tmp_path / "sizes.npy").tolist() == [[40, 36], [20, 50], [40, 36], [20, 50]]


def test_what_cannot_be_read_is_one_clear_line(tmp_path: Path):
    with pytest.raises(DataError, match="neither a folder nor a hub id"):
        open_blocks([str(tmp_path / "none")])
    with pytest.raises(DataError, match="not to be had from the hub"):
        open_blocks(["nobody/nothing"])  # the tests run offline
    with pytest.raises(DataError, match="holds no data set"):
        open_blocks([str(tmp_path)])
    (tmp_path / "train-00000.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError, match="cannot read"):
        open_blocks([str(tmp_path)])


def test_damage_that_shows_only_later_is_one_clear_line(tmp_path: Path):
    for layout in ("parquet", "tar"):
        WRITERS[layout](tmp_path / layout)
        blocks = open_blocks([str(tmp_path / layout)])
        for path in (tmp_path / layout).rglob("*.*"):
            if path.suffix in (".parquet", ".tar"):
                path.write_bytes(b"\0" * 100)
        with pytest.raises(DataError, match="cannot read|without two pictures"):
            blocks[0].read()


def test_a_row_without_a_picture_is_refused(tmp_path: Path):
    cell = {"bytes": None, "path": "elsewhere.png"}
    columns = {"input_image": [cell], "edit_prompt": ["x"], "edited_image": [cell]}
    pq.write_table(pa.table(columns), tmp_path / "train-0.parquet")
    with pytest.raises(DataError, match="without two pictures inside the file"):
        open_blocks([str(tmp_path)])[0].read()


def test_names_that_lead_elsewhere_are_not_followed(tmp_path: Path):
    (tmp_path / "seeds.json").write_text(json.dumps([["../up", ["1"]]]))
    with pytest.raises(DataError, match="not a list of folders and their seeds"):
        open_blocks([str(tmp_path)])
    (tmp_path / "seeds.json").unlink()
    with tarfile.open(tmp_path / "train-0.tar", "w") as archive:
        link = tarfile.TarInfo("0.json")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    with pytest.raises(DataError, match="no edits in"):
        open_blocks([str(tmp_path)])


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """With a file of three row groups, 20 MiB."""
    rng = np.random.default_rng(0)
    rows = [Row(input_image=rng.bytes(1 << 20), edit_prompt=str(i), edited_image=b"x") for i in range(20)]
    write_shards(tmp_path, "train", rows)
    content = (tmp_path / "data" / "train-00000.parquet").read_bytes()
    server = Hub({"README.md": b"# Edits", "data/train-00000.parquet": content})
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.url)
    template = f"{server.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield server
    server.close()


def test_from_the_hub_only_what_is_needed_is_fetched(hub: Hub):
    size = len(hub.files["data/train-00000.parquet"])
    blocks = open_blocks([REPO])
    assert [block.count for block in blocks] == [8, 8, 4] and hub.served < size / 3
    assert [edit.instruction for edit in blocks[2].read()] == ["16", "17", "18", "19"]
    assert hub.served < size * 2 / 3
    with pytest.raises(DataError, match="not to be had from the hub"):
        open_blocks(["owner/other"])
