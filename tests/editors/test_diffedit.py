"""DiffEdit: as diffusers' pipeline where it does the same, and its identities, on tiny random models."""

import dataclasses
import warnings
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import wordbrush
from tests import tiny
from tests.attention.sampling import model, randn
from wordbrush import EditRequest, EditResult, UsageError, images
from wordbrush.diffusion.model import LatentDiffusion
from wordbrush.editors.diffedit import DiffEdit, change_mask
from wordbrush.editors.settings import DiffEditSettings

SOURCE, TARGET = "a bowl of fruits", "a basket of pears"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WORDBRUSH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "inversions"


def editor(family: str = "sd1", **settings: Any) -> DiffEdit:
    options: dict[str, Any] = {"steps": 5, "size": 32, "text_scale": 3.0, "mask_samples": 2} | settings
    return DiffEdit(model(family), DiffEditSettings(**options))


def request(picture: Image.Image, **more: Any) -> EditRequest:
    return EditRequest(picture, **{"source_caption": SOURCE, "target_caption": TARGET, "seed": 0, **more})


def run(which: DiffEdit, *requests: EditRequest) -> tuple[Tensor, list[EditResult]]:
    """Final latents and results."""
    found: list[Tensor] = []
    results = which.edit_batch(requests, on_step=lambda info: found.append(info.latents))
    return found[-1].clone(), results


def clean(which: DiffEdit, picture: Image.Image) -> Tensor:
    with torch.no_grad():
        return which.model.scale_latents(which.model.encode_image(images.from_pil(picture)))


def array(picture: Image.Image) -> Any:
    return np.asarray(picture, dtype=int)


def pipeline(which: DiffEdit) -> Any:
    """Diffusers' own over the same networks and schedule."""
    config = which.make_scheduler().config
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipe = diffusers.StableDiffusionDiffEditPipeline(
            vae=which.model.vae,
            text_encoder=which.model.text_encoders[0],
            tokenizer=which.model.tokenizers[0],
            unet=which.model.unet,
            scheduler=diffusers.DDIMScheduler.from_config(config),
            inverse_scheduler=diffusers.DDIMInverseScheduler.from_config(config),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def offset(family: str) -> LatentDiffusion:
    """Timesteps from 1, as real checkpoints have them, and as diffusers' pipeline wants them."""
    which = model(family)
    config = which.scheduler.config
    return dataclasses.replace(which, scheduler=diffusers.DDIMScheduler.from_config(config, steps_offset=1))


@pytest.mark.parametrize("family", ["sd1", "sd2"])
def test_the_mask_equals_diffusers(family: str, picture: Image.Image):
    which = DiffEdit(offset(family), DiffEditSettings(steps=10, size=32, mask_samples=3, strength=0.0))
    expected = pipeline(which).generate_mask(
        image=clean(which, picture), source_prompt=SOURCE, target_prompt=TARGET, num_maps_per_mask=3,
        num_inference_steps=10, guidance_scale=4.0, generator=torch.Generator().manual_seed(7),
    )  # fmt: skip
    mask = which.edit(request(picture, seed=7)).intermediates["mask"][0]
    blocks = np.asarray(mask)[::2, ::2] / 255
    assert np.mean(blocks != expected[0]) < 0.01  # a value may lie on the threshold
    assert 0.02 < blocks.mean() < 0.98


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_inversion_and_unmasked_decoding_equal_diffusers(scale: float, picture: Image.Image):
    """Its pipeline blends with the step before, and reads velocities otherwise: no mask, and epsilon."""
    settings = DiffEditSettings(steps=5, size=32, inversion_scale=scale, text_scale=scale)
    which = DiffEdit(offset("sd1"), settings)
    pipe, source = pipeline(which), clean(which, picture)
    options: dict[str, Any] = {"num_inference_steps": 5, "inpaint_strength": 0.8, "guidance_scale": scale}
    inverted = pipe.invert(prompt=SOURCE, image=source, **options).latents
    white = torch.ones(1, 1, *source.shape[-2:])
    decoded = pipe(TARGET, white, inverted, output_type="latent", **options).images
    found: list[Tensor] = []
    drawn = Image.new("L", picture.size, 255)
    which.edit(request(picture, mask=drawn), on_step=lambda info: found.append(info.latents))
    assert torch.allclose(torch.stack(found[3::-1], 1), inverted, rtol=1e-3, atol=1e-3)
    assert torch.allclose(found[-1], decoded, rtol=1e-3, atol=5e-3)


def test_strength_zero_is_the_autoencoders_round_trip(picture: Image.Image):
    which = editor(strength=0)
    result = which.edit(request(picture))
    with torch.no_grad():
        restored = images.to_pil(which.model.decode(clean(which, picture)))[0]
    assert np.array_equal(array(result.images[0]), array(restored))


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_an_empty_mask_keeps_the_picture_and_says_so(family: str, picture: Image.Image):
    which = editor(family)
    for changed in ({"target_caption": SOURCE}, {"mask": Image.new("L", picture.size)}):
        found, (result,) = run(which, request(picture, **changed))
        assert torch.equal(found, clean(which, picture))
        assert array(result.intermediates["mask"][0]).max() == 0
        assert sum("mask is empty" in warning for warning in result.warnings) == 1


def test_too_few_steps_for_the_strength_are_remarked(picture: Image.Image):
    which = editor(steps=1, strength=0.8)
    found, (result,) = run(which, request(picture))
    assert torch.equal(found, clean(which, picture))
    assert sum("nothing was edited" in warning for warning in result.warnings) == 1


def test_a_found_mask_can_be_grown(picture: Image.Image):
    results = [run(editor(mask_dilate=blocks), request(picture))[1][0] for blocks in (0, 1)]
    before, after = (array(result.intermediates["mask"][0]) for result in results)
    assert (after >= before).all()
    assert (after > before).any()


@pytest.mark.parametrize("strength", [0.6, 1.0])
def test_a_full_mask_gives_unmasked_sampling(strength: float, picture: Image.Image):
    which = editor(strength=strength, mask_threshold=0.0)
    everywhere, (result,) = run(which, request(picture))
    assert array(result.intermediates["mask"][0]).min() == 255
    white, _ = run(which, request(picture, mask=Image.new("L", picture.size, 255)))
    assert torch.equal(everywhere, white)
    # Nothing of the inversion but its end has a say.
    inversion = which.inversions

    def shuffled(*arguments: Any) -> Any:
        found = inversion(*arguments)
        found.trajectory[:, :-1] = randn(*found.trajectory[:, :-1].shape)
        return found

    which.inversions = shuffled  # pyright: ignore
    assert torch.equal(run(which, request(picture))[0], white)


def test_outside_of_the_mask_the_latents_are_the_pictures(picture: Image.Image):
    which = editor(mask_threshold=0.3)
    found, (result,) = run(which, request(picture))
    inside = torch.from_numpy(np.asarray(result.intermediates["mask"][0])[::2, ::2] > 0)
    assert 0 < inside.float().mean() < 1
    source = clean(which, picture)
    assert torch.equal(found[0][:, ~inside], source[0][:, ~inside])
    assert (found[0][:, inside] - source[0][:, inside]).abs().mean() > 1e-2


def test_the_mask_can_be_given_again(picture: Image.Image):
    which = editor(mask_threshold=0.3)
    first, (result,) = run(which, request(picture))
    mask = result.intermediates["mask"][0]
    assert (mask.mode, mask.size) == ("L", picture.size)
    again, (repeated,) = run(which, request(picture, mask=mask))
    assert torch.equal(first, again)
    assert np.array_equal(array(repeated.intermediates["mask"][0]), array(mask))
    outside = array(mask) == 0
    assert np.array_equal(array(repeated.images[0])[outside], array(picture)[outside])


def test_the_mask_of_a_picture_of_another_size(picture: Image.Image):
    large = picture.resize((150, 90), Image.Resampling.BICUBIC)
    result = editor(mask_threshold=0.3).edit(request(large))
    mask = result.intermediates["mask"][0]
    assert mask.size == result.images[0].size == large.size
    assert set(np.unique(np.asarray(mask))) == {0, 255}


def test_seeds_and_batches(picture: Image.Image, cache: Path):
    which = editor(mask_threshold=0.3)
    black = Image.new("L", picture.size)
    flipped = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    requests = [request(picture, num_variations=2), request(flipped, mask=black), request(flipped, seed=1)]
    together = which.edit_batch(requests)
    assert len(list(cache.iterdir())) == 2
    for result, one in zip(together, requests, strict=True):
        alone = which.edit(one)
        for name in ("mask", "images"):
            pair = [r.images if name == "images" else r.intermediates["mask"] for r in (result, alone)]
            assert all(np.abs(array(a) - array(b)).max() <= 1 for a, b in zip(*pair, strict=True))
    masks = together[0].intermediates["mask"]
    assert not np.array_equal(array(masks[0]), array(masks[1]))  # of another noise
    assert array(together[1].intermediates["mask"][0]).max() == 0


def test_without_a_source_caption_the_target_is_compared_with_no_text(picture: Image.Image):
    which = editor()
    masks = [
        array(which.edit(request(picture, source_caption=caption)).intermediates["mask"][0])
        for caption in ("", SOURCE)
    ]
    assert 0 < masks[0].mean() < 255
    assert not np.array_equal(*masks)
    with pytest.raises(UsageError, match="diffedit needs target caption"):
        which.edit(request(picture, target_caption=""))


def test_only_a_guided_inversion_depends_on_the_source_caption(picture: Image.Image, cache: Path):
    for scale, kept in ((0.0, 1), (2.0, 3)):
        for caption in (SOURCE, "a dog"):
            editor(inversion_scale=scale).edit(request(picture, source_caption=caption))
        assert len(list(cache.iterdir())) == kept


def test_progress(picture: Image.Image):
    steps: list[tuple[int, int]] = []
    editor().edit(request(picture), on_step=lambda info: steps.append((info.step, info.num_steps)))
    assert steps == [(step, 10) for step in range(10)]


def test_it_is_loaded_by_name(picture: Image.Image, tmp_path: Path):
    folder = tiny.save("sd1", tmp_path / "model", in_channels=4)
    which = wordbrush.load(folder, "diffedit", device="cpu", dtype="bfloat16", steps=2, mask_samples=1)
    result = which.edit(request(picture))
    assert result.images[0].size == picture.size
    assert result.settings["method"] == "diffedit"
    assert np.asarray(result.images[0]).std() > 0


def test_the_mask_rule():
    ramp = torch.arange(100.0).reshape(1, 1, 10, 10)
    # The mean is 49.5: clamped at 1 x mean, more than half of it is white.
    assert change_mask(ramp, threshold=0.5, clamp=1.0).sum() == 75
    # Clamped nowhere: relative to 2 x mean = 99.
    assert change_mask(ramp, threshold=0.5, clamp=2.0).sum() == 50
    # The paper's wording: the extremes dropped, the rest rescaled, from 9.9 to 89.1.
    assert change_mask(ramp, threshold=0.25, clamp=3.0, extremes=0.1).sum() == 70
    assert change_mask(torch.zeros(1, 1, 2, 2), threshold=0.0, clamp=3.0).sum() == 0
    assert change_mask(torch.full((1, 1, 2, 2), 2.0), threshold=0.0, clamp=3.0, extremes=0.1).sum() == 0
    # Each picture by its own scale.
    both = change_mask(torch.cat([ramp, 1000 * ramp]), threshold=0.5, clamp=2.0)
    assert torch.equal(both[0], both[1])
