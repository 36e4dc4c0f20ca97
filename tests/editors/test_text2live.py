"""Text2LIVE on a tiny random CLIP: what layers are, how they are trained, and that nothing leaks."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import wordbrush
from tests.perception.test_clip import folder  # noqa: F401
from wordbrush import EditRequest, ModelError, UsageError, images
from wordbrush.cli import main
from wordbrush.editors.edit_layer import LayerGenerator, composite, num_scales
from wordbrush.perception.clip import Clip
from wordbrush.types import StepInfo

FAST: dict[str, Any] = {"steps": 4, "size": 32, "num_views": 2, "width": 8}


@pytest.fixture(scope="module")
def editor(folder: Path) -> Any:  # noqa: F811
    return wordbrush.load(folder, "text2live", device="cpu", **FAST)


def request(picture: Image.Image, **changes: Any) -> EditRequest:
    given: dict[str, Any] = {"source_caption": "a horse", "target_caption": "a golden horse", "seed": 3}
    return EditRequest(picture, **(given | changes))


def same(one: Image.Image, other: Image.Image) -> bool:
    return one.mode == other.mode and np.array_equal(np.asarray(one), np.asarray(other))


def test_the_result_is_the_layer_over_the_picture(editor: Any, picture: Image.Image):
    result = editor.edit(request(picture, num_variations=2))
    layers = result.intermediates["layer"]
    assert [layer.mode for layer in layers] == ["RGBA", "RGBA"] and not same(*layers)
    for layer, edited in zip(layers, result.images, strict=True):
        assert layer.size == edited.size == picture.size
        assert same(Image.alpha_composite(picture.convert("RGBA"), layer).convert("RGB"), edited)
        assert not same(edited, picture)


def test_same_seed_same_result_whatever_came_before(editor: Any, picture: Image.Image):
    state = torch.get_rng_state()
    weights = {name: value.clone() for name, value in editor.eyes.clip.model.state_dict().items()}
    first = editor.edit(request(picture)).images[0]
    editor.with_settings(region_text="horse", steps=2).edit(request(picture, seed=9))
    torch.manual_seed(77)
    second = editor.edit(request(picture), on_step=lambda info: info.preview()).images[0]
    assert same(first, second)
    assert not same(first, editor.edit(request(picture, seed=4)).images[0])
    after = editor.eyes.clip.model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in weights.items())
    torch.set_rng_state(state)
    editor.edit(request(picture))
    assert torch.equal(torch.get_rng_state(), state)


def test_every_loss_is_made_smaller_by_training(editor: Any, picture: Image.Image):
    """Each weight alone, on the same views before and after."""
    names = [name for name in vars(editor.settings) if name.endswith("_weight")]
    for name in names:
        weights = {other: 10.0 * (other == name) for other in names}
        extra: dict[str, Any] = {"region_text": "horse"} if name == "region_weight" else {}
        only = editor.with_settings(steps=10, num_views=4, generator_rate=0.01, **weights, **extra)
        losses: list[float] = []
        painter = _painter(only, picture)
        for step in range(10):
            if step in (0, 8, 9):
                with torch.no_grad():
                    painter.rng.manual_seed(1)
                    losses.append(float(painter._loss(painter.pixels, None, 0)))
            painter.train(step)
        assert min(losses[1:]) < losses[0], (name, losses)


def _painter(editor: Any, picture: Image.Image) -> Any:
    from wordbrush.editors.jobs import prepare_job
    from wordbrush.editors.text2live import _Painter

    job = prepare_job(editor.method, request(picture), editor._fit)
    return _Painter(editor.eyes, editor.settings, job, 0)


def test_a_mask_keeps_the_rest_to_the_byte(editor: Any, picture: Image.Image):
    mask = Image.new("L", picture.size)
    mask.paste(255, (24, 0, 48, 32))
    result = editor.edit(request(picture, mask=mask))
    before, after = np.asarray(picture), np.asarray(result.images[0])
    assert np.array_equal(before[:, :24], after[:, :24])
    assert not np.array_equal(before[:, 24:], after[:, 24:])
    assert not np.asarray(result.intermediates["layer"][0])[:, :24, 3].any()


def test_an_empty_mask_gives_the_picture_back(editor: Any, picture: Image.Image):
    result = editor.edit(request(picture, mask=Image.new("L", picture.size)))
    assert same(result.images[0], picture)


def test_transparency_is_kept(editor: Any, picture: Image.Image):
    clear = picture.copy()
    clear.putalpha(Image.linear_gradient("L").resize(picture.size))
    edited = editor.edit(request(clear)).images[0]
    assert edited.mode == "RGBA" and same(edited.getchannel("A"), clear.getchannel("A"))


def test_steps_are_reported_over_all_variations_and_can_cancel(editor: Any, picture: Image.Image):
    seen: list[StepInfo] = []
    editor.edit_batch([request(picture, num_variations=2), request(picture)], on_step=seen.append)
    assert [info.step for info in seen] == list(range(12)) and {info.num_steps for info in seen} == {12}
    assert seen[0].latents.shape == (1, 4, 32, 48) and seen[0].preview()[0].size == (48, 32)

    def cancel(info: StepInfo) -> None:
        if info.step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        editor.edit(request(picture), on_step=cancel)


def test_the_region_is_a_picture_of_its_own(editor: Any, picture: Image.Image):
    result = editor.with_settings(region_text="horse").edit(request(picture))
    (region,) = result.intermediates["region"]
    assert (region.mode, region.size) == ("L", picture.size) and len(np.unique(np.asarray(region))) > 10


def test_the_record_repeats_the_edit(editor: Any, folder: Path, picture: Image.Image):  # noqa: F811
    result = editor.edit(request(picture))
    record = result.settings
    assert (record["method"], record["model"], record["dtype"]) == ("text2live", str(folder), "float32")
    fields = {field.name for field in wordbrush.METHODS["text2live"].settings_fields()}
    again = wordbrush.load(record["model"], record["method"], device="cpu",
                           **{name: record[name] for name in fields})  # fmt: skip
    assert same(again.edit(request(picture)).images[0], result.images[0])


@pytest.mark.parametrize(
    "given", [{"lora": ["a"]}, {"concept": ["a"]}, {"config": "a"}, {"offload": True}, {"dtype": "float16"}]
)
def test_what_has_no_meaning_without_a_diffusion_model_is_refused(folder: Path, given: Any):  # noqa: F811
    with pytest.raises(UsageError, match="text2live"):
        wordbrush.load(folder, "text2live", device="cpu", **given)


def test_the_command_writes_the_layer(
    folder: Path,  # noqa: F811
    picture: Image.Image,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    picture.save(tmp_path / "horse.png")
    with pytest.raises(SystemExit) as exit_:
        main(["edit", str(tmp_path / "horse.png"), "--method", "text2live", "--model", str(folder),
              "--source", "a horse", "--target", "a golden horse", "--steps", "1", "--size", "32",
              "--num-views", "2", "--width", "8", "--save-layer", str(tmp_path / "layer.png")])  # fmt: skip
    assert not exit_.value.code and capsys.readouterr().err == ""
    layer, edited = Image.open(tmp_path / "layer.png"), Image.open(tmp_path / "horse-edited.png")
    assert same(Image.alpha_composite(picture.convert("RGBA"), layer).convert("RGB"), edited)


def test_plain_captions_are_put_to_clip_as_they_are(
    editor: Any, picture: Image.Image, monkeypatch: pytest.MonkeyPatch
):
    asked: set[str] = set()
    tokenizer = type(editor.eyes.clip.tokenizer).__call__

    def listen(self: Any, texts: Any, **options: Any) -> Any:
        asked.update(texts)
        return tokenizer(self, texts, **options)

    monkeypatch.setattr(type(editor.eyes.clip.tokenizer), "__call__", listen)
    editor.with_settings(steps=1, templates="plain").edit(request(picture))
    assert asked == {"a horse", "a golden horse"}
    with pytest.raises(UsageError, match="photo, plain"):
        editor.with_settings(templates="painting")


def test_both_captions_and_a_whole_clip_are_needed(editor: Any, picture: Image.Image, tiny_checkpoint: Path):
    for name in ("source_caption", "target_caption"):
        with pytest.raises(UsageError, match=name.replace("_", " ")):
            editor.edit(request(picture, **{name: " "}))
    with pytest.raises(ModelError, match="CLIP"):
        wordbrush.load(tiny_checkpoint, "text2live", device="cpu")


def test_a_storybook_model_is_a_clip_too(picture: Image.Image):
    editor = wordbrush.load("storybook", "text2live", device="cpu", **(FAST | {"steps": 1, "size": None}))
    sizes: list[Any] = []
    editor.edit(request(picture), on_step=lambda info: sizes.append(tuple(info.latents.shape)))
    assert sizes == [(1, 4, 128, 192)]


@pytest.mark.parametrize("size", [(32, 32), (33, 70), (131, 64)])
def test_the_generator_fits_every_size(size: tuple[int, int]):
    torch.manual_seed(0)
    generator = LayerGenerator(8, num_scales(*size))
    layer = generator(torch.rand(1, 3, *size))
    assert layer.shape == (1, 4, *size) and layer.min() > 0 and layer.max() < 1
    assert num_scales(512, 700) == 7


def test_a_layer_that_is_clear_or_opaque():
    layer, below = torch.rand(1, 4, 5, 6), torch.rand(1, 3, 5, 6)
    layer[:, 3] = 0
    assert torch.equal(composite(layer, below), below)
    layer[:, 3] = 1
    assert torch.equal(composite(layer, below), layer[:, :3])


def test_the_stock_model_and_its_gradients_stay_out_of_it(folder: Path, picture: Image.Image):  # noqa: F811
    editor: Any = wordbrush.load(folder, "text2live", device="cpu", **FAST)
    editor.edit(request(picture))
    clip = Clip.load(folder, device=torch.device("cpu"))
    assert all(p.grad is None for p in editor.eyes.clip.model.parameters())
    pixels = images.from_pil(picture)
    expected = clip.embed_pixels(pixels)
    torch.testing.assert_close(editor.eyes.clip.embed_pixels(pixels), expected, atol=1e-5, rtol=0)
