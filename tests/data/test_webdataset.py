import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from datasets import load_dataset

from tests.data.edits import bare, jpeg, picture, rows
from wordbrush.data.rows import DataError, decode, encode_png
from wordbrush.data.webdataset import read_tar, write_tar, write_tars

PNG = encode_png(picture(0))


def make_tar(path: Path, files: dict[str, bytes], **changes: Any) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            for key, value in changes.items():
                setattr(member, key, value)
            archive.addfile(member, io.BytesIO(data) if member.isfile() else None)
    return path


def test_what_is_written_is_read(tmp_path: Path):
    data = [*rows(7), bare(7), rows(1, input_image=jpeg(picture(3)))[0]]
    write_tar(tmp_path / "a.tar", data)
    assert list(read_tar(tmp_path / "a.tar")) == data


def test_equal_rows_give_equal_bytes(tmp_path: Path):
    write_tar(tmp_path / "a.tar", rows(5))
    write_tar(tmp_path / "b.tar", iter(rows(5)))
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()


def test_datasets_reads_the_tars(tmp_path: Path):
    write_tars(tmp_path, "train", rows(6, mask=None), shard_bytes=3000)
    assert len(list(tmp_path.glob("train-*.tar"))) > 1
    files = sorted(map(str, tmp_path.glob("*.tar")))
    found: Any = load_dataset(
        "webdataset", data_files=files, split="train", cache_dir=str(tmp_path / "cache")
    )
    assert [value["json"]["edit_prompt"] for value in found] == [r.edit_prompt for r in rows(6)]
    pixels = [value["edited_image.png"].tobytes() for value in found]
    assert pixels == [decode(r.edited_image).tobytes() for r in rows(6)]


def test_tars_of_other_makers(tmp_path: Path):
    """Folders in names, other files beside a row's own, members of a row in any order."""
    fields = {"json": b'{"edit_prompt": "x"}', "edited_image.jpg": PNG, "input_image.webp": PNG, "txt": b"?"}
    files = {f"./some.folder/{key}.{name}": data for key in ("a", "b") for name, data in fields.items()}
    found = list(read_tar(make_tar(tmp_path / "a.tar", files)))
    assert [(r.edit_prompt, r.input_image) for r in found] == [("x", PNG)] * 2


@pytest.mark.parametrize(
    "name", ["../x.json", "a/../../x.json", "/etc/x.json", "C:\\x.json", "..\\x.json", "a/.."]
)
def test_names_that_lead_elsewhere_are_refused(tmp_path: Path, name: str):
    with pytest.raises(DataError, match="not to be trusted") as caught:
        list(read_tar(make_tar(tmp_path / "a.tar", {name: b"{}"})))
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar"]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_are_refused(tmp_path: Path, kind: bytes):
    tar = make_tar(tmp_path / "a.tar", {"0.input_image.png": b""}, type=kind, linkname="/etc/passwd")
    with pytest.raises(DataError, match="not to be trusted"):
        list(read_tar(tar))


def test_damaged_tars_are_one_line(tmp_path: Path):
    write_tar(tmp_path / "a.tar", rows(4))
    data = (tmp_path / "a.tar").read_bytes()
    path = tmp_path / "b.tar"
    for length in range(0, len(data), 512 * 5):
        path.write_bytes(data[:length])
        with pytest.raises(DataError, match=r"b\.tar: damaged"):
            list(read_tar(path))
    path.write_bytes(b"\xff" * 2048 + bytes(1024))
    with pytest.raises(DataError, match=r"b\.tar: damaged"):
        list(read_tar(path))


@pytest.mark.parametrize(
    "text",
    [
        b"{",
        b"[]",
        b"\xff",
        b"[" * 100_000,
        b'{"input_image": "x"}',
        b'{"edit_prompt": 3}',
        b'{"seed": 1}',
        b'{"edit_prompt": "x", "colour": "red"}',
        json.dumps({"edit_prompt": "x" * (1 << 21)}).encode(),
    ],
)
def test_wrong_json_is_one_line(tmp_path: Path, text: bytes):
    files = {"0.input_image.png": PNG, "0.edited_image.png": PNG, "0.json": text}
    with pytest.raises(DataError, match=r"a\.tar") as caught:
        list(read_tar(make_tar(tmp_path / "a.tar", files)))
    assert "\n" not in str(caught.value)
