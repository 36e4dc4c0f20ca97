"""Instructions by a causal language model on this machine, in InstructPix2Pix's text format (2211.09800)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from transformers import LogitsProcessor

from wordbrush.datagen.instructions import TRIES, Rejected, judge, unfit
from wordbrush.diffusion.runtime import prepare_process, resolve_device
from wordbrush.language_model import complete, load_language_model
from wordbrush.triplets import Caption, Triplet, parse_completion, prompt


class Sampling(BaseModel):
    """How answers are drawn; the defaults are InstructPix2Pix's."""

    model_config = ConfigDict(frozen=True)

    temperature: float = Field(default=0.7, ge=0, description="0 takes the likeliest token")
    frequency_penalty: float = Field(
        default=0.1, description="taken off a token's logit for each time it was written"
    )
    max_new_tokens: int = Field(default=256, ge=1)
    batch_size: int = Field(default=32, ge=1, description="captions answered at once; changes no answer")
    seed: int = 0


class LocalWriter:
    """Writes with a model of transformers: one of any size fine-tuned on triplets, or the storybook's own.

    What is written for a caption depends on the caption, the seed and the try alone, not on the captions
    beside it (within float tolerance).

    Args:
        model: a causal language model.
        tokenizer: its tokenizer; pads on the left.
        sampling: how to draw.
    """

    def __init__(self, model: Any, tokenizer: Any, sampling: Sampling | None = None) -> None:
        self.model, self.tokenizer, self.sampling = model.eval(), tokenizer, sampling or Sampling()

    @classmethod
    def load(cls, name: str | Path, *, device: str = "auto", sampling: Sampling | None = None) -> LocalWriter:
        """As `load_language_model` finds it, on a device.

        Raises:
            ModelError: there is no such model.
            DeviceError: there is no such device.
        """
        prepare_process()
        model, tokenizer = load_language_model(name)
        return cls(model.to(resolve_device(device)), tokenizer, sampling)

    def write(self, captions: Sequence[Caption]) -> list[Triplet | Rejected]:
        """One outcome for each caption, in their order; what is rejected is tried `TRIES` times."""
        outcomes = unfit(captions)
        pending = [i for i in range(len(captions)) if i not in outcomes]
        for attempt in range(TRIES):
            for start in range(0, len(pending), self.sampling.batch_size):
                batch = pending[start : start + self.sampling.batch_size]
                answers = self._answer([captions[i] for i in batch], attempt)
                outcomes |= {i: _read(captions[i], text) for i, text in zip(batch, answers, strict=True)}
            pending = [i for i in pending if isinstance(outcomes[i], Rejected)]
        return [outcomes[i] for i in range(len(captions))]

    def _answer(self, captions: Sequence[Caption], attempt: int) -> list[str]:
        """What the model writes behind each prompt, up to its stop."""
        keys = [f"{caption.task}{caption.text}" for caption in captions]
        return complete(
            self.model,
            self.tokenizer,
            [prompt(caption.text, caption.task) for caption in captions],
            max_new_tokens=self.sampling.max_new_tokens,
            sampler=partial(SeededSampling, self.sampling, keys, attempt),
        )


def _read(caption: Caption, answer: str) -> Triplet | Rejected:
    written = parse_completion(answer)
    return judge(caption, written) if written else Rejected(caption, "malformed: not an edit and a caption")


class SeededSampling(LogitsProcessor):
    """Makes the largest logit a sample of the tempered distribution, each row with a generator of its own.

    Adding Gumbel noise to logits and taking the largest is the same as sampling from their softmax. The
    penalty is OpenAI's: the logit of a token falls by `frequency_penalty` for each time it was written.
    """

    def __init__(self, sampling: Sampling, keys: Sequence[str], attempt: int, length: int) -> None:
        self.sampling, self.length = sampling, length
        self.generators = [_generator(f"{sampling.seed} {attempt} {key}") for key in keys]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """(B, L) ids and (B, V) logits -> (B, V)."""
        written = input_ids[:, self.length :]
        counts = torch.zeros_like(scores).scatter_add_(
            1, written, torch.ones_like(written, dtype=scores.dtype)
        )
        scores = scores - self.sampling.frequency_penalty * counts
        if not self.sampling.temperature:
            return scores
        waits = [torch.empty(scores.shape[1]).exponential_(generator=g) for g in self.generators]
        return scores / self.sampling.temperature - torch.stack(waits).log().to(scores.device)


def _generator(key: str) -> torch.Generator:
    digest = sha256(key.encode(errors="surrogatepass")).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8]) >> 1)
