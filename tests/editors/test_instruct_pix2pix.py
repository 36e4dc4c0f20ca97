from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import wordbrush
from tests import tiny
from wordbrush import DeviceError, EditRequest, ImageError, ModelError, StepInfo, UsageError
from wordbrush.editors import instruct_pix2pix
from wordbrush.editors.instruct_pix2pix import InstructPix2Pix
from wordbrush.images import from_pil


@pytest.fixture(scope="module")
def editor(tiny_checkpoint: Path) -> InstructPix2Pix:
    loaded = wordbrush.load(tiny_checkpoint, device="cpu", dtype="float32", steps=2)
    assert isinstance(loaded, InstructPix2Pix)
    return loaded


def difference(a: Image.Image, b: Image.Image) -> int:
    """Largest difference of two pictures' bytes."""
    return int(np.abs(np.asarray(a, int) - np.asarray(b, int)).max())


def test_a_result(editor: InstructPix2Pix, picture: Image.Image, tiny_checkpoint: Path) -> None:
    result = editor.edit(EditRequest(picture, "make it night", seed=3))
    assert [image.size for image in result.images] == [picture.size]
    assert (result.images[0].mode, result.seeds, result.warnings) == ("RGB", [3], [])
    assert result.settings == {
        "wordbrush": wordbrush.__version__,
        "method": "instruct-pix2pix",
        "model": str(tiny_checkpoint),
        "lora": [],
        "concept": [],
        "config": None,
        "device": "cpu",
        "dtype": "float32",
        "instruction": "make it night",
        "negative_prompt": None,
        "seed": 3,
        "num_variations": 1,
        "steps": 2,
        "text_scale": 7.5,
        "image_scale": 1.5,
        "size": None,
        "scheduler": None,
        "guidance_rescale": 0.0,
        "guidance_start": 0.0,
        "guidance_end": 1.0,
        "detail": None,
        "tiled_vae": False,
    }
    again = editor.edit(EditRequest(picture, "make it night", seed=3))
    assert difference(again.images[0], result.images[0]) == 0
    for other in (EditRequest(picture, "add snow", seed=3), EditRequest(picture, "make it night", seed=4)):
        assert difference(editor.edit(other).images[0], result.images[0]) > 0


def test_variations_and_seeds(editor: InstructPix2Pix, picture: Image.Image) -> None:
    result = editor.edit(EditRequest(picture, "add snow", seed=5, num_variations=3))
    assert result.seeds == [5, 6, 7]
    alone = editor.edit(EditRequest(picture, "add snow", seed=6))
    assert difference(alone.images[0], result.images[1]) <= 1
    assert difference(result.images[0], result.images[1]) > 1
    drawn = editor.edit(EditRequest(picture, "add snow"))
    assert drawn.settings["seed"] == drawn.seeds[0]
    repeated = editor.edit(EditRequest(picture, "add snow", seed=drawn.seeds[0]))
    assert difference(drawn.images[0], repeated.images[0]) == 0


@pytest.mark.parametrize("scheduler", ["euler-a", "dpm++-sde", "ddpm", "pndm"])
def test_a_result_does_not_depend_on_its_batch(
    editor: InstructPix2Pix, picture: Image.Image, scheduler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = editor.with_settings(scheduler=scheduler, steps=3)
    tall = picture.resize((32, 64))
    requests = [
        EditRequest(picture, "make it night", seed=1, num_variations=2),
        EditRequest(tall, "add snow", seed=9),
        EditRequest(picture.rotate(180), "turn it red", seed=1, negative_prompt="blurry"),
    ]
    alone = [other.edit(request) for request in requests]
    for limit in (10**9, 1):  # everything of one size together; one sample at a time
        monkeypatch.setattr(InstructPix2Pix, "batch_pixels", limit)
        together = other.edit_batch(requests)
        for mine, theirs in zip(together, alone, strict=True):
            assert (mine.settings, mine.seeds) == (theirs.settings, theirs.seeds)
            for a, b in zip(mine.images, theirs.images, strict=True):
                assert difference(a, b) <= 1


def test_the_gist_of_batching(
    editor: InstructPix2Pix, picture: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    monkeypatch.setattr(InstructPix2Pix, "batch_pixels", 3 * 32 * 48)
    hook = editor.model.unet.register_forward_hook(lambda _, args, out: sizes.append(len(args[0])))
    steps: list[tuple[int, int]] = []
    editor.edit_batch(
        [EditRequest(picture, "add snow", seed=1, num_variations=4)],
        on_step=lambda info: steps.append((info.step, info.num_steps)),
    )
    hook.remove()
    assert sizes == [9, 9, 3, 3]  # three branches each, two steps
    assert steps == [(0, 4), (1, 4), (2, 4), (3, 4)]
    assert editor.edit_batch([]) == []


@pytest.mark.parametrize(
    ("settings", "branches"),
    [
        ({}, [3, 3]),
        ({"text_scale": 3.0, "image_scale": 3.0}, [2, 2]),
        ({"text_scale": 3.0, "image_scale": 1.0}, [2, 2]),
        ({"text_scale": 1.0, "image_scale": 1.0}, [1, 1]),
        ({"text_scale": 0.0, "image_scale": 1.0}, [1, 1]),
        ({"text_scale": 0.0, "image_scale": 1.0, "guidance_rescale": 0.5}, [2, 2]),
        ({"guidance_end": 0.5}, [3, 1]),
        ({"guidance_start": 0.5}, [1, 3]),
    ],
)
def test_branches_that_do_nothing_are_not_run(
    editor: InstructPix2Pix,
    picture: Image.Image,
    settings: dict[str, Any],
    branches: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    other = editor.with_settings(**settings)
    sizes: list[int] = []
    hook = other.model.unet.register_forward_hook(lambda _, args, out: sizes.append(len(args[0])))
    request = EditRequest(picture, "make it night", seed=1)
    result = other.edit(request)
    hook.remove()
    assert sizes == branches
    # All three branches by the full formula give the same.
    monkeypatch.setattr(instruct_pix2pix, "dual_guidance_weights", lambda *_, **__: (1.0, 1.0, 1.0))
    assert difference(other.edit(request).images[0], result.images[0]) <= 1


def test_rescaling_and_interval_change_the_result(editor: InstructPix2Pix, picture: Image.Image) -> None:
    request = EditRequest(picture, "make it night", seed=1)
    plain = editor.edit(request).images[0]
    for settings in ({"guidance_rescale": 0.7}, {"guidance_end": 0.5}, {"scheduler": "euler-a"}):
        assert difference(editor.with_settings(**settings).edit(request).images[0], plain) > 0
    never = editor.with_settings(guidance_start=0.5, guidance_end=0.5).edit(request).images[0]
    unguided = editor.with_settings(text_scale=1.0, image_scale=1.0).edit(request).images[0]
    assert difference(never, unguided) == 0


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16", "F"])
def test_any_mode_and_size(editor: InstructPix2Pix, mode: str) -> None:
    gradient = Image.linear_gradient("L").resize((53, 31))
    image = gradient if mode in ("I;16", "LA") else gradient.convert("RGB")
    image = (
        image.convert("I").point(lambda v: v * 257).convert("I;16") if mode == "I;16" else image.convert(mode)
    )
    edited = editor.edit(EditRequest(image, "make it night", seed=1)).images[0]
    assert edited.size == (53, 31)
    assert edited.mode == ("RGBA" if mode in ("LA", "RGBA") else "RGB")


@pytest.mark.parametrize("size", [(1, 1), (2000, 3), (3, 300), (7, 5), (33, 32)])
def test_any_shape(editor: InstructPix2Pix, size: tuple[int, int]) -> None:
    picture = Image.linear_gradient("L").convert("RGB").resize(size)
    assert editor.edit(EditRequest(picture, "make it night", seed=1)).images[0].size == size


def test_alpha_and_orientation_are_kept(editor: InstructPix2Pix, picture: Image.Image) -> None:
    alpha = Image.linear_gradient("L").resize(picture.size)
    clear = picture.copy()
    clear.putalpha(alpha)
    edited = editor.edit(EditRequest(clear, "make it night", seed=1)).images[0]
    assert difference(edited.getchannel("A"), alpha) == 0
    picture.getexif()[0x0112] = 6
    assert editor.edit(EditRequest(picture, "make it night", seed=1)).images[0].size == picture.size[::-1]


def test_outside_the_mask_nothing_changes(editor: InstructPix2Pix, picture: Image.Image) -> None:
    mask = Image.new("L", picture.size)
    mask.paste(255, (10, 8, 30, 24))
    for source in (picture, picture.resize((200, 120))):
        inside = mask.resize(source.size, Image.Resampling.NEAREST)
        edited = editor.edit(EditRequest(source, "make it night", mask=inside, seed=1)).images[0]
        black = np.asarray(inside) == 0
        assert (np.asarray(edited)[black] == np.asarray(source)[black]).all()
        assert (np.asarray(edited)[~black] != np.asarray(source)[~black]).any()


def test_detail_is_carried_where_the_picture_is_larger(editor: InstructPix2Pix, picture: Image.Image) -> None:
    def edit(source: Image.Image, **settings: Any) -> Image.Image:
        return editor.with_settings(**settings).edit(EditRequest(source, "make it night", seed=1)).images[0]

    large = picture.resize((96, 64))
    assert difference(edit(picture), edit(picture, detail=False)) == 0
    assert difference(edit(large), edit(large, detail=True)) == 0
    assert difference(edit(large), edit(large, detail=False)) > 0


def test_with_settings_shares_the_model(editor: InstructPix2Pix) -> None:
    other = editor.with_settings(image_scale=2.0)
    assert other.model is editor.model
    assert (other.settings.image_scale, editor.settings.image_scale) == (2.0, 1.5)
    with pytest.raises(UsageError, match="unknown setting 'stepz'; one of steps, size"):
        editor.with_settings(stepz=1)


def test_on_step(editor: InstructPix2Pix, picture: Image.Image) -> None:
    seen: list[StepInfo] = []
    editor.edit(EditRequest(picture, "make it night", seed=1), on_step=seen.append)
    assert [(info.step, info.num_steps) for info in seen] == [(0, 2), (1, 2)]
    assert seen[0].latents.shape == (1, 4, 16, 24)
    previews = seen[-1].preview()
    assert [preview.size for preview in previews] == [(48, 32)]
    assert difference(previews[0], editor.edit(EditRequest(picture, "make it night", seed=1)).images[0]) == 0


def test_raising_in_on_step_cancels(editor: InstructPix2Pix, picture: Image.Image) -> None:
    class Stop(Exception):
        pass

    def stop(info: StepInfo) -> None:
        raise Stop

    request = EditRequest(picture, "make it night", seed=1)
    before = editor.edit(request).images[0]
    with pytest.raises(Stop):
        editor.edit(request, on_step=stop)
    assert not torch.is_inference_mode_enabled()
    assert difference(editor.edit(request).images[0], before) == 0


def test_prompts_are_encoded_once(editor: InstructPix2Pix, picture: Image.Image) -> None:
    fresh = InstructPix2Pix(editor.model, editor.settings)
    calls: list[int] = []
    encoder = editor.model.text_encoders[0]
    hook = encoder.register_forward_hook(lambda *_: calls.append(1))
    for settings in ({}, {"image_scale": 2.0}):
        other = fresh.with_settings(**settings)
        other.edit_batch([EditRequest(picture, "add snow", seed=1), EditRequest(picture, "add snow", seed=2)])
    hook.remove()
    assert len(calls) == 2  # the instruction and the null text


def test_a_long_instruction_is_reported(editor: InstructPix2Pix, picture: Image.Image) -> None:
    result = editor.edit(EditRequest(picture, "a " * (tiny.WINDOW - 2) + "lost words", seed=1))
    assert result.warnings == ["the instruction is too long for the text encoder, dropped: 'lost words'"]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"instruction": " \n"}, UsageError, "needs instruction"),
        ({"num_variations": 0}, UsageError, "num_variations is 0"),
        ({"seed": -1}, UsageError, "seed is -1"),
        ({"seed": 2**63}, UsageError, "seed is 9223372036854775808"),
        ({"mask": Image.new("L", (5, 5))}, ImageError, "the mask is 5x5 but the picture 48x32"),
        ({"image": Image.new("RGB", (0, 5))}, ImageError, "empty"),
    ],
)
def test_bad_requests(
    editor: InstructPix2Pix,
    picture: Image.Image,
    change: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    calls: list[StepInfo] = []
    good = EditRequest(picture, "make it night")
    bad = EditRequest(**({"image": picture, "instruction": "make it night"} | change))
    with pytest.raises(error, match=message):
        editor.edit_batch([good, bad], on_step=calls.append)
    assert not calls  # refused before any work


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"method": "magic"}, UsageError, "unknown method 'magic'; one of instruct-pix2pix"),
        ({"scheduler": "fast"}, UsageError, "unknown scheduler 'fast'; one of ddim"),
        ({"steps": 0}, UsageError, "steps is 0"),
        ({"steps": 2.5}, UsageError, "steps is 2.5"),
        ({"text_scale": float("nan")}, UsageError, "text_scale is nan"),
        ({"image_scale": -1}, UsageError, "image_scale is -1"),
        ({"guidance_start": 0.9, "guidance_end": 0.1}, UsageError, "guidance_start lies after guidance_end"),
        ({"size": 7}, UsageError, "size is 7"),
        ({"typo": 1}, UsageError, "unknown setting 'typo'"),
        ({"dtype": "float8"}, UsageError, "unknown dtype"),
        ({"device": "tpu"}, UsageError, "unknown device"),
        ({"device": "cuda:99"}, DeviceError, "cuda:99"),
    ],
)
def test_senseless_settings(
    options: dict[str, Any], error: type[Exception], message: str, tiny_checkpoint: Path
) -> None:
    with pytest.raises(error, match=message) as caught:
        wordbrush.load(tiny_checkpoint, **({"device": "cpu"} | options))
    assert "\n" not in str(caught.value)


def test_more_steps_than_the_model_has(editor: InstructPix2Pix, picture: Image.Image) -> None:
    editor = editor.with_settings(steps=1000)
    editor.model.scheduler.register_to_config(num_train_timesteps=500)
    try:
        with pytest.raises(UsageError, match="cannot sample in 1000 steps"):
            editor.edit(EditRequest(picture, "make it night"))
    finally:
        editor.model.scheduler.register_to_config(num_train_timesteps=1000)


def test_a_text_to_image_checkpoint_is_refused(tmp_path: Path) -> None:
    tiny.save("sd1", tmp_path, in_channels=4)
    with pytest.raises(ModelError, match="needs a U-Net of 8 input channels .* takes 4"):
        wordbrush.load(tmp_path, device="cpu")


def test_a_null_image_condition_is_zeros(editor: InstructPix2Pix, picture: Image.Image) -> None:
    """At text_scale = image_scale = 0 the picture has no say; at 0 and 1 the instruction has none."""

    def edit(settings: dict[str, float], source: Image.Image, instruction: str) -> Image.Image:
        other = editor.with_settings(detail=False, **settings)
        return other.edit(EditRequest(source, instruction, seed=1)).images[0]

    free = {"text_scale": 0.0, "image_scale": 0.0}
    assert difference(edit(free, picture, "a"), edit(free, picture.rotate(180), "b")) == 0
    image_only = {"text_scale": 0.0, "image_scale": 1.0}
    assert difference(edit(image_only, picture, "a"), edit(image_only, picture, "b")) == 0
    assert difference(edit(image_only, picture, "a"), edit(image_only, picture.rotate(180), "a")) > 0


def test_pixels_enter_exactly(editor: InstructPix2Pix, picture: Image.Image) -> None:
    seen: list[torch.Tensor] = []
    encoder: Callable[..., Any] = editor.model.vae.encoder.register_forward_hook
    hook = encoder(lambda _, args, out: seen.append(args[0]))
    editor.edit(EditRequest(picture, "make it night", seed=1))
    hook.remove()
    assert torch.equal(seen[0], from_pil(picture))
