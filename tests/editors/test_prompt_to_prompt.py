"""Prompt-to-Prompt on a real picture: its identities, on tiny random models."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import wordbrush
from tests import tiny
from tests.attention.sampling import FAMILIES, model
from wordbrush import EditRequest, EditResult, ModelError, UsageError, images
from wordbrush.diffusion.conditioning import Conditioning
from wordbrush.diffusion.inversion import ddim_inversion, ddim_scheduler
from wordbrush.diffusion.sampling import denoise, predict_noise
from wordbrush.editors.diffedit import DiffEdit
from wordbrush.editors.prompt_to_prompt import PromptToPrompt
from wordbrush.editors.settings import DiffEditSettings, PromptToPromptSettings

SOURCE, TARGET = "a red dog", "a blue cat"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WORDBRUSH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "inversions"


def editor(family: str = "sd1", **settings: Any) -> PromptToPrompt:
    """Without null texts, unless they are asked for: most of what is tested does not need them."""
    options: dict[str, Any] = {"steps": 3, "size": 32, "text_scale": 2.0, "null_text_steps": 0} | settings
    return PromptToPrompt(model(family), PromptToPromptSettings(**options))


def request(picture: Image.Image, source: str = SOURCE, target: str = TARGET, **more: Any) -> EditRequest:
    return EditRequest(picture, source_caption=source, target_caption=target, **{"seed": 0, **more})


def latents(which: PromptToPrompt, *requests: EditRequest) -> Tensor:
    found: list[Tensor] = []
    which.edit_batch(requests, on_step=lambda info: found.append(info.latents))
    return found[-1].clone()


def same(one: EditResult, other: EditResult) -> bool:
    return all(
        np.array_equal(np.asarray(a), np.asarray(b)) for a, b in zip(one.images, other.images, strict=True)
    )


@torch.no_grad()
def plain(family: str, picture: Image.Image, caption: str, *, steps: int = 3, scale: float = 2.0) -> Tensor:
    """Inverted under SOURCE, sampled under a caption, without any control."""
    which = model(family)
    scheduler = ddim_scheduler(which.scheduler)
    scheduler.set_timesteps(steps)
    pixels = images.from_pil(picture)

    def branch(text: str) -> Conditioning:
        embeds = which.encode_text([text]) if text else which.encode_null_text()
        ids = which.add_time_ids((pixels.shape[-2], pixels.shape[-1]), 1)
        return Conditioning(embeds.tokens, pooled=embeds.pooled, time_ids=ids)

    def inverted(latents: Tensor, t: Tensor, step: int) -> Tensor:
        return predict_noise(which.unet, scheduler, latents, t, [branch(SOURCE)])[0]

    def guided(latents: Tensor, t: Tensor, step: int) -> Tensor:
        uncond, cond = predict_noise(which.unet, scheduler, latents, t, [branch(""), branch(caption)])
        return uncond + scale * (cond - uncond)

    source = which.scale_latents(which.encode_image(pixels))
    return denoise(guided, scheduler, ddim_inversion(inverted, scheduler, source)[:, -1])


@pytest.mark.parametrize("family", FAMILIES)
def test_without_injection_it_is_plain_sampling_from_the_inversion(family: str, picture: Image.Image):
    found = latents(editor(family, cross_steps=0, self_steps=0), request(picture))
    assert torch.allclose(found, plain(family, picture, TARGET), atol=2e-3)
    injected = latents(editor(family), request(picture))
    assert not torch.allclose(injected, found, atol=2e-3)


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_equal_captions_give_the_reconstruction(family: str, picture: Image.Image):
    which = editor(family, null_text_steps=2, text_scale=4.0, blend_words="dog")
    result = which.edit(request(picture, SOURCE, SOURCE))
    assert same(result, dataclasses.replace(result, images=result.intermediates["reconstruction"]))
    assert not same(which.edit(request(picture)), result)


def test_null_texts_improve_the_reconstruction(picture: Image.Image):
    ddim, null_text = (editor(null_text_steps=n, text_scale=7.5).edit(request(picture)) for n in (0, 4))
    errors = [result.intermediates["reconstruction_error"][0] for result in (ddim, null_text)]
    assert errors[1] < 0.9 * errors[0]


def test_the_reconstruction_error_is_that_of_plain_sampling(picture: Image.Image):
    result = editor().edit(request(picture))
    which = model("sd1")
    with torch.no_grad():
        source = which.scale_latents(which.encode_image(images.from_pil(picture)))
        restored = plain("sd1", picture, SOURCE)
        pixels = which.decode(restored).clamp(-1, 1)
    error = (restored - source).square().mean().item()
    squared = (pixels - images.from_pil(picture)).square().mean().item() / 4
    assert result.intermediates["reconstruction_error"][0] == pytest.approx(error, rel=1e-3)
    assert result.intermediates["reconstruction_psnr"][0] == pytest.approx(-10 * np.log10(squared), abs=0.05)


def test_weights_of_words(picture: Image.Image):
    without, ones, more = (
        latents(editor(word_weights=weights), request(picture))
        for weights in (None, "blue=1, cat=1", "cat=3")
    )
    assert torch.equal(ones, without)
    assert not torch.allclose(more, without, atol=1e-3)


def test_windows_of_words(picture: Image.Image):
    swap = request(picture, "a red dog", "a red cat")
    base, all_steps, none = (
        latents(editor(cross_steps=1.0, word_steps=words), swap) for words in (None, "red=1", "red=0")
    )
    assert torch.equal(base, all_steps)
    assert not torch.allclose(base, none, atol=1e-4)


@pytest.mark.parametrize("family", ["sd1", "storybook"])
def test_local_blend_from_nowhere_to_everywhere(family: str, picture: Image.Image):
    free = latents(editor(family), request(picture))
    source = latents(editor(family), request(picture, SOURCE, SOURCE))
    blends = {"blend_words": "dog, cat", "blend_start": 0.0}
    everywhere = latents(editor(family, **blends, blend_threshold=0.0), request(picture))
    nowhere = latents(editor(family, **blends, blend_threshold=1.0), request(picture))
    assert torch.allclose(everywhere, free, atol=1e-4)
    assert torch.allclose(nowhere, source, atol=1e-4)
    some = latents(editor(family, **blends, blend_threshold=0.9), request(picture))
    kept = torch.isclose(some, source, atol=1e-4).all(1).float().mean()
    assert 0.02 < kept < 0.98
    held = latents(editor(family, **blends, blend_threshold=0.0, keep_words="a"), request(picture))
    assert not torch.allclose(held, free, atol=1e-4)


def test_masks(picture: Image.Image):
    black, white, half = (Image.new("L", picture.size, value) for value in (0, 255, 0))
    half.paste(255, (24, 0, 48, 32))
    free = latents(editor(), request(picture))
    source = latents(editor(), request(picture, SOURCE, SOURCE))
    assert torch.allclose(latents(editor(), request(picture, mask=black)), source, atol=1e-5)
    assert torch.allclose(latents(editor(), request(picture, mask=white)), free, atol=1e-5)
    some, middle = latents(editor(), request(picture, mask=half)), free.shape[-1] // 2
    assert torch.allclose(some[..., :middle], source[..., :middle], atol=1e-5)
    assert not torch.allclose(some[..., middle:], source[..., middle:], atol=1e-2)
    assert same(editor().edit(request(picture, mask=black)), EditResult([picture], [0], {}))


def test_the_same_again_whatever_ran_before(picture: Image.Image, cache: Path):
    which = editor(null_text_steps=2)
    before = {name: weight.clone() for name, weight in which.model.unet.state_dict().items()}
    processors = dict(which.model.unet.attn_processors)
    first = which.edit(request(picture))
    assert len(list(cache.iterdir())) == 1
    from_cache = which.edit(request(picture))
    DiffEdit(which.model, DiffEditSettings(steps=4, size=32, mask_samples=1)).edit(request(picture))
    afresh = which.with_settings(keep_inversion=False).edit(request(picture))
    assert same(first, from_cache)
    assert same(first, afresh)
    assert first.intermediates["reconstruction_error"] == from_cache.intermediates["reconstruction_error"]
    assert all(torch.equal(weight, before[name]) for name, weight in which.model.unet.state_dict().items())
    assert dict(which.model.unet.attn_processors) == processors


def calls(which: PromptToPrompt, *requests: EditRequest) -> int:
    """How often the U-Net ran."""
    count = 0

    def add(*_: Any) -> None:
        nonlocal count
        count += 1

    hook = which.model.unet.register_forward_pre_hook(add)
    try:
        which.edit_batch(requests)
    finally:
        hook.remove()
    return count


def test_an_inversion_is_made_once(picture: Image.Image, cache: Path):
    which, other = editor(), picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    sampling, inverting = 3, 3
    assert calls(which, request(picture), request(picture, target="a tree")) == sampling + inverting
    assert calls(which, request(picture, target="a house")) == sampling
    assert calls(which.with_settings(self_steps=0.1, word_weights="cat=2"), request(picture)) == sampling
    for changed in (request(picture, source="a cow"), request(other)):
        assert calls(which, changed) == sampling + inverting
    assert calls(which.with_settings(steps=4), request(picture)) == 4 + 4
    assert calls(which.with_settings(keep_inversion=False), request(picture)) == sampling + inverting
    for file in cache.iterdir():
        file.write_bytes(b"damaged")
    assert calls(which, request(picture)) == sampling + inverting
    assert calls(which, request(picture)) == sampling


def test_a_cache_that_cannot_be_written_is_no_reason_to_fail(
    picture: Image.Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("WORDBRUSH_CACHE", str(tmp_path / "file"))
    result = editor().edit(request(picture))
    assert any("was not kept" in warning for warning in result.warnings)
    assert same(result, editor(keep_inversion=False).edit(request(picture)))


def test_a_result_does_not_depend_on_its_batch(picture: Image.Image):
    which = editor(null_text_steps=2, keep_inversion=False, blend_words="dog, cat", word_weights="cat=2")
    other = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    requests = [request(picture), request(other, "a dog in the snow", "a cat in the snow")]
    together = which.edit_batch(requests)
    for result, alone in zip(together, (which.edit(one) for one in requests), strict=True):
        apart = np.asarray(result.images[0], int) - np.asarray(alone.images[0], int)
        assert np.abs(apart).max() <= 2
        assert len(result.intermediates["reconstruction"]) == 1


def test_progress_and_cancelling(picture: Image.Image, cache: Path):
    which = editor(null_text_steps=1)
    steps: list[tuple[int, int]] = []
    which.edit(request(picture), on_step=lambda info: steps.append((info.step, info.num_steps)))
    assert steps == [(step, 9) for step in range(9)]
    processors = dict(which.model.unet.attn_processors)

    class Cancelled(Exception):
        pass

    for last in (1, 4, 7):  # in the inversion, in the null texts, in sampling

        def cancel(info: wordbrush.StepInfo, last: int = last) -> None:
            assert info.preview()[0].size == picture.size
            if info.step == last:
                raise Cancelled

        with pytest.raises(Cancelled):
            which.edit(request(picture, source=f"a thing {last}"), on_step=cancel)
        assert dict(which.model.unet.attn_processors) == processors
    assert (
        len(list(cache.iterdir())) == 2
    )  # of the edit that was not cancelled, and of the last: it was ready


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"word_weights": "horse=2"}, "'horse' is not in 'a blue cat'"),
        ({"word_steps": "dog=0.5"}, "'dog' is not in 'a blue cat'"),
        ({"blend_words": "cat", "keep_words": "horse"}, "'horse' is not in 'a red dog' nor in 'a blue cat'"),
        ({"blend_words": "cat, horse"}, "'horse' is not in 'a red dog' nor in 'a blue cat'"),
        ({"word_steps": "cat=2"}, "window"),
    ],
)
def test_words_that_do_not_fit(settings: dict[str, Any], message: str, picture: Image.Image):
    which = editor(**settings)
    with pytest.raises(UsageError, match=message):
        which.edit(request(picture))
    assert calls_refused(which, picture) == 0


def calls_refused(which: PromptToPrompt, picture: Image.Image) -> int:
    try:
        return calls(which, request(picture, "a cat", "a cat"), request(picture))
    except UsageError:
        return 0


def test_a_swap_needs_as_many_words(picture: Image.Image):
    which = editor(attention_edit="replace")
    which.edit(request(picture))
    with pytest.raises(UsageError, match="equally many words"):
        which.edit(request(picture, target="a big blue cat"))


@pytest.mark.parametrize("setting", ["word_weights", "word_steps"])
@pytest.mark.parametrize("value", ["cat", "cat=", "=2", "cat=two", "cat=nan", "cat=1 dog=2"])
def test_lists_of_words_that_are_none(setting: str, value: str):
    with pytest.raises(UsageError, match="word=number"):
        wordbrush.editors.settings.make_settings(PromptToPromptSettings, {setting: value})


def test_what_is_needed(picture: Image.Image, tmp_path: Path):
    for missing in ("source_caption", "target_caption"):
        with pytest.raises(UsageError, match=f"prompt-to-prompt needs {missing.replace('_', ' ')}"):
            editor().edit(dataclasses.replace(request(picture), **{missing: " "}))
    with pytest.raises(UsageError, match="attention_edit"):
        wordbrush.load(tmp_path, "prompt-to-prompt", attention_edit="swap")
    with pytest.raises(ModelError, match="text-to-image"):
        wordbrush.load(tiny.save("sd1", tmp_path / "widened"), "prompt-to-prompt", device="cpu")


def test_variations_are_alike_and_say_so(picture: Image.Image):
    result = editor().edit(request(picture, num_variations=2))
    assert same(EditResult(result.images[:1], [0], {}), EditResult(result.images[1:], [1], {}))
    assert sum("alike" in warning for warning in result.warnings) == 1
