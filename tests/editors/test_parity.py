"""Our editor gives what diffusers' own pipelines give, for the same weights, scheduler, seed and size."""

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
from wordbrush import EditRequest, images

SCHEDULERS = {
    "ddim": diffusers.DDIMScheduler(**tiny.BETAS),
    "ddim trailing, zero SNR": diffusers.DDIMScheduler(
        **tiny.BETAS, timestep_spacing="trailing", rescale_betas_zero_snr=True, prediction_type="v_prediction"
    ),
    "ddpm": diffusers.DDPMScheduler(**tiny.BETAS),
    "dpm++": diffusers.DPMSolverMultistepScheduler(**tiny.BETAS),
    "dpm++ karras": diffusers.DPMSolverMultistepScheduler(**tiny.BETAS, use_karras_sigmas=True),
    "dpm++ sde": diffusers.DPMSolverMultistepScheduler(**tiny.BETAS, algorithm_type="sde-dpmsolver++"),
    "euler": diffusers.EulerDiscreteScheduler(**tiny.BETAS),
    "euler ancestral": diffusers.EulerAncestralDiscreteScheduler(**tiny.BETAS),
    "heun": diffusers.HeunDiscreteScheduler(**tiny.BETAS),
    "pndm": diffusers.PNDMScheduler(**tiny.BETAS, skip_prk_steps=True, steps_offset=1),
    "unipc": diffusers.UniPCMultistepScheduler(**tiny.BETAS),
}
INSTRUCTIONS = ["make it night", "turn the dog into a panda", "add snow"]


def pictures(num: int) -> list[Image.Image]:
    rng = np.random.default_rng(num)
    return [Image.fromarray(rng.integers(0, 255, (32, 48, 3), dtype=np.uint8)) for _ in range(num)]


def theirs(pipe: Any, num: int, seeds: list[int], s_t: float, s_i: float, **options: Any) -> Tensor:
    """Final latents of diffusers' pipeline."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return pipe(
        INSTRUCTIONS[:num],
        image=torch.cat([images.from_pil(picture) for picture in pictures(num)]),
        num_inference_steps=4,
        guidance_scale=s_t,
        image_guidance_scale=s_i,
        generator=generators,
        output_type="latent",
        **options,
    ).images


def ours(
    folder: Path, num: int, seeds: list[int], s_t: float, s_i: float, **options: Any
) -> tuple[Any, Tensor, list[Image.Image]]:
    """The editor, its final latents, and its pictures."""
    editor = wordbrush.load(
        folder, device="cpu", dtype="float32", steps=4, text_scale=s_t, image_scale=s_i, size=32, **options
    )
    requests = [
        EditRequest(picture, instruction, seed=seed)
        for picture, instruction, seed in zip(pictures(num), INSTRUCTIONS, seeds, strict=False)
    ]
    last: list[Tensor] = []
    results = editor.edit_batch(requests, on_step=lambda info: last.append(info.latents))
    return editor, last[-1], [result.images[0] for result in results]


def assert_same(pipe: Any, expected: Tensor, editor: Any, latents: Tensor, edited: list[Image.Image]) -> None:
    """Equal within 1e-4 in [-1, 1] after decoding, and the very pictures of diffusers' post-processing."""
    with torch.inference_mode():
        pixels = pipe.vae.decode(expected / pipe.vae.config.scaling_factor, return_dict=False)[0]
        assert (editor.model.decode(latents) - pixels).abs().max() < 1e-4
    assert pixels.std() > 1e-3
    reference = pipe.image_processor.postprocess(pixels, output_type="pil")
    for mine, other in zip(edited, reference, strict=True):
        assert np.abs(np.asarray(mine, int) - np.asarray(other, int)).max() <= 1


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_and_batches(name: str, tmp_path: Path) -> None:
    pipe = tiny.pipeline("sd1", scheduler=SCHEDULERS[name])
    pipe.save_pretrained(tmp_path)
    for num, (s_t, s_i) in zip((1, 2, 3), ((7.5, 1.5), (5.0, 1.0), (2.0, 2.0)), strict=True):
        seeds = [5, 0, 123][:num]
        expected = theirs(pipe, num, seeds, s_t, s_i)
        assert_same(pipe, expected, *ours(tmp_path, num, seeds, s_t, s_i))


@pytest.mark.parametrize(("s_t", "s_i"), [(7.5, 1.5), (1.0, 1.0), (1.5, 3.0), (12.0, 1.0), (3.0, 3.0)])
@pytest.mark.parametrize(("family", "vae"), [("sd1", "tiny"), ("sd2", "kl")])
def test_every_family_and_scale(family: str, vae: str, s_t: float, s_i: float, tmp_path: Path) -> None:
    pipe = tiny.pipeline(family, vae=vae)
    pipe.save_pretrained(tmp_path)
    assert_same(pipe, theirs(pipe, 2, [1, 2], s_t, s_i), *ours(tmp_path, 2, [1, 2], s_t, s_i))


@pytest.mark.parametrize(("s_t", "s_i", "rescale"), [(7.5, 1.5, 0.0), (1.0, 1.0, 0.0), (4.0, 1.0, 0.7)])
def test_sdxl(s_t: float, s_i: float, rescale: float, tmp_path: Path) -> None:
    pipe = tiny.pipeline("sdxl")
    pipe.save_pretrained(tmp_path)
    size = {"height": 32, "width": 48}
    expected = theirs(pipe, 2, [1, 2], s_t, s_i, guidance_rescale=rescale, **size)
    assert_same(pipe, expected, *ours(tmp_path, 2, [1, 2], s_t, s_i, guidance_rescale=rescale))


def test_negative_prompt(tmp_path: Path) -> None:
    pipe = tiny.pipeline("sd1")
    pipe.save_pretrained(tmp_path)
    expected = theirs(pipe, 1, [3], 5.0, 1.2, negative_prompt=["blurry"])
    editor = wordbrush.load(tmp_path, device="cpu", dtype="float32", steps=4, text_scale=5.0, image_scale=1.2)
    last: list[Tensor] = []
    request = EditRequest(pictures(1)[0], INSTRUCTIONS[0], seed=3, negative_prompt="blurry")
    editor.edit(request, on_step=lambda info: last.append(info.latents))
    assert (last[-1] - expected).abs().max() < 1e-4
    assert (last[-1] - theirs(pipe, 1, [3], 5.0, 1.2)).abs().max() > 1e-3
