"""Inversion leads back; null texts make guided sampling follow it, as in the official code."""

import dataclasses
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.attention.sampling import branches, model, randn
from wordbrush.diffusion.conditioning import Conditioning
from wordbrush.diffusion.guidance import classifier_free_guidance
from wordbrush.diffusion.inversion import (
    Inversion,
    NullTextSettings,
    ddim_inversion,
    ddim_scheduler,
    null_text_inversion,
)
from wordbrush.diffusion.model import LatentDiffusion
from wordbrush.diffusion.sampling import denoise, predict_noise

EAGER = NullTextSettings(inner_steps=3, tolerance=0.0, growth=0.0)
CAPTIONS = ["a dog on a beach", "a red house"]


def ddim(which: LatentDiffusion, steps: int) -> Any:
    scheduler = ddim_scheduler(which.scheduler)
    scheduler.set_timesteps(steps)
    return scheduler


def conditional(which: LatentDiffusion, scheduler: Any, captions: list[str]) -> Any:
    text = branches(which, captions)[1]
    return lambda latents, t, step: predict_noise(which.unet, scheduler, latents, t, [text])[0]


@torch.no_grad()
def invert(which: LatentDiffusion, latents: Tensor, steps: int, captions: list[str] = CAPTIONS) -> Tensor:
    scheduler = ddim(which, steps)
    return ddim_inversion(conditional(which, scheduler, captions), scheduler, latents)


@torch.no_grad()
def reconstruct(
    which: LatentDiffusion, trajectory: Tensor, null_texts: Tensor | None, scale: float
) -> Tensor:
    """Mean squared error of each sample, sampled under guidance from the end of its trajectory."""
    scheduler = ddim(which, trajectory.shape[1] - 1)
    null, text = branches(which, CAPTIONS[: len(trajectory)])

    def predict(latents: Tensor, t: Tensor, step: int) -> Tensor:
        here = null if null_texts is None else dataclasses.replace(null, text=null_texts[:, step])
        noise = predict_noise(which.unet, scheduler, latents, t, [here, text])
        return classifier_free_guidance(noise, scale)

    restored = denoise(predict, scheduler, trajectory[:, -1])
    return (restored - trajectory[:, 0]).square().flatten(1).mean(1)


def optimise(
    which: LatentDiffusion, trajectory: Tensor, settings: NullTextSettings, **options: Any
) -> Tensor:
    scheduler = ddim(which, trajectory.shape[1] - 1)
    with torch.no_grad():
        null, text = branches(which, CAPTIONS[: len(trajectory)])
    return null_text_inversion(which.unet, scheduler, trajectory, text, null, settings, **options)


@pytest.mark.parametrize("steps", [1, 3, 7, 30, 50, 333, 500])
@pytest.mark.parametrize("family", ["sd1", "storybook"])
def test_known_noise_leads_back_exactly(family: str, steps: int):
    scheduler = ddim(model(family), steps)
    assert scheduler.timesteps.max() < 1000

    def constant(latents: Tensor, t: Tensor, step: int) -> Tensor:
        return randn(*latents.shape, seed=int(t))

    clean = randn(2, 4, 8, 8, seed=1)
    trajectory = ddim_inversion(constant, scheduler, clean)
    assert trajectory.shape == (2, steps + 1, 4, 8, 8)
    assert torch.allclose(denoise(constant, scheduler, trajectory[:, -1]), clean, atol=1e-3)


def gaussian(scheduler: Any, deviation: float) -> Any:
    """What a perfect model predicts where the data are normal, of that standard deviation."""
    velocity = scheduler.config.prediction_type == "v_prediction"

    def predict(latents: Tensor, t: Tensor, step: int) -> Tensor:
        a, b = scheduler.alphas_cumprod[t] ** 0.5, (1 - scheduler.alphas_cumprod[t]) ** 0.5
        total = (a * deviation) ** 2 + b**2
        noise, clean = b * latents / total, a * deviation**2 * latents / total
        return a * noise - b * clean if velocity else noise

    return predict


@pytest.mark.parametrize("family", ["sd1", "sd2"])
def test_more_steps_lead_back_better(family: str):
    """For epsilon and for v prediction, and to noise of unit variance."""
    clean = 0.5 * randn(2, 4, 16, 16, seed=1)
    errors: list[float] = []
    for steps in (10, 100):
        scheduler = ddim(model(family), steps)
        trajectory = ddim_inversion(gaussian(scheduler, 0.5), scheduler, clean)
        restored = denoise(gaussian(scheduler, 0.5), scheduler, trajectory[:, -1])
        errors.append(float((restored - clean).square().mean().sqrt()))
        assert float(trajectory[:, -1].std()) == pytest.approx(1.0, abs=0.1)
    assert errors[1] < 0.2 * errors[0]
    assert errors[1] < 0.02


def test_a_part_of_the_way_is_the_beginning_of_the_whole():
    which, clean = model("sd1"), randn(2, 4, 16, 16, seed=1)
    scheduler = ddim(which, 5)
    predict = conditional(which, scheduler, CAPTIONS)
    with torch.no_grad():
        part, none = (ddim_inversion(predict, scheduler, clean, num_steps=count) for count in (2, 0))
    assert torch.equal(part, invert(which, clean, 5)[:, :3])
    assert torch.equal(none, clean[:, None])


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_null_texts_bring_the_picture_back(family: str):
    which = model(family)
    trajectory = invert(which, randn(2, 4, 16, 16, seed=1), 4)
    before = {name: weight.clone() for name, weight in which.unet.state_dict().items()}
    with torch.inference_mode():
        found = optimise(which, trajectory, EAGER)
    assert not found.requires_grad
    assert (reconstruct(which, trajectory, found, 7.5) < reconstruct(which, trajectory, None, 7.5)).all()
    assert all(torch.equal(weight, before[name]) for name, weight in which.unet.state_dict().items())
    assert all(weight.grad is None for weight in which.unet.parameters())


def test_no_guidance_and_no_optimisation_leave_the_null_text():
    which = model("sd1")
    trajectory = invert(which, randn(2, 4, 16, 16, seed=1), 3)
    with torch.no_grad():
        null = branches(which, CAPTIONS)[0].text
    for settings in (NullTextSettings(text_scale=1.0), NullTextSettings(inner_steps=0)):
        found = optimise(which, trajectory, settings)
        assert torch.equal(found, null[:, None].expand_as(found))


def test_a_sample_does_not_depend_on_its_batch():
    which = model("sd1")
    clean = randn(2, 4, 16, 16, seed=1)
    # A tolerance at which the two stop after different numbers of steps.
    settings = NullTextSettings(inner_steps=4, tolerance=0.0, growth=0.0, learning_rate=1e-3)
    both = optimise(which, invert(which, clean, 2), settings)
    alone = optimise(which, invert(which, clean[:1], 2, CAPTIONS[:1]), settings)
    assert torch.allclose(both[:1], alone, atol=2e-4)
    assert not torch.allclose(both[:1], both[1:], atol=2e-4)


def official(which: LatentDiffusion, trajectory: Tensor, text: Conditioning, null: Conditioning) -> Tensor:
    """The loop of google/prompt-to-prompt's null-text notebook, on one picture, at 50 steps' constants."""
    scheduler = which.make_scheduler("ddim")
    alphas, steps = scheduler.alphas_cumprod, trajectory.shape[1] - 1
    timesteps = ddim(which, steps).timesteps
    latents, uncond, found = trajectory[:, -1], null.text, []
    for i, t in enumerate(timesteps):
        uncond = uncond.clone().detach().requires_grad_()
        optimizer = torch.optim.Adam([uncond], lr=1e-2 * (1.0 - i / 100.0 * 50 / steps))
        previous = int(t) - 1000 // steps
        now, then = alphas[t], alphas[previous] if previous >= 0 else alphas[0]

        def step(noise: Tensor, now: Tensor = now, then: Tensor = then, latents: Tensor = latents) -> Tensor:
            clean = (latents - (1 - now) ** 0.5 * noise) / now**0.5
            return then**0.5 * clean + (1 - then) ** 0.5 * noise

        def noise(embeds: Tensor, latents: Tensor = latents, t: Tensor = t) -> Tensor:
            return which.unet(latents, t, encoder_hidden_states=embeds).sample

        with torch.no_grad():
            cond = noise(text.text)
        for _ in range(3):
            predicted = noise(uncond)
            loss = (step(predicted + 7.5 * (cond - predicted)) - trajectory[:, -2 - i]).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if loss.item() < 0.02 + i * 2e-5 * 50 / steps:
                break
        found.append(uncond.detach())
        with torch.no_grad():
            predicted = noise(uncond)
            latents = step(predicted + 7.5 * (cond - predicted))
    return torch.stack(found, 1)


def test_equals_the_official_loop():
    which = model("sd1")
    trajectory = invert(which, randn(1, 4, 16, 16, seed=1), 4, CAPTIONS[:1])
    with torch.no_grad():
        null, text = branches(which, CAPTIONS[:1])
    settings = NullTextSettings(inner_steps=3, tolerance=0.02, growth=1e-3)
    expected = official(which, trajectory, text, null)
    assert torch.allclose(optimise(which, trajectory, settings), expected, atol=1e-3)
    assert not torch.allclose(expected, null.text[:, None].expand_as(expected), atol=1e-2)


def test_no_gradient_outlives_its_step():
    """As many tensors are kept for gradients at a time in nine optimiser steps as in one."""

    class Kept:
        def __init__(self, tensor: Tensor):
            self.tensor = tensor

    def most(steps: int, inner_steps: int) -> int:
        alive = peak = 0

        def gone() -> None:
            nonlocal alive
            alive -= 1

        def pack(tensor: Tensor) -> Kept:
            nonlocal alive, peak
            alive += 1
            peak = max(peak, alive)
            kept = Kept(tensor.detach())  # a node would own itself through its own output
            weakref.finalize(kept, gone)
            return kept

        which = model("sd1")
        trajectory = invert(which, randn(2, 4, 16, 16, seed=1), steps)
        settings = dataclasses.replace(EAGER, inner_steps=inner_steps)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept.tensor):
            optimise(which, trajectory, settings)
        assert alive == 0
        return peak

    assert most(3, 3) == most(1, 1) > 0


def test_split_and_join():
    inversion = Inversion(randn(3, 5, 4, 2, 2), randn(3, 4, 6, 8, seed=1))
    parts = inversion.split()
    assert [part.trajectory.shape[0] for part in parts] == [1, 1, 1]
    joined = Inversion.join(parts)
    assert torch.equal(joined.trajectory, inversion.trajectory)
    assert joined.null_texts is not None and inversion.null_texts is not None
    assert torch.equal(joined.null_texts, inversion.null_texts)
    assert Inversion.join(Inversion(inversion.trajectory).split()).null_texts is None
