"""A causal language model of transformers and its tokenizer, from a folder or the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, AutoTokenizer

from wordbrush.models import EMBEDDED, loading, resolve

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
