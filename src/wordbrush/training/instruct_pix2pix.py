"""InstructPix2Pix: a text-to-image U-Net, widened, fine-tuned on (before, instruction, after).

Section 3.2 of 2211.09800. A run goes on by itself from OUTPUT/state; `--init-from` is where a new one starts.
The trained model is OUTPUT/model: a diffusers folder like the one that it was made from.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, TypeVar, cast

import numpy as np
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.utils.data import Dataset

from wordbrush.data.blocks import open_blocks, picture_sizes
from wordbrush.diffusion.loss import conditioning_dropout, timestep_weights
from wordbrush.diffusion.model import LatentDiffusion, TextEmbeds
from wordbrush.errors import UsageError
from wordbrush.models import own_settings
from wordbrush.training import preflight, publishing
from wordbrush.training.base import (
    checkpoint_of,
    load_base,
    load_parts,
    make_trainable,
    save_lora,
    save_pipeline,
)
from wordbrush.training.config import BatchSize, EmaDecay, LearningRate, LoopConfig, Steps
from wordbrush.training.denoising import fast_on_cpu, prediction_errors
from wordbrush.training.edit_samples import CachedEdits, Draws, StreamedEdits
from wordbrush.training.encoding import Encoder
from wordbrush.training.latent_cache import open_cache
from wordbrush.training.loop import Averaged, Batch, move, processes, train
from wordbrush.training.optimizers import OptimizerName
from wordbrush.training.order import Order, Shape, Weights, bucket_shapes, nearest_bucket
from wordbrush.training.presets import PRESETS
from wordbrush.training.resuming import check_run, made_once


class Config(LoopConfig):
    """Defaults of the storybook editor."""

    data: list[str] = Field(description="folders or hub ids of edits: parquet, tars, original, rendered")
    init_from: str = Field(
        description="where a new run starts: a text-to-image model or an editor; a diffusers folder, a hub "
        "id, a single file, or the folder of a U-Net"
    )
    preset: Literal["laptop", "paper"] = Field(
        "laptop", description="what is not given: the storybook's settings, or those of the paper"
    )
    resume: bool | None = Field(
        None, description="insist that OUTPUT/state is there to go on from, or that it is not; else: either"
    )
    autoencoder: Path | None = Field(None, description="its folder, where --init-from is a U-Net alone")
    clip: Path | None = Field(None, description="folder with text_encoder/ and tokenizer/, likewise")
    base_config: str | None = Field(None, description="for a single file: a folder with its configuration")
    split: str = Field("train", description="of the data, where it has named splits")
    steps: Steps = 6000
    batch_size: BatchSize = 32
    learning_rate: LearningRate = 1e-3
    optimizer: OptimizerName = "muon"
    ema_decay: EmaDecay = 0.999
    size: int | None = Field(None, ge=8, description="pixels of a crop's side (default: the model's own)")
    resize_to: int | None = Field(
        None, description="greatest short side before the random crop (default: SIZE, no random crop)"
    )
    flip: float = Field(0.0, ge=0, le=1, description="share of edits that are mirrored")
    buckets: bool = Field(False, description="crops of many shapes, each batch of one; else squares")
    window: int | None = Field(
        None, ge=8, description="pixels of a side of what is cut out of each cached pair, where it changes"
    )
    cache: bool | None = Field(
        None, description="encode all once, into OUTPUT/cache (default: unless crops are random)"
    )
    cache_folder: Path | None = Field(
        None, description="of that cache, which other runs on the data may share"
    )
    target: Literal["mode", "sample"] = Field("mode", description="of the autoencoder's posterior")
    dropout: float = Field(
        0.05, ge=0, le=1 / 3, description="share that loses its text, its image, and both (each)"
    )
    min_snr: float = Field(
        0.0, ge=0, description="gamma of the min-SNR weights by which timesteps are drawn; 0: all alike"
    )
    timestep_shift: float = Field(
        3.0, ge=1, description="strong noise is drawn more often; 1: all timesteps alike, up to --min-snr"
    )
    prediction_type: Literal["epsilon", "v_prediction", "sample"] | None = Field(
        None, description="what the U-Net predicts (default: as the model it starts from)"
    )
    zero_terminal_snr: bool = Field(
        False, description="noise the last step wholly (2305.08891), which needs v-prediction and --min-snr 0"
    )
    gradient_checkpointing: bool = Field(False, description="less memory, a third more computing")
    lora_rank: int | None = Field(None, ge=1, description="train only adapters of this rank, of an editor")
    preflight: bool = Field(True, description="estimate memory, disk and time; refuse what cannot fit")
    validation: str | None = Field(None, description="held-out edits to look at and measure on the way")
    validation_steps: int = Field(500, ge=1)
    validation_edits: int = Field(4, ge=1)
    push_to_hub: str | None = Field(None, description="upload the model to this hub id in the end")

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, given: dict[str, Any]) -> dict[str, Any]:
        return PRESETS.get(given.get("preset", "laptop"), {}) | given

    @model_validator(mode="after")
    def _last_step_is_learned(self) -> Self:
        if self.zero_terminal_snr and (self.prediction_type != "v_prediction" or self.min_snr):
            raise ValueError("--zero-terminal-snr needs --prediction-type v_prediction and --min-snr 0")
        return self


_C = TypeVar("_C", bound=Config)
FREE = (
    "output", "steps", "preset", "resume", "cache_folder", "workers", "checkpoint_minutes", "max_minutes",
    "log_steps", "preflight", "validation", "validation_steps", "validation_edits", "push_to_hub",
)  # fmt: skip
"""Settings that may change when a run goes on."""


class InstructPix2PixRecipe:
    """Section 3.2 of InstructPix2Pix (2211.09800)."""

    method: ClassVar[str] = "instruct-pix2pix"
    """That edits with what is trained."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.data_sets = [open_blocks([source], config.split) for source in config.data]
        self.blocks = [block for blocks in self.data_sets for block in blocks]
        self.base = _load(config)
        self.own_settings = self._settings_of(checkpoint_of(config.init_from)[0])
        make_trainable(self.base, lora_rank=config.lora_rank, seed=config.seed)
        unet: UNet2DConditionModel = self.base.unet
        if config.gradient_checkpointing:
            unet.enable_gradient_checkpointing()
        self.model: nn.Module = self.build(unet)
        self.noise = cast("DDPMScheduler", DDPMScheduler.from_config(self.base.scheduler.config))
        self.encoder = Encoder(self.base, config.target == "sample", config.mixed_precision == "bf16")
        self.null = self.encoder.null_text()
        self.size = config.size or self.base.native_size
        self.draws = Draws(
            seed=config.seed,
            channels=self.base.latent_channels,
            grid=self.base.latent_grid,
            timesteps=timestep_weights(self.noise, min_snr=config.min_snr, shift=config.timestep_shift),
            size=self.size,
            resize_to=config.resize_to or self.size,
            flip=config.flip,
        )
        self._check_size()

    def _settings_of(self, checkpoint: str) -> dict[str, Any]:
        """Of edits with the checkpoint, where it has its own."""
        return own_settings(checkpoint, self.method)

    def _kept_settings(self) -> dict[str, dict[str, Any]]:
        """What the model's `wordbrush.json` says: its scales, and the thresholds of many turns."""
        start = checkpoint_of(self.config.init_from)[0]
        found = {self.method: self.own_settings, "turns": own_settings(start, "turns")}
        return {name: settings for name, settings in found.items() if settings}

    def build(self, unet: UNet2DConditionModel) -> nn.Module:
        """What is trained."""
        return fast_on_cpu(unet)

    def row_weights(self) -> Weights | None:
        """(rows,) how often each row is drawn, up to a factor; None: all alike."""
        return None

    @property
    def cached(self) -> bool:
        """Whether latents and text embeddings are made once; which random crops rule out."""
        random = self.draws.resize_to > self.size
        if self.config.cache and random:
            raise UsageError("--cache needs crops that are not random: leave --resize-to out")
        return not random if self.config.cache is None else self.config.cache

    def samples(self) -> Dataset[dict[str, Any]]:
        """Shuffled passes over the edits."""
        counts = [block.count for block in self.blocks]
        groups = self._groups() if self.config.buckets else None
        options: dict[str, Any] = {"groups": groups, "batch_size": self.config.batch_size}
        order = Order(counts, self.config.seed, weights=self.row_weights(), **options)
        choices = self._shapes()
        shapes = choices * len(order) if groups is None else [choices[group] for group in groups]
        if not self.cached:
            if self.config.window is not None:
                raise UsageError("--window cuts cached pairs: leave --resize-to and --no-cache out")
            return StreamedEdits(self.blocks, order, shapes, self.draws)
        folder, flips = self.config.cache_folder or self.config.output / "cache", self.config.flip > 0
        cache = open_cache(self.data_sets, self.encoder, shapes, folder, flips=flips)
        for network in (*self.base.text_encoders, self.base.vae):
            network.to("cpu")  # no more needed
        return CachedEdits(cache, order, shapes, self.draws, self.config.window)

    def losses(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """The error of the prediction; one draw a sample decides which conditioning it loses."""
        tensors = move(batch, model)
        moments, text = self._encoded(batch, tensors)
        condition, latents = self.encoder.condition_and_target(moments, tensors["posterior"])
        no_text, no_image = conditioning_dropout(tensors["u"], rate=self.config.dropout)
        image = condition * ~no_image[:, None, None, None]
        text = _drop(text, self.null, no_text)
        errors = prediction_errors(
            model, self.noise, latents, text.tokens, t=tensors["t"], epsilon=tensors["noise"], image=image,
            added=self._added(text, latents), task=tensors.get("task"),
        )  # fmt: skip
        return {"loss": errors.mean()}

    def export(self, model: nn.Module, folder: Path) -> None:
        """A diffusers folder with a card; or the adapters; or the U-Net, where it came alone."""
        config = self.config
        if config.lora_rank is not None:
            save_lora(model, folder)
            base = publishing.without_path(config.init_from)
            use = f"Adapters for {base}: `wordbrush edit PICTURE INSTRUCTION --model {base} --lora FOLDER`."
        elif config.autoencoder is not None:
            return self.save_unet(model, folder)
        else:
            self.save(model, folder)
            if kept := self._kept_settings():
                (folder / "wordbrush.json").write_text(json.dumps(kept) + "\n")
            use = self.use()
        if (grid := config.output / "validation.png").exists():
            shutil.copy(grid, folder / grid.name)
        publishing.write_card(
            folder, title=config.output.name, use=use, base=config.init_from, datasets=config.data,
            settings=config.model_dump(mode="json", exclude={"output", "resume"}), output=config.output,
        )  # fmt: skip
        return None

    def use(self) -> str:
        """How to use what is trained, for its card."""
        return "`wordbrush edit PICTURE INSTRUCTION --model FOLDER`, or diffusers' InstructPix2Pix pipeline."

    def save_unet(self, model: nn.Module, folder: Path) -> None:
        """The folder of a U-Net."""
        model.save_pretrained(folder)  # pyright: ignore[reportCallIssue]

    def save(self, model: nn.Module, folder: Path) -> None:
        """A diffusers folder."""
        save_pipeline(self.base, model, folder)

    def example(self) -> dict[str, Any]:
        """The U-Net's inputs for one process's batch, on the "meta" device."""
        window = self.config.window
        shape = max(self._shapes(), key=lambda s: s[0] * s[1]) if window is None else (window, window)
        count, latent = self.config.batch_size, self.draws.latent_size(shape)
        channels = 2 * self.base.latent_channels
        inputs: dict[str, Any] = {
            "sample": torch.empty(count, channels, *latent, device="meta"),
            "timestep": torch.zeros(count, dtype=torch.long, device="meta"),
            "encoder_hidden_states": torch.empty(count, *self.null.tokens.shape[1:], device="meta"),
        }
        if self.null.pooled is not None:
            inputs["added_cond_kwargs"] = {
                "text_embeds": torch.empty(count, self.null.pooled.shape[1], device="meta"),
                "time_ids": torch.empty(count, 6, device="meta"),
            }
        return inputs

    def whole(self) -> nn.Module:
        """What is trained, with all of which it is made among its parts."""
        return self.model

    def need(self) -> preflight.Need:
        """What the run takes."""
        frozen = sum(p.nbytes for n in (*self.base.text_encoders, self.base.vae) for p in n.parameters())
        cache = self._cache_bytes() if self.cached else 0
        return preflight.estimate(self.whole(), self.example(), self.config, frozen=frozen, cache=cache)

    def _cache_bytes(self) -> int:
        pixels = max(height * width for height, width in self._shapes())
        latents = self.base.latent_channels * pixels // self.base.latent_grid**2
        flips = 1 + (self.config.flip > 0)
        row = flips * self.encoder.num_moments * latents + self.null.tokens.numel()
        return 2 * row * sum(block.count for block in self.blocks)

    def _encoded(self, batch: Batch, tensors: dict[str, Tensor]) -> tuple[Tensor, TextEmbeds]:
        if "moments" in tensors:
            return tensors["moments"], TextEmbeds(tensors["tokens"], tensors.get("pooled"))
        return self.encoder.moments(tensors["pixels"]), self.encoder.text(batch["instruction"])

    def _added(self, text: TextEmbeds, latents: Tensor) -> dict[str, Tensor] | None:
        """SDXL's further conditions."""
        if text.pooled is None:
            return None
        size = latents.shape[-2] * self.base.latent_grid, latents.shape[-1] * self.base.latent_grid
        ids = self.base.add_time_ids(size, len(latents))
        return {"text_embeds": text.pooled} | ({} if ids is None else {"time_ids": ids})

    def _shapes(self) -> list[Shape]:
        """Of crops."""
        return bucket_shapes(self.size, self._multiple) if self.config.buckets else [(self.size, self.size)]

    @property
    def _multiple(self) -> int:
        """Of pixels, for a crop's sides: the U-Net halves the latents at every level but one."""
        levels = len(self.base.unet.config.block_out_channels)
        return self.base.latent_grid * 2 ** (levels - 1)

    def _check_size(self) -> None:
        if self.size % self._multiple:
            raise UsageError(f"--size {self.size}: this model needs a multiple of {self._multiple}")
        if self.config.window is not None and (
            self.config.window % self._multiple or self.config.window > self.size
        ):
            raise UsageError(f"--window: a multiple of {self._multiple}, and {self.size} at most")
        if self.draws.resize_to < self.size:
            raise UsageError(f"--resize-to {self.draws.resize_to} is smaller than the crop of {self.size}")

    def _groups(self) -> Any:
        """The bucket of each row; all pictures are read once for it."""
        path = self.config.output / "cache" / f"sizes-{sum(block.count for block in self.blocks)}.npy"
        sizes = np.load(made_once(path, lambda partial: picture_sizes(self.blocks, partial)))
        shapes = self._shapes()
        known = {(int(height), int(width)) for height, width in sizes.tolist()}
        found = {size: nearest_bucket(size[0], size[1], shapes) for size in known}
        return np.array([found[tuple(size)] for size in sizes.tolist()])


def _load(config: Config) -> LatentDiffusion:
    device: Any = processes().device
    if config.autoencoder is not None and config.clip is not None:
        unet = UNet2DConditionModel.from_pretrained(config.init_from).to(device).requires_grad_(False)
        model = dataclasses.replace(load_parts(config.autoencoder, config.clip, device=device), unet=unet)
    elif config.autoencoder is not None or config.clip is not None:
        raise UsageError("--autoencoder and --clip go together, where --init-from is a U-Net alone")
    else:
        model = load_base(config.init_from, config=config.base_config, device=device)
    changes: dict[str, Any] = {}
    if config.prediction_type is not None:
        changes["prediction_type"] = config.prediction_type
    if config.zero_terminal_snr:
        changes |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    changed = type(model.scheduler).from_config(model.scheduler.config, **changes)
    return dataclasses.replace(model, scheduler=changed)


def _drop(text: TextEmbeds, null: TextEmbeds, dropped: Tensor) -> TextEmbeds:
    """The null text in the place of those (B,) that are dropped."""
    tokens = torch.where(dropped[:, None, None], null.tokens, text.tokens)
    if text.pooled is None or null.pooled is None:
        return TextEmbeds(tokens)
    return TextEmbeds(tokens, torch.where(dropped[:, None], null.pooled, text.pooled))


def main(config: Config) -> None:
    """Trains, or goes on training, the editor."""
    run(config, InstructPix2PixRecipe)


def run(config: _C, kind: Callable[[_C], InstructPix2PixRecipe]) -> None:
    """Trains, or goes on training, an editor by this recipe or by one that builds on it."""
    if config.push_to_hub:
        publishing.check_hub(config.push_to_hub)
    check_run(config, resume=config.resume, free=FREE)
    recipe, first = kind(config), processes().is_main_process
    if config.preflight:
        line = preflight.check(recipe.need(), config, recipe.base.device)
        if first:
            print(f"{sum(block.count for block in recipe.blocks)} edits; {line}", flush=True)
    step = train(recipe, config, on_step=_validation(recipe) if config.validation and first else None)
    if config.push_to_hub and first and step == config.steps:
        print(publishing.push(config.output / "model", config.push_to_hub))


def _validation(recipe: InstructPix2PixRecipe) -> Any:
    from wordbrush.training.validation import Validation

    config = recipe.config
    blocks = open_blocks([str(config.validation)], "validation")
    settings = recipe.own_settings | {"size": recipe.size}
    held_out = Validation(blocks, config.validation_edits, settings, config.output)

    def look(step: int, averaged: Averaged) -> None:
        if step % config.validation_steps == 0 or step == config.steps:
            with averaged() as unet:
                print(held_out.look(recipe.base, unet, step), flush=True)

    return look
