"""SDEdit: noise a picture part of the way, then denoise it towards a caption (Meng et al., 2108.01073)."""

from collections.abc import Callable, Sequence
from typing import Any

from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from wordbrush.attention.blending import MaskBlend
from wordbrush.diffusion.conditioning import Conditioning
from wordbrush.diffusion.guidance import classifier_free_guidance
from wordbrush.diffusion.model import LatentDiffusion
from wordbrush.diffusion.sampling import denoise, predict_noise
from wordbrush.diffusion.text_memory import remembered_text
from wordbrush.editors import METHODS
from wordbrush.editors.latent_editor import Batch, LatentEditor, S
from wordbrush.editors.settings import SDEditSettings
from wordbrush.errors import ModelError


class TextToImageEditor(LatentEditor[S]):
    """An editor that needs nothing but a text-to-image model."""

    unet = "text_to_image"

    @classmethod
    def check(cls, model: LatentDiffusion) -> None:
        """The U-Net must take latents alone."""
        if model.unet.config.in_channels != model.latent_channels:
            raise ModelError(
                f"{cls.method.name} needs a text-to-image model, whose U-Net takes {model.latent_channels} "
                f"input channels, but this checkpoint's takes {model.unet.config.in_channels}"
            )


class SDEdit(TextToImageEditor[SDEditSettings]):
    """With a mask, what it protects follows the noised original (algorithm 2 of the paper)."""

    method = METHODS["sdedit"]

    def num_steps(self, scheduler: Any) -> int:
        """The last `strength` of the steps, as in diffusers' image-to-image pipeline."""
        settings = self.settings
        left_out = settings.steps - int(settings.steps * settings.strength)
        return max(0, len(scheduler.timesteps) - left_out * scheduler.order)

    def edit_latents(self, batch: Batch, on_step: Callable[[int, Tensor], None] | None) -> Tensor:
        """From the noised picture, under classifier-free guidance."""
        scheduler, source = batch.scheduler, self.model.scale_latents(batch.source)
        timesteps = scheduler.timesteps[len(scheduler.timesteps) - self.num_steps(scheduler) :]
        if not len(timesteps):
            return source
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(len(scheduler.timesteps) - len(timesteps))
        noise = randn_tensor(source.shape, generator=batch.generators, device=source.device)

        def noised(t: Tensor) -> Tensor:
            return scheduler.add_noise(source, noise, t.expand(len(source)))

        outside = [] if batch.mask is None else [_keep_outside(batch.mask, source, noised, timesteps)]
        with remembered_text(self.model.unet):
            return denoise(
                self._predict(batch),
                scheduler,
                noised(timesteps[0]),
                timesteps=timesteps,
                after_step=outside,
                on_step=on_step,
                generators=batch.generators,
            )

    def _predict(self, batch: Batch) -> Callable[[Tensor, Tensor, int], Tensor]:
        branches = self._branches(batch)

        def predict(latents: Tensor, t: Tensor, step: int) -> Tensor:
            noise = predict_noise(self.model.unet, batch.scheduler, latents, t, branches)
            return classifier_free_guidance(noise, self.settings.text_scale)

        return predict

    def _branches(self, batch: Batch) -> Sequence[Conditioning]:
        target = self.text([request.target_caption for request in batch.requests])
        null = self.null_text(batch.requests)
        ids = self.model.add_time_ids(batch.size, len(batch.source))
        return [Conditioning(text.tokens, pooled=text.pooled, time_ids=ids) for text in (null, target)]


def _keep_outside(
    mask: Tensor, source: Tensor, noised: Callable[[Tensor], Tensor], timesteps: Tensor
) -> MaskBlend:
    """Outside of the mask stands the original, as noisy as the latents are after each step."""

    def outside(latents: Tensor, step: int) -> Tensor:
        return source if step + 1 == len(timesteps) else noised(timesteps[step + 1])

    return MaskBlend(mask, outside)
