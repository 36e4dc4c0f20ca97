"""Which task does an instruction ask for? Emu Edit's predictor (2311.10089, "Task prediction")."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoModelForSeq2SeqLM, AutoTokenizer

from wordbrush.errors import ModelError
from wordbrush.models import EMBEDDED, loading, resolve
from wordbrush.perception.sentences import SentenceEncoder
from wordbrush.tasks import TASKS

PART = "task_predictor"
"""The folder of the predictor within an embedded model."""
_BATCH = 64
_SHARPNESS = 20.0
"""Turns cosines, which lie close together, into shares."""


@dataclass(frozen=True)
class Prediction:
    """Every task with its probability, the likeliest first."""

    ranked: tuple[tuple[str, float], ...]

    @property
    def task(self) -> str:
        """The likeliest."""
        return self.ranked[0][0]


class TaskPredictor(Protocol):
    """Finds the task of an instruction."""

    def predict(self, instructions: Sequence[str]) -> list[Prediction]:
        """One prediction for each instruction."""
        ...


def load_task_predictor(name: str | Path) -> TaskPredictor:
    """An encoder-decoder that was trained as a predictor, or any sentence encoder.

    Args:
        name: An embedded name, a folder or a hub id.

    Raises:
        ModelError: There is no such model, or it is neither.
    """
    path = resolve(name) / PART if name in EMBEDDED else name
    with loading(f"{name} as a task predictor"):
        config: Any = AutoConfig.from_pretrained(path)
        tokenizer: Any = AutoTokenizer.from_pretrained(path)
        if not config.is_encoder_decoder:
            return NearestExamples(SentenceEncoder(AutoModel.from_pretrained(path), tokenizer))
        return NumberPredictor(AutoModelForSeq2SeqLM.from_pretrained(path), tokenizer)


class NumberPredictor:
    """An encoder-decoder (T5, 1910.10683) that answers an instruction with the number of its task.

    Args:
        model: Its configuration names the tasks, in the order of their numbers, as `task_names`.
        tokenizer: The model's.

    Raises:
        ModelError: The model was not trained to do this.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        names = getattr(model.config, "task_names", None)
        if not names:
            raise ModelError("this encoder-decoder was not trained by `wordbrush train task-predictor`")
        self.model, self.tokenizer, self.tasks = model.eval(), tokenizer, list(names)
        self._answers = answers(tokenizer, len(self.tasks))

    @torch.inference_mode()
    def predict(self, instructions: Sequence[str]) -> list[Prediction]:
        """Each task's probability is that of its number, among all numbers."""
        found: list[Prediction] = []
        for start in range(0, len(instructions), _BATCH):
            shares = self._scores(instructions[start : start + _BATCH]).softmax(-1)
            found += [_ranked(self.tasks, row) for row in shares]
        return found

    def _scores(self, instructions: Sequence[str]) -> Tensor:
        """(B, tasks): the log-likelihood of each number."""
        device, count = self.model.device, len(self.tasks)
        given = self.tokenizer(list(instructions), padding=True, truncation=True, return_tensors="pt").to(
            device
        )
        encoded = self.model.get_encoder()(**given).last_hidden_state
        labels = self._answers.to(device).repeat(len(instructions), 1)
        logits = self.model(
            encoder_outputs=(encoded.repeat_interleave(count, 0),),
            attention_mask=given.attention_mask.repeat_interleave(count, 0),
            labels=labels,
        ).logits.float()
        likely = logits.log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0]
        return (likely * (labels >= 0)).sum(-1).view(len(instructions), count)


def answers(tokenizer: Any, count: int) -> Tensor:
    """(count, L): the tokens of each task's number, its end included; -100 behind it."""
    rows = [tokenizer(str(number), add_special_tokens=False).input_ids for number in range(count)]
    ended = [torch.tensor([*row, tokenizer.eos_token_id]) for row in rows]
    return torch.nn.utils.rnn.pad_sequence(ended, batch_first=True, padding_value=-100)


class NearestExamples:
    """A sentence encoder as it is: the tasks by how near their examples are to the instruction.

    Args:
        encode: The encoder.
    """

    def __init__(self, encode: SentenceEncoder) -> None:
        self.encode = encode
        self._examples = {name: encode(task.examples) for name, task in TASKS.items()}

    def predict(self, instructions: Sequence[str]) -> list[Prediction]:
        """Shares that grow with the cosine to the nearest example of each task."""
        vectors = self.encode(instructions)
        nearest = torch.stack([(vectors @ known.T).amax(-1) for known in self._examples.values()], dim=-1)
        return [_ranked(list(self._examples), row) for row in (_SHARPNESS * nearest).softmax(-1)]


def _ranked(tasks: Sequence[str], shares: Tensor) -> Prediction:
    order: list[int] = shares.argsort(descending=True).tolist()
    return Prediction(tuple((tasks[i], float(shares[i])) for i in order))
