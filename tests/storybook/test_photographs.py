"""Photographs come out of real .deb files, checked by hash; where none can be had the library is empty."""

import hashlib
import io
import tarfile
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wordbrush.storybook import photographs
from wordbrush.storybook.photographs import PHOTOGRAPHS, RESERVED, PhotoLibrary


def jpeg(colour: str, size: tuple[int, int] = (900, 600)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "JPEG")
    return file.getvalue()


def deb(files: dict[str, bytes]) -> bytes:
    """A Debian package as `dpkg-deb` writes it: an ar archive of three members."""

    def tar(contents: dict[str, bytes]) -> bytes:
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w:xz") as archive:
            for name, data in contents.items():
                member = tarfile.TarInfo(f"./{name}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
        return file.getvalue()

    control = b"Package: pictures\nVersion: 1\nArchitecture: all\nMaintainer: a <a@b.c>\nDescription: d\n"
    members = {
        "debian-binary": b"2.0\n",
        "control.tar.xz": tar({"control": control}),
        "data.tar.xz": tar(files),
    }
    archive = b"!<arch>\n"
    for name, data in members.items():
        archive += f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(data):<10}`\n".encode()
        archive += data + b"\n" * (len(data) % 2)
    return archive


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, programs out of reach, and a package of one picture for each split."""
    monkeypatch.setenv("WORDBRUSH_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    pictures = {"red": jpeg("red"), "blue": jpeg("blue", (600, 900))}
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in pictures.items()}
    monkeypatch.setattr(photographs, "PHOTOGRAPHS", {"pictures": hashes})
    monkeypatch.setattr(photographs, "RESERVED", frozenset({"blue"}))
    folder = tmp_path / "debian"
    folder.mkdir()
    files = {f"usr/share/{name}.jpg": data for name, data in pictures.items()}
    (folder / "pictures_1_all.deb").write_bytes(deb({**files, "usr/share/other.jpg": jpeg("green")}))
    return folder


def load_quietly(*split: photographs.Split) -> PhotoLibrary:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return PhotoLibrary.load(*split)


@pytest.mark.parametrize("program", ["dpkg-deb", None])
def test_splits_come_from_the_package_and_then_from_the_cache(
    folder: Path, monkeypatch: pytest.MonkeyPatch, program: str | None
) -> None:
    if program:
        monkeypatch.setenv("PATH", "/usr/bin:/bin")
    train, test = load_quietly(), load_quietly("test")
    assert [p.size for p in train.pictures] == [(768, 512)]
    assert [p.size for p in test.pictures] == [(512, 768)]
    np.testing.assert_allclose(train.crop(0, 3, 16), np.broadcast_to([1, 0, 0], (16, 16, 3)), atol=0.01)
    (folder / "pictures_1_all.deb").unlink()
    assert len(load_quietly()) == len(load_quietly("test")) == 1
    assert not list(folder.glob("*.[0-9]*"))


def test_a_picture_with_another_hash_is_left_out(folder: Path) -> None:
    (folder / "pictures_1_all.deb").write_bytes(deb({"usr/share/red.jpg": jpeg("orange")}))
    with pytest.warns(UserWarning, match="0 photographs for train.*pictures: does not hold red"):
        assert len(PhotoLibrary.load()) == 0


@pytest.mark.parametrize("content", [None, b"", b"no package", b"!<arch>\nshort"])
def test_without_a_readable_package_the_library_is_empty(folder: Path, content: bytes | None) -> None:
    package = folder / "pictures_1_all.deb"
    if content is None:
        package.unlink()
    else:
        package.write_bytes(content)
    with pytest.warns(UserWarning, match="0 photographs for train") as caught:
        assert len(PhotoLibrary.load()) == 0
    assert len(caught) == 1


def test_the_list_has_two_reserved_photographs_and_no_picture_twice() -> None:
    names = [name for pictures in PHOTOGRAPHS.values() for name in pictures]
    hashes = [sha256 for pictures in PHOTOGRAPHS.values() for sha256 in pictures.values()]
    assert len(RESERVED) == 2 and set(names) >= RESERVED
    assert len(set(names)) == len(names) == len(set(hashes)) >= 25


def test_crop_is_a_square_that_depends_on_the_seed_alone() -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (90, 70, 3), dtype=np.uint8)
    library = PhotoLibrary([Image.fromarray(pixels)])
    crops = [library.crop(0, seed, 32) for seed in (1, 1, 2)]
    assert crops[0].shape == (32, 32, 3) and crops[0].dtype == np.float32
    assert crops[0].min() >= 0 and crops[0].max() <= 1
    np.testing.assert_array_equal(crops[0], crops[1])
    assert not np.array_equal(crops[0], crops[2])
