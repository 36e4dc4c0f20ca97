import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from peft import LoraConfig, get_peft_model
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, CLIPTextModel, CLIPVisionConfig

from tests import tiny
from tests.diffusion.original_layout import single_file
from wordbrush.diffusion.model import LatentDiffusion, offload_networks
from wordbrush.errors import ModelError, UsageError
from wordbrush.models import quiet

CPU = torch.device("cpu")


def load(source: Path, dtype: torch.dtype = torch.float32, **options: Any) -> LatentDiffusion:
    return LatentDiffusion.load(source, device=CPU, dtype=dtype, **options)


def noise_of(unet: Any) -> Tensor:
    """One prediction on fixed inputs."""
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(1, unet.config.in_channels, 16, 16, generator=generator)
    text = torch.randn(1, 5, unet.config.cross_attention_dim, generator=generator)
    with torch.no_grad():
        return unet(latents.to(unet.dtype), 500, text.to(unet.dtype)).sample.float()


@torch.no_grad()
def test_a_folder_opens_as_its_stock_classes(tiny_checkpoint: Path) -> None:
    model, pipe = load(tiny_checkpoint), tiny.pipeline("sd1")
    assert isinstance(model.unet, UNet2DConditionModel)
    assert isinstance(model.vae, AutoencoderKL)
    assert isinstance(model.text_encoders[0], CLIPTextModel)
    assert (model.native_size, model.latent_grid, model.latent_channels) == (32, 2, 4)
    assert torch.equal(noise_of(model.unet), noise_of(pipe.unet))
    assert not any(p.requires_grad for network in model.networks for p in network.parameters())


@torch.no_grad()
@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_text_as_in_diffusers(family: str, tmp_path: Path) -> None:
    pipe = tiny.pipeline(family)
    pipe.save_pretrained(tmp_path)
    prompts = ["make it night", "x " * 60]
    embeds = load(tmp_path).encode_text(prompts)
    if family == "sdxl":
        tokens, _, pooled, _ = pipe.encode_prompt(prompts, device=CPU, do_classifier_free_guidance=False)
        assert embeds.pooled is not None
        assert torch.equal(embeds.pooled, pooled)
    else:
        tokens = pipe._encode_prompt(prompts, CPU, 1, False, None)
        assert embeds.pooled is None
    assert torch.equal(embeds.tokens, tokens)
    assert embeds.tokens.shape == (2, tiny.WINDOW, 64 if family == "sdxl" else 32)


@torch.no_grad()
def test_null_text_is_zeros_only_in_sdxl(tiny_checkpoint: Path, tmp_path: Path) -> None:
    plain = load(tiny_checkpoint)
    assert torch.equal(plain.encode_null_text().tokens, plain.encode_text([""]).tokens)
    assert torch.equal(plain.encode_null_text("x").tokens, plain.encode_text(["x"]).tokens)
    xl = load(tiny.save("sdxl", tmp_path))
    assert not xl.encode_null_text().tokens.any()
    assert torch.equal(xl.encode_null_text("").tokens, xl.encode_text([""]).tokens)
    ids = xl.add_time_ids((32, 48), 2)
    assert ids is not None
    assert ids.tolist() == [[32, 48, 0, 0, 32, 48]] * 2
    assert plain.add_time_ids((32, 48), 2) is None


def test_dropped_words(tiny_checkpoint: Path) -> None:
    model = load(tiny_checkpoint)
    assert model.dropped_words("short") == ""
    fits = "a " * (tiny.WINDOW - 2)
    assert model.dropped_words(fits) == ""
    assert model.dropped_words(fits + "last words") == "last words"
    assert model.dropped_words("one " + "x" * 100).strip("x") == ""
    assert len(model.dropped_words("word " * 100_000)) > 400_000  # in no time


@torch.no_grad()
@pytest.mark.parametrize("vae", ["kl", "tiny"])
def test_latents(vae: str, tmp_path: Path) -> None:
    pipe = tiny.pipeline("sd1", vae=vae)
    pipe.save_pretrained(tmp_path)
    model = load(tmp_path)
    pixels = torch.rand(2, 3, 32, 48) * 2 - 1
    latents = model.encode_image(pixels)
    out = pipe.vae.encode(pixels)
    assert torch.equal(latents, out.latents if vae == "tiny" else out.latent_dist.mean)
    assert torch.allclose(model.scale_latents(latents), latents * pipe.vae.config.scaling_factor)
    decoded = model.decode(model.scale_latents(latents))
    assert torch.allclose(decoded, pipe.vae.decode(latents).sample, atol=1e-5)
    assert decoded.shape == pixels.shape


@torch.no_grad()
def test_latent_statistics_are_undone(tmp_path: Path) -> None:
    pipe = tiny.pipeline("sd1")
    pipe.vae.register_to_config(latents_mean=[0.1, -0.2, 0.3, 0.0], latents_std=[1.0, 2.0, 0.5, 3.0])
    pipe.save_pretrained(tmp_path)
    model = load(tmp_path)
    latents = torch.randn(1, 4, 4, 4)
    scaled = model.scale_latents(latents)
    expected = (latents[0, 1] + 0.2) / 2.0 * pipe.vae.config.scaling_factor
    assert torch.allclose(scaled[0, 1], expected, atol=1e-6)
    assert torch.allclose(model.decode(scaled), pipe.vae.decode(latents).sample, atol=1e-5)


@torch.no_grad()
def test_tiling_cuts_a_large_picture(tiny_checkpoint: Path) -> None:
    model = load(tiny_checkpoint)
    model.vae.tile_sample_min_size, model.vae.tile_latent_min_size = 32, 16
    pixels = torch.rand(1, 3, 96, 64) * 2 - 1
    whole, tiled = model.encode_image(pixels), model.encode_image(pixels, tiled=True)
    assert whole.shape == tiled.shape
    assert not torch.equal(whole, tiled)
    assert torch.equal(whole, model.encode_image(pixels))
    assert model.decode(whole, tiled=True).shape == pixels.shape


def test_weights_are_cast(tmp_path: Path) -> None:
    pipe = tiny.pipeline("sd1")
    with quiet():
        pipe.to(torch.float16).save_pretrained(tmp_path)
    assert (
        load_file(tmp_path / "unet/diffusion_pytorch_model.safetensors")["conv_in.weight"].dtype == torch.half
    )
    model = load(tmp_path)
    assert {p.dtype for network in model.networks for p in network.parameters()} == {torch.float32}
    assert torch.equal(noise_of(model.unet), noise_of(pipe.unet.float()))
    half = load(tmp_path, torch.float16)
    assert (half.dtype, half.vae.dtype) == (
        torch.float16,
        torch.float32,
    )  # its autoencoder overflows in float16
    assert load(tmp_path, torch.bfloat16).vae.dtype == torch.bfloat16
    last = torch.channels_last
    assert half.unet.conv_in.weight.is_contiguous(memory_format=last)
    assert half.vae.encoder.conv_in.weight.is_contiguous(memory_format=last)
    assert not model.unet.conv_in.weight.is_contiguous(memory_format=last)


def test_another_unet_of_the_checkpoint(tmp_path: Path) -> None:
    tiny.save("sd1", tmp_path)
    other = tiny.unet(in_channels=4)
    other.save_pretrained(tmp_path / "text_to_image")
    model = load(tmp_path, unet="text_to_image")
    assert torch.equal(noise_of(model.unet), noise_of(other.eval()))


@torch.no_grad()
def test_the_text_tower_of_a_whole_clip(tmp_path: Path) -> None:
    tiny.save("sd1", tmp_path)
    vision = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=37,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=32,
        patch_size=8,
    )
    config = CLIPConfig(
        text_config=tiny.text_config().to_dict(), vision_config=vision.to_dict(), projection_dim=32
    )
    clip = CLIPModel(config).eval()
    with quiet():
        clip.save_pretrained(tmp_path / "text_encoder")
    model = load(tmp_path)
    tokens = model.tokenizers[0](["a dog"], padding="max_length", max_length=tiny.WINDOW, return_tensors="pt")
    expected = clip.text_model(tokens.input_ids).last_hidden_state
    assert torch.equal(model.encode_text(["a dog"]).tokens, expected)


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_a_single_file(suffix: str, tiny_checkpoint: Path, tmp_path: Path) -> None:
    pipe = tiny.pipeline("sd1", seed=3)
    path = tmp_path / f"original{suffix}"
    if suffix == ".ckpt":
        torch.save({"state_dict": single_file(pipe)}, path)
    else:
        save_file(single_file(pipe), path)
    model = load(path, config=tiny_checkpoint)
    assert torch.equal(noise_of(model.unet), noise_of(pipe.unet))
    for mine, other in ((model.vae, pipe.vae), (model.text_encoders[0], pipe.text_encoder)):
        for name, value in other.state_dict().items():
            assert torch.equal(mine.state_dict()[name], value), name


class _Trap:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.path,)


def test_a_ckpt_cannot_run_code(tiny_checkpoint: Path, tmp_path: Path) -> None:
    path, sprung = tmp_path / "trap.ckpt", tmp_path / "sprung"
    path.write_bytes(pickle.dumps(_Trap(sprung)))
    torch.save({"state_dict": _Trap(sprung)}, second := tmp_path / "second.ckpt")
    for trap in (path, second):
        with pytest.raises(ModelError, match="holds more than weights"):
            load(trap, config=tiny_checkpoint)
    assert not sprung.exists()


def test_what_is_no_checkpoint_is_said_in_plain_words(tiny_checkpoint: Path, tmp_path: Path) -> None:
    (junk := tmp_path / "junk.ckpt").write_bytes(b"no pickle")
    torch.save([torch.ones(2)], listed := tmp_path / "list.ckpt")
    words = {junk: "is damaged or", listed: "it holds a list"}
    for path, expected in words.items():
        with pytest.raises(ModelError, match=expected):
            load(path, config=tiny_checkpoint)
    with pytest.raises(ModelError, match="there is no LoRA file"):
        load(tiny_checkpoint, loras=[tmp_path / "none.safetensors"])


def lora(unet: Any) -> Any:
    """A PEFT model around a copy of the U-Net, with random weights."""
    torch.manual_seed(5)
    config = LoraConfig(r=2, lora_alpha=4, target_modules=["to_q", "to_v"], init_lora_weights=False)
    return get_peft_model(unet, config)


def test_loras(tiny_checkpoint: Path, tmp_path: Path) -> None:
    pipe = tiny.pipeline("sd1")
    before = noise_of(pipe.unet)
    wrapped = lora(pipe.unet)
    expected = noise_of(wrapped.base_model.model)
    assert (expected - before).abs().max() > 1e-3
    wrapped.save_pretrained(tmp_path / "peft")
    state = get_peft_model_state_dict(wrapped)
    keys = {f"unet.{k.removeprefix('base_model.model.')}": v for k, v in state.items()}
    save_file(keys, tmp_path / "lora.safetensors")
    # A diffusers file carries no alpha unless it says so: its scale is 1, PEFT's here is 2.
    plain = load(tiny_checkpoint, loras=[tmp_path / "lora.safetensors"])
    assert (noise_of(plain.unet) - before).abs().max() > 1e-4
    assert not any("lora" in name for name, _ in plain.unet.named_parameters())
    peft = load(tiny_checkpoint, loras=[tmp_path / "peft"])
    assert torch.allclose(noise_of(peft.unet), expected, atol=1e-5)


def test_a_lora_of_another_model(tiny_checkpoint: Path, tmp_path: Path) -> None:
    save_file({"unet.nowhere.lora_A.weight": torch.zeros(2, 2)}, tmp_path / "other.safetensors")
    (tmp_path / "text.safetensors").write_text("hello")
    for name in ("other.safetensors", "text.safetensors"):
        with pytest.raises(ModelError, match=f"cannot use the LoRA file .*{name}"):
            load(tiny_checkpoint, loras=[tmp_path / name])


def test_offload(tiny_checkpoint: Path) -> None:
    with pytest.raises(UsageError, match="the device is the CPU"):
        load(tiny_checkpoint, offload=True)
    model = load(tiny_checkpoint)
    latents = torch.randn(1, 4, 16, 16)
    expected = model.decode(latents)
    offload_networks(model.networks, CPU)
    assert torch.equal(model.decode(latents), expected)


def test_offload_leaves_one_network_on_the_device() -> None:
    class Placed(torch.nn.Linear):
        place = "cpu"

        def to(self, device: torch.device | str) -> "Placed":  # pyright: ignore
            self.place = str(device)
            return self

    networks: list[Any] = [Placed(1, 1) for _ in range(3)]
    text, unet, vae = networks
    offload_networks(networks, torch.device("cuda"))
    for runs in (vae, text, unet, unet, vae, unet):  # an edit, and another of the same words
        runs._hf_hook.pre_forward(runs)  # what diffusers calls before `encode` and `decode`, too
        assert [network.place for network in networks].count("cuda") == 1 and runs.place == "cuda"


def truncate(folder: Path) -> None:
    path = folder / "unet/diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def without_weight(part: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = next((folder / part).glob("*.safetensors"))
        weights = load_file(path)
        del weights[sorted(weights)[3]]
        save_file(weights, path, {"format": "pt"})

    return damage


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, "cannot load the checkpoint"),
        (without_weight("unet"), "weights of its unet are missing"),
        (without_weight("vae"), "weights of its vae are missing"),
        (without_weight("text_encoder"), "weights of its text_encoder are missing"),
        (lambda folder: shutil.rmtree(folder / "vae"), "cannot load the checkpoint"),
        (lambda folder: shutil.rmtree(folder / "tokenizer"), "its tokenizer has no vocabulary"),
        (lambda folder: (folder / "unet/config.json").write_text("{"), "cannot load the checkpoint"),
        (lambda folder: (folder / "model_index.json").write_text("[]"), "holds no table"),
        (lambda folder: (folder / "model_index.json").unlink(), "no model_index.json"),
    ],
)
def test_a_damaged_folder(
    damage: Callable[[Path], Any], message: str, tiny_checkpoint: Path, tmp_path: Path, capfd: Any
) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(tiny_checkpoint, folder)
    damage(folder)
    with pytest.raises(ModelError, match=message) as caught:
        load(folder)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["model.safetensors", "model.ckpt", "model.txt"])
def test_a_file_that_is_no_checkpoint(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text("hello")
    with pytest.raises(ModelError, match=name):
        load(path)
    if path.suffix == ".safetensors":
        save_file({"weight": torch.zeros(2)}, path)
        with pytest.raises(ModelError, match="not an original Stable Diffusion checkpoint"):
            load(path)


def test_schedulers_by_name(tiny_checkpoint: Path) -> None:
    model = load(tiny_checkpoint)
    own, other = model.make_scheduler(), model.make_scheduler("dpm++-karras")
    assert type(own).__name__ == "DDIMScheduler"
    assert own is not model.scheduler
    assert other.config.use_karras_sigmas
    assert other.config.beta_start == own.config.beta_start
