"""How alike two sentences are in meaning: vectors by a sentence encoder of transformers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

from wordbrush.models import loading

_BATCH = 64


class SentenceEncoder:
    """Gives a text the mean of its tokens' vectors (Sentence-BERT, 1908.10084).

    Args:
        model: Gives one vector a token.
        tokenizer: The model's.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model, self.tokenizer = model.eval(), tokenizer

    @classmethod
    def load(cls, name: str | Path) -> SentenceEncoder:
        """From a folder or by a hub id, such as sentence-transformers/all-MiniLM-L6-v2.

        Raises:
            ModelError: There is no such model.
        """
        with loading(f"{name} as a sentence encoder"):
            return cls(AutoModel.from_pretrained(name), AutoTokenizer.from_pretrained(name))

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """N texts -> (N, D) of length 1 each, on the CPU."""
        batches = [self._encode(texts[start : start + _BATCH]) for start in range(0, len(texts), _BATCH)]
        return torch.cat(batches)

    @torch.inference_mode()
    def _encode(self, texts: Sequence[str]) -> Tensor:
        given = self.tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")
        tokens = self.model(**given.to(self.model.device)).last_hidden_state.float()
        present = given.attention_mask[..., None]
        return torch.nn.functional.normalize((tokens * present).sum(1) / present.sum(1), dim=-1).cpu()
