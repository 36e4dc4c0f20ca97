"""InstructPix2Pix: an editor that follows an instruction (Brooks et al., 2211.09800)."""

import dataclasses
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from wordbrush import __version__, images
from wordbrush.diffusion.conditioning import Conditioning
from wordbrush.diffusion.guidance import dual_guidance, dual_guidance_weights, in_interval, rescale_guidance
from wordbrush.diffusion.model import LatentDiffusion, TextEmbeds
from wordbrush.diffusion.runtime import prepare_process, resolve_device, resolve_dtype
from wordbrush.diffusion.sampling import Predict, denoise, initial_latents, predict_noise
from wordbrush.editors import METHODS
from wordbrush.editors.settings import InstructPix2PixSettings, make_settings
from wordbrush.errors import ImageError, ModelError, UsageError
from wordbrush.types import EditRequest, EditResult, OnStep, StepInfo

_METHOD = METHODS["instruct-pix2pix"]
_BATCH_PIXELS = 4 * 512 * 512
"""Most pixels denoised in one call, of up to three branches: bounds memory however many requests come."""
_FULL = 2
"""Place of the fully conditional branch among (no image, no text), (image, no text), (image, text)."""


@dataclass(frozen=True, eq=False)
class _Job:
    """A request, checked and on the model's grid."""

    request: EditRequest
    rgb: Image.Image
    alpha: Image.Image | None
    fit: images.Fit
    seeds: list[int]


@dataclass(frozen=True, eq=False)
class _Sample:
    """One variation of one job."""

    job: _Job
    seed: int


class InstructPix2Pix:
    """An editor over a checkpoint whose U-Net takes the picture's latents beside the noisy ones.

    Args:
        model: a loaded checkpoint.
        settings: the method's settings.
        record: what a result's `settings` say about the model.
    """

    def __init__(
        self,
        model: LatentDiffusion,
        settings: InstructPix2PixSettings,
        *,
        record: dict[str, Any] | None = None,
    ) -> None:
        if model.unet.config.in_channels != 2 * model.latent_channels:
            raise ModelError(
                f"{_METHOD.name} needs a U-Net of {2 * model.latent_channels} input channels (latents and "
                f"picture), but this checkpoint's takes {model.unet.config.in_channels}"
            )
        self.model = model
        self.settings = settings
        self._record = record or {}
        # One prompt at a time: the result of a prompt must not depend on its neighbours in a batch.
        self._encode_text = lru_cache(64)(model.encode_text)
        self._encode_null_text = lru_cache(16)(model.encode_null_text)

    @classmethod
    def load(
        cls,
        model: str | Path,
        settings: InstructPix2PixSettings,
        *,
        device: str,
        dtype: str,
        offload: bool,
        lora: Sequence[str | Path],
        config: str | Path | None,
    ) -> "InstructPix2Pix":
        """Load the checkpoint; see `wordbrush.load`."""
        prepare_process()
        place = resolve_device(device)
        precision = resolve_dtype(dtype, place)
        loaded = LatentDiffusion.load(
            model, device=place, dtype=precision, offload=offload, loras=lora, config=config
        )
        record = {"model": str(model), "lora": [str(path) for path in lora]}
        record |= {"device": place.type, "dtype": str(precision).removeprefix("torch.")}
        return cls(loaded, settings, record=record)

    def with_settings(self, **changes: Any) -> "InstructPix2Pix":
        """An editor with some settings changed; the model and its encoded prompts are shared."""
        other = object.__new__(type(self))
        other.__dict__ |= self.__dict__
        other.settings = make_settings(InstructPix2PixSettings, dataclasses.asdict(self.settings) | changes)
        return other

    def edit(self, request: EditRequest, *, on_step: OnStep | None = None) -> EditResult:
        """Edit one picture; see `edit_batch`."""
        return self.edit_batch([request], on_step=on_step)[0]

    @torch.inference_mode()
    def edit_batch(
        self, requests: Sequence[EditRequest], *, on_step: OnStep | None = None
    ) -> list[EditResult]:
        """Edit many pictures; those of the same working size are denoised together, in bounded batches.

        A result does not depend on the batch it was in, within float tolerance.

        Args:
            requests: each with an instruction; all are checked before any work is done.
            on_step: called after every step; an exception raised in it cancels the call.

        Raises:
            UsageError: a request without an instruction, or a senseless seed or number of variations.
            ImageError: a picture that cannot be read, or a mask of another size than its picture.
        """
        jobs = [self._prepare(request) for request in requests]
        samples = [[_Sample(job, seed) for seed in job.seeds] for job in jobs]
        batches = _batches([sample for variations in samples for sample in variations])
        pictures: dict[_Sample, Image.Image] = {}
        for index, batch in enumerate(batches):
            report = None if on_step is None else _Progress(on_step, index, len(batches))
            pictures |= zip(batch, self._edit(batch, report), strict=True)
        return [
            self._result(job, [pictures[sample] for sample in variations])
            for job, variations in zip(jobs, samples, strict=True)
        ]

    def _prepare(self, request: EditRequest) -> _Job:
        _METHOD.check(request)
        if request.num_variations < 1:
            raise UsageError(f"num_variations is {request.num_variations}: it must be at least 1")
        first = secrets.randbelow(2**31) if request.seed is None else request.seed
        if not 0 <= first < 2**63 - request.num_variations:
            raise UsageError(f"seed is {first}: it must be at least 0 and below 2**63")
        rgb, alpha = images.normalise(request.image)
        if request.mask is not None and (mask := images.normalise(request.mask)[0]).size != rgb.size:
            raise ImageError(f"the mask is {_side(mask)} but the picture {_side(rgb)}: they must be the same")
        grid = self.model.latent_grid
        fit = images.fit(rgb, size=self.settings.size, native=self.model.native_size, multiple=grid)
        return _Job(request, rgb, alpha, fit, [first + k for k in range(request.num_variations)])

    def _edit(self, batch: Sequence[_Sample], report: "_Progress | None") -> list[Image.Image]:
        """Denoise the samples of one batch, all of one working size, and finish their pictures."""
        model, settings = self.model, self.settings
        scheduler = self._scheduler()
        jobs = list(dict.fromkeys(sample.job for sample in batch))
        pixels = torch.cat([job.fit.pixels for job in jobs])
        source = model.encode_image(pixels, tiled=settings.tiled_vae)
        restored = [self._restore(job, source[i : i + 1]) for i, job in enumerate(jobs)]
        which = [jobs.index(sample.job) for sample in batch]
        branches = self._branches([sample.job.request for sample in batch], source[which], pixels.shape[-2:])
        generators = [torch.Generator().manual_seed(sample.seed) for sample in batch]
        shape = (model.latent_channels, *source.shape[-2:])
        latents = denoise(
            self._predict(scheduler, branches),
            scheduler,
            initial_latents(scheduler, shape, generators, model.device),
            on_step=None if report is None else report.steps(len(scheduler.timesteps), self._preview),
            generators=generators,
        )
        edited = model.decode(latents, tiled=settings.tiled_vae).cpu()
        return [
            _finish(sample.job, restored[i], picture[None])
            for sample, i, picture in zip(batch, which, edited, strict=True)
        ]

    def _scheduler(self) -> Any:
        scheduler = self.model.make_scheduler(self.settings.scheduler)
        try:
            scheduler.set_timesteps(self.settings.steps, device=self.model.device)
        except (ValueError, IndexError) as error:
            name = type(scheduler).__name__
            raise UsageError(f"{name} cannot sample in {self.settings.steps} steps: {error}") from error
        return scheduler

    def _branches(
        self, requests: Sequence[EditRequest], source: Tensor, size: Sequence[int]
    ) -> tuple[Conditioning, Conditioning, Conditioning]:
        """(No image, no text), (image, no text), (image, text)."""
        model = self.model
        full = _join([self._encode_text((request.instruction,)) for request in requests])
        null = _join([self._encode_null_text(request.negative_prompt) for request in requests])
        if model.scale_image_condition:
            source = source * model.vae.config.scaling_factor
        ids = model.add_time_ids((size[0], size[1]), len(requests))
        return (
            Conditioning(null.tokens, torch.zeros_like(source), pooled=null.pooled, time_ids=ids),
            Conditioning(null.tokens, source, pooled=null.pooled, time_ids=ids),
            Conditioning(full.tokens, source, pooled=full.pooled, time_ids=ids),
        )

    def _predict(self, scheduler: Any, branches: Sequence[Conditioning]) -> Predict:
        """Guided noise, without running the branches whose weight is zero."""
        model, settings = self.model, self.settings
        scales = {"text_scale": settings.text_scale, "image_scale": settings.image_scale}
        weights = dual_guidance_weights(**scales)
        rescale = settings.guidance_rescale
        needed = [i for i, weight in enumerate(weights) if weight or (i == _FULL and rescale)]

        def predict(latents: Tensor, t: Tensor, step: int) -> Tensor:
            on = in_interval(step, len(scheduler.timesteps), settings.guidance_start, settings.guidance_end)
            run = needed if on else [_FULL]
            noise = predict_noise(model.unet, scheduler, latents, t, [branches[i] for i in run])
            if len(run) == 1:
                return noise[0]
            if len(run) == 3:
                guided = dual_guidance(noise, **scales)
            else:
                guided = weights[run[0]] * noise[0] + weights[run[1]] * noise[1]
            return rescale_guidance(guided, noise[-1], rescale) if rescale else guided

        return predict

    def _restore(self, job: _Job, source: Tensor) -> Tensor | None:
        """The picture as the autoencoder gives it back, where that is needed to carry detail over."""
        detail = self.settings.detail
        if not (job.fit.reduced if detail is None else detail):
            return None
        return self.model.decode(self.model.scale_latents(source), tiled=self.settings.tiled_vae).cpu()

    @torch.inference_mode()
    def _preview(self, latents: Tensor) -> list[Image.Image]:
        return images.to_pil(self.model.decode(latents, tiled=self.settings.tiled_vae))

    def _result(self, job: _Job, pictures: list[Image.Image]) -> EditResult:
        request = job.request
        settings = {"wordbrush": __version__, "method": _METHOD.name} | self._record
        settings |= {"instruction": request.instruction, "negative_prompt": request.negative_prompt}
        settings |= {"seed": job.seeds[0], "num_variations": len(job.seeds)}
        settings |= dataclasses.asdict(self.settings)
        dropped = self.model.dropped_words(request.instruction)
        warnings = (
            [f"the instruction is too long for the text encoder, dropped: {dropped!r}"] if dropped else []
        )
        return EditResult(pictures, job.seeds, settings, warnings=warnings)


@dataclass(frozen=True)
class _Progress:
    """Turns the steps of one batch of several into steps of the whole call."""

    on_step: OnStep
    index: int
    count: int

    def steps(
        self, num: int, preview: Callable[[Tensor], list[Image.Image]]
    ) -> Callable[[int, Tensor], None]:
        def report(step: int, latents: Tensor) -> None:
            done = self.index * num + step
            self.on_step(StepInfo(done, self.count * num, latents, lambda: preview(latents)))

        return report


def _batches(samples: Sequence[_Sample]) -> list[list[_Sample]]:
    """Samples of one working size together, at most `_BATCH_PIXELS` in a batch but never none."""
    by_size: dict[torch.Size, list[_Sample]] = {}
    for sample in samples:
        by_size.setdefault(sample.job.fit.pixels.shape, []).append(sample)
    batches: list[list[_Sample]] = []
    for (_, _, height, width), group in by_size.items():
        most = max(1, _BATCH_PIXELS // (height * width))
        batches += [group[i : i + most] for i in range(0, len(group), most)]
    return batches


def _finish(job: _Job, restored: Tensor | None, edited: Tensor) -> Image.Image:
    """From the working size back to the picture: its size, detail, unmasked pixels and transparency."""
    fit = job.fit
    if restored is None:
        pixels = fit.inverse(edited)
    else:
        pixels = images.carry_detail(images.from_pil(job.rgb), fit.crop(restored), fit.crop(edited))
    picture = images.to_pil(pixels)[0]
    if job.request.mask is not None:
        picture = images.blend_mask(job.rgb, picture, job.request.mask)
    if job.alpha is not None:
        picture.putalpha(job.alpha)
    return picture


def _join(parts: Sequence[TextEmbeds]) -> TextEmbeds:
    pooled = [part.pooled for part in parts if part.pooled is not None]
    return TextEmbeds(torch.cat([part.tokens for part in parts]), torch.cat(pooled) if pooled else None)


def _side(picture: Image.Image) -> str:
    return f"{picture.width}x{picture.height}"
