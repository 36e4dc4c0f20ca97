"""Separately trained parts put together as one diffusers folder in half precision."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from transformers import CLIPModel, LlamaForCausalLM, T5ForConditionalGeneration

from wordbrush.diffusion.task_embedding import PART as TASK_EMBEDDING
from wordbrush.diffusion.task_embedding import TaskEmbedding
from wordbrush.editors.task_predictor import PART as TASK_PREDICTOR
from wordbrush.language_model import PART as INSTRUCTION_WRITER
from wordbrush.training.denoising import NOISE_SCHEDULE
from wordbrush.training.loop import TrainingError

_PARTS: dict[str, Any] = {
    "vae": ("autoencoder/model", AutoencoderKL),
    "text_encoder": ("clip/model/text_encoder", CLIPModel),
    "text_to_image": ("text-to-image/model", UNet2DConditionModel),
    "unet": ("editor-of-tasks/model", UNet2DConditionModel),
    TASK_EMBEDDING: ("editor-of-tasks/model/task_embedding", TaskEmbedding),
}
_LANGUAGE_MODELS: dict[str, Any] = {
    INSTRUCTION_WRITER: ("instruction-writer/model", LlamaForCausalLM),
    TASK_PREDICTOR: ("task-predictor/model", T5ForConditionalGeneration),
}
_EDITING = {"text_scale": 3.0, "image_scale": 1.3}
# At the scales that suit Stable Diffusion these models oversaturate; Text2LIVE's generator is for larger
# pictures, and the small CLIP takes "photo" for a style. Each turn redraws more than 0.03 of the picture.
_SETTINGS = {
    "instruct-pix2pix": _EDITING,
    "emu-edit": _EDITING,
    "sdedit": {"text_scale": 4.0},
    "prompt-to-prompt": {"steps": 20, "text_scale": 3.0},
    "diffedit": {"steps": 20, "text_scale": 4.0, "mask_threshold": 0.25},
    "imagic": {"preset": "storybook", "steps": 20, "eta": 1.0, "text_scale": 3.0},
    "text2live": {
        "steps": 150, "width": 32, "num_views": 8, "templates": "plain", "screen_weight": 0.5,
    },
    "turns": {"alpha": 0.1, "low_pass": 0.03},
}  # fmt: skip
_INDEX = {
    "_class_name": "StableDiffusionInstructPix2PixPipeline",
    "feature_extractor": [None, None],
    "image_encoder": [None, None],
    "requires_safety_checker": False,
    "safety_checker": [None, None],
    "scheduler": ["diffusers", "DPMSolverMultistepScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}


def assemble(work: Path, folder: Path) -> None:
    """Write the checkpoint, in the place of what was there.

    Args:
        work: The folder in which `runs/storybook.sh` trained.
        folder: Becomes a diffusers folder of `StableDiffusionInstructPix2PixPipeline`, whose `text_encoder/`
            holds the whole CLIP and whose `text_to_image/` the U-Net before it was widened, with its noise
            schedule; with the recogniser, the instruction writer and the task predictor, if they are trained.

    Raises:
        TrainingError: A part is not trained yet.
    """
    for trained, _ in _PARTS.values():
        if not (work / trained).is_dir():
            raise TrainingError(f"{work / trained} is not there: train it first")
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    _write(work, partial)
    shutil.rmtree(folder, ignore_errors=True)
    partial.replace(folder)


def _write(work: Path, folder: Path) -> None:
    for name, (trained, kind) in _PARTS.items():
        kind.from_pretrained(work / trained, torch_dtype=torch.float16).save_pretrained(folder / name)
    for name, (trained, kind) in _LANGUAGE_MODELS.items():
        if (work / trained).exists():
            shutil.copytree(work / trained, folder / name, dirs_exist_ok=True)  # the tokenizer comes along
            kind.from_pretrained(work / trained).half().save_pretrained(folder / name)  # T5 would keep floats
            _load_as_float32(folder / name / "config.json")
    preprocessing = Path("text_encoder", "preprocessor_config.json")
    if (work / "clip/model" / preprocessing).exists():
        shutil.copy(work / "clip/model" / preprocessing, folder / preprocessing)
    for name, trained in {"tokenizer": "clip/model/tokenizer", "recogniser": "recogniser/model"}.items():
        if (work / trained).exists():
            shutil.copytree(work / trained, folder / name, dirs_exist_ok=True)
    _load_as_float32(folder / "text_encoder" / "config.json")
    schedule: dict[str, Any] = NOISE_SCHEDULE | {
        "algorithm_type": "dpmsolver++",
        "timestep_spacing": "trailing",
    }
    DPMSolverMultistepScheduler(**schedule).save_pretrained(folder / "text_to_image")
    editing = DPMSolverMultistepScheduler(**schedule, rescale_betas_zero_snr=True)
    editing.save_pretrained(folder / "scheduler")
    (folder / "model_index.json").write_text(json.dumps(_INDEX, indent=2) + "\n")
    (folder / "wordbrush.json").write_text(json.dumps(_SETTINGS, indent=2) + "\n")
    (folder / "training.json").write_text(json.dumps(_budgets(work), indent=2) + "\n")


def _load_as_float32(config: Path) -> None:
    """Transformers loads in the precision that is named here, diffusers in float32: let them agree."""
    if config.exists():
        settings = json.loads(config.read_text()) | {"dtype": "float32"}
        for tower in {"text_config", "vision_config"} & settings.keys():
            settings[tower]["dtype"] = "float32"
        config.write_text(json.dumps(settings, indent=2) + "\n")


def _budgets(work: Path) -> dict[str, dict[str, Any]]:
    """What each member was trained for, by its log: optimiser steps, samples, minutes, and on what."""
    return {log.parent.name: _budget(log) for log in sorted(work.glob("*/log.jsonl"))}


def _budget(log: Path) -> dict[str, Any]:
    last: dict[str, Any] = json.loads(log.read_text().splitlines()[-1])
    found = {"steps": last["step"], "samples": last["samples"], "minutes": round(last["minutes"], 1)}
    return found | {name: last[name] for name in ("hardware",) if name in last}
