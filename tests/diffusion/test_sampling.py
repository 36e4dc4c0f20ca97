from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from tests import tiny
from wordbrush.diffusion.conditioning import Conditioning, narrow_input, widen_input
from wordbrush.diffusion.sampling import Progress, denoise, initial_latents, predict_noise

CPU = torch.device("cpu")
SCHEDULERS = [
    "DDIMScheduler",
    "EulerDiscreteScheduler",
    "DPMSolverMultistepScheduler",
    "HeunDiscreteScheduler",
]


def make(name: str, steps: int = 8, **options: Any) -> Any:
    options |= {"clip_sample": False} if name == "DDIMScheduler" else {}
    scheduler = getattr(diffusers, name)(**tiny.BETAS, **options)
    scheduler.set_timesteps(steps)
    return scheduler


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_initial_latents_depend_on_their_own_seed_only() -> None:
    scheduler = make("EulerDiscreteScheduler")
    both = initial_latents(scheduler, (4, 8, 8), generators(1, 2), CPU)
    alone = initial_latents(scheduler, (4, 8, 8), generators(2), CPU)
    assert torch.equal(both[1:], alone)
    assert torch.equal(alone, randn(1, 4, 8, 8, seed=2) * scheduler.init_noise_sigma)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_true_noise_leads_back(name: str) -> None:
    """A perfect predictor brings noised latents back, whatever the sampler."""
    target, noise = randn(2, 4, 8, 8), randn(2, 4, 8, 8, seed=1)
    scheduler = make(name, 20)

    def predict(latents: Tensor, t: Tensor, step: int) -> Tensor:
        if name.startswith(("Euler", "Heun")):
            return (latents - target) / scheduler.sigmas[step]
        alpha = scheduler.alphas_cumprod[int(t)]
        return (latents - alpha.sqrt() * target) / (1 - alpha).sqrt()

    start = scheduler.add_noise(target, noise, scheduler.timesteps[:1])
    assert (denoise(predict, scheduler, start) - target).abs().max() < 0.05


def test_the_last_part_of_the_timesteps() -> None:
    target, noise = randn(1, 4, 8, 8), randn(1, 4, 8, 8, seed=1)
    for name in SCHEDULERS[:3]:
        scheduler, seen = make(name, 10), list[int]()

        def predict(latents: Tensor, t: Tensor, step: int, seen: list[int] = seen) -> Tensor:
            seen.append(int(t))
            return torch.zeros_like(latents)

        part = scheduler.timesteps[6:]
        denoise(predict, scheduler, scheduler.add_noise(target, noise, part[:1]), timesteps=part)
        assert seen == [int(t) for t in part]


def test_hooks_run_in_order_and_can_stop() -> None:
    calls: list[tuple[str, int]] = []

    def change(latents: Tensor, t: Tensor, step: int) -> Tensor:
        calls.append(("change", step))
        return torch.full_like(latents, float(step))

    def on_step(step: int, latents: Tensor) -> None:
        calls.append(("on_step", step))
        assert torch.equal(latents, torch.full_like(latents, float(step)))
        if step == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        denoise(
            lambda latents, t, step: latents,
            make("DDIMScheduler"),
            randn(1, 4, 8, 8),
            after_step=[change],
            on_step=on_step,
        )
    assert calls == [("change", 0), ("on_step", 0), ("change", 1), ("on_step", 1)]


def test_a_control_is_told_of_each_step_before_it() -> None:
    told: list[Progress | int] = []

    class Listen:
        def begin_step(self, progress: Progress) -> None:
            told.append(progress)

    def predict(latents: Tensor, t: Tensor, step: int) -> Tensor:
        told.append(step)
        return latents

    scheduler = make("DDIMScheduler")
    for part in (None, scheduler.timesteps[5:]):
        told.clear()
        denoise(predict, scheduler, randn(1, 4, 8, 8), timesteps=part, control=Listen())
        count = 8 if part is None else 3
        assert told == [item for step in range(count) for item in (Progress(step, count), step)]


def test_ancestral_noise_of_a_sample_comes_from_its_own_generator() -> None:
    def run(*seeds: int) -> Tensor:
        scheduler = make("EulerAncestralDiscreteScheduler")
        own = generators(*seeds)
        latents = initial_latents(scheduler, (4, 8, 8), own, CPU)
        return denoise(lambda latents, t, step: latents * 0.1, scheduler, latents, generators=own)

    assert torch.allclose(run(1, 2, 3)[1:2], run(2), atol=1e-5)
    assert not torch.allclose(run(1), run(2), atol=1e-2)


@torch.no_grad()
@pytest.mark.parametrize("name", ["DDIMScheduler", "EulerDiscreteScheduler"])
def test_branches_share_one_call_and_keep_apart(name: str) -> None:
    unet, scheduler = tiny.unet().eval(), make(name)
    latents = initial_latents(scheduler, (4, 8, 8), generators(0, 1), CPU)
    texts, image, t = (
        (randn(2, 5, 32, seed=5), randn(2, 5, 32, seed=6)),
        randn(2, 4, 8, 8, seed=7),
        scheduler.timesteps[0],
    )
    branches = [Conditioning(texts[0]), Conditioning(texts[0], image), Conditioning(texts[1], image)]
    calls: list[Any] = []
    hook = unet.register_forward_hook(lambda *_: calls.append(1))
    together = predict_noise(unet, scheduler, latents, t, branches)
    assert (together.shape, len(calls)) == ((3, 2, 4, 8, 8), 1)
    hook.remove()
    for i, branch in enumerate(branches):
        null = Conditioning(branch.text, torch.zeros_like(image)) if branch.image is None else branch
        alone = predict_noise(unet, make(name), latents, t, [null])
        assert torch.allclose(together[i], alone[0], atol=1e-5)
    scaled = make(name).scale_model_input(latents, t)
    expected = unet(torch.cat([scaled, image], 1), t, texts[1]).sample
    assert torch.allclose(together[2], expected, atol=1e-5)
    assert (together[0] - together[1]).abs().max() > 1e-4
    assert (together[1] - together[2]).abs().max() > 1e-4


@torch.no_grad()
def test_a_task_is_added_to_the_timestep() -> None:
    unet = tiny.unet(class_embed_type="identity").eval()
    latents, text, scheduler = randn(1, 4, 8, 8), randn(1, 5, 32), make("DDIMScheduler")
    image, t = randn(1, 4, 8, 8, seed=1), scheduler.timesteps[0]
    width = unet.time_embedding.linear_2.out_features
    none, zero, one = (
        predict_noise(unet, scheduler, latents, t, [Conditioning(text, image, task)])
        for task in (torch.zeros(1, width), torch.zeros(1, width), torch.ones(1, width))
    )
    assert torch.equal(none, zero)
    assert not torch.allclose(zero, one, atol=1e-4)


@torch.no_grad()
def test_predictions_come_back_in_the_latents_precision() -> None:
    unet, scheduler = tiny.unet(in_channels=4).eval(), make("DDIMScheduler")
    latents, branch, t = randn(1, 4, 8, 8), Conditioning(randn(1, 5, 32)), scheduler.timesteps[0]
    exact = predict_noise(unet, scheduler, latents, t, [branch])
    rounded = predict_noise(unet.to(torch.bfloat16), scheduler, latents, t, [branch])
    assert rounded.dtype == torch.float32
    assert 0 < (rounded - exact).norm() / exact.norm() < 0.02  # 0.0102 on random weights


@torch.no_grad()
def test_a_widened_unet_computes_the_same_and_reloads(tmp_path: Any) -> None:
    unet = tiny.unet(in_channels=4).eval()
    latents, text = randn(2, 4, 8, 8), randn(2, 5, 32)
    before = unet(latents, 10, text).sample
    assert widen_input(unet, 4) is unet
    assert unet.config.in_channels == 8
    for image in (torch.zeros(2, 4, 8, 8), randn(2, 4, 8, 8, seed=3) * 100):
        assert torch.equal(unet(torch.cat([latents, image], 1), 10, text).sample, before)
    unet.save_pretrained(tmp_path)
    again = diffusers.UNet2DConditionModel.from_pretrained(tmp_path)
    assert torch.equal(again(torch.cat([latents, latents], 1), 10, text).sample, before)
    assert again.conv_in.weight.requires_grad


@torch.no_grad()
def test_a_narrowed_unet_computes_as_without_a_picture(tmp_path: Any) -> None:
    unet = tiny.unet(in_channels=8).eval()
    latents, text, t = randn(2, 4, 8, 8), randn(2, 5, 32), 7
    expected = unet(torch.cat([latents, torch.zeros_like(latents)], 1), t, text).sample
    narrow_input(unet, 4).save_pretrained(tmp_path)
    found = diffusers.UNet2DConditionModel.from_pretrained(tmp_path).eval()(latents, t, text).sample
    assert torch.allclose(found, expected, atol=1e-5)
