"""Prompt-to-Prompt (Hertz et al., 2208.01626) on a real picture, by null-text inversion (2211.09794)."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

from torch import Tensor

from wordbrush import images
from wordbrush.attention.alignment import find_word, find_words
from wordbrush.attention.blending import LocalBlend, MaskBlend, from_source, word_mask
from wordbrush.attention.control import AttentionControl, AttentionSite, AttentionStore, map_site
from wordbrush.attention.edits import prompt_to_prompt
from wordbrush.diffusion.inversion import Inversion, NullTextSettings, ddim_inversion, null_text_inversion
from wordbrush.diffusion.model import TextEmbeds
from wordbrush.diffusion.sampling import Predict, denoise, predict_noise
from wordbrush.editors import METHODS
from wordbrush.editors.inversion_editor import InversionEditor, OnLatents, later
from wordbrush.editors.latent_editor import Batch, Job
from wordbrush.editors.settings import PromptToPromptSettings, parse_numbers, parse_words
from wordbrush.types import EditRequest

_MEMBERS = 2
"""Of a group of prompts: the source's caption and the target's."""


class PromptToPrompt(InversionEditor[PromptToPromptSettings]):
    """Samples the picture from its inversion and, beside it, the edit, which takes over its attention.

    A result's intermediates are, for each variation, "reconstruction": the picture as it comes back from its
    inversion; "reconstruction_psnr": how well, in dB at the working size; "reconstruction_error": the mean
    squared error of its latents, in which the autoencoder's own loss has no part.
    """

    method = METHODS["prompt-to-prompt"]
    batch_pixels = 512 * 512  # for each the U-Net sees four latents, and null texts need its gradient

    def num_steps(self, scheduler: Any) -> int:
        """Of the inversion, of the null texts, and of sampling."""
        return len(scheduler.timesteps) * (2 if self._null_text_settings() is None else 3)

    def edit_latents(self, batch: Batch, on_step: OnLatents) -> Tensor:
        """Picture and edit from the same noise, under the same null texts."""
        inversion = self.inversions(batch, on_step)
        report = later(on_step, self.num_steps(batch.scheduler) - len(batch.scheduler.timesteps))
        store = AttentionStore(self._blend_site(batch).queries) if self.settings.blend_words else None
        control = self._control(batch.requests, store)
        latents = inversion.trajectory[:, -1].repeat_interleave(_MEMBERS, 0)
        with control.installed(self.model.unet, latents.shape):
            latents = denoise(
                self._predict(batch, inversion),
                batch.scheduler,
                latents,
                control=control,
                after_step=[*self._local_blend(batch, store), *_mask_blend(batch)],
                on_step=None if report is None else lambda step, pairs: report(step, pairs[1::_MEMBERS]),
            )
        self._note(batch, latents[::_MEMBERS], inversion.trajectory[:, 0])
        return latents[1::_MEMBERS]

    def invert(self, batch: Batch, on_step: OnLatents) -> Inversion:
        """By DDIM under the source's caption alone; then the null texts, if they are wanted."""
        model, scheduler, settings = self.model, batch.scheduler, self._null_text_settings()
        text = self.branch(self.text([request.source_caption for request in batch.requests]), batch)

        def predict(latents: Tensor, t: Tensor, step: int) -> Tensor:
            return predict_noise(model.unet, scheduler, latents, t, [text])[0]

        source = model.scale_latents(batch.source)
        trajectory = ddim_inversion(predict, scheduler, source, on_step=on_step)
        if settings is None:
            return Inversion(trajectory)
        null, report = self.branch(self.null_text(batch.requests), batch), later(on_step, self.settings.steps)
        null_texts = null_text_inversion(
            model.unet, scheduler, trajectory, text, null, settings, on_step=report
        )
        return Inversion(trajectory, null_texts)

    def inversion_options(self) -> Mapping[str, Any]:
        """Those of the null texts."""
        settings = self._null_text_settings()
        return {"null_text": None if settings is None else dataclasses.asdict(settings)}

    def inversion_texts(self, request: EditRequest) -> Sequence[TextEmbeds]:
        """The source's caption, and what null texts start from."""
        text = self.text([request.source_caption])
        return [text] if self._null_text_settings() is None else [text, self.null_text([request])]

    def _prepare(self, request: EditRequest) -> Job:
        job = super()._prepare(request)
        # A word that is missing shows before any work is done.
        self._control([request], None)
        self._words([request], self.settings.blend_words)
        self._words([request], self.settings.keep_words)
        return job

    def _null_text_settings(self) -> NullTextSettings | None:
        """None where no null text is optimised, or where it would have no say."""
        settings = self.settings
        if not settings.null_text_steps or settings.text_scale == 1:
            return None
        return NullTextSettings(
            text_scale=settings.text_scale,
            inner_steps=settings.null_text_steps,
            learning_rate=settings.null_text_rate,
            decay=settings.null_text_decay,
            tolerance=settings.null_text_tolerance,
            growth=settings.null_text_growth,
        )

    def _predict(self, batch: Batch, inversion: Inversion) -> Predict:
        text = self.branch(self.text(_captions(batch.requests)), batch)
        null = self.branch(self.null_text([r for r in batch.requests for _ in range(_MEMBERS)]), batch)

        def predict(latents: Tensor, t: Tensor, step: int) -> Tensor:
            at_step = null
            if inversion.null_texts is not None:
                optimised = inversion.null_texts[:, step].repeat_interleave(_MEMBERS, 0)
                at_step = dataclasses.replace(null, text=optimised)
            return self.guided_noise(batch.scheduler, latents, t, at_step, text, self.settings.text_scale)

        return predict

    def _control(self, requests: Sequence[EditRequest], store: AttentionStore | None) -> AttentionControl:
        settings = self.settings
        windows = {"default_": settings.cross_steps} | parse_numbers("word_steps", settings.word_steps)
        return prompt_to_prompt(
            self.model.tokenizers[0],
            _captions(requests),
            members=_MEMBERS,
            method=cast(Literal["replace", "refine"], settings.attention_edit),
            cross_steps=windows,
            self_steps=settings.self_steps,
            max_self_queries=settings.max_self_queries,
            equalizer=parse_numbers("word_weights", settings.word_weights) or None,
            store=store,
        )

    def _words(self, requests: Sequence[EditRequest], listed: str | None) -> Tensor:
        """(requests, members, tokens): of a list of words, in the captions that have them."""
        tokenizer, words = self.model.tokenizers[0], parse_words(listed)
        for request in requests:
            for word in words:
                find_words(tokenizer, _captions([request]), word)
        captions = _captions(requests)
        present = [[word for word in words if find_word(tokenizer, text, word)] for text in captions]
        return word_mask(tokenizer, captions, present, members=_MEMBERS)

    def _blend_site(self, batch: Batch) -> AttentionSite:
        return map_site(self.model.unet, (batch.source.shape[-2], batch.source.shape[-1]))

    def _local_blend(self, batch: Batch, store: AttentionStore | None) -> list[LocalBlend]:
        if store is None:
            return []
        settings = self.settings
        return [
            LocalBlend(
                store,
                self._words(batch.requests, settings.blend_words),
                self._words(batch.requests, settings.keep_words) if settings.keep_words else None,
                threshold=settings.blend_threshold,
                start=settings.blend_start,
                level=self._blend_site(batch).level,
            )
        ]

    def _note(self, batch: Batch, latents: Tensor, source: Tensor) -> None:
        """Leave for the results how well the pictures come back."""
        errors = (latents - source).square().flatten(1).mean(1).tolist()
        pixels = self.model.decode(latents, tiled=self.settings.tiled_vae).cpu()
        for sample, error, restored in zip(batch.samples, errors, pixels.split(1), strict=True):
            fit = sample.job.fit
            squared = (fit.crop(restored).clamp(-1, 1) - fit.crop(fit.pixels)).square().mean().item()
            sample.intermediates["reconstruction"] = images.to_pil(fit.inverse(restored))[0]
            sample.intermediates["reconstruction_psnr"] = 10 * math.log10(4 / max(squared, 1e-9))
            sample.intermediates["reconstruction_error"] = error
            if len(sample.job.seeds) > 1:
                sample.warnings.append(f"{self.method.name} draws nothing at random: variations are alike")


def _captions(requests: Sequence[EditRequest]) -> list[str]:
    return [text for request in requests for text in (request.source_caption, request.target_caption)]


def _mask_blend(batch: Batch) -> list[MaskBlend]:
    if batch.mask is None:
        return []
    return [MaskBlend(batch.mask.repeat_interleave(_MEMBERS, 0), from_source(_MEMBERS))]
