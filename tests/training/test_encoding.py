"""What the U-Net is given: InstructPix2Pix's condition and target, encoded now or once."""

import shutil
import time
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
import torch

from tests.training.edits import data, rows
from wordbrush.data.blocks import open_blocks
from wordbrush.data.shards import write_shards
from wordbrush.diffusion.model import LatentDiffusion
from wordbrush.training.edit_samples import CachedEdits, Draws, StreamedEdits, draw_window
from wordbrush.training.encoding import Encoder
from wordbrush.training.latent_cache import open_cache
from wordbrush.training.order import Order
from wordbrush.training.resuming import made_once

DRAWS = Draws(seed=0, channels=4, grid=2, timesteps=torch.ones(1000), size=32, resize_to=32, flip=0.5)


PARTS = {"some": 4, "more": 6}
"""Data sets, and how many rows they have."""


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Path) -> LatentDiffusion:
    return LatentDiffusion.load(tiny_checkpoint, device=torch.device("cpu"), dtype=torch.float32)


def test_condition_and_target_are_the_papers(model: LatentDiffusion):
    encoder = Encoder(model, sample=True, bfloat16=False)
    pixels = torch.randint(0, 256, (3, 2, 3, 32, 32), dtype=torch.uint8)
    posterior = torch.randn(3, 4, 16, 16)
    condition, target = encoder.condition_and_target(encoder.moments(pixels), posterior)
    with torch.no_grad():
        before, after = (model.vae.encode(pixels[:, i].float() / 127.5 - 1).latent_dist for i in (0, 1))
    assert torch.allclose(condition, before.mode(), atol=1e-5)  # unscaled
    drawn = after.mean + after.std * posterior
    assert torch.allclose(target, model.vae.config.scaling_factor * drawn, atol=1e-5)
    _, mode = replace(encoder, sample=False).condition_and_target(encoder.moments(pixels), posterior)
    assert torch.allclose(mode, model.vae.config.scaling_factor * after.mode(), atol=1e-5)


def test_the_cache_holds_what_is_encoded_anew(model: LatentDiffusion, tmp_path: Path):
    sources = [str(data(tmp_path / name, (40, 36), (30, 50), count=count)) for name, count in PARTS.items()]
    blocks = open_blocks(sources)
    order = Order([block.count for block in blocks], seed=0)
    shapes = [(32, 32), (40, 24)] * 5
    encoder = Encoder(model, sample=True, bfloat16=False)
    data_sets = [open_blocks([source]) for source in sources]
    cache = open_cache(data_sets, encoder, shapes, tmp_path / "cache", flips=True)
    assert len(cache) == len(order) == 10
    cached = CachedEdits(cache, order, shapes, DRAWS)
    streamed = StreamedEdits(blocks, order, shapes, DRAWS)
    flips = set[bool]()
    for sample in range(20):
        one: dict[str, Any] = cached[sample]
        two: dict[str, Any] = streamed[sample]
        assert one["row"] == two["row"]
        assert all(torch.equal(one[name], two[name]) for name in ("t", "u", "noise", "posterior"))
        moments = encoder.moments(two["pixels"][None])[0]
        assert one["moments"].shape == moments.shape == (3, 4, *two["noise"].shape[1:])
        assert torch.allclose(one["moments"], moments, atol=2e-3, rtol=2e-3)
        assert torch.allclose(
            one["tokens"], encoder.text([two["instruction"]]).tokens[0], atol=2e-3, rtol=2e-3
        )
        flips.add(DRAWS.crop(sample).flip)
    assert flips == {True, False}


def test_a_cache_is_made_once_and_anew_for_other_content(model: LatentDiffusion, tmp_path: Path):
    encoder, folder = Encoder(model, sample=False, bfloat16=False), tmp_path / "cache"

    def opened(source: Path) -> set[tuple[Path, int]]:
        open_cache([open_blocks([str(source)])], encoder, [(32, 32)] * 3, folder, flips=False)
        return {(path, path.stat().st_mtime_ns) for path in folder.glob("[!.]*/*")}

    source = data(tmp_path / "data", count=3)
    once = opened(source)
    assert opened(source) == once and len(once) == 3
    shutil.rmtree(source)
    write_shards(source, "train", rows(4)[1:])  # as many rows, and others
    assert len(opened(source)) == 6


def test_encoding_that_was_killed_goes_on(
    model: LatentDiffusion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    encoder, shapes = Encoder(model, sample=False, bfloat16=False), [(32, 32)] * 10
    blocks = open_blocks([str(data(tmp_path / "data"))])
    assert len(blocks) > 2
    whole = open_cache([blocks], encoder, shapes, tmp_path / "whole", flips=False)
    encoded = list[int]()
    moments = Encoder.moments

    def counted(self: Encoder, pixels: torch.Tensor) -> torch.Tensor:
        encoded.append(len(pixels))
        if len(encoded) == 2:
            raise KeyboardInterrupt
        return moments(self, pixels)

    monkeypatch.setattr(Encoder, "moments", counted)
    with pytest.raises(KeyboardInterrupt):
        open_cache([blocks], encoder, shapes, tmp_path / "pieces", flips=False)
    pieces = open_cache([blocks], encoder, shapes, tmp_path / "pieces", flips=False)
    assert sum(encoded) == 10 + blocks[1].count  # none but the one that was killed is encoded twice
    for row in range(10):
        assert torch.equal(whole.moments(row, (16, 16)), pieces.moments(row, (16, 16)))
        assert torch.equal(whole.text(row)["tokens"], pieces.text(row)["tokens"])


def test_runs_at_the_same_time_make_a_thing_once(tmp_path: Path):
    made = list[Path]()

    def make(path: Path) -> None:
        made.append(path)
        path.write_text("half")
        time.sleep(0.2)
        path.write_text("whole")

    threads = [Thread(target=made_once, args=(tmp_path / "thing", make)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1 and (tmp_path / "thing").read_text() == "whole"


def test_draws_belong_to_the_sample_alone():
    one, again, other = (DRAWS.noise(sample, (32, 32)) for sample in (5, 5, 6))
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not any(torch.equal(one[name], other[name]) for name in one)


def test_draws_are_uniform_and_normal():
    draws = [DRAWS.noise(sample, (8, 8)) for sample in range(2000)]
    t, u = (np.array([float(d[name]) for d in draws]) for name in ("t", "u"))
    assert abs(u.mean() - 0.5) < 0.02 and abs(t.mean() - 499.5) < 20 and t.min() < 5 and t.max() > 994
    for name in ("noise", "posterior"):
        values = torch.stack([d[name] for d in draws])
        assert abs(float(values.mean())) < 0.01 and abs(float(values.std()) - 1) < 0.01


def test_windows_lie_where_the_edit_changes_the_picture():
    before = torch.randn(4, 16, 16)
    after = before.clone()
    after[:, 10:13, 2:5] += 1
    moments = torch.stack([before, after])
    cuts = [draw_window(moments, 8, DRAWS.window(sample)) for sample in range(20)]
    assert all(cut.shape == (2, 4, 8, 8) for cut in cuts)
    shares = [float((cut[1] - cut[0]).sum()) / 36 for cut in cuts]
    assert min(shares) > 0 and sum(shares) / len(shares) > 0.8
    assert len({float(cut[0, 0, 0, 0]) for cut in cuts}) > 3  # in different places
    everywhere = torch.stack([before, before + 1])
    corners = {float(draw_window(everywhere, 8, DRAWS.window(sample))[0, 0, 0, 0]) for sample in range(200)}
    assert len(corners) > 50
