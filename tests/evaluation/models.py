"""Tiny judges and editors with random weights, in the layouts that evaluation reads."""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPConfig, CLIPModel, CLIPVisionConfig, ViTConfig, ViTModel

from tests import tiny

MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]


def save_clip(folder: Path) -> Path:
    """In the layout of OpenAI's checkpoints on the hub."""
    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=37, num_attention_heads=4, num_hidden_layers=2, image_size=24,
        patch_size=8, projection_dim=16,
    )  # fmt: skip
    towers: Any = {"text_config": tiny.text_config().to_dict(), "vision_config": vision.to_dict()}
    CLIPModel(CLIPConfig(**towers, projection_dim=16)).save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    config = {"resample": 3, "image_mean": MEAN, "image_std": STD}
    (folder / "preprocessor_config.json").write_text(json.dumps(config))
    return folder


def save_dino(folder: Path) -> Path:
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=32, intermediate_size=37, num_attention_heads=4, num_hidden_layers=2, image_size=28,
        patch_size=7,
    )  # fmt: skip
    ViTModel(config, add_pooling_layer=False).save_pretrained(folder)
    return folder


def save_editor(folder: Path) -> Path:
    """With a text-to-image U-Net beside that of the editor, as the embedded model has it."""
    tiny.save("sd1", folder, vae="tiny")
    torch.manual_seed(1)
    tiny.unet(in_channels=4).save_pretrained(folder / "text_to_image")
    return folder
