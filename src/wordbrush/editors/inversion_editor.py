"""What editors share that first find the noise a picture comes from."""

import dataclasses
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from torch import Tensor

from wordbrush.diffusion.conditioning import Conditioning
from wordbrush.diffusion.guidance import classifier_free_guidance
from wordbrush.diffusion.inversion import Inversion, ddim_scheduler
from wordbrush.diffusion.inversion_cache import InversionCache, default_folder, inversion_key, model_digest
from wordbrush.diffusion.model import TextEmbeds
from wordbrush.diffusion.sampling import predict_noise
from wordbrush.editors.latent_editor import Batch, Sample
from wordbrush.editors.sdedit import TextToImageEditor
from wordbrush.editors.settings import InversionSettings
from wordbrush.errors import OutputError
from wordbrush.types import EditRequest

InvS = TypeVar("InvS", bound=InversionSettings)
OnLatents = Callable[[int, Tensor], None] | None


class InversionEditor(TextToImageEditor[InvS]):
    """Samples by DDIM from where its inverse leads; inversions are kept for the next edit of the picture."""

    @abstractmethod
    def invert(self, batch: Batch, on_step: OnLatents) -> Inversion:
        """Invert the pictures of a batch."""

    @abstractmethod
    def inversion_options(self) -> Mapping[str, Any]:
        """The method's settings that its inversions depend on, as JSON values."""

    @abstractmethod
    def inversion_texts(self, request: EditRequest) -> Sequence[TextEmbeds]:
        """The texts that the inversion of a request's picture depends on."""

    def make_scheduler(self) -> Any:
        """DDIM, which has an inverse."""
        return ddim_scheduler(self.model.scheduler)

    def branch(self, text: TextEmbeds, batch: Batch) -> Conditioning:
        """The guidance branch of encoded prompts, one or more for each sample of a batch."""
        ids = self.model.add_time_ids(batch.size, len(text.tokens))
        return Conditioning(text.tokens, pooled=text.pooled, time_ids=ids)

    def guided_noise(
        self, scheduler: Any, latents: Tensor, t: Tensor, null: Conditioning, text: Conditioning, scale: float
    ) -> Tensor:
        """Noise under classifier-free guidance, without the branch of no text where it has no say."""
        if scale == 1:
            return predict_noise(self.model.unet, scheduler, latents, t, [text])[0]
        noise = predict_noise(self.model.unet, scheduler, latents, t, [null, text])
        return classifier_free_guidance(noise, scale)

    def inversions(self, batch: Batch, on_step: OnLatents) -> Inversion:
        """The inversion of each sample: from the cache, or made once for all samples that share it."""
        cache = InversionCache(default_folder()) if self.settings.keep_inversion else None
        model = model_digest(self.model)
        keys = [self._key(model, sample) for sample in batch.samples]
        found = {key: None if cache is None else cache.get(key) for key in keys}
        missing = [keys.index(key) for key, inversion in found.items() if inversion is None]
        if missing:
            samples = [batch.samples[place] for place in missing]
            part = dataclasses.replace(batch, samples=samples, source=batch.source[missing])
            made = self.invert(part, on_step).split()
            for sample, place, inversion in zip(samples, missing, made, strict=True):
                found[keys[place]] = inversion
                _keep(cache, keys[place], inversion, sample)
        ordered = [inversion.to(self.model.device) for key in keys if (inversion := found[key])]
        return Inversion.join(ordered)

    def _key(self, model: str, sample: Sample) -> str:
        request, settings = sample.job.request, self.settings
        texts = [text.tokens for text in self.inversion_texts(request)]
        options: dict[str, Any] = {
            "method": self.method.name,
            "steps": settings.steps,
            "tiled_vae": settings.tiled_vae,
        }
        options |= self.inversion_options()
        return inversion_key(model, [sample.job.fit.pixels, *texts], options)


def later(on_step: OnLatents, done: int) -> OnLatents:
    """For a stage of an edit that begins after `done` steps."""
    return None if on_step is None else lambda step, latents: on_step(done + step, latents)


def _keep(cache: InversionCache | None, key: str, inversion: Inversion, sample: Sample) -> None:
    try:
        if cache is not None:
            cache.put(key, inversion)
    except OutputError as error:  # no reason to lose the edit
        sample.warnings.append(f"the inversion of the picture was not kept: {error}")
