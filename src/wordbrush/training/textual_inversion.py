"""Textual inversion (Gal et al., 2208.01618): a new word for what a few pictures show.

Everything is frozen but the word's token embeddings, which are trained by the denoising loss on the pictures
under captions such as "a photo of <my-dog>". The result, OUTPUT/model/learned_embeds.safetensors, works with
`--concept`, and with diffusers' `load_textual_inversion`.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from PIL import Image, ImageOps
from pydantic import Field
from torch import Tensor, nn
from torch.utils.data import Dataset

from wordbrush.diffusion.model import LatentDiffusion
from wordbrush.editors.textual_inversion import FILE_NAME, add_word, save_concept, set_vectors
from wordbrush.errors import UsageError
from wordbrush.images import from_pil, normalise, open_image
from wordbrush.training.config import BatchSize, LearningRate, LoopConfig, Steps
from wordbrush.training.denoising import fast_on_cpu, prediction_errors
from wordbrush.training.loop import Batch, move, processes, train
from wordbrush.training.resuming import check_run

_OBJECT = (
    "a photo of a {}", "a rendering of a {}", "a cropped photo of the {}", "the photo of a {}",
    "a photo of a clean {}", "a photo of a dirty {}", "a dark photo of the {}", "a photo of my {}",
    "a photo of the cool {}", "a close-up photo of a {}", "a bright photo of the {}",
    "a cropped photo of a {}", "a photo of the {}", "a good photo of the {}", "a photo of one {}",
    "a close-up photo of the {}", "a rendition of the {}", "a photo of the clean {}", "a rendition of a {}",
    "a photo of a nice {}", "a good photo of a {}", "a photo of the nice {}", "a photo of the small {}",
    "a photo of the weird {}", "a photo of the large {}", "a photo of a cool {}", "a photo of a small {}",
)  # fmt: skip
_STYLE = tuple(
    f"{what} in the style of {{}}"
    for what in (
        "a painting", "a rendering", "a cropped painting", "the painting", "a clean painting",
        "a dirty painting", "a dark painting", "a picture", "a cool painting", "a close-up painting",
        "a bright painting", "a good painting", "a rendition", "a nice painting", "a small painting",
        "a weird painting", "a large painting",
    )
)  # fmt: skip
TEMPLATES = {"object": _OBJECT, "style": _STYLE, "plain": ("{}", "a {}", "the {}")}
"""The captions of the paper's code; `plain` for models of a small vocabulary."""


class Config(LoopConfig):
    """Defaults of diffusers' script, at which one learning rate is for a batch of 4."""

    pictures: list[Path] = Field(description="3 to 5 pictures of the concept, or folders of them")
    word: str = Field(description="what it shall be called in prompts, such as '<my-dog>'")
    init_word: str = Field(description="a known word for what it is, such as 'dog': where training begins")
    model: str = Field(
        "storybook", description="a text-to-image model: an embedded name, folder, file, hub id"
    )
    base_config: str | None = Field(None, description="for a single file: a folder with its configuration")
    num_vectors: int = Field(1, ge=1, le=32, description="tokens that the word stands for")
    kind: Literal["object", "style", "plain"] = Field(
        "object",
        description="of the concept, which decides the captions: object, style, or plain (no caption)",
    )
    size: int | None = Field(
        None, ge=8, description="side of the square crops in pixels (default: the model's)"
    )
    flip: float = Field(0.5, ge=0, le=1, description="share of samples that are mirrored")
    steps: Steps = 3000
    batch_size: BatchSize = 4
    learning_rate: LearningRate = 2e-3
    schedule: Literal["cosine", "constant"] = "constant"
    warmup_steps: int = 0
    clip_norm: float = 0.0


FREE = ("output", "steps", "workers", "checkpoint_minutes", "max_minutes", "log_steps")
"""Settings that may change when a run goes on."""


class Concept(nn.Module):
    """The embeddings of a learned word's tokens, which follow each other from the id `first` on."""

    def __init__(self, first: int, vectors: Tensor) -> None:
        super().__init__()
        self.first = first
        self.vectors = nn.Parameter(vectors)

    def forward(self, ids: Tensor, embeds: Tensor) -> Tensor:
        """Ids (B, L) and their embeddings (B, L, D), with the word's own in its places."""
        place = ids - self.first
        mine = (place >= 0) & (place < len(self.vectors))
        own = self.vectors[place.clamp(0, len(self.vectors) - 1)]
        return torch.where(mine[..., None], own, embeds)


class ConceptSamples(Dataset[dict[str, Any]]):
    """Index -> latents of a picture, a caption's tokens, noise and timestep, by the index alone."""

    def __init__(self, latents: Tensor, captions: Tensor, config: Config, timesteps: int) -> None:
        self.latents, self.captions, self.config, self.timesteps = latents, captions, config, timesteps

    def __getitem__(self, index: int) -> dict[str, Any]:
        rng = np.random.default_rng((4, self.config.seed, index))
        mirrored = int(rng.random() < self.config.flip)
        latents = self.latents[int(rng.integers(len(self.latents))), mirrored]
        return {
            "latents": latents,
            "tokens": self.captions[int(rng.integers(len(self.captions)))],
            "epsilon": torch.from_numpy(rng.standard_normal(latents.shape, dtype=np.float32)),
            "t": int(rng.integers(self.timesteps)),
        }


class TextualInversionRecipe:
    """Section 4 of 2208.01618: the embeddings of one word."""

    def __init__(self, config: Config) -> None:
        self.config = config
        device: Any = processes().device
        self.base = LatentDiffusion.load(
            config.model, device=device, dtype=torch.float32, unet="text_to_image", config=config.base_config
        )
        _check(self.base)
        self.start = word_vector(self.base, config.init_word)
        self.first = add_word(self.base, config.word, config.num_vectors)
        vectors = self.start.repeat(config.num_vectors, 1)
        set_vectors(self.base, self.first, vectors)
        self.model: nn.Module = Concept(self.first, vectors).to(device)
        self.unet = fast_on_cpu(self.base.unet)
        self.noise = cast("DDPMScheduler", DDPMScheduler.from_config(self.base.scheduler.config))
        self.latents = self._encode(read_pictures(config.pictures))

    def samples(self) -> Dataset[dict[str, Any]]:
        """Endless draws of a picture and a caption."""
        texts = [template.format(self.config.word) for template in TEMPLATES[self.config.kind]]
        tokenizer = self.base.tokenizers[0]
        captions = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
        if ((captions >= self.first).sum(1) != self.config.num_vectors).any():
            raise UsageError(
                f"--num-vectors {self.config.num_vectors}: too many for the text encoder's window"
            )
        return ConceptSamples(self.latents, captions, self.config, len(self.noise))

    def losses(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """The denoising loss under the word as it is now."""
        tensors = move(batch, model)
        with spoken(self.base.text_encoders[0], model):
            text = self.base.text_encoders[0](tensors["tokens"]).last_hidden_state
        errors = prediction_errors(
            self.unet, self.noise, tensors["latents"], text, t=tensors["t"], epsilon=tensors["epsilon"]
        )
        return {"loss": errors.mean()}

    def export(self, model: nn.Module, folder: Path) -> None:
        """As diffusers' textual inversion file."""
        vectors = cast("Concept", model).vectors
        word = self.config.word.lower()  # diffusers finds no others where a word has several vectors
        save_concept(folder / FILE_NAME, word, vectors)

    @torch.no_grad()
    def _encode(self, pictures: list[Image.Image]) -> Tensor:
        """(N, 2, C, h, w), each picture and its mirror image, scaled; the autoencoder is then done."""
        side = self.config.size or self.base.native_size
        levels = len(self.base.unet.config.block_out_channels)
        multiple = self.base.latent_grid * 2 ** (levels - 1)
        if side % multiple:
            raise UsageError(f"--size {side}: this model needs a multiple of {multiple}")
        found: list[Tensor] = []
        for picture in pictures:
            pixels = from_pil(ImageOps.fit(picture, (side, side), Image.Resampling.LANCZOS))
            both = self.base.encode_image(torch.cat([pixels, pixels.flip(-1)]))
            found.append(self.base.scale_latents(both).cpu())
        self.base.vae.to("cpu")
        return torch.stack(found)


@contextmanager
def spoken(encoder: Any, concept: nn.Module) -> Generator[None]:
    """Inside, the text encoder takes the learned word's embeddings from `concept`, with their gradient."""
    embedding: nn.Module = encoder.get_input_embeddings()
    hook = embedding.register_forward_hook(lambda _, inputs, embeds: concept(inputs[0], embeds))
    try:
        yield
    finally:
        hook.remove()


def word_vector(model: LatentDiffusion, word: str) -> Tensor:
    """(1, D): the mean embedding of a known word's tokens.

    Raises:
        UsageError: there is no word.
    """
    if not word.strip():
        raise UsageError("--init-word is empty: give a word for what the pictures show, such as 'dog'")
    tokenizer, encoder = model.tokenizers[0], model.text_encoders[0]
    ids = tokenizer(word, add_special_tokens=False).input_ids
    weight: Tensor = encoder.get_input_embeddings().weight
    return weight.detach()[ids].mean(0, keepdim=True).float()


def read_pictures(paths: list[Path]) -> list[Image.Image]:
    """Pictures ("RGB") of files and folders.

    Raises:
        UsageError: there are none.
        ImageError: one cannot be read.
    """
    files = [file for path in paths for file in (sorted(path.iterdir()) if path.is_dir() else [path])]
    if not files:
        raise UsageError("--pictures: there are no pictures")
    return [normalise(open_image(file).image)[0] for file in files]


def _check(model: LatentDiffusion) -> None:
    if len(model.text_encoders) != 1:
        raise UsageError(
            "textual inversion needs a model with one text encoder: Stable Diffusion 1 or 2, not XL"
        )
    if model.unet.config.in_channels != model.latent_channels:
        raise UsageError(
            f"textual inversion needs a text-to-image model, whose U-Net takes {model.latent_channels} input "
            f"channels, but this checkpoint's takes {model.unet.config.in_channels}"
        )


def main(config: Config) -> None:
    """Trains, or goes on training, a word; prints its file."""
    check_run(config, resume=None, free=FREE)
    train(TextualInversionRecipe(config), config)
    print(config.output / "model" / FILE_NAME)
