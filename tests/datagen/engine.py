"""What the data engine needs, at its smallest: a text-to-image checkpoint, a CLIP and some triplets."""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import BertConfig, BertModel, CLIPConfig, CLIPModel, CLIPVisionConfig

from tests import tiny
from wordbrush.datagen.config import Config
from wordbrush.models import quiet
from wordbrush.triplets import Triplet

THINGS = ("dog", "red car", "tall tree", "old boat", "violin", "mountain", "cup of tea", "snail")
CHANGES = {
    "make it night": "{} at night",
    "as a watercolour": "watercolour of {}",
    "let it snow": "{} in heavy snow",
}


def triplets() -> list[Triplet]:
    """24, no two alike."""
    return [
        Triplet(caption=f"a {thing}", edit=edit, output=after.format(f"a {thing}"))
        for thing in THINGS
        for edit, after in CHANGES.items()
    ]


def save_models(folder: Path) -> dict[str, str]:
    """A checkpoint of an editor with a text-to-image U-Net beside it, as the embedded one; and a CLIP."""
    model, clip = folder / "model", folder / "clip"
    tiny.save("sd1", model)
    torch.manual_seed(1)
    unet = tiny.unet(in_channels=4)
    unet.conv_out.weight.data.mul_(4.0)
    # Random attention hardly looks anywhere, and its values hardly count; a checkpoint's do.
    for name, weight in unet.named_parameters():
        if ".attn" in name and name.endswith("weight"):
            weight.data.mul_(4.0)
    towers: dict[str, Any] = {
        "text_config": tiny.text_config().to_dict(),
        "vision_config": CLIPVisionConfig(
            hidden_size=32, intermediate_size=37, num_attention_heads=4, num_hidden_layers=2, image_size=16,
            patch_size=8, projection_dim=16,
        ).to_dict(),
    }  # fmt: skip
    with quiet():
        unet.save_pretrained(model / "text_to_image")
        CLIPModel(CLIPConfig(**towers, projection_dim=16)).save_pretrained(clip)
        tiny.tokenizer().save_pretrained(clip)
    values = {"resample": 3, "image_mean": [0.5] * 3, "image_std": [0.25] * 3}
    (clip / "preprocessor_config.json").write_text(json.dumps(values))
    return {"model": str(model), "clip": str(clip)}


def save_sentence_encoder(folder: Path) -> str:
    """A BERT of random weights that does not know the order of words."""
    tokenizer = tiny.tokenizer()
    torch.manual_seed(0)
    model = BertModel(
        BertConfig(vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                   intermediate_size=16)
    )  # fmt: skip
    model.embeddings.position_embeddings.weight.data.zero_()
    with quiet():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return str(folder)


def configure(models: dict[str, str], source: dict[str, Any], **changes: Any) -> Config:
    """Three pairs a unit, of which the CLIP's chance keeps about every second one; one worker."""
    pairs = {"samples": 3, "batch_size": 2, "steps": 3, "guidance_scale": (2.0, 5.0), "device": "cpu",
             "dtype": "float32"}  # fmt: skip
    low = dict.fromkeys(("clip_sim_image", "clip_sim_0", "clip_sim_1"), -1.0)
    values: dict[str, Any] = {
        "triplets": source,
        "pairs": models | pairs | changes.pop("pairs", {}),
        "filter": low | {"clip_sim_dir": 0.0, "keep": 2},
        "engine": {"workers": 1},
    }
    return Config.model_validate(values | changes)


def to_toml(values: dict[str, Any], table: str = "") -> str:
    """Settings as a TOML file; JSON's way to write plain values is TOML's too."""
    plain = {name: value for name, value in values.items() if value is not None}
    tables = {name: value for name, value in plain.items() if isinstance(value, dict)}
    head = f"[{table}]\n" if table else ""
    lines = [f"{name} = {json.dumps(value)}\n" for name, value in plain.items() if name not in tables]
    inner = [to_toml(value, f"{table}.{name}".strip(".")) for name, value in tables.items()]
    return "".join([head, *lines, *inner])
