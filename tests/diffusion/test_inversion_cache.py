"""A cache that gives back what was kept, or nothing, whatever happened to it."""

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.attention.sampling import model, randn
from wordbrush import OutputError
from wordbrush.diffusion.inversion import Inversion
from wordbrush.diffusion.inversion_cache import InversionCache, default_folder, inversion_key, model_digest

INVERSION = Inversion(randn(1, 5, 4, 8, 8), randn(1, 4, 6, 8, seed=1))


@pytest.mark.parametrize("inversion", [INVERSION, Inversion(INVERSION.trajectory)])
def test_what_was_kept_comes_back(inversion: Inversion, tmp_path: Path):
    cache = InversionCache(tmp_path / "new" / "folder")
    assert cache.get("key") is None
    cache.put("key", inversion)
    found = InversionCache(cache.folder).get("key")
    assert found is not None
    assert torch.equal(found.trajectory, inversion.trajectory)
    assert (found.null_texts is None) == (inversion.null_texts is None)
    assert inversion.null_texts is None or torch.equal(found.null_texts, inversion.null_texts)
    assert cache.get("other") is None


@pytest.mark.parametrize(
    "damage", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"x" * 99]
)
def test_a_damaged_file_counts_as_missing(damage: Callable[[bytes], bytes], tmp_path: Path):
    cache = InversionCache(tmp_path)
    cache.put("key", INVERSION)
    (file,) = tmp_path.iterdir()
    file.write_bytes(damage(file.read_bytes()))
    assert cache.get("key") is None
    cache.put("key", INVERSION)
    assert cache.get("key") is not None


def test_a_process_that_ends_while_writing_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    cache = InversionCache(tmp_path)
    cache.put("old", INVERSION)

    def end(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", end)
        for key in ("old", "new"):
            with pytest.raises(KeyboardInterrupt):
                cache.put(key, Inversion(randn(1, 2, 4, 8, 8)))
    assert cache.get("new") is None
    old = cache.get("old")
    assert old is not None
    assert torch.equal(old.trajectory, INVERSION.trajectory)


def test_what_was_not_used_for_longest_goes_first(tmp_path: Path):
    cache = InversionCache(tmp_path)
    for age, name in enumerate(("a", "b", "c")):
        cache.put(name, INVERSION)
        os.utime(cache.folder / f"{name}.safetensors", (age, age))
    (cache.folder / ".d.safetensors.0123.tmp").write_bytes(b"half")  # left by a process that was killed
    os.utime(cache.folder / ".d.safetensors.0123.tmp", (0, 0))
    size = (cache.folder / "a.safetensors").stat().st_size
    assert cache.get("a") is not None  # used: no longer the oldest
    InversionCache(tmp_path, limit=3 * size).put("e", INVERSION)
    assert sorted(path.stem for path in tmp_path.iterdir()) == ["a", "c", "e"]


def test_a_folder_that_cannot_be_made(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="file"):
        InversionCache(tmp_path / "file" / "folder").put("key", INVERSION)


def test_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    monkeypatch.delenv("WORDBRUSH_CACHE", raising=False)
    assert default_folder() == tmp_path / "user" / "wordbrush" / "inversions"
    monkeypatch.setenv("WORDBRUSH_CACHE", str(tmp_path))
    assert default_folder() == tmp_path / "inversions"


def test_a_key_stands_for_model_picture_texts_and_settings():
    inputs, options = [randn(1, 3, 8, 8), randn(1, 4, 4)], {"steps": 5}
    keys = [inversion_key("model", inputs, options), inversion_key("other", inputs, options)]
    keys += [inversion_key("model", inputs, {"steps": 6}), inversion_key("model", inputs[:1], options)]
    keys += [inversion_key("model", [inputs[0] + 1e-6, inputs[1]], options)]
    assert len(set(keys)) == len(keys)
    assert inversion_key("model", [part.clone() for part in inputs], dict(options)) == keys[0]


def test_a_model_is_known_by_its_weights_and_its_schedule():
    which = model("sd1")
    other = dataclasses.replace(which, scheduler=model("sd2").scheduler)
    digests = [model_digest(which), model_digest(other)]
    for network in (which.unet, which.vae):
        weight = next(iter(network.parameters()))
        with torch.no_grad():
            weight.mul_(2.0)
            digests.append(model_digest(which))
            weight.div_(2.0)
    assert len(set(digests)) == 4
    assert model_digest(which) == digests[0]
