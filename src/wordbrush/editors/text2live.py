"""Text2LIVE: a layer of colour and opacity over a picture, painted for CLIP (Bar-Tal et al., 2204.02491).

A small network is trained anew for every picture and thrown away after it has painted. No diffusion model
takes part: a CLIP is all that the method needs.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from PIL import Image, ImageChops
from torch import Tensor

from wordbrush import images
from wordbrush.diffusion.runtime import prepare_process, resolve_device
from wordbrush.editors import METHODS
from wordbrush.editors.edit_layer import LayerGenerator, composite, num_scales
from wordbrush.editors.jobs import Job, describe_job, describe_model, prepare_job, remarks
from wordbrush.editors.settings import Text2LiveSettings, make_settings
from wordbrush.errors import MissingExtraError, UsageError
from wordbrush.perception.clip import Clip
from wordbrush.perception.clip_losses import (
    PLAIN,
    SCREEN_TEMPLATES,
    TEMPLATES,
    ClipEyes,
    directional_distance,
    opacity_penalty,
    spherical_distance,
    structure_distance,
)
from wordbrush.perception.views import random_colours, random_crop
from wordbrush.types import EditRequest, EditResult, OnStep, StepInfo

_SCREEN = torch.tensor([0.0, 177.0, 64.0])[:, None, None] / 255
_WHOLE_EVERY = 75
"""Steps between those that also see the picture whole and as it is."""
_DECAY, _LEAST_RATE = 0.99, 1e-5
"""Of the learning rate, a step."""
_GRID = 32


class Text2Live:
    """Text2LIVE bound to a CLIP.

    A result's picture is its layer over the picture that was given, to the byte. Its intermediates are, for
    each variation, "layer": that layer, an "RGBA" picture of the same size; and, with a `region_text`,
    "region": where CLIP sees it, as a grey picture.

    Args:
        clip: a CLIP in float32; it is frozen, and its attention made readable.
        settings: the method's settings.
        record: what a result's `settings` say about the model.
    """

    method = METHODS["text2live"]

    def __init__(
        self, clip: Clip, settings: Text2LiveSettings, *, record: dict[str, Any] | None = None
    ) -> None:
        self.eyes = ClipEyes(clip)
        self.settings = settings
        self._record = record or {}

    @classmethod
    def load(
        cls,
        model: str | Path,
        settings: Text2LiveSettings,
        *,
        device: str,
        dtype: str,
        offload: bool,
        lora: Sequence[str | Path],
        concept: Sequence[str | Path],
        config: str | Path | None,
    ) -> Self:
        """Load the CLIP of a storybook model, of a folder, or of a hub id; see `wordbrush.load`."""
        foreign = {
            "a LoRA file": lora,
            "a learned word": concept,
            "a configuration": config,
            "offload": offload,
        }
        for what in (name for name, given in foreign.items() if given):
            raise UsageError(f"text2live uses a CLIP alone: {what} is for diffusion models, leave it out")
        if dtype not in ("auto", "float32"):
            raise UsageError(f"text2live trains in float32: dtype {dtype!r} cannot be had")
        prepare_process()
        place = resolve_device(device)
        clip = Clip.load(model, device=place)
        record = describe_model(model, lora=(), concept=(), config=None, device=place.type, dtype="float32")
        return cls(clip, settings, record=record)

    def with_settings(self, **changes: Any) -> Self:
        """An editor with some settings changed; the CLIP is shared."""
        settings = make_settings(Text2LiveSettings, dataclasses.asdict(self.settings) | changes)
        return type(self)(self.eyes.clip, settings, record=self._record)

    def edit(self, request: EditRequest, *, on_step: OnStep | None = None) -> EditResult:
        """Edit one picture; see `edit_batch`."""
        return self.edit_batch([request], on_step=on_step)[0]

    def edit_batch(
        self, requests: Sequence[EditRequest], *, on_step: OnStep | None = None
    ) -> list[EditResult]:
        """Edit many pictures, one after the other.

        Args:
            requests: each with the captions of the picture and of the result; all are checked first.
            on_step: called after every training step, with the layer (1, 4, H, W) so far as its latents; an
                exception raised in it cancels the call.

        Raises:
            UsageError: a request without a caption, or a senseless seed or number of variations.
            ImageError: a picture that cannot be read, or a mask of another size than its picture.
        """
        jobs = [prepare_job(self.method, request, self._fit) for request in requests]
        total, done = self.settings.steps * sum(len(job.seeds) for job in jobs), 0
        results: list[EditResult] = []
        for job in jobs:
            layers: list[Image.Image] = []
            for seed in job.seeds:
                report = None if on_step is None else _reporter(on_step, done, total, job)
                layers.append(_finish_layer(job, self.paint(job, seed, report)))
                done += self.settings.steps
            results.append(self._result(job, layers))
        return results

    def paint(self, job: Job, seed: int, report: Callable[[int, Tensor], None] | None = None) -> Tensor:
        """Train a generator and let it paint: the layer (1, 4, H, W) in [0, 1], at the working size."""
        with torch.inference_mode(False), torch.enable_grad():
            painter = _Painter(self.eyes, self.settings, job, seed)
            for step in range(self.settings.steps):
                painter.train(step)
                if report is not None:
                    report(step, painter.layer())
            return painter.layer()

    def _fit(self, rgb: Image.Image) -> images.Fit:
        native = max(_GRID, self.eyes.clip.preprocess.side * 512 // 224 // _GRID * _GRID)
        return images.fit(rgb, size=self.settings.size, native=native, multiple=1)

    def _result(self, job: Job, layers: list[Image.Image]) -> EditResult:
        found: dict[str, Any] = {"layer": layers}
        if self.settings.region_text:
            region = self.eyes.relevance(_unit(job, self.eyes), self.eyes.texts(self.settings.region_text))
            size = (job.fit.pixels.shape[-2], job.fit.pixels.shape[-1])
            grey = job.fit.inverse(images.resize(region.cpu(), size)).clamp(0, 1)
            found["region"] = [_grey(grey)] * len(layers)
        warnings = ["text2live has no use for a negative prompt"] if job.request.negative_prompt else []
        warnings += remarks(job)
        settings = describe_job(self.method, job, self.settings, self._record)
        return EditResult([_over(job, layer) for layer in layers], job.seeds, settings, found, warnings)


@dataclass(frozen=True, eq=False)
class _Texts:
    """Embeddings of the captions in all their templates."""

    source: Tensor
    target: Tensor
    layer: Tensor
    region: Tensor | None


class _Painter:
    """One generator in training."""

    def __init__(self, eyes: ClipEyes, settings: Text2LiveSettings, job: Job, seed: int) -> None:
        self.eyes, self.settings = eyes, settings
        self.rng = torch.Generator().manual_seed(seed)
        self.pixels = _unit(job, eyes)
        self.mask = None if job.mask is None else (job.mask[:, :1] / 2 + 0.5).to(self.pixels)
        self.texts = _encode(eyes, settings, job.request)
        height, width = self.pixels.shape[-2:]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            generator = LayerGenerator(settings.width, num_scales(height, width))
        self.generator = generator.to(self.pixels.device)
        self.optimizer = _madgrad(self.generator, settings.generator_rate)

    def train(self, step: int) -> None:
        """One optimiser step, on a random crop and now and then also on the whole picture."""
        inputs = [self._crop()]
        if step % _WHOLE_EVERY == 0:
            inputs.append((self.pixels, self.mask))
        for pixels, mask in inputs:
            (self._loss(pixels, mask, step) / len(inputs)).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        for group in self.optimizer.param_groups:
            group["lr"] = max(_LEAST_RATE, _DECAY * group["lr"])

    @torch.no_grad()
    def layer(self) -> Tensor:
        """What the generator paints on the whole picture, (1, 4, H, W)."""
        return _masked(self.generator(self.pixels), self.mask)

    def _crop(self) -> tuple[Tensor, Tensor | None]:
        colours = random_colours(self.pixels, self.rng, jitter=0.1)
        if self.mask is None:
            return random_crop(colours, self.rng), None
        crop = random_crop(torch.cat([colours, self.mask], dim=1), self.rng)
        return crop[:, :3], crop[:, 3:]

    def _loss(self, pixels: Tensor, mask: Tensor | None, step: int) -> Tensor:
        """Of the layer on one picture."""
        settings, texts = self.settings, self.texts
        layer = _masked(self.generator(pixels), mask)
        result, screen = composite(layer, pixels), composite(layer, _SCREEN.to(layer))
        shown, after, alone = self._embed(result, result, screen)
        with torch.no_grad():
            (before,) = self._embed(pixels)
        pick = _pick(len(texts.target), self.rng)
        directions = texts.target[pick] - texts.source[pick]
        content = spherical_distance(shown, texts.target[_pick(len(texts.target), self.rng)])
        content = content + directional_distance(before, after, directions)
        loss = settings.composition_weight * content
        green = spherical_distance(alone, texts.layer[_pick(len(texts.layer), self.rng)])
        loss = loss + settings.screen_weight * green
        loss = loss + settings.structure_weight * structure_distance(self.eyes, pixels, result)
        loss = loss + settings.opacity_weight * opacity_penalty(layer[:, 3:])
        return loss + self._region_loss(layer, pixels, step)

    def _embed(self, *pictures: Tensor) -> tuple[Tensor, ...]:
        """Embeddings of random views of each picture, in one pass."""
        count = self.settings.num_views
        views = torch.cat([self.eyes.views(picture, count, self.rng) for picture in pictures])
        return self.eyes.embed(views).split(count)

    def _region_loss(self, layer: Tensor, pixels: Tensor, step: int) -> Tensor | float:
        """Opacity against where CLIP sees the region, weaker from step to step."""
        last = self.settings.region_steps * self.settings.steps
        if self.texts.region is None or step >= last:
            return 0.0
        alpha = self.eyes.square(layer[:, 3:])
        error = (alpha - self.eyes.relevance(pixels, self.texts.region)).square().mean()
        return self.settings.region_weight * (1 - (step + 1) / last) * error


def _unit(job: Job, eyes: ClipEyes) -> Tensor:
    """The working picture (1, 3, H, W) in [0, 1], where the CLIP is."""
    return (job.fit.pixels / 2 + 0.5).to(eyes.clip.model.device)


def _encode(eyes: ClipEyes, settings: Text2LiveSettings, request: EditRequest) -> _Texts:
    plain = settings.templates == "plain"
    templates, screen = (PLAIN, PLAIN) if plain else (TEMPLATES, SCREEN_TEMPLATES)
    return _Texts(
        source=eyes.texts(request.source_caption, templates),
        target=eyes.texts(request.target_caption, templates),
        layer=eyes.texts(settings.layer_text or request.target_caption, screen),
        region=eyes.texts(settings.region_text) if settings.region_text else None,
    )


def _pick(count: int, rng: torch.Generator) -> Tensor:
    """Some of so many, drawn with replacement; their number is drawn too."""
    number = int(torch.randint(1, count + 1, (1,), generator=rng))
    return torch.randint(count, (number,), generator=rng)


def _masked(layer: Tensor, mask: Tensor | None) -> Tensor:
    return layer if mask is None else torch.cat([layer[:, :3], layer[:, 3:] * mask], dim=1)


def _madgrad(generator: LayerGenerator, rate: float) -> torch.optim.Optimizer:
    try:
        from pytorch_optimizer import MADGRAD
    except ModuleNotFoundError as error:
        raise MissingExtraError("text2live", "train") from error
    return MADGRAD(generator.parameters(), lr=rate, momentum=0.9, weight_decay=0.01)


def _reporter(on_step: OnStep, done: int, total: int, job: Job) -> Callable[[int, Tensor], None]:
    """Turns the steps of one variation into steps of the whole call."""
    below = job.fit.pixels / 2 + 0.5

    def report(step: int, layer: Tensor) -> None:
        def preview() -> list[Image.Image]:
            return images.to_pil(2 * composite(layer.cpu(), below) - 1)

        on_step(StepInfo(done + step, total, layer, preview))

    return report


def _finish_layer(job: Job, layer: Tensor) -> Image.Image:
    """From the working size back to the picture's, as "RGBA"; clear where a mask protects."""
    full = job.fit.inverse(layer.float()).clamp(0, 1)
    colours, alpha = images.to_pil(2 * full[:, :3] - 1)[0], _grey(full[:, 3:])
    if job.request.mask is not None:
        alpha = ImageChops.multiply(alpha, images.normalise(job.request.mask)[0].convert("L"))
    colours.putalpha(alpha)
    return colours


def _grey(values: Tensor) -> Image.Image:
    """(1, 1, H, W) in [0, 1]."""
    return images.to_pil(2 * values.expand(-1, 3, -1, -1) - 1)[0].getchannel(0)


def _over(job: Job, layer: Image.Image) -> Image.Image:
    """The layer over the picture, which keeps its own transparency."""
    picture = Image.alpha_composite(job.rgb.convert("RGBA"), layer).convert("RGB")
    if job.alpha is not None:
        picture.putalpha(job.alpha)
    return picture
