import errno
import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wordbrush.errors import ImageError, OutputError
from wordbrush.images import open_image
from wordbrush.provenance import atomic_file, read_provenance, save_image

ORIENTATION, GPS, MAKE = 0x0112, 0x8825, 0x010F
SETTINGS = {
    "instruction": 'turn "the dog" <b>&amp;</b> into ein süßes 熊 🐼\n--> ]]> \0 end',
    "steps": 20,
    "text_scale": 7.5,
    "scheduler": None,
    "nested": {"list": [1, True]},
}
picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8))
every_format = pytest.mark.parametrize("ending", ["png", "jpg", "JPEG", "webp"])


def photo() -> bytes:
    """A sideways JPEG that knows where it was taken, also in XMP."""
    exif = Image.Exif()
    exif[MAKE], exif[ORIENTATION] = "Maker", 6
    exif.get_ifd(GPS).update({1: "N", 2: (52.0, 31.0, 12.0)})
    file = io.BytesIO()
    picture.save(file, "JPEG", exif=exif, xmp=b"<exif:GPSLatitude>52,31.2N</exif:GPSLatitude>")
    return file.getvalue()


@every_format
def test_record_survives(ending: str, tmp_path: Path):
    source = open_image(photo())
    path = tmp_path / f"out.{ending}"
    save_image(source.image, path, settings=SETTINGS, source=source)
    assert read_provenance(path) == {"settings": SETTINGS, "source_sha256": source.sha256}
    assert list(tmp_path.iterdir()) == [path]


@every_format
def test_the_place_is_stripped_and_the_rest_of_exif_kept(ending: str, tmp_path: Path):
    source = open_image(photo())
    path = tmp_path / f"out.{ending}"
    save_image(source.image, path, settings={}, source=source)
    with Image.open(path) as saved:
        exif = saved.getexif()
        assert saved.size == (30, 40)
        assert exif[MAKE] == "Maker"
        assert exif.get(ORIENTATION, 1) == 1
        assert not exif.get_ifd(GPS)
    assert b"GPSLatitude" not in path.read_bytes()


def test_pixels_and_alpha_are_exact_in_png(tmp_path: Path):
    image = picture.copy()
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    save_image(image, tmp_path / "out.png", settings={})
    assert open_image(tmp_path / "out.png").image.tobytes() == image.tobytes()


@every_format
def test_a_record_that_a_file_has_no_room_for_does_not_lose_the_picture(tmp_path: Path, ending: str):
    path = tmp_path / f"a.{ending}"
    save_image(Image.new("RGB", (8, 8)), path, settings={"instruction": "word " * 20_000})
    assert Image.open(path).size == (8, 8)
    if ending in ("png", "webp"):
        assert len(read_provenance(path)["settings"]["instruction"]) == 100_000


def test_transparency_becomes_white_in_jpeg(tmp_path: Path):
    save_image(Image.new("RGBA", (8, 8), (0, 0, 0, 0)), tmp_path / "out.jpg", settings={})
    assert open_image(tmp_path / "out.jpg").image.getextrema() == ((255, 255),) * 3


def test_what_pillow_remembers_is_not_written(tmp_path: Path):
    image = picture.copy()
    image.info = {"icc_profile": b"profile of the original", "comment": b"secret", "xmp": b"secret"}
    for name in ("out.png", "out.jpg", "out.webp"):
        save_image(image, tmp_path / name, settings={})
        data = (tmp_path / name).read_bytes()
        assert b"iCCP" not in data
        assert b"profile of" not in data
        assert b"secret" not in data


def test_quality(tmp_path: Path):
    sizes = []
    for quality in (30, 95):
        save_image(picture, tmp_path / "out.jpg", settings={}, quality=quality, overwrite=True)
        sizes.append((tmp_path / "out.jpg").stat().st_size)
    assert sizes[0] < sizes[1]


def test_an_existing_file_is_kept_unless_asked(tmp_path: Path):
    path = tmp_path / "out.png"
    path.write_bytes(b"mine")
    with pytest.raises(OutputError, match="exists"):
        save_image(picture, path, settings={})
    assert path.read_bytes() == b"mine"
    save_image(picture, path, settings={}, overwrite=True)
    assert open_image(path).image.tobytes() == picture.tobytes()


def test_unwritable_outputs(tmp_path: Path):
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "folder.png").mkdir()
    for name in ("none/out.png", "file/out.png", "folder.png", "out.bmp", "out"):
        with pytest.raises(OutputError) as caught:
            save_image(picture, tmp_path / name, settings={}, overwrite=True)
        assert str(tmp_path / name) in str(caught.value)
        assert "\n" not in str(caught.value)
    assert {path.name for path in tmp_path.iterdir()} == {"file", "folder.png"}


def test_too_large_for_the_format(tmp_path: Path):
    with pytest.raises(OutputError):
        save_image(Image.new("RGB", (20000, 3)), tmp_path / "out.webp", settings={})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), KeyboardInterrupt()])
def test_a_failure_halfway_leaves_what_was_there(error: BaseException, tmp_path: Path):
    path = tmp_path / "out.png"
    path.write_bytes(b"mine")
    with pytest.raises((OutputError, KeyboardInterrupt)), atomic_file(path, overwrite=True) as file:
        file.write(b"half")
        raise error
    assert path.read_bytes() == b"mine"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions")
def test_files_get_the_usual_permissions(tmp_path: Path):
    save_image(picture, tmp_path / "out.png", settings={})
    (tmp_path / "other").touch()
    assert (tmp_path / "out.png").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_long_names(tmp_path: Path):
    path = tmp_path / ("n" * 250 + ".png")
    save_image(picture, path, settings={})
    assert path.exists()


def test_pictures_without_a_record(tmp_path: Path):
    picture.save(tmp_path / "plain.png")
    (tmp_path / "text.png").write_text("Dear diary")
    from PIL.PngImagePlugin import PngInfo

    for number, text in enumerate(("{", "[]", "[" * 100_000, json.dumps({"settings": 3}))):
        info = PngInfo()
        info.add_itxt("wordbrush", text)
        picture.save(tmp_path / f"{number}.png", pnginfo=info)
    for path in [*tmp_path.iterdir(), tmp_path / "none.png", tmp_path]:
        with pytest.raises(ImageError) as caught:
            read_provenance(path)
        assert str(path) in str(caught.value)
