"""Tiny checkpoints with random weights, in diffusers' folder layout: real classes, a moment each.

`pipeline("sd1")` builds diffusers' own pipeline, `save("sd1", folder)` writes it. Their native size is
32 px: an autoencoder of factor 2 over latents of 16 x 16.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, DDIMScheduler, UNet2DConditionModel
from PIL import Image
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

from wordbrush.models import quiet

NATIVE = 32
WINDOW = 40
"""Tokens that the text encoder reads; the tokenizer makes one of each character."""
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def tokenizer() -> CLIPTokenizer:
    """One token a character."""
    characters = [chr(c) for c in range(33, 127)]
    words = [*characters, *(c + "</w>" for c in characters), "<|startoftext|>", "<|endoftext|>"]
    with TemporaryDirectory() as folder:
        vocabulary, merges = Path(folder, "vocab.json"), Path(folder, "merges.txt")
        vocabulary.write_text(json.dumps({word: i for i, word in enumerate(words)}))
        merges.write_text("#version: 0.2\n")
        return CLIPTokenizer(str(vocabulary), str(merges), model_max_length=WINDOW)


def text_config(**changes: Any) -> CLIPTextConfig:
    size = 2 * 94 + 2
    options = {
        "hidden_size": 32,
        "intermediate_size": 37,
        "num_attention_heads": 4,
        "num_hidden_layers": 3,
        "projection_dim": 32,
        "max_position_embeddings": WINDOW,
        "vocab_size": size,
        "bos_token_id": size - 2,
        "eos_token_id": size - 1,
        "pad_token_id": size - 1,
    }
    return CLIPTextConfig(**(options | changes))


def unet(
    family: str = "sd1", *, in_channels: int = 8, out_channels: int = 4, **changes: Any
) -> UNet2DConditionModel:
    """A U-Net with one level of cross-attention; SD 2 and SDXL differ as the real ones do."""
    options: dict[str, Any] = {
        "sample_size": NATIVE // 2,
        "in_channels": in_channels,
        "out_channels": out_channels,
        "block_out_channels": (16, 32),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "cross_attention_dim": 32,
        "attention_head_dim": 4,
    }
    if family != "sd1":
        options |= {"use_linear_projection": True, "attention_head_dim": (2, 4)}
    if family == "sdxl":
        options |= {
            "cross_attention_dim": 64,
            "transformer_layers_per_block": (1, 2),
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 6 * 8 + 32,
        }
    return UNet2DConditionModel(**(options | changes))


def autoencoder(kind: str = "kl") -> AutoencoderKL | AutoencoderTiny:
    """Factor 2, 4 latent channels."""
    if kind == "tiny":
        widths = {"encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8)}
        return AutoencoderTiny(
            **widths, num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1), scaling_factor=0.7
        )
    return AutoencoderKL(
        block_out_channels=[8, 16],
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=NATIVE,
    )


def pipeline(
    family: str = "sd1", *, vae: str = "kl", scheduler: Any = None, in_channels: int = 8, seed: int = 0
) -> Any:
    """Diffusers' InstructPix2Pix pipeline over random weights.

    Args:
        family: "sd1", "sd2" (v-prediction) or "sdxl" (two text encoders).
        vae: "kl" or "tiny".
        scheduler: None makes DDIM.
        in_channels: of the U-Net; 4 makes a text-to-image model.
        seed: of the weights.
    """
    torch.manual_seed(seed)
    prediction = "v_prediction" if family == "sd2" else "epsilon"
    parts: dict[str, Any] = {
        "unet": unet(family, in_channels=in_channels),
        "vae": autoencoder(vae),
        "tokenizer": tokenizer(),
        "text_encoder": CLIPTextModel(text_config(hidden_act="gelu" if family == "sd2" else "quick_gelu")),
        "scheduler": scheduler or DDIMScheduler(**BETAS, clip_sample=False, prediction_type=prediction),
    }
    for network in (parts["unet"], parts["vae"], parts["text_encoder"]):
        network.eval()
    # Random convolutions hardly react to their input; a checkpoint does.
    parts["unet"].conv_out.weight.data.mul_(4.0)
    if family == "sdxl":
        second = CLIPTextModelWithProjection(text_config(hidden_act="gelu")).eval()
        parts |= {"text_encoder_2": second, "tokenizer_2": tokenizer()}
        kind = diffusers.StableDiffusionXLInstructPix2PixPipeline
    else:
        parts |= {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        kind = diffusers.StableDiffusionInstructPix2PixPipeline
    with quiet():
        pipe = kind(**parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def save(family: str, folder: Path, **options: Any) -> Path:
    """Write `pipeline(family, **options)` to a folder; returns it."""
    with quiet():
        pipeline(family, **options).save_pretrained(folder)
    return folder


def opened_by_diffusers(folder: Path) -> diffusers.StableDiffusionInstructPix2PixPipeline:
    """A folder in diffusers' own pipeline, which has made an edit."""
    with quiet():
        pipe = diffusers.StableDiffusionInstructPix2PixPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    picture = Image.linear_gradient("L").convert("RGB").resize((128, 128))
    assert pipe("make it night", image=picture, num_inference_steps=2).images[0].size == (128, 128)
    return pipe


def classifier(folder: Path, labels: Sequence[str], *, leaning: int | None = None) -> Path:
    """Write a random ViT that tells labels, and its processor; returns the folder.

    Args:
        folder: where to.
        labels: what it tells.
        leaning: the number of a label that it sees in every picture.
    """
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=32,
        patch_size=8, id2label=dict(enumerate(labels)), initializer_range=1.0,
    )  # fmt: skip
    model = ViTForImageClassification(config).eval()
    if leaning is not None:
        model.classifier.bias.data[leaning] = 1000.0
    with quiet():
        model.save_pretrained(folder)
        ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder
