"""Imagic at its limits, on tiny random models: nothing tuned, nothing moved, stopped halfway."""

import json
import signal
from collections.abc import Callable
from dataclasses import asdict
from functools import lru_cache
from itertools import count
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

import wordbrush
from tests import tiny
from wordbrush import EditRequest, ModelError, UsageError
from wordbrush.diffusion.model import LatentDiffusion
from wordbrush.editors import imagic_tuning
from wordbrush.editors.imagic import Imagic
from wordbrush.editors.imagic_presets import PRESETS
from wordbrush.editors.settings import ImagicSettings, make_settings
from wordbrush.editors.textual_inversion import save_concept
from wordbrush.editors.tuned_picture import TunedPicture
from wordbrush.errors import WordbrushError

TARGET = "a sitting dog"
AS_TUNED: dict[str, Any] = {
    "embedding_steps": None, "model_steps": None, "embedding_rate": None, "model_rate": None,
}  # fmt: skip
FEW: dict[str, Any] = {"embedding_steps": 3, "model_steps": 4, "embedding_rate": 1e-2, "model_rate": 1e-3}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(imagic_tuning, "_CHECK_NOISES", 2)
    monkeypatch.setenv("WORDBRUSH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "tuned"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    scheduler = diffusers.DDIMScheduler(**tiny.BETAS, clip_sample=False, steps_offset=1)
    folder = tmp_path_factory.mktemp("imagic")
    return tiny.save("sd1", folder, in_channels=4, vae="tiny", scheduler=scheduler)


@lru_cache
def model(checkpoint: Path, dtype: torch.dtype) -> LatentDiffusion:
    return LatentDiffusion.load(checkpoint, device=torch.device("cpu"), dtype=dtype)


def load(checkpoint: Path, dtype: torch.dtype = torch.float32, **settings: Any) -> Imagic:
    """An editor of its own over a model that all tests share: no edit may leave a trace in it."""
    chosen: dict[str, Any] = {"steps": 4, "size": 32} | FEW | settings
    return Imagic(model(checkpoint, dtype), make_settings(ImagicSettings, chosen))


def final_latents(editor: Imagic, request: EditRequest) -> torch.Tensor:
    found: list[torch.Tensor] = []
    editor.edit(request, on_step=lambda info: found.append(info.latents))
    return found[-1].clone()


def weights(editor: Imagic) -> dict[str, torch.Tensor]:
    state = {name: tensor.clone() for name, tensor in editor.model.unet.state_dict().items()}
    assert not any(parameter.requires_grad for parameter in editor.model.unet.parameters())
    return state


def pipeline(checkpoint: Path) -> Any:
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(checkpoint, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def sampled(pipe: Any, **prompt: Any) -> torch.Tensor:
    """Diffusers' own text-to-image at the size of `picture`."""
    return pipe(
        **prompt, width=48, height=32, num_inference_steps=4, guidance_scale=7.5, output_type="latent",
        generator=[torch.Generator().manual_seed(5)],
    ).images  # fmt: skip


def halt(step: int) -> Callable[[Any], None]:
    def stop(info: Any) -> None:
        if info.step == step:
            raise KeyboardInterrupt

    return stop


def test_eta_one_of_an_unchanged_model_is_text_to_image_from_the_target(
    checkpoint: Path, picture: Image.Image
):
    editor = load(checkpoint, eta=1.0, model_steps=0)
    found = final_latents(editor, EditRequest(picture, target_caption=TARGET, seed=5))
    assert torch.allclose(found, sampled(pipeline(checkpoint), prompt=TARGET), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rank", [0, 2])
def test_eta_zero_samples_the_tuned_network_from_the_optimised_embedding(
    checkpoint: Path, picture: Image.Image, cache: Path, rank: int
):
    editor = load(checkpoint, eta=0.0, lora_rank=rank)
    found = final_latents(editor, EditRequest(picture, target_caption=TARGET, seed=5))
    tuned = TunedPicture.load(next(cache.iterdir()))
    pipe = pipeline(checkpoint)
    plain = sampled(pipe, prompt_embeds=tuned.text.tokens, negative_prompt="")
    pipe.unet = tuned.network(editor.model)
    expected = sampled(pipe, prompt_embeds=tuned.text.tokens, negative_prompt="")
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found, plain, atol=1e-2)


def test_nothing_tuned_is_text_to_image_at_every_eta(checkpoint: Path, picture: Image.Image):
    editor = load(checkpoint, embedding_steps=0, model_steps=0)
    request = EditRequest(picture, target_caption=TARGET, seed=5)
    found = [final_latents(editor.with_settings(eta=eta), request) for eta in (0.0, 0.5, 1.0, 1.7)]
    for latents in found:
        assert torch.allclose(latents, found[0], atol=1e-4)


@pytest.mark.parametrize("rank", [0, 2])
def test_both_stages_learn_the_picture(
    checkpoint: Path, picture: Image.Image, cache: Path, rank: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(imagic_tuning, "_CHECK_STEPS", 10)
    monkeypatch.setattr(imagic_tuning, "_CHECK_NOISES", 8)
    editor = load(checkpoint, lora_rank=rank, embedding_steps=10, model_steps=20, model_rate=3e-3)
    editor.edit(EditRequest(picture, target_caption=TARGET, seed=0))
    losses = TunedPicture.load(next(cache.iterdir())).record.losses
    assert losses["embedding"][-1] < losses["embedding"][0]
    assert losses["model"][0] == losses["embedding"][-1]  # stage B starts where stage A ends
    assert losses["model"][-1] < 0.98 * losses["model"][0]


@pytest.mark.parametrize(("rank", "dtype"), [(0, torch.float32), (2, torch.bfloat16)])
def test_the_model_is_bit_equal_after_an_edit_and_after_a_stopped_one(
    checkpoint: Path, picture: Image.Image, rank: int, dtype: torch.dtype
):
    editor = load(checkpoint, dtype, lora_rank=rank)
    before, request = weights(editor), EditRequest(picture, target_caption=TARGET, seed=0)
    processors = editor.model.unet.attn_processors
    for step in (1, 5, 8):
        with pytest.raises(KeyboardInterrupt):
            editor.edit(request, on_step=halt(step))
    editor.edit(request)
    after = weights(editor)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert editor.model.unet.attn_processors == processors
    assert not editor.model.unet.is_gradient_checkpointing


@pytest.mark.parametrize(("rank", "step"), [(0, 1), (2, 2), (0, 5), (2, 5)])
def test_a_stopped_run_goes_on_to_the_same_result(
    checkpoint: Path, picture: Image.Image, cache: Path, rank: int, step: int
):
    settings: dict[str, Any] = {"lora_rank": rank}
    request = EditRequest(picture, target_caption=TARGET, seed=0)
    expected = final_latents(load(checkpoint, keep_tuned=False, **settings), request)
    assert not cache.exists()
    with pytest.raises(KeyboardInterrupt):
        load(checkpoint, **settings).edit(request, on_step=halt(step))
    assert [file.name for folder in cache.iterdir() for file in folder.iterdir()] == ["state.pt"]
    steps: list[int] = []
    editor = load(checkpoint, **settings)
    found = editor.edit(request, on_step=lambda info: steps.append(info.step))
    assert steps == list(range(step + 1, 11))
    assert torch.equal(final_latents(editor, request), expected)
    assert np.array_equal(found.images[0], editor.edit(request).images[0])
    assert {file.name for folder in cache.iterdir() for file in folder.iterdir()} == {
        "tuned.safetensors", "tuned.json",
    }  # fmt: skip


def test_a_tuned_picture_is_used_again(checkpoint: Path, picture: Image.Image, cache: Path):
    request = EditRequest(picture, target_caption=TARGET, seed=3)
    first = load(checkpoint, lora_rank=2).edit(request)
    folder, steps = next(cache.iterdir()), list[int]()
    tuned = load(checkpoint, tuned=str(folder), **AS_TUNED)
    again = tuned.edit(EditRequest(picture, seed=3), on_step=lambda info: steps.append(info.num_steps))
    assert np.array_equal(first.images[0], again.images[0])
    assert steps == [4] * 4
    assert again.settings["target_caption"] == TARGET
    assert again.settings["tuning"] == first.settings["tuning"] != asdict(PRESETS["diffusers"])


def test_ctrl_c_in_the_middle_of_a_step_keeps_what_was_tuned(
    checkpoint: Path, picture: Image.Image, cache: Path, monkeypatch: pytest.MonkeyPatch
):
    request = EditRequest(picture, target_caption=TARGET, seed=0)
    expected = final_latents(load(checkpoint, keep_tuned=False), request)
    forward, passes = diffusers.UNet2DConditionModel.forward, count(1)

    def interrupted(self: Any, *args: Any, **options: Any) -> Any:
        if next(passes) == 4:  # the second step, behind two looks at the loss
            signal.raise_signal(signal.SIGINT)
        return forward(self, *args, **options)

    with monkeypatch.context() as patched:
        patched.setattr(diffusers.UNet2DConditionModel, "forward", interrupted)
        with pytest.raises(KeyboardInterrupt):
            load(checkpoint).edit(request)
    assert [file.name for folder in cache.iterdir() for file in folder.iterdir()] == ["state.pt"]
    steps: list[int] = []
    editor = load(checkpoint)
    editor.edit(request, on_step=lambda info: steps.append(info.step))
    assert steps[0] == 2
    assert torch.equal(final_latents(editor, request), expected)


def test_gradient_checkpointing_changes_nothing(checkpoint: Path, picture: Image.Image):
    request = EditRequest(picture, target_caption=TARGET, seed=3)
    editor = load(checkpoint, keep_tuned=False)
    one = final_latents(editor, request)
    other = final_latents(load(checkpoint, keep_tuned=False, save_memory=True), request)
    assert torch.allclose(one, other, atol=1e-4)


def test_an_edit_does_not_depend_on_its_batch(checkpoint: Path, picture: Image.Image):
    other = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    requests = [EditRequest(picture, target_caption=TARGET, seed=1, num_variations=2),
                EditRequest(other, target_caption="a cat", seed=4)]  # fmt: skip
    steps: list[int] = []
    editor = load(checkpoint, keep_tuned=False)
    together = editor.edit_batch(requests, on_step=lambda info: steps.append(info.step))
    assert steps == sorted(steps) and steps[-1] == 10 and max(steps) == 10
    alone = [load(checkpoint, keep_tuned=False).edit(request) for request in reversed(requests)][::-1]
    for one, two in zip(together, alone, strict=True):
        for a, b in zip(one.images, two.images, strict=True):
            assert np.abs(np.asarray(a, int) - np.asarray(b, int)).max() <= 1


def test_a_cache_that_cannot_be_written_is_remarked(checkpoint: Path, picture: Image.Image, cache: Path):
    cache.parent.write_text("no folder")
    result = load(checkpoint, model_steps=0).edit(EditRequest(picture, target_caption=TARGET, seed=0))
    assert "the tuned picture is not kept" in result.warnings[0]


def test_early_stop_on_a_plateau(
    checkpoint: Path, picture: Image.Image, cache: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(imagic_tuning, "_CHECK_STEPS", 3)
    editor = load(checkpoint, plateau=1.0, embedding_steps=500, model_steps=500, lora_rank=2)
    editor.edit(EditRequest(picture, target_caption=TARGET, seed=0))
    losses = TunedPicture.load(next(cache.iterdir())).record.losses
    assert [len(checks) for checks in losses.values()] == [3, 3]  # no stage can gain all


@pytest.mark.parametrize("family", ["sd2", "sdxl"])
def test_other_families(family: str, tmp_path: Path, picture: Image.Image):
    folder = tiny.save(family, tmp_path / family, in_channels=4)
    editor = load(folder, eta=0.5, lora_rank=2)
    before = weights(editor)
    assert editor.edit(EditRequest(picture, target_caption=TARGET, seed=0)).images[0].size == picture.size
    assert all(torch.equal(tensor, before[name]) for name, tensor in editor.model.unet.state_dict().items())


@pytest.mark.parametrize("eta", [-0.1, 2.1, float("nan")])
def test_eta_out_of_range_is_refused(checkpoint: Path, eta: float):
    with pytest.raises(UsageError, match="eta"):
        load(checkpoint, eta=eta)


def test_a_target_is_needed_to_tune(checkpoint: Path, picture: Image.Image):
    editor = wordbrush.load(checkpoint, "imagic", device="cpu")
    with pytest.raises(UsageError, match="imagic needs target caption"):
        editor.edit(EditRequest(picture, instruction="let it sit"))


def test_an_unknown_preset_is_refused(checkpoint: Path):
    with pytest.raises(UsageError, match="one of imagen, sd-paper, diffusers, storybook"):
        load(checkpoint, preset="best")


def test_what_is_given_wins_over_the_preset():
    settings = ImagicSettings(preset="sd-paper", embedding_steps=7)
    assert settings.tuning.embedding_steps == 7
    assert settings.tuning.model_rate == PRESETS["sd-paper"].model_rate
    assert ImagicSettings(preset="sd-paper", lora_rank=4).tuning.model_rate == 1e-4


def test_a_tuned_picture_is_for_its_picture_caption_and_model(
    checkpoint: Path, picture: Image.Image, cache: Path, tmp_path: Path
):
    request = EditRequest(picture, target_caption=TARGET, seed=3)
    load(checkpoint, lora_rank=2).edit(request)
    folder = str(next(cache.iterdir()))
    editor = load(checkpoint, tuned=folder, **AS_TUNED)
    with pytest.raises(UsageError, match="another picture"):
        editor.edit(EditRequest(picture.rotate(180)))
    with pytest.raises(UsageError, match="for the target 'a sitting dog', not 'a cat'"):
        editor.edit(EditRequest(picture, target_caption="a cat"))
    other = tiny.save("sd1", tmp_path / "other", in_channels=4, vae="tiny", seed=1)
    with pytest.raises(UsageError, match="another model"):
        load(other, tuned=folder, **AS_TUNED).edit(EditRequest(picture))
    with pytest.raises(UsageError, match="short side of 32 pixels"):
        load(checkpoint, tuned=folder, size=64, **AS_TUNED).edit(EditRequest(picture))
    with pytest.raises(UsageError, match="leave out embedding_steps, model_steps"):
        load(checkpoint, tuned=folder, embedding_rate=None, model_rate=None)
    load(checkpoint, torch.bfloat16, tuned=folder, **AS_TUNED).edit(EditRequest(picture, seed=0))


def test_a_tuned_picture_is_for_the_learned_words_of_its_target(
    checkpoint: Path, picture: Image.Image, tmp_path: Path
):
    save_concept(tmp_path / "zog.safetensors", "<zog>", torch.linspace(-1, 1, 32)[None])
    options: dict[str, Any] = {"device": "cpu", "size": 32, "steps": 2}
    word: dict[str, Any] = {"concept": [tmp_path / "zog.safetensors"]}
    tuner: Any = wordbrush.load(checkpoint, "imagic", **options, **word, embedding_steps=1, model_steps=0)
    tuner.tune(picture, "a <zog> dog", tmp_path / "tuned")
    options["tuned"] = str(tmp_path / "tuned")
    with pytest.raises(UsageError, match="other learned words"):
        wordbrush.load(checkpoint, "imagic", **options).edit(EditRequest(picture))
    wordbrush.load(checkpoint, "imagic", **options, **word).edit(EditRequest(picture, seed=0))


def test_a_damaged_or_missing_tuned_picture_is_refused(
    checkpoint: Path, picture: Image.Image, cache: Path, tmp_path: Path
):
    with pytest.raises(ModelError, match="holds no tuned picture"):
        load(checkpoint, tuned=str(tmp_path), **AS_TUNED).edit(EditRequest(picture))
    load(checkpoint, lora_rank=2).edit(EditRequest(picture, target_caption=TARGET, seed=3))
    folder = next(cache.iterdir())
    record = json.loads((folder / "tuned.json").read_text())
    for file, content in (
        ("tuned.safetensors", b"none"),
        ("tuned.json", json.dumps(record | {"tuning": 3}).encode()),
    ):
        (folder / file).write_bytes(content)
        with pytest.raises(ModelError, match="is damaged"):
            load(checkpoint, tuned=str(folder), **AS_TUNED).edit(EditRequest(picture))


def test_a_folder_holds_one_run(checkpoint: Path, picture: Image.Image, tmp_path: Path):
    editor, folder = load(checkpoint), tmp_path / "tuned"
    other = editor.with_settings(embedding_steps=5)

    def stop(done: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        editor.tune(picture, TARGET, folder, on_step=stop)
    with pytest.raises(UsageError, match="holds another tuning run"):
        other.tune(picture, TARGET, folder)
    tuned = editor.tune(picture, TARGET, folder)
    with pytest.raises(UsageError, match="holds another tuning run"):
        other.tune(picture, TARGET, folder)
    assert TunedPicture.load(folder).record == tuned.record
    (folder / "tuned.json").unlink()
    (folder / "state.pt").write_bytes(b"none")
    with pytest.raises(ModelError, match="delete it to start again"):
        editor.tune(picture, TARGET, folder)


def test_a_loss_that_explodes_is_one_clear_line(checkpoint: Path, picture: Image.Image):
    model.cache_clear()
    editor = load(checkpoint, keep_tuned=False)
    model.cache_clear()
    editor.model.unet.conv_out.weight.data.fill_(float("inf"))
    with pytest.raises(WordbrushError, match="lower embedding_rate"):
        editor.edit(EditRequest(picture, target_caption=TARGET, seed=0))
