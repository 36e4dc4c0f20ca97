"""SDEdit does what diffusers' image-to-image pipeline does, and its limits hold."""

from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

import wordbrush
from tests import tiny
from wordbrush import EditRequest, ModelError, UsageError, images

SCHEDULERS = {
    "ddim": diffusers.DDIMScheduler(**tiny.BETAS, clip_sample=False, steps_offset=1),
    "dpm++": diffusers.DPMSolverMultistepScheduler(**tiny.BETAS),
    "euler": diffusers.EulerDiscreteScheduler(**tiny.BETAS),
    "euler ancestral": diffusers.EulerAncestralDiscreteScheduler(**tiny.BETAS),
    "heun": diffusers.HeunDiscreteScheduler(**tiny.BETAS),
    "unipc": diffusers.UniPCMultistepScheduler(**tiny.BETAS),
}
CAPTIONS = ["a panda on a beach", "a dog at night"]


def picture(seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 255, (32, 48, 3), dtype=np.uint8))


def save(folder: Path, scheduler: Any = None, **options: Any) -> Path:
    # The tiny autoencoder draws nothing at random, where diffusers' pipeline would sample the posterior.
    return tiny.save("sd1", folder, in_channels=4, vae="tiny", scheduler=scheduler, **options)


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("strength", [0.3, 0.75, 1.0])
def test_equals_diffusers_image_to_image(name: str, strength: float, tmp_path: Path):
    folder = save(tmp_path, SCHEDULERS[name])
    pipe = diffusers.StableDiffusionImg2ImgPipeline.from_pretrained(folder, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(seed) for seed in (3, 5)]
    pixels = torch.cat([images.from_pil(picture(k)) for k in range(2)])
    expected = pipe(
        CAPTIONS, image=pixels, strength=strength, num_inference_steps=8, guidance_scale=4.0,
        generator=generators, output_type="latent",
    ).images  # fmt: skip
    editor = wordbrush.load(folder, "sdedit", device="cpu", dtype="float32", steps=8, text_scale=4.0,
                            strength=strength, size=32)  # fmt: skip
    found: list[torch.Tensor] = []
    editor.edit_batch(
        [EditRequest(picture(k), target_caption=CAPTIONS[k], seed=seed) for k, seed in enumerate((3, 5))],
        on_step=lambda info: found.append(info.latents),
    )
    # Of the whole: single latents near 0 differ by the rounding of those near 40.
    assert (found[-1] - expected).norm() < 1e-4 * expected.norm()


def test_strength_zero_is_the_autoencoders_round_trip(tmp_path: Path):
    editor = wordbrush.load(save(tmp_path), "sdedit", device="cpu", dtype="float32", strength=0, size=32)
    model: Any = getattr(editor, "model")  # noqa: B009
    result = editor.edit(EditRequest(picture(), target_caption="anything", seed=0)).images[0]
    pixels = images.from_pil(picture())
    restored = images.to_pil(model.decode(model.scale_latents(model.encode_image(pixels))))[0]
    assert np.array_equal(np.asarray(result), np.asarray(restored))


def test_the_caption_is_needed(tmp_path: Path):
    editor = wordbrush.load(save(tmp_path), "sdedit", device="cpu")
    with pytest.raises(UsageError, match="sdedit needs target caption"):
        editor.edit(EditRequest(picture(), instruction="make it night"))


def test_a_widened_checkpoint_is_refused(tmp_path: Path):
    with pytest.raises(ModelError, match="text-to-image"):
        wordbrush.load(tiny.save("sd1", tmp_path), "sdedit", device="cpu")


def test_the_text_to_image_network_of_an_editor_is_found(tmp_path: Path):
    folder = tiny.save("sd1", tmp_path)
    tiny.unet(in_channels=4).save_pretrained(folder / "text_to_image")
    editor = wordbrush.load(folder, "sdedit", device="cpu", steps=2)
    assert editor.edit(EditRequest(picture(), target_caption="a dog", seed=0)).images[0].size == (48, 32)


def test_latents_outside_of_a_mask_stay_those_of_the_picture(tmp_path: Path):
    editor = wordbrush.load(save(tmp_path), "sdedit", device="cpu", dtype="float32", steps=5, size=32)
    model: Any = getattr(editor, "model")  # noqa: B009
    final: list[torch.Tensor] = []
    mask = Image.new("L", (48, 32))
    mask.paste(255, (24, 0, 48, 32))
    for drawn in (mask, None, Image.new("L", (48, 32), 255)):
        request = EditRequest(picture(), target_caption="a dog", mask=drawn, seed=0)
        editor.edit(request, on_step=lambda info: final.append(info.latents))
    masked, plain, white = final[3], final[7], final[11]
    source = model.scale_latents(model.encode_image(images.from_pil(picture())))
    half = masked.shape[-1] // 2
    assert torch.allclose(masked[..., :half], source[..., :half], atol=1e-6)
    assert not torch.allclose(masked[..., half:], source[..., half:], atol=0.1)
    assert torch.allclose(white, plain, atol=1e-6)
