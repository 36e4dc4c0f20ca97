"""What Imagic's tuning finds for a picture: an embedding and weights, for a model, kept in a folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from peft import LoraConfig
from PIL import Image
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from wordbrush.diffusion.model import LatentDiffusion, TextEmbeds
from wordbrush.editors.imagic_presets import Tuning
from wordbrush.errors import ModelError, UsageError, one_line
from wordbrush.models import quiet
from wordbrush.provenance import atomic_file

_TENSORS, _RECORD = "tuned.safetensors", "tuned.json"
# All that shapes the picture, not only attention: a single picture has to be learnt by heart.
_ADAPTED = ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "conv1", "conv2"]
_SAMPLES = 64
_TOLERANCE = 0.01
"""Relative: more than a change of precision makes, less than any training."""


class TunedRecord(BaseModel):
    """The JSON beside the weights."""

    model_config = ConfigDict(frozen=True)

    caption: str
    """The target that the embedding was optimised from."""
    picture: str
    """Of `picture_digest`."""
    run: str
    """Stands for all that the weights depend on."""
    model: list[float]
    """Of `model_signature`."""
    target: list[float]
    """Of `text_signature`, of the caption as it was encoded."""
    size: tuple[int, int]
    """The working size, height and width in pixels."""
    tuning: Tuning
    losses: dict[str, list[float]]
    """Of each stage, on noises of its own that stay the same, every 50 steps and at the end."""


@dataclass(frozen=True, eq=False)
class Subject:
    """What a model is tuned to."""

    picture: Image.Image
    """Of mode "RGB"."""
    latents: Tensor
    """float32 (1, C, h, w), scaled."""
    caption: str
    text: TextEmbeds
    """Of the caption, (1, L, D)."""
    size: tuple[int, int]
    """Height and width of the picture as it was encoded, in pixels."""
    time_ids: Tensor | None = None
    """SDXL's (1, 6) sizes."""


@dataclass(frozen=True, eq=False)
class TunedPicture:
    """A picture that a model was tuned to."""

    record: TunedRecord
    text: TextEmbeds
    """float32 (1, L, D): the optimised embedding."""
    weights: Mapping[str, Tensor]
    """The U-Net's trained parameters by name: its adapters, all of them, or none."""

    def network(self, model: LatentDiffusion) -> UNet2DConditionModel:
        """The tuned U-Net; the model's own stays as it is.

        Raises:
            ModelError: the weights do not fit the model.
        """
        if not self.weights:
            return model.unet
        with torch.inference_mode(False):
            unet = twin(model.unet, model.device)
            if self.record.tuning.lora_rank:
                add_adapters(unet, self.record.tuning.lora_rank, seed=0)
            put_weights(unet, self.weights)
        return unet

    def check(
        self,
        model: LatentDiffusion,
        picture: Image.Image,
        size: tuple[int, int],
        caption: str,
        text: TextEmbeds,
    ) -> None:
        """Raise a `UsageError` unless all are as `Subject` had them, and the model is the same."""
        record = self.record
        if caption != record.caption:
            raise UsageError(f"the tuned picture is for the target {record.caption!r}, not {caption!r}")
        if picture_digest(picture) != record.picture:
            raise UsageError("the tuned picture is of another picture: give the one that it was made from")
        if not _similar(model_signature(model), record.model):
            raise UsageError("the tuned picture is of another model: give --model and --lora as then")
        if not _similar(text_signature(text), record.target):
            raise UsageError("the tuned picture's target has other learned words: give --concept as then")
        if size != record.size:
            raise UsageError(
                f"the tuned picture has a short side of {min(record.size)} pixels: give that as --size"
            )

    def save(self, folder: Path) -> None:
        """Write it into an existing folder; the record, written last, says that it is whole.

        Raises:
            OutputError: the folder cannot be written.
        """
        tensors = {f"unet.{name}": weight for name, weight in self.weights.items()}
        tensors |= {"text.tokens": self.text.tokens}
        tensors |= {} if self.text.pooled is None else {"text.pooled": self.text.pooled}
        data = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
        with atomic_file(folder / _TENSORS, overwrite=True) as file:
            file.write(data)
        with atomic_file(folder / _RECORD, overwrite=True) as file:
            file.write((self.record.model_dump_json(indent=2) + "\n").encode())

    @classmethod
    def load(cls, folder: Path) -> TunedPicture:
        """Read what `save` wrote, to the CPU.

        Raises:
            ModelError: there is none, or it is damaged.
        """
        if not is_tuned(folder):
            raise ModelError(f"{folder} holds no tuned picture: make one with `wordbrush train imagic`")
        try:
            record = TunedRecord.model_validate_json((folder / _RECORD).read_text())
            tensors = load_file(folder / _TENSORS)
            text = TextEmbeds(tensors.pop("text.tokens"), tensors.pop("text.pooled", None))
        except (OSError, ValueError, KeyError, ValidationError, SafetensorError) as error:
            raise ModelError(f"the tuned picture {folder} is damaged: {one_line(error)}") from error
        return cls(record, text, {name.removeprefix("unet."): part for name, part in tensors.items()})


def is_tuned(folder: Path) -> bool:
    """Whether a tuned picture was finished in a folder."""
    return (folder / _RECORD).is_file()


def twin(unet: UNet2DConditionModel, device: torch.device) -> UNet2DConditionModel:
    """Another module over the same weights, frozen: what is built into it leaves the given one as it is."""
    with quiet(), torch.device("meta"):
        other: Any = type(unet).from_config(unet.config)
    other.load_state_dict(unet.state_dict(), assign=True)
    return other.to(device).eval().requires_grad_(False)


def add_adapters(unet: UNet2DConditionModel, rank: int, *, seed: int) -> None:
    """Add trainable adapters (LoRA, 2106.09685) in float32, which change nothing until they are trained."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=_ADAPTED))
    for parameter in unet.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def put_weights(unet: UNet2DConditionModel, weights: Mapping[str, Tensor]) -> None:
    """Set parameters by name, in their own precision; tensors that they are made of do not change.

    Raises:
        ModelError: the U-Net has no such parameter.
    """
    parameters = dict(unet.named_parameters())
    for name, weight in weights.items():
        place = parameters.get(name)
        if place is None or place.shape != weight.shape:
            raise ModelError(f"the tuned picture does not fit the model: no {name} of that shape")
        place.data = weight.to(place.device, place.dtype, copy=True)


def picture_digest(rgb: Image.Image) -> str:
    """Size and pixels of an "RGB" picture, in 64 digits."""
    return sha256(json.dumps(rgb.size).encode() + rgb.tobytes()).hexdigest()


def model_signature(model: LatentDiffusion) -> list[float]:
    """Values taken from all over the U-Net's weights; they tell models apart, whatever their precision."""
    parameters: list[Tensor] = [p for p in model.unet.parameters() if p.ndim > 1]
    chosen = parameters[:: max(1, len(parameters) // _SAMPLES)]
    return [float(parameter.detach().flatten()[0]) for parameter in chosen]


def text_signature(text: TextEmbeds) -> list[float]:
    """Values taken from all over an encoded text."""
    values = text.tokens.detach().float().flatten()
    return values[:: max(1, len(values) // _SAMPLES)].tolist()


def _similar(one: Sequence[float], other: Sequence[float]) -> bool:
    if len(one) != len(other):
        return False
    first, second = torch.tensor(one), torch.tensor(other)
    return bool((first - second).norm() <= _TOLERANCE * first.norm())
