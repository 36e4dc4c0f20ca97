"""The checkpoint that a fine-tuning run starts from, and the checkpoint that it writes: of the same kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.loaders.lora_pipeline import StableDiffusionLoraLoaderMixin
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.utils.state_dict_utils import convert_state_dict_to_diffusers
from peft import LoraConfig
from peft.utils.save_and_load import get_peft_model_state_dict
from transformers import CLIPTextModel, CLIPTokenizer

from wordbrush.diffusion.conditioning import widen_input
from wordbrush.diffusion.model import LatentDiffusion
from wordbrush.diffusion.task_embedding import PART, known_tasks
from wordbrush.errors import UsageError
from wordbrush.models import quiet, resolve
from wordbrush.training.denoising import NOISE_SCHEDULE
from wordbrush.training.loop import TrainingError

_ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]


def load_base(init_from: str, *, config: str | None, device: torch.device) -> LatentDiffusion:
    """A whole checkpoint in float32, its networks frozen.

    Args:
        init_from: A diffusers folder, hub id or single file; or the folder of a U-Net inside a diffusers
            folder, which takes the place of the main one.
        config: For a single file: a diffusers folder or hub id with its configuration.
        device: Where the networks go.

    Raises:
        ModelError: It is missing, damaged, or not of the Stable Diffusion family.
    """
    checkpoint, unet = checkpoint_of(init_from)
    return LatentDiffusion.load(checkpoint, device=device, dtype=torch.float32, unet=unet, config=config)


def checkpoint_of(init_from: str) -> tuple[str, str | None]:
    """The checkpoint that `load_base` loads, and the folder of its U-Net where that is not the main one."""
    path = Path(init_from).expanduser()
    inside = path.is_dir() and not (path / "model_index.json").exists()
    if inside and (path.parent / "model_index.json").exists():
        return str(path.parent), path.name
    return init_from, None


def task_embedding_of(init_from: str) -> Path | None:
    """The folder of the task embedding that belongs to the U-Net of `load_base`; None: it takes no tasks."""
    start, own = checkpoint_of(init_from)
    folder = resolve(start)
    return folder / PART if own is None and known_tasks(folder) else None


def load_parts(autoencoder: Path, clip: Path, *, device: torch.device) -> LatentDiffusion:
    """As `load_base`, without a U-Net, before `wordbrush train assemble` joins a storybook model's parts.

    Args:
        autoencoder: A folder of `AutoencoderKL`.
        clip: A folder that holds text_encoder/ and tokenizer/.
        device: Where the networks go.

    Raises:
        TrainingError: A folder is not there.
    """
    for folder in (autoencoder, clip):
        if not folder.is_dir():
            raise TrainingError(f"no folder {folder}: train it first")
    with quiet():  # about the picture tower, which stays unused
        text = CLIPTextModel.from_pretrained(clip / "text_encoder")
    networks: list[Any] = [AutoencoderKL.from_pretrained(autoencoder), text]
    for network in networks:
        network.to(device).eval().requires_grad_(False)
    return LatentDiffusion(
        unet=None, vae=networks[0], text_encoders=(text,),
        tokenizers=(CLIPTokenizer.from_pretrained(clip / "tokenizer"),),
        scheduler=DDPMScheduler(**NOISE_SCHEDULE), device=device,
    )  # fmt: skip


def make_trainable(model: LatentDiffusion, *, lora_rank: int | None, seed: int) -> None:
    """Widens a text-to-image U-Net, and unfreezes it or adds adapters (LoRA, 2106.09685) to its attention.

    Raises:
        UsageError: The U-Net takes other inputs; or adapters for one that takes no picture yet.
    """
    unet, channels = model.unet, model.latent_channels
    taken = int(unet.config.in_channels)
    if taken not in (channels, 2 * channels):
        raise UsageError(f"the U-Net takes {taken} channels: wanted are {channels} or {2 * channels}")
    if lora_rank is None:
        if taken == channels:
            widen_input(unet, channels)
        unet.requires_grad_(True)
        return
    if taken == channels:
        raise UsageError("LoRA starts from an editor: this is a text-to-image model; train it whole")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet.add_adapter(LoraConfig(r=lora_rank, lora_alpha=lora_rank, target_modules=_ATTENTION))


def save_lora(unet: Any, folder: Path) -> None:
    """The adapters as `pytorch_lora_weights.safetensors`, in diffusers' layout."""
    layers = convert_state_dict_to_diffusers(get_peft_model_state_dict(unet))
    StableDiffusionLoraLoaderMixin.save_lora_weights(folder, unet_lora_layers=layers)


def save_pipeline(model: LatentDiffusion, unet: Any, folder: Path) -> None:
    """A folder of diffusers' InstructPix2Pix pipeline with another U-Net in it."""
    parts: dict[str, Any] = {"unet": unet, "vae": model.vae, "scheduler": model.scheduler}
    for number, (tokenizer, encoder) in enumerate(zip(model.tokenizers, model.text_encoders, strict=True), 1):
        suffix = "" if number == 1 else f"_{number}"
        parts |= {f"tokenizer{suffix}": tokenizer, f"text_encoder{suffix}": encoder}
    if len(model.tokenizers) > 1:
        name = "StableDiffusionXLInstructPix2PixPipeline"
        parts |= {"force_zeros_for_empty_prompt": model.zero_null_text}
        parts |= {"is_cosxl_edit": model.scale_image_condition}
    else:
        name = "StableDiffusionInstructPix2PixPipeline"
        parts |= {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    with quiet():
        getattr(diffusers, name)(**parts).save_pretrained(folder)
