"""What every editor over a latent diffusion model shares: from requests to batches, and back to pictures."""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, ClassVar, Generic, Self, TypeVar

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from wordbrush import images
from wordbrush.diffusion.model import LatentDiffusion, TextEmbeds
from wordbrush.diffusion.runtime import prepare_process, resolve_device, resolve_dtype
from wordbrush.editors import Method
from wordbrush.editors.jobs import PROMPTS, Job, describe_job, describe_model, prepare_job, remarks
from wordbrush.editors.settings import LatentSettings, make_settings
from wordbrush.editors.textual_inversion import add_concepts
from wordbrush.errors import UsageError
from wordbrush.models import resolve
from wordbrush.types import EditRequest, EditResult, OnStep, StepInfo

S = TypeVar("S", bound=LatentSettings)


@dataclass(frozen=True, eq=False)
class Sample:
    """One variation of one job."""

    job: Job
    seed: int
    intermediates: dict[str, Any] = field(default_factory=dict[str, Any])
    """What a method finds on the way; the result has a list of each, with one item a variation."""
    warnings: list[str] = field(default_factory=list[str])


@dataclass(frozen=True, eq=False)
class Batch:
    """Samples of one working size, ready to be denoised together."""

    samples: Sequence[Sample]
    source: Tensor
    """(B, C, h, w) float32: the pictures' latents, unscaled, one for each sample."""
    scheduler: Any
    """Its timesteps are set."""
    size: tuple[int, int]
    """Working height and width in pixels."""

    @property
    def requests(self) -> list[EditRequest]:
        """The request of each sample."""
        return [sample.job.request for sample in self.samples]

    @cached_property
    def mask(self) -> Tensor | None:
        """(B, 1, h, w) in [0, 1], 1 where the picture may change; None if no request has a mask."""
        if all(sample.job.mask is None for sample in self.samples):
            return None
        return torch.cat([self._mask(sample.job) for sample in self.samples])

    def _mask(self, job: Job) -> Tensor:
        size = (self.source.shape[-2], self.source.shape[-1])
        if job.mask is None:
            return self.source.new_ones(1, 1, *size)
        return F.adaptive_avg_pool2d(job.mask.mean(1, keepdim=True) / 2 + 0.5, size).to(self.source)

    @cached_property
    def generators(self) -> list[torch.Generator]:
        """One for each sample, on the CPU, seeded by the sample's own seed."""
        return [torch.Generator().manual_seed(sample.seed) for sample in self.samples]


class LatentEditor(ABC, Generic[S]):
    """An editor over a loaded checkpoint; a method says how the latents of a batch are edited.

    Args:
        model: a loaded checkpoint.
        settings: the method's settings.
        record: what a result's `settings` say about the model.
    """

    method: ClassVar[Method]
    unet: ClassVar[str | None] = None
    """Subfolder of the U-Net that the method uses, where a checkpoint has it; else the main one."""
    batch_pixels: ClassVar[int] = 4 * 512 * 512
    """Most pixels denoised in one call, of up to three branches: bounds memory however many requests come."""

    def __init__(self, model: LatentDiffusion, settings: S, *, record: dict[str, Any] | None = None) -> None:
        self.check(model)
        self.model = model
        self.settings = settings
        self._record = record or {}
        # One prompt at a time: the result of a prompt must not depend on its neighbours in a batch.
        self._encode_text = lru_cache(64)(model.encode_text)
        self._encode_null_text = lru_cache(16)(model.encode_null_text)

    @classmethod
    @abstractmethod
    def check(cls, model: LatentDiffusion) -> None:
        """Raise a `ModelError` where the checkpoint does not fit the method."""

    @abstractmethod
    def edit_latents(self, batch: Batch, on_step: Callable[[int, Tensor], None] | None) -> Tensor:
        """The edited latents (B, C, h, w) of a batch, as the U-Net makes them."""

    def make_scheduler(self) -> Any:
        """A fresh scheduler: the one that was asked for, or the checkpoint's own."""
        return self.model.make_scheduler(getattr(self.settings, "scheduler", None))

    def num_steps(self, scheduler: Any) -> int:
        """How many steps a batch takes at most, as `edit_latents` reports them."""
        return len(scheduler.timesteps)

    @classmethod
    def load(
        cls,
        model: str | Path,
        settings: S,
        *,
        device: str,
        dtype: str,
        offload: bool,
        lora: Sequence[str | Path],
        concept: Sequence[str | Path],
        config: str | Path | None,
    ) -> Self:
        """Load the checkpoint; see `wordbrush.load`."""
        prepare_process()
        place = resolve_device(device)
        precision = resolve_dtype(dtype, place)
        folder = resolve(model)
        cls.check_parts(folder)
        loaded = LatentDiffusion.load(
            model,
            device=place,
            dtype=precision,
            unet=cls.unet,
            offload=offload,
            loras=lora,
            config=config,
        )
        add_concepts(loaded, concept)
        record = describe_model(
            model, lora=lora, concept=concept, config=config, device=place.type, dtype=precision
        )
        editor = cls(loaded, settings, record=record)
        editor.load_extras(folder)
        return editor

    @classmethod
    def check_parts(cls, folder: Path) -> None:
        """A `ModelError` where a checkpoint's folder lacks what the method needs beside the networks."""

    def load_extras(self, folder: Path) -> None:
        """Load what the method needs beside the checkpoint's own networks; here nothing."""

    def with_settings(self, **changes: Any) -> Self:
        """An editor with some settings changed; the model and its encoded prompts are shared."""
        other = object.__new__(type(self))
        vars(other).update(vars(self))
        other.settings = make_settings(type(self.settings), dataclasses.asdict(self.settings) | changes)
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
            requests: each with what the method needs; all are checked before any work is done.
            on_step: called after every step; an exception raised in it cancels the call.

        Raises:
            UsageError: a request without what the method needs, or a senseless seed or number of variations.
            ImageError: a picture that cannot be read, or a mask of another size than its picture.
        """
        jobs = [self._prepare(request) for request in requests]
        samples = [[Sample(job, seed) for seed in job.seeds] for job in jobs]
        batches = _batches([s for variations in samples for s in variations], self.batch_pixels)
        pictures: dict[Sample, Image.Image] = {}
        for index, batch in enumerate(batches):
            report = None if on_step is None else _Progress(on_step, index, len(batches))
            pictures |= zip(batch, self._edit(batch, report), strict=True)
        return [
            self._result(job, variations, [pictures[sample] for sample in variations])
            for job, variations in zip(jobs, samples, strict=True)
        ]

    def text(self, prompts: Sequence[str]) -> TextEmbeds:
        """The encoded prompts, one a sample."""
        return join_texts([self._encode_text((prompt,)) for prompt in prompts])

    def null_text(self, requests: Sequence[EditRequest]) -> TextEmbeds:
        """What stands for no text in each request: its negative prompt, if it has one."""
        return join_texts([self._encode_null_text(request.negative_prompt) for request in requests])

    def working_size(self, picture: tuple[int, int]) -> tuple[int, int]:
        """Height and width at which a picture of this width and height is edited."""
        model = self.model
        return images.working_size(
            picture, size=self.settings.size, native=model.native_size, multiple=model.latent_grid
        )

    def _prepare(self, request: EditRequest) -> Job:
        return prepare_job(self.method, request, self._fit)

    def _fit(self, rgb: Image.Image) -> images.Fit:
        model = self.model
        return images.fit(rgb, size=self.settings.size, native=model.native_size, multiple=model.latent_grid)

    def _edit(self, samples: Sequence[Sample], report: "_Progress | None") -> list[Image.Image]:
        """Edit samples of one working size, and finish their pictures."""
        model, tiled = self.model, self.settings.tiled_vae
        scheduler = self._scheduler()
        jobs = list(dict.fromkeys(sample.job for sample in samples))
        pixels = torch.cat([job.fit.pixels for job in jobs])
        source = model.encode_image(pixels, tiled=tiled)
        restored = [self._restore(job, source[i : i + 1]) for i, job in enumerate(jobs)]
        which = [jobs.index(sample.job) for sample in samples]
        batch = Batch(samples, source[which], scheduler, (pixels.shape[-2], pixels.shape[-1]))
        steps = None if report is None else report.steps(self.num_steps(scheduler), self._preview)
        edited = model.decode(self.edit_latents(batch, steps), tiled=tiled).cpu()
        return [
            _finish(sample.job, restored[i], picture[None])
            for sample, i, picture in zip(samples, which, edited, strict=True)
        ]

    def _scheduler(self) -> Any:
        scheduler = self.make_scheduler()
        try:
            scheduler.set_timesteps(self.settings.steps, device=self.model.device)
        except (ValueError, IndexError) as error:
            name = type(scheduler).__name__
            raise UsageError(f"{name} cannot sample in {self.settings.steps} steps: {error}") from error
        return scheduler

    def _restore(self, job: Job, source: Tensor) -> Tensor | None:
        """The picture as the autoencoder gives it back, where that is needed to carry detail over."""
        detail = self.settings.detail
        if not (job.fit.reduced if detail is None else detail):
            return None
        return self.model.decode(self.model.scale_latents(source), tiled=self.settings.tiled_vae).cpu()

    @torch.inference_mode()
    def _preview(self, latents: Tensor) -> list[Image.Image]:
        return images.to_pil(self.model.decode(latents, tiled=self.settings.tiled_vae))

    def _result(self, job: Job, samples: Sequence[Sample], pictures: list[Image.Image]) -> EditResult:
        settings = describe_job(self.method, job, self.settings, self._record)
        prompts = {name: settings[name] for name in PROMPTS if name in settings}
        dropped = {name: self.model.dropped_words(text) for name, text in prompts.items()}
        warnings = [
            f"the {name.replace('_', ' ')} is too long for the text encoder, dropped: {words!r}"
            for name, words in dropped.items()
            if words
        ]
        warnings += remarks(job)
        warnings += dict.fromkeys(warning for sample in samples for warning in sample.warnings)
        intermediates = {name: [s.intermediates[name] for s in samples] for name in samples[0].intermediates}
        return EditResult(pictures, job.seeds, settings, intermediates, warnings)


def join_texts(parts: Sequence[TextEmbeds]) -> TextEmbeds:
    """One prompt behind the other."""
    pooled = [part.pooled for part in parts if part.pooled is not None]
    return TextEmbeds(torch.cat([part.tokens for part in parts]), torch.cat(pooled) if pooled else None)


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


def _batches(samples: Sequence[Sample], pixels: int) -> list[list[Sample]]:
    """Samples of one working size together, at most that many pixels in a batch but never no sample."""
    by_size: dict[torch.Size, list[Sample]] = {}
    for sample in samples:
        by_size.setdefault(sample.job.fit.pixels.shape, []).append(sample)
    batches: list[list[Sample]] = []
    for (_, _, height, width), group in by_size.items():
        most = max(1, pixels // (height * width))
        batches += [group[i : i + most] for i in range(0, len(group), most)]
    return batches


def _finish(job: Job, restored: Tensor | None, edited: Tensor) -> Image.Image:
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
