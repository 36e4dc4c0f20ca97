"""Whole photographs for style, tone, time and weather edits, fetched from Debian packages when a recipe runs.

Their licences allow derived works; NOTICE names the authors and licences. None is in the repository.
"""

from __future__ import annotations

import hashlib
import io
import lzma
import os
import shutil
import subprocess
import tarfile
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from PIL import Image

from wordbrush.errors import WordbrushError
from wordbrush.storybook.scenes import Split
from wordbrush.storybook.sprites import cache_folder

# Package -> our name of the picture -> SHA-256 of its file. A picture is found by its hash, not by its path,
# so every version of the package that has it will do.
PHOTOGRAPHS: dict[str, dict[str, str]] = {
    "lomiri-wallpapers-16.04": {
        "autumn-mountain": "66268e7b48f8854d36a28765fac6e23ec1aee251daa6da1f64715f201020ad36",
        "bridge": "bd86b081f9975e2b83527f71e49b9271a8ab40885428395969d9f7d834d7f050",
        "brushes": "89e86af38d04daaef975665dc2127e9fa76f0fd68f4eea105a2d0ae3390b010b",
        "clock": "e7b20e2db9dcd6e2b278ca55873c2110b35d89cd38b04d0b18728726888e6889",
        "dandelion": "a5634d1ab5e41a3568e92d4a894a500c92b891f9ff734e50bd224d6e185a605f",
        "dogs": "cc40e313c74e421edffe3403def413c16878ce14661cce7ec5915baeab35538d",
        "dragonfly": "af5af17841009732def24b09bb1e669a1b09d2b4bdeee7812c371101c30d2bb3",
        "drum": "d2e96e6d4da40dd804b3d0ce295e94de04a2d7d9b6785d42cd9d92ba58bced74",
        "fig": "c8c0ab18e48d9e0419fe42881112137f3afafc27dfddc29ec3a6d54c56d225ad",
        "mountain-path": "414d0072b2f6f2c555deafeaef6e45c4fed6fa9ad26eba6560ca8803959cf97a",
        "stream": "4c119350ead80201fe256850c3d316309ddfb4bdf10b235ce982dcde0c667c05",
        "sunset": "474dab6a4b9f94dc76c29dfe30e9f5db4af0fd2e33fe5d695f8152b371efca18",
        "wooden-bird": "85a5453c2fed514c75973016f3d862aca62eb7ca087618822469274ac1092373",
    },
    "lomiri-wallpapers-20.04": {
        "nuthatch": "6572410c09f4492c74ccadde133565a14c0161617d5917d4c820c66d65a44ba7",
    },
    "mate-backgrounds": {
        "drop": "5c30118205982da441bf7e6a1ada636a8a0be879408140b3148280c665ed6bce",
        "dune-grass": "8a67c2cb0be8c46b70c237311a4fa4d2b4ac7d39568135384787801fa5cc9a91",
        "grass": "8fa0de0aa4089f7319c9fb7a6d006d4cab6023e8c8853731557cff53567b4832",
        "ladybird": "e35a9a4126ef969c90b29c038058c5a575a20eadd84106a37bf1fa9931e7b61d",
        "leaf": "f7aac0dcc2e06d0491643e84df3da1d9db7c4610f58806a880d56e074799f600",
        "marigold": "d3095ee09d425ef23d27155412136cf14fc3c9af76ca58b452f55e23da324e78",
        "planks": "19c78500ac00a622e19907ab9cc7d06d46fe08c4a6142759a84195696150ec07",
        "rain-drops": "3e4ea9671c28c90a86cf67b3db9daf18c4741587c596333a7529ca589aaa0c16",
        "red-petals": "972b0a0c4e5e3fa93f4f244fc84bc64b121a5eac3aaa5856f1308c1f38a02f8e",
        "seeds": "665e5abf8a5399070a91a9a8e455fe071e5b61697ff78fdeda4e9843ef545aeb",
        "storm": "77ca53077831d3237f73393a91fc879158abc046d852941c26e90de336356957",
        "yellow-flower": "254da96256acb7add685679775a04d1e4a5bc8cd13e5a5a3d61351ce198a5306",
    },
    "palapeli-data": {
        "bridge-by-night": "09772d09318b34a5c5edd58ee86ff462bcd2907006f31cc8e0704310f8e9ab60",
        "citrus": "0cbd7154a14789803167c86705130d0358875198231269df168ea26224e70848",
        "honey-bee": "9d54ae706bddd899c91b2b801d9ca4556a5a9a399b4043f9d539df62a8cb7f27",
    },
    "plasma-workspace-wallpapers": {
        "autumn-leaf": "95603a6560c7e8d50e0e03b3f4adbe39c5258c72528e74e4ecaea1daf4e499de",
        "boats": "586682dcb362b9f620068f10138f87d0d3649939aef238adc5807cb951976a7a",
        "cups": "6e0f3a72feb5a4a9fec191b77e34874c3c69e2d93040deb3f07773e73385023d",
        "foggy-lake": "8e3703fae3a3c217b1fc2b399b706cd3720584268d071ba153e4809daa55f1ce",
        "forest": "7477457d7f17b736259f1b021864778ad4ba802cf3214e6728181ff29126bba8",
        "jetty": "c272434ef39f2abf1ed48a15a8910088020f3165329a5092f3940ec9464bc05f",
        "kite": "bdca288ce296a981e80659c021cf707caddc702c0c8d4247e60bd618476d47f8",
        "moss": "cb507baf1dafdcae362264f3aba9483ed4be5f6c9fdd770f0ec0920c6d9e80fd",
        "summer-night": "c868b50789591dd42910153c768053f1ba0a98cb36bbfc2b7a96a1045d0477f8",
    },
    "puzzle-jigsaw": {
        "cat": "da9c088b2fc6bccec8dae50bbd54e610772c4bb53cc608b030395df27a29fe7c",
        "tiger": "020c7820cd34bdc631d0c3a081b9a30b1a41a0bfc438c4859ccdd60c37bdeaa4",
    },
}
RESERVED = frozenset({"honey-bee", "mountain-path"})
"""For testing: never in a training picture. Both come from small packages."""
SHORT_SIDE = 512


class PhotographsError(WordbrushError):
    """A package with photographs cannot be fetched or read."""


# A download can fail, and a file can be cut short or be something else, in all these ways.
_UNAVAILABLE = (
    PhotographsError,
    OSError,
    EOFError,
    ValueError,
    lzma.LZMAError,
    tarfile.TarError,
    subprocess.SubprocessError,
)


class PhotoLibrary:
    """Photographs by number; `crop` gives a random square of one."""

    def __init__(self, pictures: list[Image.Image]) -> None:
        self.pictures = pictures

    def __len__(self) -> int:
        return len(self.pictures)

    def crop(self, index: int, seed: int, size: int) -> np.ndarray[Any, np.dtype[np.float32]]:
        """(size, size, 3) float32 in [0, 1]: a square of 25-100 % of the short side, mirrored or not."""
        rng = np.random.default_rng((11, seed))
        picture = self.pictures[index]
        side = round(min(picture.size) * float(rng.uniform(0.25, 1.0)))
        left, top = (int(rng.integers(0, extent - side + 1)) for extent in picture.size)
        square = picture.resize((size, size), Image.Resampling.BOX, (left, top, left + side, top + side))
        values = np.asarray(square, dtype=np.float32) / 255.0
        return values[:, ::-1] if rng.random() < 0.5 else values

    @classmethod
    def load(cls, split: Split = "train") -> PhotoLibrary:
        """The photographs of a split, with a short side of 512 px; fetched if the cache does not hold them.

        What cannot be fetched is left out with one warning, so the library may be empty.
        """
        folder = cache_folder() / "debian"
        pictures: list[Image.Image] = []
        problems: list[str] = []
        for package, photographs in PHOTOGRAPHS.items():
            wanted = {
                folder / f"{name}-{sha256[:8]}.jpg": sha256
                for name, sha256 in photographs.items()
                if (name in RESERVED) == (split == "test")
            }
            try:
                _prepare(package, {path: sha for path, sha in wanted.items() if not path.exists()}, folder)
            except _UNAVAILABLE as error:
                problems.append(f"{package}: {error}")
            pictures += [_open(path) for path in wanted if path.exists()]
        if problems:
            warnings.warn(
                f"{len(pictures)} photographs for {split}; not to be had: {'; '.join(problems)}. "
                f"Elsewhere fetched .deb files in {folder} are used too.",
                stacklevel=2,
            )
        return cls(pictures)


def _open(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


def _prepare(package: str, missing: dict[Path, str], folder: Path) -> None:
    """Writes the missing pictures of a package, made small, into the cache."""
    if not missing:
        return
    folder.mkdir(parents=True, exist_ok=True)
    paths = {sha256: path for path, sha256 in missing.items()}
    with _contents(_package(package, folder)) as tar:
        for member in tar:
            stream = tar.extractfile(member) if member.isfile() else None
            data = stream.read() if stream else b""
            path = paths.pop(hashlib.sha256(data).hexdigest(), None)
            if path is not None:
                _write_small(data, path)
    if paths:
        raise PhotographsError(f"does not hold {', '.join(sorted(path.stem for path in paths.values()))}")


def _write_small(data: bytes, path: Path) -> None:
    with Image.open(io.BytesIO(data)) as image:  # all of them upright and sRGB
        factor = SHORT_SIDE / min(image.size)
        size = (round(image.width * factor), round(image.height * factor))
        image.draft("RGB", size)  # decodes a large JPEG at a fraction of its size, not below this one
        picture = image.convert("RGB")
    partial = path.with_suffix(f".{os.getpid()}")  # another process may be writing the same picture
    picture.resize(size, Image.Resampling.LANCZOS).save(partial, "JPEG", quality=95, subsampling=0)
    partial.replace(path)


def _package(name: str, folder: Path) -> Path:
    """The package's file: one that lies in the folder, else fetched with apt."""
    if found := sorted(folder.glob(f"{name}_*.deb")):
        return found[-1]
    if not shutil.which("apt-get"):
        raise PhotographsError("needs apt-get, of a Debian system")
    with TemporaryDirectory(dir=folder) as place:
        command = ["apt-get", "download", "-o", "Acquire::http::Timeout=30", name]
        run = subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=900)
        fetched = next(Path(place).glob("*.deb"), None)
        if run.returncode or fetched is None:
            raise PhotographsError(f"apt-get download failed: {run.stderr.strip()[-200:] or 'no file'}")
        return Path(shutil.move(fetched, folder / fetched.name))


def _contents(deb: Path) -> tarfile.TarFile:
    """The files in a .deb: an `ar` archive (60-byte headers, bodies padded to even) with one data.tar.*."""
    if shutil.which("dpkg-deb"):  # reads zstd too
        run = subprocess.run(["dpkg-deb", "--fsys-tarfile", deb], capture_output=True, check=True)
        return tarfile.open(fileobj=io.BytesIO(run.stdout))
    data = deb.read_bytes()
    start = len(b"!<arch>\n")
    while data.startswith(b"!<arch>\n") and (header := data[start : start + 60]):
        size = int(header[48:58])
        if header.startswith(b"data.tar"):
            return tarfile.open(fileobj=io.BytesIO(data[start + 60 : start + 60 + size]))
        start += 60 + size + size % 2
    raise PhotographsError(f"{deb} is not a Debian package")
