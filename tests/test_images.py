import io

import numpy as np
import pytest
import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image, ImageCms, TiffImagePlugin
from torch import Tensor

from wordbrush.errors import ImageError
from wordbrush.images import (
    blend_mask,
    carry_detail,
    fit,
    from_pil,
    normalise,
    open_image,
    resize,
    to_pil,
)

ORIENTATION, GPS, MAKE, ARTIST, XMP = 0x0112, 0x8825, 0x010F, 0x013B, 700


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def smooth(height: int, width: int, seed: int = 0, cell: int = 6) -> Tensor:
    """A random picture with structure of about `cell` pixels."""
    torch.manual_seed(seed)
    return resize(torch.rand(1, 3, height // cell + 2, width // cell + 2) * 1.6 - 0.8, (height, width))


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def same(a: Image.Image, b: Image.Image) -> bool:
    return a.mode == b.mode and a.size == b.size and a.tobytes() == b.tobytes()


def swapped_profile() -> bytes:
    """An ICC profile whose red is sRGB's blue and the reverse."""
    data = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    data = data.replace("sRGB".encode("utf-16-be"), "BGRs".encode("utf-16-be"))
    return data.replace(b"rXYZ", b"....").replace(b"bXYZ", b"rXYZ").replace(b"....", b"bXYZ")


# Any picture as RGB


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "HSV", "LA", "PA", "RGBA"])
def test_normalise_agrees_with_pillow(mode: str):
    image = noise(7, 5).convert(mode)
    rgb, alpha = normalise(image)
    assert same(rgb, image.convert("RGB"))
    assert (alpha is not None) == mode.endswith("A")


@pytest.mark.parametrize("mode", ["RGBa", "La", "LAB"])
def test_normalise_takes_rare_modes(mode: str):
    rgb, _ = normalise(Image.new(mode, (4, 3)))
    assert (rgb.mode, rgb.size) == ("RGB", (4, 3))


@pytest.mark.parametrize("dtype", ["<u2", ">u2"])
def test_sixteen_bits_become_eight(dtype: str):
    grey = np.arange(256, dtype=np.uint16).reshape(16, 16)
    image = Image.fromarray((grey * 257).astype(dtype))
    assert image.mode.startswith("I;16")
    assert np.array_equal(np.asarray(normalise(image)[0])[..., 0], grey)


def test_the_transparent_grey_of_sixteen_bits():
    grey = np.array([[0, 300, 65535]], dtype=np.uint16)
    Image.fromarray(grey).save(file := io.BytesIO(), "PNG", transparency=300)
    found = open_image(file.getvalue()).image
    assert np.asarray(found.getchannel("A")).tolist() == [[255, 0, 255]]


@pytest.mark.parametrize(
    ("mode", "values", "white"), [("I", 255, 255), ("I", 65535, 65535), ("F", 1, 1), ("F", 255, 255)]
)
def test_modes_without_a_range(mode: str, values: float, white: float):
    array = np.array([[0, values / 2, values]], dtype=np.int32 if mode == "I" else np.float32)
    assert np.asarray(normalise(Image.fromarray(array))[0])[0, :, 0].tolist() == pytest.approx(
        [0, 127, 255], abs=1
    )


def test_float_pictures_may_hold_anything():
    array = np.array([[np.nan, np.inf, -np.inf, -3.0, 1e30]], dtype=np.float32)
    assert np.asarray(normalise(Image.fromarray(array))[0])[0, :, 0].tolist() == [0, 0, 0, 0, 255]


def test_alpha_is_kept_and_colours_beneath_it_too():
    image = noise(6, 6).convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize((6, 6)))
    rgb, alpha = normalise(image)
    assert same(rgb, image.convert("RGB"))
    assert alpha is not None
    assert same(alpha, image.getchannel("A"))


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_transparent_palette(kind: str):
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 255, 0])
    image.putdata([0, 1])
    picture = open_image(encoded(image, kind, transparency=1)).image
    assert picture.mode == "RGBA"
    assert [picture.getpixel((x, 0))[3] for x in (0, 1)] == [255, 0]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_once(orientation: int):
    upright = Image.new("RGB", (40, 24), "white")
    upright.paste("red", (0, 0, 8, 8))
    turns = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # what undoes each
    stored = upright if orientation == 1 else upright.transpose(Image.Transpose(turns[orientation]))
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    data = encoded(stored, "PNG", exif=exif)
    picture = open_image(data).image
    assert same(picture, upright)
    assert same(normalise(picture)[0], upright)
    assert same(normalise(Image.open(io.BytesIO(data)))[0], upright)


def test_profile_is_honoured_once():
    red = Image.new("RGB", (3, 3), (250, 20, 30))
    picture = open_image(encoded(red, icc_profile=swapped_profile())).image
    assert np.asarray(picture)[0, 0] == pytest.approx([30, 20, 250], abs=3)
    assert same(normalise(picture)[0], picture)


def test_srgb_profile_changes_nothing():
    image = noise(9, 9)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert same(open_image(encoded(image, icc_profile=profile)).image, image)


@pytest.mark.parametrize("profile", [b"nonsense", swapped_profile()[:300]])
def test_unusable_profile_is_ignored(profile: bytes):
    image = noise(9, 9)
    assert same(open_image(encoded(image, icc_profile=profile)).image, image)


def test_profile_of_another_colour_model_is_ignored():
    grey = Image.linear_gradient("L")
    assert same(open_image(encoded(grey, icc_profile=swapped_profile())).image, grey.convert("RGB"))


# Files


@pytest.mark.parametrize(
    "kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "TGA", "JPEG2000", "AVIF"]
)
def test_formats(kind: str, tmp_path):
    path = tmp_path / "picture"
    path.write_bytes(encoded(noise(20, 12), kind))
    picture = open_image(path)
    assert (picture.format, picture.image.size, picture.notes) == (kind, (20, 12), ())
    assert same(picture.image, open_image(path.read_bytes()).image)
    with path.open("rb") as file:
        assert picture.sha256 == open_image(file).sha256


def test_heic():
    pillow_heif = pytest.importorskip("pillow_heif")
    file = io.BytesIO()
    pillow_heif.from_pillow(noise(64, 48)).save(file)
    assert open_image(file.getvalue()).image.size == (64, 48)


def test_animation_gives_its_first_frame_and_says_so():
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    picture = open_image(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    assert picture.image.convert("RGB").getpixel((0, 0)) == (255, 0, 0)
    assert "only the first" in picture.notes[0]


def test_a_tiff_gives_its_author_but_not_its_place():
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[ARTIST], tags[XMP] = (
        "Somebody",
        b"<x:xmpmeta><exif:GPSLatitude/></x:xmpmeta>",
    )
    kept = Image.Exif()
    exif = open_image(encoded(noise(8, 8), "TIFF", tiffinfo=tags)).exif
    kept.load(exif)
    assert dict(kept) == {ARTIST: "Somebody"} and b"GPSLatitude" not in exif


def test_exif_is_kept_without_place_and_orientation():
    exif = Image.Exif()
    exif[MAKE], exif[ORIENTATION] = "Maker", 6
    exif.get_ifd(GPS)[1] = "N"
    data = encoded(noise(8, 8), "JPEG", exif=exif)
    assert Image.open(io.BytesIO(data)).getexif().get_ifd(GPS)
    kept = Image.Exif()
    kept.load(open_image(data).exif)
    assert dict(kept) == {MAKE: "Maker"}


def png_of(width: int, height: int) -> bytes:
    """A tiny file that claims to be large."""
    import struct
    import zlib

    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + chunk + encoded(noise(4, 4))[33:]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty"),
        (b"Dear diary, today I saw a dog.", "not a picture"),
        (encoded(noise(99, 99))[:-5000], "damaged"),
        (encoded(noise(99, 99), "JPEG")[:3000], "damaged"),
        (png_of(13_000, 13_000), "limit"),
        (png_of(60_000, 60_000), "limit|pixels"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a picture"),
    ],
)
def test_bad_files_are_one_clear_line(data: bytes, message: str, tmp_path):
    path = tmp_path / "picture.png"
    path.write_bytes(data)
    with pytest.raises(ImageError, match=message) as caught:
        open_image(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_file_and_folder(tmp_path):
    for path in (tmp_path / "none.png", tmp_path, "zero\0byte"):
        with pytest.raises(ImageError):
            open_image(path)


def test_pixel_limit_can_be_set():
    data = encoded(noise(10, 10))
    assert open_image(data, max_pixels=100).image.size == (10, 10)
    with pytest.raises(ImageError, match="10x10"):
        open_image(data, max_pixels=99)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "TGA"])
def test_damaged_files_raise_nothing_else(kind: str):
    exif = Image.Exif()
    exif[MAKE], exif[ORIENTATION] = "Maker", 6
    options = {"exif": exif} if kind in ("PNG", "JPEG", "WEBP") else {}
    whole = np.frombuffer(encoded(noise(16, 16), kind, **options), np.uint8)
    rng = np.random.default_rng(0)
    for _ in range(60):
        data = whole.copy()
        where = rng.integers(0, min(len(data), 200), 4)
        data[where] = rng.integers(0, 256, 4)
        try:
            open_image(data.tobytes(), max_pixels=1_000_000)
        except ImageError as error:
            assert "\n" not in str(error)


def test_empty_picture():
    with pytest.raises(ImageError, match="0x5"):
        normalise(Image.new("RGB", (0, 5)))


# Fitting


def test_pixels_are_those_of_diffusers():
    image = noise(136, 128)
    fitted = fit(image, size=None, native=128, multiple=8)
    assert torch.equal(fitted.pixels, VaeImageProcessor(vae_scale_factor=8).preprocess(image))
    assert torch.equal(fitted.inverse(fitted.pixels), fitted.pixels)
    assert not fitted.reduced


def test_on_the_grid_after_scaling_pixels_are_the_resized_picture():
    image = noise(192, 256)
    fitted = fit(image, size=96, native=128, multiple=32)
    assert torch.equal(fitted.pixels, from_pil(image.resize((96, 128), Image.Resampling.LANCZOS)))
    assert fitted.reduced


def test_rounding_is_that_of_diffusers():
    pixels = torch.cat([torch.linspace(-1.2, 1.2, 6000).view(2, 3, 20, 50), from_pil(noise(50, 20))])
    theirs = VaeImageProcessor().postprocess(pixels, do_denormalize=[True] * 3)
    assert all(same(a, b) for a, b in zip(to_pil(pixels), theirs, strict=True))
    half = pixels.half()
    theirs = VaeImageProcessor().postprocess(half, do_denormalize=[True] * 3)
    assert all(same(a, b) for a, b in zip(to_pil(half), theirs, strict=True))
    assert torch.equal(pixels[:2], torch.linspace(-1.2, 1.2, 6000).view(2, 3, 20, 50))


SIZES = [(640, 480), (481, 333), (1000, 97), (37, 211), (150, 200), (16, 16), (5, 5), (1, 1), (3, 700)]


@pytest.mark.parametrize("size", [*SIZES, (20000, 3)])
@pytest.mark.parametrize("multiple", [8, 64])
def test_any_size_fits_without_squashing(size: tuple[int, int], multiple: int):
    fitted = fit(Image.new("RGB", size, (10, 100, 200)), size=96, native=128, multiple=multiple)
    height, width = fitted.pixels.shape[-2:]
    assert height % multiple == width % multiple == 0
    assert 96 <= min(height, width) < 96 + multiple
    assert max(height, width) <= 96 * 8 + multiple
    scales = [fitted.scaled[0] / size[1], fitted.scaled[1] / size[0]]
    assert abs(scales[0] - scales[1]) * min(size) <= 1  # within the rounding of one side to whole pixels
    back = to_pil(fitted.inverse(fitted.pixels))[0]
    assert back.size == size
    assert back.getextrema() == ((10, 10), (100, 100), (200, 200))


@pytest.mark.parametrize(
    "size", [(640, 480), (481, 333), (1000, 97), (307, 211), (150, 200), (97, 61), (2000, 1501)]
)
@pytest.mark.parametrize("work", [64, 100, 128])
def test_nothing_shifts(size: tuple[int, int], work: int):
    """A blob stays in place to a fiftieth of a pixel of the picture, by least-squares registration."""
    width, height = size
    x, y = np.arange(width), np.arange(height)[:, None]
    spread = min(size) / 9
    blob = np.exp(-((x - 0.43 * width) ** 2 + (y - 0.56 * height) ** 2) / 2 / spread**2)
    image = Image.fromarray((blob * 255).round().astype(np.uint8)).convert("RGB")
    fitted = fit(image, size=work, native=128, multiple=8)
    before, after = (p[0, 0].numpy() for p in (from_pil(image), fitted.inverse(fitted.pixels)))
    for slope in np.gradient(before):
        assert abs(((before - after) * slope).sum() / (slope**2).sum()) < 0.02


def test_padding_mirrors():
    image = noise(20, 13)
    fitted = fit(image, size=13, native=8, multiple=8)
    expected = torch.nn.functional.pad(from_pil(image), (2, 2, 1, 2), mode="reflect")
    assert torch.equal(fitted.pixels, expected)
    assert torch.equal(fitted.inverse(fitted.pixels), from_pil(image))


def test_inverse_takes_batches_in_any_precision():
    fitted = fit(noise(50, 30), size=16, native=8, multiple=8)
    back = fitted.inverse(fitted.pixels.bfloat16().repeat(3, 1, 1, 1))
    assert (back.shape, back.dtype) == ((3, 3, 30, 50), torch.float32)


# Masks


def test_mask_keeps_bytes():
    original, edited = noise(30, 20, 1), noise(30, 20, 2)
    mask = Image.new("L", (30, 20))
    mask.paste(255, (5, 5, 15, 15))
    mask.paste(128, (15, 5, 20, 15))
    arrays = [
        np.asarray(image).astype(int) for image in (original, edited, blend_mask(original, edited, mask))
    ]
    black, white, grey = (np.asarray(mask) == value for value in (0, 255, 128))
    assert np.array_equal(arrays[2][black], arrays[0][black])
    assert np.array_equal(arrays[2][white], arrays[1][white])
    assert np.abs(arrays[2] - (arrays[0] + arrays[1]) / 2)[grey].max() <= 1.5


@pytest.mark.parametrize("mode", ["1", "RGB", "RGBA", "P", "I;16"])
def test_mask_of_any_mode(mode: str):
    white = Image.new(mode, (4, 4), {"1": 1, "I;16": 65535}.get(mode, "white"))
    assert same(blend_mask(noise(4, 4, 1), noise(4, 4, 2), white), noise(4, 4, 2))


def test_mask_of_another_size():
    with pytest.raises(ImageError, match=r"5x4 .* 4x4"):
        blend_mask(noise(4, 4), noise(4, 4), Image.new("L", (5, 4)))


# Detail


def detailed(scale: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A picture with fine texture, and what a model at a `scale`-th of its size shows of it."""
    original = (
        smooth(64 * scale, 80 * scale, seed, 6 * scale) + 0.2 * smooth(64 * scale, 80 * scale, 9, 2)
    ).clamp(-1, 1)
    return from_pil(to_pil(original)[0]), resize(original, (64, 80))


def difference(a: Tensor, b: Tensor) -> float:
    return (a - b).square().mean().sqrt().item()


@pytest.mark.parametrize("scale", [1, 3, 4])
def test_without_an_edit_the_original_comes_back(scale: int):
    original, reconstruction = detailed(scale)
    assert same(to_pil(carry_detail(original, reconstruction, reconstruction))[0], to_pil(original)[0])


def test_something_else_is_the_plain_edit():
    original, reconstruction = detailed()
    torch.manual_seed(1)
    for edited in (torch.rand(1, 3, 64, 80) * 2 - 1, smooth(64, 80, 7, 3)):
        carried, plain = carry_detail(original, reconstruction, edited), resize(edited, (256, 320))
        assert (carried - plain).abs().max() < 2 / 255


def test_of_a_replaced_picture_hardly_anything_shines_through():
    original, reconstruction = detailed()
    detail = difference(original, resize(reconstruction, (256, 320)))
    for edited in (
        smooth(64, 80, 7),
        smooth(64, 80, 8, 20),
        reconstruction.flip(-1),
        torch.zeros(1, 3, 64, 80),
    ):
        carried, plain = carry_detail(original, reconstruction, edited), resize(edited, (256, 320))
        assert difference(carried, plain) < 0.2 * detail


@pytest.mark.parametrize("strength", [0.0, 0.04])
def test_tone_changes_keep_the_detail(strength: float):
    original, reconstruction = detailed()
    matrix = torch.tensor([[0.5, 0.1, 0.0], [0.05, 0.5, 0.05], [0.0, 0.2, 0.7]])

    def tone(x: Tensor) -> Tensor:
        return torch.einsum("ij,bjhw->bihw", matrix, x) - 0.2

    edited = tone(reconstruction) + strength * torch.randn_like(reconstruction)
    carried, plain = carry_detail(original, reconstruction, edited), resize(edited, (256, 320))
    assert difference(carried, tone(original)) < 0.35 * difference(plain, tone(original))


def test_replaced_parts_do_not_shine_through_and_the_rest_stays():
    original, reconstruction = detailed()
    edited = reconstruction.clone()
    edited[..., 10:30, 10:30] = smooth(20, 20, 5)
    edited[..., 30:50, 50:70] = torch.tensor([0.9, -0.9, 0.9]).view(3, 1, 1)  # flat: hides the texture too
    carried, plain = carry_detail(original, reconstruction, edited), resize(edited, (256, 320))
    for part in (np.s_[..., 48:112, 48:112], np.s_[..., 128:192, 208:272]):
        assert difference(carried[part], plain[part]) < 0.02
    for part in (np.s_[..., 180:, :120], np.s_[..., :60, 180:]):
        assert difference(carried[part], original[part]) < 0.01


def test_small_bright_additions_survive():
    original, reconstruction = detailed()
    edited = 0.4 * reconstruction - 0.5
    edited[..., 20:22, 40:42] = 0.9
    assert carry_detail(original, reconstruction, edited)[..., 80:88, 160:168].mean() > 0.4


def test_carry_detail_in_batches_and_half_precision():
    original, reconstruction = detailed(2)
    edited = torch.cat([reconstruction * 0.5, smooth(64, 80, 3)])
    pairs = original.repeat(2, 1, 1, 1), reconstruction.repeat(2, 1, 1, 1)
    together = carry_detail(*pairs, edited)
    alone = torch.cat([carry_detail(original, reconstruction, edited[i : i + 1]) for i in (0, 1)])
    assert torch.allclose(together, alone, atol=1e-4)
    assert carry_detail(original, reconstruction.half(), edited[:1].half()).dtype == torch.float32


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (3, 3)])
def test_carry_detail_on_the_smallest_pictures(size: tuple[int, int]):
    original, edited = torch.rand(1, 3, size[0] * 3, size[1] * 3), torch.rand(1, 3, *size)
    assert carry_detail(original, resize(original, size), edited).isfinite().all()
