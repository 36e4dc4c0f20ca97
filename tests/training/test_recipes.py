"""The storybook's recipes, two steps each on a few rendered edits, and what they make, put together."""

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    DDPMScheduler,
    StableDiffusionInstructPix2PixPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from PIL import Image
from torch.utils.data import default_collate
from transformers import CLIPTextModel, CLIPTokenizer

import wordbrush
from tests import tiny
from tests.world import make_small_shards
from wordbrush.diffusion.model import LatentDiffusion
from wordbrush.models import quiet
from wordbrush.storybook.dataset import RenderedEdits, make
from wordbrush.storybook.sprites import SpriteLibrary
from wordbrush.training import autoencoder, clip, emu_edit, instruct_pix2pix, text_to_image
from wordbrush.training.assemble import assemble


def parts(work: Path) -> dict[str, Any]:
    return {"autoencoder": work / "autoencoder" / "model", "clip": work / "clip" / "model"}


@pytest.fixture(scope="module")
def work(sprites: SpriteLibrary, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `runs/storybook.sh` leaves behind, at two steps each."""
    folder = tmp_path_factory.mktemp("work")
    with pytest.MonkeyPatch.context() as patch:
        make_small_shards(patch, sprites, 8)
        make(folder / "edits", 16)
        common: dict[str, Any] = {"data": [folder / "edits"], "steps": 2, "batch_size": 2, "log_steps": 1}
        autoencoder.main(autoencoder.Config(output=folder / "autoencoder", widths=[8, 8, 16, 16], **common))
        small = {"text_width": 32, "text_layers": 1, "vision_width": 32, "vision_layers": 1}
        clip.main(clip.Config(output=folder / "clip", **small, **common))
        common |= parts(folder) | {"cache_folder": folder / "latents"}
        text_to_image.main(text_to_image.Config(output=folder / "text-to-image", widths=[32, 64], **common))
        common |= {"data": [str(folder / "edits")], "init_from": str(folder / "text-to-image" / "model")}
        instruct_pix2pix.main(instruct_pix2pix.Config(output=folder / "editor", **common))
        common |= {"init_from": str(folder / "editor" / "model"), "any_share": 0.5}
        emu_edit.main(emu_edit.Config(output=folder / "editor-of-tasks", **common))
    return folder


@pytest.fixture(scope="module")
def checkpoint(work: Path) -> Path:
    assemble(work, work / "assembled")
    return work / "assembled"


def test_the_editor_opens_in_diffusers_pipeline(checkpoint: Path):
    tiny.opened_by_diffusers(checkpoint)


def test_the_text_to_image_model_opens_in_diffusers_pipeline(checkpoint: Path):
    with quiet():
        unet = UNet2DConditionModel.from_pretrained(checkpoint, subfolder="text_to_image")
        parts = StableDiffusionInstructPix2PixPipeline.from_pretrained(checkpoint).components
    pipeline = StableDiffusionPipeline(**(parts | {"unet": unet}))
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline("a dog on a beach", num_inference_steps=2).images[0].size == (128, 128)


@pytest.mark.parametrize("method", ["instruct-pix2pix", "emu-edit"])
def test_the_editor_opens_in_wordbrush(checkpoint: Path, method: str):
    editor = wordbrush.load(str(checkpoint), method, steps=2)
    picture = Image.linear_gradient("L").convert("RGB").resize((200, 120))
    asked = wordbrush.EditRequest(picture, "make it night", seed=0, task="global")
    assert editor.edit(asked).images[0].size == (200, 120)


def test_both_u_nets_have_the_noise_schedule_that_they_were_trained_on(checkpoint: Path):
    """The editor's ends in pure noise (2305.08891), the text-to-image model's does not."""
    for name, ends_in_noise in {"unet": True, "text_to_image": False}.items():
        model = LatentDiffusion.load(checkpoint, unet=name, device=torch.device("cpu"), dtype=torch.float32)
        assert model.scheduler.config.rescale_betas_zero_snr is ends_in_noise


def test_weights_are_stored_in_half_precision(checkpoint: Path):
    from safetensors import safe_open

    for path in checkpoint.rglob("*.safetensors"):
        with safe_open(path, "pt") as file:
            kinds = {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
        assert kinds <= {"F16", "I64"}, path


def test_the_widened_model_starts_as_the_one_it_was_made_from(work: Path):
    base = UNet2DConditionModel.from_pretrained(work / "text-to-image" / "model").eval()
    config = instruct_pix2pix.Config(
        output=work / "unused", data=[str(work / "edits")], **parts(work),
        init_from=str(work / "text-to-image" / "model"),
    )  # fmt: skip
    recipe = instruct_pix2pix.InstructPix2PixRecipe(config)
    latents, image, text = torch.randn(2, 16, 16, 16), torch.randn(2, 16, 16, 16), torch.randn(2, 5, 32)
    with torch.no_grad():
        expected = base(latents, 7, text).sample
        found = recipe.model.eval()(torch.cat([latents, image], 1), 7, text).sample
    assert torch.allclose(expected, found, atol=1e-4)


def test_the_text_to_image_loss_is_that_of_stock_classes(work: Path):
    config = text_to_image.Config(
        output=work / "unused", data=[work / "edits"], widths=[32, 64], text_dropout=0.5, min_snr=5,
        timestep_shift=1, **parts(work),
    )  # fmt: skip
    recipe = text_to_image.TextToImageRecipe(config)
    batch = default_collate([recipe.samples()[index] for index in range(6)])
    torch.manual_seed(0)
    loss = recipe.losses(recipe.model, batch)["loss"]

    schedule = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
                             prediction_type="v_prediction")  # fmt: skip
    torch.manual_seed(0)
    dropped = torch.rand(6) < 0.5
    assert dropped.any() and not dropped.all()
    snr = schedule.alphas_cumprod / (1 - schedule.alphas_cumprod)
    t = torch.multinomial(snr.clamp(max=5) / (snr + 1), 6, replacement=True)
    noise = torch.randn(batch["latents"].shape)
    tokenizer = CLIPTokenizer.from_pretrained(work / "clip" / "model" / "tokenizer")
    with quiet():
        encoder: Any = CLIPTextModel.from_pretrained(work / "clip" / "model" / "text_encoder").eval()
    texts = ["" if drop else text for text, drop in zip(batch["caption"], dropped, strict=True)]
    tokens = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
    with torch.no_grad():
        noisy = schedule.add_noise(batch["latents"], noise, t)  # pyright: ignore[reportArgumentType]
        predicted = recipe.model(noisy, t, encoder(tokens).last_hidden_state).sample
    target = schedule.get_velocity(batch["latents"], noise, t)  # pyright: ignore[reportArgumentType]
    assert loss.item() == pytest.approx((predicted - target).square().mean().item(), abs=1e-5)


def test_a_new_text_to_image_model_sees_white_text(work: Path):
    config = text_to_image.Config(output=work / "unused", data=[work / "edits"], widths=[32], **parts(work))
    recipe = text_to_image.TextToImageRecipe(config)
    rows = recipe.edits.rows
    states = recipe.encoder.text(
        [row[key] for row in rows for key in ("source_caption", "instruction")]
    ).tokens
    with torch.no_grad():
        white = recipe.base.unet.encoder_hid_proj(states).flatten(0, 1)

    def spread(values: torch.Tensor) -> float:
        """The greatest share of the variance that one direction holds."""
        variances = torch.linalg.eigvalsh(values.T.cov())
        return (variances.max() / variances.sum()).item()

    assert spread(white) < 0.5 * spread(states.flatten(0, 1))


@pytest.mark.parametrize("name", ["autoencoder", "clip", "text-to-image", "recogniser"])
def test_new_weights_are_those_of_the_seed(work: Path, name: str):
    def weights(seed: int) -> dict[str, torch.Tensor]:
        data = work / "edits" if name == "recogniser" else [work / "edits"]
        given: dict[str, Any] = {"output": work / "unused", "data": data, "seed": seed}
        if name == "text-to-image":
            given |= parts(work) | {"widths": [32, 64]}
        recipe = importlib.import_module(f"wordbrush.training.{name.replace('-', '_')}")
        kind = getattr(recipe, f"{name.title().replace('-', '')}Recipe")
        return kind(recipe.Config(**given)).model.state_dict()

    one, again, other = weights(1), weights(1), weights(2)
    assert all(torch.equal(one[key], again[key]) for key in one)
    assert not all(torch.equal(one[key], other[key]) for key in one)


def test_equal_captions_are_no_negatives():
    keys = torch.tensor([[1, 2], [1, 2], [3, 4]])
    images = torch.nn.functional.normalize(torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), dim=-1)
    loss, recall = clip.contrastive(images, images, keys, torch.tensor(50.0))
    assert recall == 1 and loss < 1.4  # two thirds of the pictures have two right answers: ln 2 each


def test_the_tokenizer_reads_any_text(work: Path):
    tokenizer = clip.train_tokenizer(RenderedEdits.open(work / "edits").rows)
    for text in ("turn the dog into a panda", "naïve 日本 !?", ""):
        ids = tokenizer(text).input_ids
        assert ids[0] == tokenizer.bos_token_id and ids[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(ids, skip_special_tokens=True).replace(" ", "") == text.lower().replace(
            " ", ""
        )


def test_windows_show_the_thing_that_their_caption_names(work: Path):
    recipe = text_to_image.TextToImageRecipe(
        text_to_image.Config(output=work / "text-to-image", data=[work / "edits"], window=32, **parts(work))
    )
    assert recipe.base.latent_grid == 8
    windows: Any = recipe.samples()
    samples = [windows[index] for index in range(12)]
    assert all(sample["latents"].shape[1:] == (4, 4) for sample in samples)
    assert torch.equal(windows[3]["latents"], samples[3]["latents"])
    assert windows[3]["caption"] == samples[3]["caption"]
    assert not any(" and " in sample["caption"] for sample in samples)  # one thing each


def test_text_to_image_and_editor_share_their_latents(work: Path):
    assert len(list((work / "latents").glob("[!.]*"))) == 1
