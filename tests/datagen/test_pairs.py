"""The generator of pairs: against diffusers' own pipeline, and what must hold whatever the weights are."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from pydantic import ValidationError

from tests import tiny
from tests.datagen.engine import save_models
from wordbrush.data.rows import SCORES, Row, encode_png
from wordbrush.datagen.painting import Draw, Painter, PairSettings, Pixels, draw_samples
from wordbrush.datagen.pairs import PairGenerator, score_pairs
from wordbrush.datagen.statistics import score
from wordbrush.diffusion.model import LatentDiffusion
from wordbrush.errors import ModelError, UsageError
from wordbrush.perception.clip import Clip

BEFORE, AFTER = "a dog", "a painted cat"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return save_models(tmp_path_factory.mktemp("models"))


def settings(models: dict[str, str], **changes: Any) -> PairSettings:
    values = {"samples": 6, "batch_size": 6, "steps": 4, "device": "cpu", "dtype": "float32"}
    return PairSettings.model_validate(models | values | changes)


def generator(models: dict[str, str], **changes: Any) -> PairGenerator:
    return PairGenerator(Painter.load(settings(models, **changes)))


def draws(thresholds: Sequence[float], **changes: Any) -> list[Draw]:
    return [replace(Draw(7 * n, p, 3.0 + n), **changes) for n, p in enumerate(thresholds)]


def apart(one: Any, other: Any) -> int:
    """The largest difference of two pictures, of 255."""
    return int(np.abs(np.asarray(one, dtype=int) - np.asarray(other, dtype=int)).max())


@pytest.mark.parametrize("scheduler", ["euler-a", "dpm++", "ddim"])
def test_pictures_are_those_of_the_stock_pipeline(models: dict[str, str], scheduler: str):
    """The first of a pair always, the second where nothing is shared."""
    ours = generator(models, scheduler=scheduler)
    model = ours.painter.model
    stock: Any = StableDiffusionPipeline(
        model.vae, model.text_encoders[0], model.tokenizers[0], model.unet, model.make_scheduler(scheduler),
        None, None, requires_safety_checker=False,  # pyright: ignore[reportArgumentType]
    )  # fmt: skip
    stock.scheduler = model.make_scheduler(scheduler)  # the constructor "corrects" its steps_offset
    stock.set_progress_bar_config(disable=True)

    def picture(caption: str, draw: Draw) -> Image.Image:
        noise = torch.Generator().manual_seed(draw.seed)
        scale = draw.guidance_scale
        return stock(caption, 32, 32, 4, guidance_scale=scale, generator=noise).images[0]

    three = draws([0.0, 0.5, 1.0])
    made = ours(BEFORE, AFTER, three)
    for (before, after), draw in zip(made, three, strict=True):
        assert apart(before, picture(BEFORE, draw)) <= 1
        assert (apart(after, picture(AFTER, draw)) <= 1) == (draw.p2p_threshold == 0)


@pytest.mark.parametrize("scheduler", ["euler-a", "dpm++"])
def test_equal_captions_give_equal_pictures(models: dict[str, str], scheduler: str):
    made = generator(models, scheduler=scheduler)(BEFORE, BEFORE, draws([0.0, 0.1, 0.5, 0.9, 1.0]))
    assert apart(made[:, 0], made[:, 1]) <= 1
    assert apart(made[0, 0], made[1, 0]) > 20


def test_equal_captions_give_equal_pictures_with_two_text_encoders(models: dict[str, str], tmp_path: Path):
    tiny.save("sdxl", tmp_path / "xl", in_channels=4)
    made = generator(models | {"model": str(tmp_path / "xl")})(BEFORE, BEFORE, draws([0.2, 0.8]))
    assert made.shape == (2, 2, 32, 32, 3) and apart(made[:, 0], made[:, 1]) <= 1


def test_the_more_steps_share_attention_the_more_alike_are_the_pictures(models: dict[str, str]):
    shares = [0.0, 0.3, 0.6, 1.0]
    pairs = generator(models)(BEFORE, AFTER, draws(shares, seed=3, guidance_scale=3.0)).astype(float)
    assert all(apart(pair[0], pairs[0, 0]) <= 1 for pair in pairs)  # one source for all
    distances = np.abs(pairs[:, 0] - pairs[:, 1]).mean((1, 2, 3))
    assert distances[0] > distances[-1] and len(set(distances)) == 4


def test_a_pair_can_be_made_again_from_its_record(models: dict[str, str]):
    made = generator(models)
    drawn = draw_samples(made.painter.settings, 0, "0000003")
    pixels = made(BEFORE, AFTER, drawn)
    for number in (0, 3, 5):
        again = made(BEFORE, AFTER, [drawn[number]])[0]
        assert apart(again, pixels[number]) <= 1
        for change in ({"p2p_threshold": 0.0}, {"guidance_scale": 1.0}, {"seed": 1}):
            assert apart(made(BEFORE, AFTER, [replace(drawn[number], **change)])[0], pixels[number]) > 1


def test_a_pair_does_not_depend_on_its_batch(models: dict[str, str]):
    five = draws([0.1, 0.9, 0.4, 0.0, 1.0])
    made = {size: generator(models, batch_size=size)(BEFORE, AFTER, five) for size in (1, 2, 5)}
    assert apart(made[1], made[5]) <= 1 and apart(made[2], made[5]) <= 1
    two = generator(models, batch_size=2)
    assert np.array_equal(two(BEFORE, AFTER, five), made[2])
    assert np.array_equal(two(BEFORE, AFTER, five[:4]), made[2][:4])  # the same place among the draws


def test_draws_depend_on_run_unit_and_number_alone(models: dict[str, str]):
    few, many = (draw_samples(settings(models, samples=count), 5, "0000001") for count in (3, 50))
    assert many[:3] == few and len(set(many)) == 50
    others = draw_samples(settings(models), 6, "0000001") + draw_samples(settings(models), 5, "0000002")
    assert not {draw.seed for draw in others} & {draw.seed for draw in many}


def test_draws_are_uniform_in_their_ranges(models: dict[str, str]):
    drawn = draw_samples(settings(models, samples=4000, guidance_scale=(2.0, 6.0)), 0, "0000000")
    for name, low, high in (("p2p_threshold", 0.1, 0.9), ("guidance_scale", 2.0, 6.0)):
        values = np.array([getattr(draw, name) for draw in drawn])
        assert low <= values.min() and values.max() <= high
        shares = np.histogram(values, bins=4, range=(low, high))[0] / 4000
        assert np.abs(shares - 0.25).max() < 0.03
    assert all(0 <= draw.seed < 2**53 for draw in drawn)


def test_scores_are_those_that_a_reader_of_the_rows_measures(models: dict[str, str]):
    clip = Clip.load(models["clip"], device=CPU)
    pixels: Pixels = generator(models)(BEFORE, AFTER, draws([0.1, 0.5, 0.9]))
    scores = score_pairs(clip, pixels, BEFORE, AFTER)
    rows = [
        Row(
            input_image=encode_png(Image.fromarray(before)), edited_image=encode_png(Image.fromarray(after)),
            edit_prompt="paint it", source_caption=BEFORE, target_caption=AFTER,
        )
        for before, after in pixels
    ]  # fmt: skip
    measured, _ = score(rows, clip)
    for name in SCORES:
        assert scores[name].tolist() == pytest.approx([getattr(row, name) for row in measured], abs=1e-5)


def test_an_editors_network_is_refused(models: dict[str, str]):
    model = LatentDiffusion.load(models["model"], device=CPU, dtype=torch.float32)
    with pytest.raises(ModelError, match="no text-to-image model: its U-Net takes 8 channels, not 4"):
        Painter(model, settings(models))


def test_a_size_off_the_grid_and_too_many_steps_are_refused(models: dict[str, str]):
    with pytest.raises(UsageError, match="multiple of 2"):
        generator(models, size=33)
    with pytest.raises(UsageError, match="cannot sample in 2000 steps"):
        generator(models, steps=2000, scheduler="ddim")
    assert generator(models, size=48)(BEFORE, AFTER, draws([0.5])).shape == (1, 2, 48, 48, 3)


@pytest.mark.parametrize(
    "change",
    [{"p2p_threshold": (0.9, 0.1)}, {"p2p_threshold": (0.1, 1.1)}, {"guidance_scale": (-1, 3)},
     {"scheduler": "magic"}, {"samples": 0}, {"unknown": 1}],
)  # fmt: skip
def test_senseless_settings_are_refused(change: dict[str, Any]):
    with pytest.raises(ValidationError, match=next(iter(change))):
        PairSettings.model_validate(change)
