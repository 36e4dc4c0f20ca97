"""The task predictor: an encoder-decoder that answers an instruction with its task's number (2311.10089).

A given model (Flan-T5 of any size) is fine-tuned; without one, a small T5 is trained from scratch. It learns
from the storybook's own phrasings and from files of labelled instructions.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from wordbrush.data.labelled import Labelled, of_split, read_labelled, storybook_instruction
from wordbrush.editors.task_predictor import answers
from wordbrush.models import loading, quiet
from wordbrush.tasks import TASKS
from wordbrush.training.config import BatchSize, LoopConfig, Steps
from wordbrush.training.loop import Batch, move, train

_PAD, _END = "<pad>", "</s>"
_SAMPLE = 5000  # storybook instructions from which the tokenizer learns its words
_TYPOS = 0.15  # share of instructions with a slip of the finger
NAMES = list(TASKS)


class Config(LoopConfig):
    """Defaults of the storybook's task predictor."""

    data: list[Path] = Field([], description="JSONL files of labelled instructions: instruction, task")
    model: str | None = Field(
        None, description="a T5's folder or hub id to fine-tune; none: a small one from scratch"
    )
    storybook: float = Field(0.5, ge=0, le=1, description="share of the storybook's phrasings, beside --data")
    steps: Steps = 3000
    batch_size: BatchSize = 64
    learning_rate: float = Field(
        2e-3, gt=0, description="greatest step size of the optimiser; 1e-4 suits Flan-T5"
    )
    max_tokens: int = Field(64, ge=8, description="of an instruction; what is longer is cut")
    vocabulary: int = Field(2000, ge=300, description="tokens of the small model")
    width: int = Field(128, description="of the small model; a multiple of 32")
    layers: int = Field(3, ge=1, description="of the small model, on either side")


def mistype(rng: np.random.Generator, text: str) -> str:
    """As people write: another case, no full stop, now and then a letter lost or two in the wrong order."""
    text = text.rstrip(".") if rng.random() < 0.5 else text
    text = (text, text.lower(), text.capitalize())[int(rng.integers(3))]
    if rng.random() < _TYPOS and len(text) > 3:
        place = int(rng.integers(1, len(text) - 1))
        swapped = text[:place] + text[place + 1] + text[place] + text[place + 2 :]
        text = swapped if rng.random() < 0.5 else text[:place] + text[place + 1 :]
    return text


class Instructions(Dataset[dict[str, Any]]):
    """Index -> "tokens" of an instruction, padded on the right, and "task", its number."""

    def __init__(self, rows: Sequence[Labelled], share: float, tokenizer: Any, max_tokens: int) -> None:
        self.rows, self.share = rows, share if rows else 1.0
        self.tokenizer, self.max_tokens = tokenizer, max_tokens

    def __getitem__(self, index: int) -> dict[str, Any]:
        rng = np.random.default_rng((12, index))
        own = rng.random() < self.share
        row = storybook_instruction(index) if own else self.rows[int(rng.integers(len(self.rows)))]
        tokens = self.tokenizer(
            mistype(rng, row.instruction), truncation=True, max_length=self.max_tokens,
            padding="max_length", return_tensors="pt",
        ).input_ids[0]  # fmt: skip
        return {"tokens": tokens, "task": NAMES.index(row.task)}


class TaskPredictorRecipe:
    """Fine-tunes a T5, or trains a small one."""

    def __init__(self, config: Config) -> None:
        torch.manual_seed(config.seed)  # of the new weights
        self.config = config
        self.rows = of_split((row for file in config.data for row in read_labelled(file)), "train")
        self.tokenizer, network = self._load() if config.model else self._build()
        network.config.task_names = NAMES
        self.model: nn.Module = network
        self.answers = answers(self.tokenizer, len(NAMES))

    def _load(self) -> tuple[Any, Any]:
        name = str(self.config.model)
        with loading(f"{name} as an encoder-decoder"):
            return AutoTokenizer.from_pretrained(name), AutoModelForSeq2SeqLM.from_pretrained(name)

    def _build(self) -> tuple[Any, Any]:
        own = (storybook_instruction(index) for index in range(_SAMPLE))
        tokenizer = train_tokenizer((*own, *self.rows), self.config.vocabulary)
        return tokenizer, build_model(self.config, tokenizer)

    def samples(self) -> Dataset[dict[str, Any]]:
        """Endless draws of instructions."""
        return Instructions(self.rows, self.config.storybook, self.tokenizer, self.config.max_tokens)

    def losses(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Cross-entropy of the number's tokens, and the share of numbers of which every token is right."""
        tensors = move(batch, model)
        present = tensors["tokens"] != self.tokenizer.pad_token_id
        longest = int(present.sum(-1).max())
        labels = self.answers.to(tensors["task"].device)[tensors["task"]]
        logits = model(
            input_ids=tensors["tokens"][:, :longest],
            attention_mask=present[:, :longest].long(),
            labels=labels,
        ).logits.float()
        loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)
        right = ((logits.argmax(-1) == labels) | (labels < 0)).all(-1).float().mean()
        return {"loss": loss, "accuracy": right}

    def export(self, model: nn.Module, folder: Path) -> None:
        """A folder of transformers, with the tokenizer; its configuration names the tasks."""
        with quiet():
            model.save_pretrained(folder)  # pyright: ignore[reportCallIssue]
        self.tokenizer.save_pretrained(folder)


def train_tokenizer(rows: Iterable[Labelled], size: int) -> PreTrainedTokenizerFast:
    """Byte-level byte-pair encoding of lower-case instructions; a task's number is one token."""
    bpe = Tokenizer(models.BPE())
    bpe.normalizer = normalizers.Lowercase()
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=[_PAD, _END], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    bpe.train_from_iterator((row.instruction for row in rows), trainer)
    bpe.add_tokens([AddedToken(str(number), single_word=True) for number in range(len(NAMES))])
    bpe.post_processor = processors.TemplateProcessing(
        single=f"$A {_END}", special_tokens=[(_END, bpe.token_to_id(_END))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token=_END, pad_token=_PAD, padding_side="right", model_max_length=512
    )


def build_model(config: Config, tokenizer: Any) -> T5ForConditionalGeneration:
    """A small T5 1.1 (1910.10683) of stock parts."""
    ends: dict[str, Any] = {
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "decoder_start_token_id": tokenizer.pad_token_id,
    }
    return T5ForConditionalGeneration(
        T5Config(
            vocab_size=len(tokenizer),
            d_model=config.width,
            d_kv=32,
            d_ff=2 * config.width,
            num_layers=config.layers,
            num_heads=config.width // 32,
            dropout_rate=0.1,
            feed_forward_proj="gated-gelu",
            **ends,
        )
    )


def main(config: Config) -> None:
    """Trains, or goes on training, the task predictor."""
    train(TaskPredictorRecipe(config), config)
