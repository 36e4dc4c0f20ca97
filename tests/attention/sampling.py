"""Text-to-image sampling with tiny random models: what an editor or a data engine does with a control."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor

from tests import tiny
from wordbrush.attention.control import AttentionControl
from wordbrush.diffusion.conditioning import Conditioning
from wordbrush.diffusion.model import LatentDiffusion, TextEmbeds
from wordbrush.diffusion.sampling import denoise, initial_latents, predict_noise

FAMILIES = ["sd1", "sd2", "sdxl", "storybook"]
TOKENIZER = tiny.tokenizer()
TOKENS = tiny.WINDOW
CPU = torch.device("cpu")


@cache
def model(family: str) -> LatentDiffusion:
    """Text-to-image over 16 x 16 latents; "storybook" has attention on three levels, as the embedded one."""
    pipe = tiny.pipeline(family if family in ("sd2", "sdxl") else "sd1", in_channels=4)
    if family == "storybook":
        levels = {
            "block_out_channels": (16, 32, 32),
            "down_block_types": ("CrossAttnDownBlock2D",) * 3,
            "up_block_types": ("CrossAttnUpBlock2D",) * 3,
        }
        pipe.unet = tiny.unet(in_channels=4, **levels).eval()
        pipe.unet.conv_out.weight.data.mul_(4.0)
    # Random attention hardly looks anywhere, and its values hardly count; a checkpoint's do.
    for name, weight in pipe.unet.named_parameters():
        if ".attn" in name and name.endswith("weight"):
            weight.data.mul_(2.0)
    pairs = [
        (getattr(pipe, f"tokenizer{n}", None), getattr(pipe, f"text_encoder{n}", None)) for n in ("", "_2")
    ]
    tokenizers, encoders = zip(*[pair for pair in pairs if pair[0]], strict=True)
    return LatentDiffusion(pipe.unet, pipe.vae, tokenizers, encoders, pipe.scheduler, CPU)


def branches(which: LatentDiffusion, prompts: Sequence[str]) -> list[Conditioning]:
    """(No text, text)."""
    text, null = which.encode_text(prompts), which.encode_text([""] * len(prompts))
    ids = which.add_time_ids((32, 32), len(prompts))

    def branch(embeds: TextEmbeds) -> Conditioning:
        return Conditioning(embeds.tokens, pooled=embeds.pooled, time_ids=ids)

    return [branch(null), branch(text)]


def noise(which: LatentDiffusion, count: int, seeds: Sequence[int] = (0,)) -> Tensor:
    """(count, 4, 16, 16): the same for all prompts of a group."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    latents = initial_latents(which.scheduler, (4, 16, 16), generators, CPU)
    return latents.repeat_interleave(count // len(seeds), 0)


@torch.no_grad()
def sample(
    which: LatentDiffusion,
    prompts: Sequence[str],
    control: AttentionControl | None = None,
    *,
    steps: int = 3,
    seeds: Sequence[int] = (0,),
    scheduler: str = "ddim",
    after_step: Sequence[Callable[[Tensor, Tensor, int], Tensor]] = (),
    on_step: Callable[[int, Tensor], None] | None = None,
    ancestral_seed: int | None = None,
) -> Tensor:
    """(prompts, 4, 16, 16), one seed for each group, guided by 3."""
    solver = which.make_scheduler(scheduler)
    solver.set_timesteps(steps)
    latents, both = noise(which, len(prompts), seeds) * solver.init_noise_sigma, branches(which, prompts)

    def predict(latents: Tensor, t: Tensor, step: int) -> Tensor:
        uncond, cond = predict_noise(which.unet, solver, latents, t, both)
        return uncond + 3.0 * (cond - uncond)

    options: dict[str, Any] = {"after_step": after_step, "on_step": on_step}
    if ancestral_seed is not None:
        options["generators"] = [torch.Generator().manual_seed(ancestral_seed) for _ in prompts]
    with nullcontext() if control is None else control.installed(which.unet, latents.shape):
        return denoise(predict, solver, latents, control=control, **options)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def probabilities(*shape: int, seed: int = 0) -> Tensor:
    return randn(*shape, seed=seed).softmax(-1)


def distance(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max())
