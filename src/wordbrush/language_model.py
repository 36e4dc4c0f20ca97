"""A causal language model of transformers and its tokenizer, from a folder or the hub; and what it writes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LogitsProcessor

from wordbrush.models import EMBEDDED, loading, resolve
from wordbrush.triplets import STOP

PART = "instruction_writer"
"""The folder of the instruction writer within an embedded model."""


def load_language_model(name: str | Path) -> tuple[Any, Any]:
    """The model in its own precision, and its tokenizer, which pads on the left.

    Args:
        name: an embedded name, a folder or a hub id, of a whole model or of a LoRA adapter that says which
            model it belongs to.

    Raises:
        ModelError: there is no such model, or it is no causal language model.
    """
    path = resolve(name) / PART if name in EMBEDDED else name
    with loading(f"{name} as a language model"):
        tokenizer: Any = AutoTokenizer.from_pretrained(path, padding_side="left")
        model: Any = AutoModelForCausalLM.from_pretrained(path, dtype="auto")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return model, tokenizer


@torch.inference_mode()
def complete(
    model: Any,
    tokenizer: Any,
    texts: Sequence[str],
    *,
    max_new_tokens: int,
    sampler: Callable[[int], LogitsProcessor] | None = None,
) -> list[str]:
    """What a model writes behind each text, up to and with `STOP`, taking the likeliest token each time.

    Args:
        model: As `load_language_model` gives it.
        tokenizer: The model's.
        texts: At least one.
        max_new_tokens: After which it breaks off.
        sampler: Given the length of the texts in tokens, what changes the logits behind them, and so makes
            other tokens the likeliest.
    """
    inputs = tokenizer(list(texts), padding=True, return_tensors="pt").to(model.device)
    length = inputs.input_ids.shape[1]
    written = model.generate(
        input_ids=inputs.input_ids,
        attention_mask=inputs.attention_mask,
        tokenizer=tokenizer,
        generation_config=GenerationConfig(
            do_sample=False,
            max_new_tokens=max_new_tokens,
            stop_strings=[STOP],
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        ),
        logits_processor=[sampler(length)] if sampler else None,
    )
    return tokenizer.batch_decode(written[:, length:], skip_special_tokens=True)
