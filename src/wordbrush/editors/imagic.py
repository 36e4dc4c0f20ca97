"""Imagic: tune a model to a picture, then sample between what it shows and a caption (2210.09276)."""

import dataclasses
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from wordbrush.diffusion.conditioning import Conditioning
from wordbrush.diffusion.guidance import classifier_free_guidance
from wordbrush.diffusion.inversion_cache import default_folder
from wordbrush.diffusion.model import LatentDiffusion, TextEmbeds
from wordbrush.diffusion.sampling import denoise, initial_latents, predict_noise
from wordbrush.diffusion.text_memory import remembered_text
from wordbrush.editors import METHODS
from wordbrush.editors.imagic_tuning import run_key, tune
from wordbrush.editors.inversion_editor import OnLatents, later
from wordbrush.editors.jobs import Job
from wordbrush.editors.latent_editor import Batch, Sample
from wordbrush.editors.sdedit import TextToImageEditor
from wordbrush.editors.settings import ImagicSettings
from wordbrush.editors.tuned_picture import Subject, TunedPicture
from wordbrush.errors import OutputError, UsageError
from wordbrush.outputs import make_folder
from wordbrush.types import EditRequest, EditResult

_LIMIT = 4 << 30
"""Bytes of tuned pictures in the cache."""


class Imagic(TextToImageEditor[ImagicSettings]):
    """The tuned U-Net is a module beside the loaded one, which no edit changes.

    The tuning has noises of its own, always the same: the seed is that of the sampling. A mask has its say
    on the finished picture.
    """

    method = METHODS["imagic"]

    def __init__(
        self, model: LatentDiffusion, settings: ImagicSettings, *, record: dict[str, Any] | None = None
    ) -> None:
        super().__init__(model, settings, record=record)
        # The last one, for other settings of the same picture; shared with `with_settings`.
        self._recent: dict[str, TunedPicture] = {}

    def num_steps(self, scheduler: Any) -> int:
        """Of the tuning, and of sampling."""
        return self._tuning_steps + len(scheduler.timesteps)

    def edit_latents(self, batch: Batch, on_step: OnLatents) -> Tensor:
        """Picture by picture."""
        edited = torch.empty_like(batch.source)
        jobs = list(dict.fromkeys(sample.job for sample in batch.samples))
        for number, job in enumerate(jobs):
            places = [place for place, sample in enumerate(batch.samples) if sample.job is job]
            samples = [batch.samples[place] for place in places]
            part = dataclasses.replace(
                batch, samples=samples, source=batch.source[places], scheduler=self._scheduler()
            )
            edited[places] = self._edit_job(job, part, self._share(on_step, number, len(jobs), part))
        return edited

    def tune(
        self,
        image: Image.Image,
        caption: str,
        folder: Path,
        *,
        seed: int = 0,
        on_step: Callable[[int], None] | None = None,
    ) -> TunedPicture:
        """Tune to a picture for a target's caption, into a folder for the setting `tuned`.

        Args:
            image: the picture.
            caption: of the result that is wanted.
            folder: see `imagic_tuning.tune`, as for the rest and the errors.
            seed: of the noises.
            on_step: called with the number of steps done.
        """
        job = self._prepare(EditRequest(image, target_caption=caption))
        pixels = job.fit.pixels
        with torch.inference_mode():
            source = self.model.encode_image(pixels, tiled=self.settings.tiled_vae)
            subject = self._subject(job, source)
        return self._tune(subject, seed, folder, on_step)

    def _tune(
        self, subject: Subject, seed: int, folder: Path | None, on_step: Callable[[int], None] | None
    ) -> TunedPicture:
        settings = self.settings
        return tune(
            self.model,
            subject,
            settings.tuning,
            seed=seed,
            gradient_checkpointing=settings.save_memory,
            folder=folder,
            on_step=on_step,
        )

    def _subject(self, job: Job, source: Tensor) -> Subject:
        """What the model is tuned to, for a picture's unscaled latents (1, C, h, w)."""
        caption, size = job.request.target_caption, _size(job)
        return Subject(
            picture=job.rgb,
            latents=self.model.scale_latents(source),
            caption=caption,
            text=self.text([caption]),
            size=size,
            time_ids=self.model.add_time_ids(size, 1),
        )

    @property
    def _tuning_steps(self) -> int:
        if self.settings.tuned is not None:
            return 0
        tuning = self.settings.tuning
        return tuning.embedding_steps + tuning.model_steps

    def _result(self, job: Job, samples: Sequence[Sample], pictures: list[Image.Image]) -> EditResult:
        """With what a given picture was tuned by in the record, in the place of the preset."""
        result, tuned = super()._result(job, samples, pictures), self._given()
        if tuned is None:
            return result
        made_by = {"tuning": dataclasses.asdict(tuned.record.tuning)}
        return dataclasses.replace(result, settings=result.settings | made_by)

    def _prepare(self, request: EditRequest) -> Job:
        tuned = self._given()
        if tuned is not None and not request.target_caption.strip():
            request = dataclasses.replace(request, target_caption=tuned.record.caption)
        if not request.target_caption.strip():
            raise UsageError("imagic needs target caption (--target), which is empty")
        job = super()._prepare(request)
        if tuned is not None:
            caption = request.target_caption
            tuned.check(self.model, job.rgb, _size(job), caption, self.text([caption]))
        return job

    def _given(self) -> TunedPicture | None:
        """The tuned picture of the settings."""
        folder = self.settings.tuned
        if folder is None:
            return None
        return self._remember(f"{folder} {_changed(Path(folder))}", lambda: TunedPicture.load(Path(folder)))

    def _remember(self, key: str, make: Callable[[], TunedPicture]) -> TunedPicture:
        if key not in self._recent:
            made = make()
            self._recent.clear()
            self._recent[key] = made
        return self._recent[key]

    def _share(self, on_step: OnLatents, number: int, count: int, part: Batch) -> OnLatents:
        """Reports the steps of one picture of several as a part of the batch's."""
        if on_step is None:
            return None
        each = self.num_steps(part.scheduler)
        return lambda step, latents: on_step((number * each + step + count) // count - 1, latents)

    def _edit_job(self, job: Job, batch: Batch, on_step: OnLatents) -> Tensor:
        tuned = self._given() or self._cached(job, batch, on_step)
        return self._sample(tuned, batch, later(on_step, self._tuning_steps))

    def _cached(self, job: Job, batch: Batch, on_step: OnLatents) -> TunedPicture:
        """From the cache, or tuned now."""
        subject = self._subject(job, batch.source[:1])
        key = run_key(self.model, subject, self.settings.tuning)

        def report(done: int) -> None:
            if on_step is not None:
                on_step(done - 1, subject.latents)

        def make() -> TunedPicture:
            kept = self._folder(batch)
            tuned = self._tune(subject, 0, kept and kept / key, report)
            if kept is not None:
                (kept / key).touch()
                _prune(kept)
            return tuned

        return self._remember(key, make)

    def _folder(self, batch: Batch) -> Path | None:
        """Where tuned pictures are kept; None if they are not."""
        if not self.settings.keep_tuned:
            return None
        kept = default_folder().with_name("tuned")
        try:
            make_folder(kept, private=True)
        except OutputError as error:  # no reason not to edit
            batch.samples[0].warnings.append(f"the tuned picture is not kept: {error}")
            return None
        return kept

    def _sample(self, tuned: TunedPicture, batch: Batch, on_step: OnLatents) -> Tensor:
        """Stage C: from noise, under an embedding between the optimised and the target's."""
        unet, model = tuned.network(self.model), self.model
        branches = self._branches(tuned, batch)

        def predict(latents: Tensor, t: Tensor, step: int) -> Tensor:
            noise = predict_noise(unet, batch.scheduler, latents, t, branches)
            return classifier_free_guidance(noise, self.settings.text_scale)

        shape = batch.source.shape[1:]
        noisy = initial_latents(batch.scheduler, shape, batch.generators, model.device)
        with remembered_text(unet):
            return denoise(predict, batch.scheduler, noisy, on_step=on_step, generators=batch.generators)

    def _branches(self, tuned: TunedPicture, batch: Batch) -> Sequence[Conditioning]:
        count = len(batch.samples)
        target = self.text([request.target_caption for request in batch.requests])
        text = interpolate(tuned.text, target, self.settings.eta)
        ids = self.model.add_time_ids(batch.size, count)
        texts = (self.null_text(batch.requests), text)
        return [Conditioning(part.tokens, pooled=part.pooled, time_ids=ids) for part in texts]


def interpolate(optimised: TextEmbeds, target: TextEmbeds, eta: float) -> TextEmbeds:
    """Equation 3, eta e_tgt + (1 - eta) e_opt: exactly one of them at 0 and 1, beyond the target above 1.

    Args:
        optimised: (1, L, D).
        target: (B, L, D), whose device and precision the result has.
        eta: any number; 0.6 to 0.8 is of use.
    """

    def between(one: Tensor, other: Tensor) -> Tensor:
        start = one.to(other.device, torch.float32).expand(other.shape)
        return torch.lerp(start, other.float(), eta).to(other.dtype)

    if optimised.pooled is None or target.pooled is None:
        return TextEmbeds(between(optimised.tokens, target.tokens))
    return TextEmbeds(between(optimised.tokens, target.tokens), between(optimised.pooled, target.pooled))


def _size(job: Job) -> tuple[int, int]:
    """Working height and width."""
    return job.fit.pixels.shape[-2], job.fit.pixels.shape[-1]


def _changed(folder: Path) -> float:
    """When it was last written to."""
    return folder.stat().st_mtime if folder.exists() else 0.0


def _prune(folder: Path) -> None:
    """Delete the tuned pictures that were not used for longest, beyond the limit."""
    with suppress(OSError):  # another process may be at it too
        found = sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime, reverse=True)
        total = 0
        for number, path in enumerate(found):
            total += sum(file.stat().st_size for file in path.iterdir())
            if number and total > _LIMIT:
                shutil.rmtree(path)
