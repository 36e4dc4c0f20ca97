"""The instruction writer: a causal language model that answers a caption with an edit and the edited caption.

Trained in InstructPix2Pix's text format (2211.09800) on triplets: a given model by LoRA (2106.09685), or a
small one from scratch, whose triplets are by default the storybook's own. Those of files are few and soon
known by heart: a run makes few passes over them, each in another order, and measures its loss on some that it
never sees.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from pydantic import Field
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.utils.data import Dataset, default_collate
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from wordbrush.language_model import load_language_model
from wordbrush.models import quiet
from wordbrush.storybook.edits import draw_edit
from wordbrush.storybook.scenes import scene_rng
from wordbrush.training.config import BatchSize, LoopConfig, Steps
from wordbrush.training.loop import Averaged, Batch, OnStep, TrainingError, move, processes, train
from wordbrush.training.order import Order
from wordbrush.triplets import Triplet, completion, normalise, prompt, read_triplets

_END = "<|endoftext|>"
_CONTEXT = 1024  # tokens that the small model can tell apart by place: a prompt and all of an answer
_SAMPLE = 5000  # storybook triplets from which the tokenizer learns its words
_HELD_OUT, _FEW = 0.05, 20  # share of the files' rows; of fewer rows than these, none
_TASKED = 0.5  # share of the storybook's triplets that are asked for by their task

Draw = Callable[[int], Triplet]


class Config(LoopConfig):
    """Defaults of the storybook's instruction writer."""

    data: list[Path] = Field([], description="JSONL files of triplets; none: the storybook's own")
    model: str | None = Field(
        None, description="a folder or hub id to fine-tune by LoRA; none: a small model from scratch"
    )
    epochs: int = Field(3, ge=1, description="passes over the rows of --data, from which its --steps follow")
    steps: Steps = 6000
    batch_size: BatchSize = 64
    learning_rate: float = Field(2e-3, gt=0, description="2e-4 suits LoRA")
    max_tokens: int = Field(256, ge=16, description="of a triplet; what is longer is cut")
    lora_rank: int = Field(16, ge=1)
    vocabulary: int = Field(1500, ge=300, description="tokens of the small model")
    width: int = Field(192, description="of the small model; a multiple of 32")
    layers: int = Field(6, ge=1, description="of the small model")


class TokenisedTriplets(Dataset[dict[str, Any]]):
    """Index -> the tokens of a triplet, padded on the right; where its completion starts, where it ends."""

    def __init__(self, draw: Draw, tokenizer: Any, max_tokens: int) -> None:
        self.draw, self.tokenizer, self.max_tokens = draw, tokenizer, max_tokens

    def __getitem__(self, index: int) -> dict[str, Any]:
        triplet = self.draw(index)
        given = self.tokenizer(prompt(triplet.caption, triplet.task)).input_ids
        answer = self.tokenizer(completion(triplet), add_special_tokens=False).input_ids
        tokens = torch.tensor([*given, *answer][: self.max_tokens])
        padded = F.pad(tokens, (0, self.max_tokens - len(tokens)), value=self.tokenizer.pad_token_id)
        return {"tokens": padded, "start": len(given), "end": len(tokens)}


def storybook_triplet(index: int) -> Triplet:
    """Triplet number `index` of the storybook's training split; its captions always differ."""
    rng = scene_rng("train", index)
    while True:
        triplet = draw_edit(rng, "train").triplet
        if normalise(triplet.caption) != normalise(triplet.output):  # moves and swaps keep it
            plain = {"task": "", "original": "", "edited": ""}
            return triplet if rng.random() < _TASKED else triplet.model_copy(update=plain)


def read_rows(files: Iterable[Path]) -> list[Triplet]:
    """All triplets of the files.

    Raises:
        UsageError: a file cannot be read.
        TrainingError: there are none.
    """
    rows = [row for file in files for row in read_triplets(file)]
    if not rows:
        raise TrainingError("the files of triplets have no rows")
    return rows


def held_out(rows: Sequence[Triplet], seed: int) -> tuple[list[Triplet], list[Triplet]]:
    """Rows to train on, and a twentieth (at least one) to measure on; of fewer than 20 rows, none."""
    order = np.random.default_rng((6, seed)).permutation(len(rows))
    count = max(1, round(_HELD_OUT * len(rows))) if len(rows) >= _FEW else 0
    return [rows[i] for i in sorted(order[count:])], [rows[i] for i in sorted(order[:count])]


def draw_from(rows: Sequence[Triplet], seed: int) -> Draw:
    """Index -> a row: all of them, one after the other in a drawn order, then all again in another."""
    order = Order([len(rows)], seed)
    return lambda index: rows[order.row(index)]


def with_steps(config: Config, rows: int) -> Config:
    """The configuration of `epochs` passes over so many rows, unless `steps` were given.

    They may be few: the warm-up is a tenth of them at most.
    """
    if "steps" in config.model_fields_set:
        return config
    per_step = config.batch_size * config.accumulation * processes().num_processes
    steps = math.ceil(config.epochs * rows / per_step)
    return config.model_copy(update={"steps": steps, "warmup_steps": min(config.warmup_steps, steps // 10)})


class InstructionWriterRecipe:
    """Fine-tunes a model, or trains a small one; the loss is that of the completions alone.

    Attributes:
        config: With the steps that follow from the files' rows.
        rows: How many of the files' rows it learns from; 0 without files.
        held_out: Those that it never sees.
    """

    def __init__(self, config: Config) -> None:
        torch.manual_seed(config.seed)  # of the new weights
        rows, self.held_out = held_out(read_rows(config.data), config.seed) if config.data else ([], [])
        self.config = with_steps(config, len(rows)) if rows else config
        self.rows = len(rows)
        self.draw = draw_from(rows, config.seed) if rows else storybook_triplet
        self.model: nn.Module
        if config.model is None:
            known = rows or map(storybook_triplet, range(_SAMPLE))
            self.tokenizer: Any = train_tokenizer(known, config.vocabulary)
            self.model = build_model(config, self.tokenizer)
        else:
            base, self.tokenizer = load_language_model(config.model)
            self.model = _with_lora(base, config.lora_rank)

    def samples(self) -> Dataset[dict[str, Any]]:
        """Endless draws of triplets."""
        return TokenisedTriplets(self.draw, self.tokenizer, self.config.max_tokens)

    def losses(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Cross-entropy of the completions' tokens, and the share of them that is the likeliest token."""
        tensors = move(batch, model)
        tokens = tensors["tokens"][:, : int(tensors["end"].max())]
        place = torch.arange(tokens.shape[1], device=tokens.device)
        present = place < tensors["end"][:, None]
        targets = tokens.where(present & (place >= tensors["start"][:, None]), -100)[:, 1:]
        logits = model(input_ids=tokens, attention_mask=present.long()).logits[:, :-1]
        loss = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=-100)
        right = (logits.argmax(-1) == targets).sum() / (targets != -100).sum()
        return {"loss": loss, "accuracy": right}

    @torch.no_grad()
    def measure(self, model: nn.Module) -> dict[str, float]:
        """The losses on the rows that are held out: means of batches, by their rows."""
        samples = TokenisedTriplets(self.held_out.__getitem__, self.tokenizer, self.config.max_tokens)
        sums: dict[str, float] = {}
        trained = model.training
        model.eval()
        for indices in torch.arange(len(self.held_out)).split(self.config.batch_size):
            batch = default_collate([samples[int(index)] for index in indices])
            for name, value in self.losses(model, batch).items():
                sums[name] = sums.get(name, 0.0) + float(value) * len(indices) / len(self.held_out)
        model.train(trained)
        return sums

    def export(self, model: nn.Module, folder: Path) -> None:
        """A folder of transformers, or of PEFT's adapter; with the tokenizer."""
        with quiet():
            model.save_pretrained(folder)  # pyright: ignore[reportCallIssue]
        self.tokenizer.save_pretrained(folder)


def _with_lora(base: nn.Module, rank: int) -> nn.Module:
    options = LoraConfig(task_type="CAUSAL_LM", r=rank, lora_alpha=2 * rank, target_modules="all-linear")
    return get_peft_model(base, options)


def train_tokenizer(triplets: Iterable[Triplet], size: int) -> PreTrainedTokenizerFast:
    """Byte-level byte-pair encoding of the triplets' words; any text can be written in it."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=[_END], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    bpe.train_from_iterator(_texts(triplets), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token=_END, pad_token=_END, padding_side="left", model_max_length=_CONTEXT
    )


def _texts(triplets: Iterable[Triplet]) -> Iterator[str]:
    for triplet in triplets:
        yield from (prompt(triplet.caption, triplet.task), completion(triplet))


def build_model(config: Config, tokenizer: Any) -> LlamaForCausalLM:
    """A small Llama (2302.13971) of stock parts."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=config.width,
            intermediate_size=3 * config.width,
            num_hidden_layers=config.layers,
            num_attention_heads=config.width // 32,
            max_position_embeddings=_CONTEXT,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def main(config: Config) -> None:
    """Trains, or goes on training, the instruction writer."""
    recipe = InstructionWriterRecipe(config)
    measured = recipe.held_out and processes().is_main_process
    train(recipe, recipe.config, on_step=_measuring(recipe) if measured else None)


def _measuring(recipe: InstructionWriterRecipe) -> OnStep:
    """After each pass and at the end: the losses of held-out rows go to OUTPUT/validation.jsonl, too."""
    config, rows = recipe.config, recipe.rows
    per_step = config.batch_size * config.accumulation * processes().num_processes

    def look(step: int, averaged: Averaged) -> None:
        if step < config.steps and step * per_step // rows == (step - 1) * per_step // rows:
            return
        with averaged() as model:
            losses = recipe.measure(model)
        row = {"step": step, "passes": round(step * per_step / rows, 2)}
        row |= {name: round(value, 5) for name, value in losses.items()}
        with (config.output / "validation.jsonl").open("a") as log:
            log.write(json.dumps(row) + "\n")
        print(f"{len(recipe.held_out)} held-out rows:", *(f"{k} {v}" for k, v in row.items()), flush=True)

    return look
