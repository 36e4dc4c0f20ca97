"""How good the models below an editor are: autoencoder, CLIP and text-to-image, on held-out renders."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from wordbrush import images
from wordbrush.diffusion.conditioning import Conditioning
from wordbrush.diffusion.model import LatentDiffusion
from wordbrush.diffusion.sampling import denoise, initial_latents, predict_noise
from wordbrush.diffusion.text_memory import remembered_text
from wordbrush.evaluation.metrics import Mean, l1, psnr
from wordbrush.perception.clip import Clip
from wordbrush.perception.features import EfficientNetLite0, efficientnet_lite0_distance
from wordbrush.storybook.catalogue import INDOORS
from wordbrush.storybook.recogniser import Facts
from wordbrush.storybook.render import Mask, Renderer
from wordbrush.storybook.scenes import SLOTS, Scene, draw_scene, scene_rng
from wordbrush.storybook.wording import caption

RECALL_GROUP = 64
PHOTOGRAPHS = ("astronaut", "camera", "chelsea", "coffee", "hubble_deep_field", "rocket")
"""Of scikit-image: for judging only, never trained on."""
DISTANCES = ("l1", "psnr", "efficientnet_lite0_distance")
_BATCH = 32


@dataclass(frozen=True)
class HeldOut:
    """Renders of the test split."""

    scenes: list[Scene]
    pictures: list[Image.Image]
    masks: list[Mask]

    @classmethod
    def render(cls, render: Renderer, count: int) -> HeldOut:
        """Scenes 0 .. count-1 of the test split."""
        scenes = [draw_scene(scene_rng("test", number), "test") for number in range(count)]
        rendered = [render(scene) for scene in scenes]
        return cls(scenes, [r.image for r in rendered], [r.masks for r in rendered])

    @property
    def captions(self) -> list[str]:
        """One each."""
        return [caption(scene) for scene in self.scenes]


@torch.inference_mode()
def distances(
    features: EfficientNetLite0, pictures: Sequence[Image.Image], targets: Sequence[Image.Image]
) -> list[dict[str, float]]:
    """Of each picture from its target: the measures `DISTANCES`."""
    rows: list[dict[str, float]] = []
    for start in range(0, len(pictures), _BATCH):
        got, wanted = (pixels_of(several[start : start + _BATCH]) for several in (pictures, targets))
        far = efficientnet_lite0_distance(features, got, wanted).tolist()
        for values in zip(l1(got, wanted), psnr(got, wanted), far, strict=True):
            rows.append(dict(zip(DISTANCES, values, strict=True)))
    return rows


def pixels_of(pictures: Sequence[Image.Image]) -> Tensor:
    """(B, 3, H, W) in [-1, 1]."""
    return torch.cat([images.from_pil(picture) for picture in pictures])


@torch.inference_mode()
def round_trip(model: LatentDiffusion, pictures: Sequence[Image.Image]) -> list[Image.Image]:
    """The pictures as the autoencoder gives them back; sides are multiples of its grid."""
    found: list[Image.Image] = []
    for start in range(0, len(pictures), _BATCH):
        latents = model.encode_image(pixels_of(pictures[start : start + _BATCH]))
        found += images.to_pil(model.decode(model.scale_latents(latents)))
    return found


def autoencoder_quality(model: LatentDiffusion, held_out: HeldOut) -> dict[str, Any]:
    """PSNR in dB on renders, inside their objects, and on photographs."""
    restored, original = pixels_of(round_trip(model, held_out.pictures)), pixels_of(held_out.pictures)
    masks = torch.from_numpy(np.stack([mask.any(0) for mask in held_out.masks]))
    some = masks.any((1, 2))
    found = {
        "psnr": Mean.of(psnr(restored, original)),
        "psnr_in_objects": Mean.of(psnr(restored[some], original[some], masks[some])),
    }
    if photographs := load_photographs(model.native_size):
        restored = pixels_of(round_trip(model, photographs))
        found["psnr_on_photographs"] = Mean.of(psnr(restored, pixels_of(photographs)))
    return {name: mean and mean.as_json() for name, mean in found.items()}


def load_photographs(size: int) -> list[Image.Image]:
    """Scikit-image's, the central square at `size` pixels; none if it is not installed."""
    try:
        from skimage import data
    except ModuleNotFoundError:
        return []
    found = [Image.fromarray(getattr(data, name)()).convert("RGB") for name in PHOTOGRAPHS]
    return [ImageOps.fit(picture, (size, size), Image.Resampling.LANCZOS) for picture in found]


def clip_recall(folder: Path, held_out: HeldOut) -> dict[str, Any] | None:
    """Recall@1 of a picture's caption among `RECALL_GROUP`, equal captions counting as equally right.

    None where the checkpoint's text encoder is not a whole CLIP.
    """
    config = folder / "text_encoder" / "config.json"
    if json.loads(config.read_text()).get("architectures") != ["CLIPModel"]:
        return None
    clip = Clip.load(folder, device=torch.device("cpu"))
    hits: list[float] = []
    for start in range(0, len(held_out.pictures) - RECALL_GROUP + 1, RECALL_GROUP):
        part = slice(start, start + RECALL_GROUP)
        captions = held_out.captions[part]
        similarities = clip.embed_images(held_out.pictures[part]) @ clip.embed_texts(captions).T
        best = similarities.argmax(-1).tolist()
        hits += [float(captions[found] == captions[i]) for i, found in enumerate(best)]
    mean = Mean.of(hits)
    return mean and mean.as_json()


@torch.inference_mode()
def generate(
    model: LatentDiffusion,
    captions: Sequence[str],
    numbers: Sequence[int],
    *,
    steps: int = 20,
    guidance: float = 4.0,
) -> list[Image.Image]:
    """Pictures of the captions of those numbers by DPM-Solver++, all at once; number k comes from seed k."""
    scheduler = model.make_scheduler("dpm++")
    scheduler.set_timesteps(steps, device=model.device)
    text = Conditioning(model.encode_text([captions[k] for k in numbers]).tokens)
    null = Conditioning(model.encode_null_text().tokens.expand_as(text.text))
    generators = [torch.Generator().manual_seed(k) for k in numbers]
    side = model.native_size // model.latent_grid
    noise = initial_latents(scheduler, (model.latent_channels, side, side), generators, model.device)
    predict = _guided(model, scheduler, [null, text], guidance)
    with remembered_text(model.unet):
        latents = denoise(predict, scheduler, noise, generators=generators)
    return images.to_pil(model.decode(latents))


def _guided(model: LatentDiffusion, scheduler: Any, branches: list[Conditioning], guidance: float) -> Any:
    """Classifier-free guidance (2207.12598) over (null text, text)."""

    def predict(latents: Tensor, t: Tensor, step: int) -> Tensor:
        null, text = predict_noise(model.unet, scheduler, latents, t, branches)
        return null + guidance * (text - null)

    return predict


def caption_scores(scenes: Sequence[Scene], readings: Sequence[Facts]) -> dict[str, Any]:
    """The shares of captioned objects, places, times and weathers that are to be seen.

    An object counts where it is among those of the four slots; time and weather only under a sky.
    """
    hits: dict[str, list[float]] = {name: [] for name in ("objects", "places", "times", "weathers")}
    for scene, read in zip(scenes, readings, strict=True):
        there = Counter(cast("str", read[f"{slot}.thing"]) for slot in SLOTS)
        wanted = Counter(item.thing for item in scene.items)
        found = (there & wanted).total()
        hits["objects"] += [1.0] * found + [0.0] * (wanted.total() - found)
        hits["places"].append(float(read["place"] == scene.place))
        if scene.place not in INDOORS:
            hits["times"].append(float(read["time"] == scene.time))
            hits["weathers"].append(float(read["weather"] == scene.weather))
    return {name: (mean := Mean.of(values)) and mean.as_json() for name, values in hits.items()}


def plain_scenes(count: int) -> list[Scene]:
    """Scenes of the test split without a style, which would hide what is to be judged."""
    drawn = (draw_scene(scene_rng("test", number), "test") for number in range(10 * count))
    return [scene for scene in drawn if scene.style == "none"][:count]
