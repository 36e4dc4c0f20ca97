"""The storybook's CLIP: a stock `CLIPModel`, whose text tower conditions every U-Net.

Trained on (picture, caption) pairs by the symmetric contrastive loss of CLIP (2103.00020, figure 3), and, so
that the text tower also knows instructions, on (what an edit changed, instruction) pairs: the difference of
the two picture embeddings against the embedding of the instruction.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from pydantic import Field
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTokenizer, CLIPVisionConfig

from wordbrush.storybook.dataset import RenderedEdits
from wordbrush.training.config import LearningRate, LoopConfig, Steps
from wordbrush.training.loop import Batch, TrainingError, move, train
from wordbrush.training.optimizers import OptimizerName

CONTEXT = 48  # tokens, start and end included
_PROJECTION = 192
_MEAN, _STD = 0.5, 0.25  # of channels in [0, 1]
_START, _END = "<|startoftext|>", "<|endoftext|>"


class Config(LoopConfig):
    """Defaults of the storybook CLIP."""

    data: list[Path] = Field(description="folders of rendered edits")
    steps: Steps = 600
    batch_size: int = Field(
        64, ge=1, description="edits per step; each gives two pictures, two captions, one instruction"
    )
    learning_rate: LearningRate = 2e-3
    optimizer: OptimizerName = "muon"
    image_size: int = Field(64, description="side of the pictures, pixels")
    text_width: int = 192
    text_layers: int = 4
    vision_width: int = 160
    vision_layers: int = 5


class CaptionedEdits(Dataset[dict[str, Any]]):
    """Index -> both pictures at `image_size`, both captions and the instruction, tokenised."""

    def __init__(self, edits: RenderedEdits, tokenizer: CLIPTokenizer, image_size: int) -> None:
        self.edits, self.tokenizer, self.image_size = edits, tokenizer, image_size

    def __getitem__(self, index: int) -> dict[str, Any]:
        rng = np.random.default_rng((1, index))
        number = int(rng.integers(len(self.edits)))
        row = self.edits.rows[number]
        texts = [row["source_caption"], row["target_caption"], row["instruction"]]
        tokens = self.tokenizer(
            texts, padding="max_length", truncation=True, max_length=CONTEXT, return_tensors="pt"
        )
        pair = torch.from_numpy(np.array(self.edits.pair(number))).permute(0, 3, 1, 2).float()
        pixels = F.interpolate(pair, size=self.image_size, mode="area")
        return {"pixels": pixels, "tokens": tokens.input_ids, "lengths": tokens.attention_mask.sum(-1)}


class ClipRecipe:
    """Trains both towers from scratch."""

    def __init__(self, config: Config) -> None:
        torch.manual_seed(config.seed)  # of the new weights
        self.config = config
        self.edits = RenderedEdits.open(*config.data)
        if not len(self.edits):
            raise TrainingError(f"{config.data[0]} holds no rendered edits: run `wordbrush data storybook`")
        self.tokenizer = train_tokenizer(self.edits.rows)
        self.model: nn.Module = build_clip(config, len(self.tokenizer))

    def samples(self) -> Dataset[dict[str, Any]]:
        """Endless draws from the rendered edits."""
        return CaptionedEdits(self.edits, self.tokenizer, self.config.image_size)

    def losses(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Contrastive over captions, plus contrastive over what the edits changed."""
        tensors = move(batch, model)
        clip: Any = getattr(model, "module", model)
        pixels = (tensors["pixels"].flatten(0, 1) / 255.0 - _MEAN) / _STD
        pictures = clip.visual_projection(clip.vision_model(pixels).pooler_output)
        # The text tower is causal, so what follows the last end of a text changes nothing but the time.
        tokens = tensors["tokens"][..., : int(tensors["lengths"].max())]
        texts = clip.text_projection(clip.text_model(tokens.flatten(0, 1)).pooler_output).unflatten(
            0, tokens.shape[:2]
        )
        scale = clip.logit_scale.exp().clamp(max=100)
        captions = texts[:, :2].flatten(0, 1)
        keys = tokens[:, :2].flatten(0, 1)
        caption_loss, recall = contrastive(pictures, captions, keys, scale)
        change = F.normalize(pictures, dim=-1).unflatten(0, (-1, 2))
        edit_loss, edit_recall = contrastive(change[:, 1] - change[:, 0], texts[:, 2], tokens[:, 2], scale)
        return {"loss": caption_loss + 0.5 * edit_loss, "recall": recall, "edit_recall": edit_recall}

    def export(self, model: nn.Module, folder: Path) -> None:
        """`text_encoder/` holds the whole `CLIPModel` and its preprocessing, `tokenizer/` its tokenizer."""
        model.save_pretrained(folder / "text_encoder")  # pyright: ignore[reportCallIssue]
        config = json.dumps(preprocessor_config(self.config.image_size), indent=2)
        (folder / "text_encoder" / "preprocessor_config.json").write_text(config + "\n")
        self.tokenizer.save_pretrained(folder / "tokenizer")


def contrastive(images: Tensor, texts: Tensor, keys: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """CLIP's symmetric loss and recall@1 of image -> text.

    Args:
        images: (N, D).
        texts: (N, D).
        keys: (N, L) token ids; equal texts count as equally right, not as negatives.
        scale: The inverse temperature.
    """
    logits = scale * F.normalize(images, dim=-1) @ F.normalize(texts, dim=-1).T
    same = (keys[:, None] == keys[None]).all(-1)
    target = same / same.sum(-1, keepdim=True)
    loss = -(target * logits.log_softmax(-1)).sum(-1).mean() - (target * logits.log_softmax(0)).sum(0).mean()
    hit = same[torch.arange(len(same), device=same.device), logits.argmax(-1)]
    return loss / 2, hit.float().mean()


def build_clip(config: Config, vocabulary: int) -> CLIPModel:
    """A small CLIP of stock parts; special tokens are the last two, as in CLIP's own vocabulary."""
    text = CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=config.text_width,
        intermediate_size=4 * config.text_width,
        num_hidden_layers=config.text_layers,
        num_attention_heads=config.text_width // 32,
        max_position_embeddings=CONTEXT,
        projection_dim=_PROJECTION,
        bos_token_id=vocabulary - 2,
        eos_token_id=vocabulary - 1,
        pad_token_id=vocabulary - 1,
    )
    vision = CLIPVisionConfig(
        hidden_size=config.vision_width,
        intermediate_size=4 * config.vision_width,
        num_hidden_layers=config.vision_layers,
        num_attention_heads=config.vision_width // 32,
        image_size=config.image_size,
        patch_size=8,
        projection_dim=_PROJECTION,
    )
    towers: Any = {"text_config": text.to_dict(), "vision_config": vision.to_dict()}
    return CLIPModel(CLIPConfig(**towers, projection_dim=_PROJECTION))


def preprocessor_config(side: int) -> dict[str, Any]:
    """What `CaptionedEdits` and `ClipRecipe.losses` do to pictures, as transformers' `CLIPImageProcessor`."""
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"height": side, "width": side},
        "resample": int(Image.Resampling.BOX),
        "do_center_crop": False,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [_MEAN] * 3,
        "image_std": [_STD] * 3,
    }


def train_tokenizer(rows: list[dict[str, str]], size: int = 2000) -> CLIPTokenizer:
    """Byte-pair encoding of the storybook's words in CLIP's own format."""
    trainer = trainers.BpeTrainer(vocab_size=size - 2, end_of_word_suffix="</w>", show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())  # fmt: skip
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token=None))
    bpe.normalizer = normalizers.Lowercase()
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()]
    )
    keys = ("source_caption", "target_caption", "instruction")
    bpe.train_from_iterator((row[key] for row in rows for key in keys), trainer)
    return clip_tokenizer(bpe)


def clip_tokenizer(bpe: Tokenizer) -> CLIPTokenizer:
    """A trained BPE as a `CLIPTokenizer`, every character of the alphabet also as the end of a word."""
    spec = json.loads(bpe.to_str())["model"]
    characters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*characters, *(c + "</w>" for c in characters)]
    merges: Any = [tuple(pair) for pair in spec["merges"]]
    words += [token for token in ("".join(pair) for pair in merges) if token not in set(words)]
    vocabulary = {token: number for number, token in enumerate([*dict.fromkeys(words), _START, _END])}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=CONTEXT)


def main(config: Config) -> None:
    """Trains, or goes on training, the CLIP."""
    train(ClipRecipe(config), config)
