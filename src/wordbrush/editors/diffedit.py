"""DiffEdit: find where two captions differ in a picture, and repaint there (Couairon et al., 2210.11427)."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from wordbrush.attention.blending import MaskBlend, from_trajectory
from wordbrush.diffusion.inversion import Inversion, ddim_inversion
from wordbrush.diffusion.model import TextEmbeds
from wordbrush.diffusion.sampling import Predict, denoise, predict_noise
from wordbrush.diffusion.text_memory import remembered_text
from wordbrush.editors import METHODS
from wordbrush.editors.inversion_editor import InversionEditor, OnLatents, later
from wordbrush.editors.jobs import EMPTY_MASK
from wordbrush.editors.latent_editor import Batch, Job, Sample, join_texts
from wordbrush.editors.settings import DiffEditSettings
from wordbrush.types import EditRequest


class DiffEdit(InversionEditor[DiffEditSettings]):
    """A mask from the difference of noise predictions, inversion, and masked decoding.

    Without a source caption the target's is compared with no text. The seed is that of the noises behind the
    mask. A result's intermediates have the "mask" of each variation, as a picture that a request can take:
    a request's own mask replaces the computed one.
    """

    method = METHODS["diffedit"]

    def num_steps(self, scheduler: Any) -> int:
        """Of the mask, of the inversion, and of decoding."""
        return self.settings.mask_samples + 2 * self._depth

    def edit_latents(self, batch: Batch, on_step: OnLatents) -> Tensor:
        """Towards the target's caption inside of the mask; outside of it along the inversion."""
        source, first = self.model.scale_latents(batch.source), self.settings.mask_samples
        mask = self._masks(batch, source, on_step)
        for sample, one in zip(batch.samples, mask.split(1), strict=True):
            _note(sample, one)
            if self.settings.strength and not self._depth:
                steps = f"{self.settings.strength:g} of {self.settings.steps} steps is none"
                sample.warnings.append(f"nothing was edited, for {steps}: raise steps or strength")
        if not self._depth:
            return source
        trajectory = self.inversions(batch, later(on_step, first)).trajectory
        noisy, *before = trajectory.flip(1).unbind(1)
        with remembered_text(self.model.unet):
            return denoise(
                self._predict(batch),
                batch.scheduler,
                noisy,
                timesteps=batch.scheduler.timesteps[-self._depth :],
                after_step=[MaskBlend(mask, from_trajectory(before))],
                on_step=later(on_step, first + self._depth),
            )

    def invert(self, batch: Batch, on_step: OnLatents) -> Inversion:
        """By DDIM, `strength` of the way."""
        scheduler, scale = batch.scheduler, self.settings.inversion_scale
        captions = [request.source_caption if scale else "" for request in batch.requests]
        text = self.branch(self._reference_text(captions), batch)
        null = self.branch(self._reference_text([""] * len(captions)), batch)

        def predict(latents: Tensor, t: Tensor, step: int) -> Tensor:
            return self.guided_noise(scheduler, latents, t, null, text, scale or 1.0)

        source = self.model.scale_latents(batch.source)
        return Inversion(ddim_inversion(predict, scheduler, source, num_steps=self._depth, on_step=on_step))

    def inversion_options(self) -> Mapping[str, Any]:
        """How far it goes, and its guidance."""
        return {"depth": self._depth, "scale": self.settings.inversion_scale}

    def inversion_texts(self, request: EditRequest) -> Sequence[TextEmbeds]:
        """No text, and with guidance the source's caption."""
        captions = ["", request.source_caption] if self.settings.inversion_scale else [""]
        return [self._reference_text([caption]) for caption in captions]

    @property
    def _depth(self) -> int:
        """How many of the steps the inversion goes."""
        return int(self.settings.steps * self.settings.strength)

    def _predict(self, batch: Batch) -> Predict:
        text = self.branch(self.text([request.target_caption for request in batch.requests]), batch)
        null = self.branch(self.null_text(batch.requests), batch)

        def predict(latents: Tensor, t: Tensor, step: int) -> Tensor:
            return self.guided_noise(batch.scheduler, latents, t, null, text, self.settings.text_scale)

        return predict

    def _reference_text(self, captions: Sequence[str]) -> TextEmbeds:
        """Captions, and no text for those that are empty."""
        null = self._encode_null_text(None)
        return join_texts([self.text([caption]) if caption.strip() else null for caption in captions])

    def _masks(self, batch: Batch, source: Tensor, on_step: OnLatents) -> Tensor:
        """(B, 1, h, w) in [0, 1]: the requests' own masks, computed ones for those that have none."""
        own = torch.tensor([request.mask is not None for request in batch.requests], device=source.device)
        if batch.mask is not None and own.all():
            return batch.mask
        settings = self.settings
        computed = change_mask(
            self._differences(batch, source, on_step),
            threshold=settings.mask_threshold,
            clamp=settings.mask_clamp,
            extremes=settings.mask_extremes,
        )
        reach = settings.mask_dilate
        computed = F.max_pool2d(computed, 2 * reach + 1, stride=1, padding=reach)
        return computed if batch.mask is None else torch.where(own[:, None, None, None], batch.mask, computed)

    def _differences(self, batch: Batch, source: Tensor, on_step: OnLatents) -> Tensor:
        """(B, 1, h, w): how far the noise predicted for the two captions lies apart, over several noises.

        Without guidance, which would only scale it: `change_mask` looks at ratios.
        """
        scheduler, settings = batch.scheduler, self.settings
        t = scheduler.timesteps[-max(1, int(settings.steps * settings.mask_strength))]
        reference = self._reference_text([request.source_caption for request in batch.requests])
        target = self.text([request.target_caption for request in batch.requests])
        branches = [self.branch(text, batch) for text in (reference, target)]
        total = torch.zeros_like(source[:, :1])
        for step, noise in enumerate(_noises(batch, settings.mask_samples)):
            noisy = scheduler.add_noise(source, noise.to(source), t.expand(len(source)))
            before, after = predict_noise(self.model.unet, scheduler, noisy, t, branches)
            total += (after - before).abs().mean(1, keepdim=True) / settings.mask_samples
            if on_step is not None:
                on_step(step, source)
        return total


def change_mask(differences: Tensor, *, threshold: float, clamp: float, extremes: float = 0.0) -> Tensor:
    """Where differences are large: (B, 1, h, w), at least 0 -> the same shape, 1 there and else 0.

    Each picture's differences are cut off at both ends and rescaled to [0, 1]; more than the threshold is
    large. Where there is no difference anywhere the mask is empty.

    Args:
        differences: not negative.
        threshold: in [0, 1].
        clamp: the ends are 0 and this multiple of the mean (as in diffusers' pipeline).
        extremes: the ends are, instead, these quantiles from below and above (the paper's wording).
    """
    values = differences.flatten(1).float()
    low, high = torch.zeros(len(values), device=values.device), clamp * values.mean(1)
    if extremes:
        low, high = values.quantile(values.new_tensor([extremes, 1 - extremes]), dim=1)
    low, high = low[:, None, None, None], high[:, None, None, None]
    return (differences.clamp(low, high) - low > threshold * (high - low)).to(differences)


def _noises(batch: Batch, count: int) -> Tensor:
    """(count, B, C, h, w), each sample's from its own generator."""
    shape = (count, *batch.source.shape[1:])
    return torch.stack([torch.randn(shape, generator=generator) for generator in batch.generators], 1)


def _note(sample: Sample, mask: Tensor) -> None:
    """Leave the mask (1, 1, h, w) for the result."""
    sample.intermediates["mask"] = _picture(mask, sample.job)
    if sample.job.mask is None and not mask.any():
        sample.warnings.append(f"{EMPTY_MASK}: lower mask_threshold, or let the captions differ more")


def _picture(mask: Tensor, job: Job) -> Image.Image:
    """A mask (1, 1, h, w) of the picture's size, each latent a block."""
    height, width = job.fit.pixels.shape[-2:]
    blocks = F.interpolate(job.fit.crop(F.interpolate(mask, (height, width))), job.fit.size)
    return Image.fromarray((blocks[0, 0] * 255).round().byte().cpu().numpy())
