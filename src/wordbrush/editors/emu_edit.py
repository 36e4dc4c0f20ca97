"""Emu Edit: one editor for many tasks, told which by a learned embedding (Sheynin et al., 2311.10089)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch
from PIL import Image
from torch import Tensor

from wordbrush.diffusion.conditioning import Conditioning
from wordbrush.diffusion.task_embedding import TaskEmbedding, known_tasks, load_task_embedding, load_vector
from wordbrush.editors import METHODS
from wordbrush.editors.instruct_pix2pix import InstructionEditor, told
from wordbrush.editors.jobs import Job
from wordbrush.editors.latent_editor import Batch, Sample
from wordbrush.editors.settings import EmuEditSettings
from wordbrush.editors.task_predictor import PART as PREDICTOR
from wordbrush.editors.task_predictor import Prediction, TaskPredictor, load_task_predictor
from wordbrush.errors import ModelError, UsageError
from wordbrush.types import EditResult

_CLEARLY = 0.5  # the probability from which on a task that the model does not know is refused


class EmuEdit(InstructionEditor[EmuEditSettings]):
    """InstructPix2Pix with a task in every branch, as its null conditions are not stated to drop it.

    Each result's `intermediates["task"]` holds the task of each variation with its probability, the two
    likeliest ones where the predictor chose.
    """

    method = METHODS["emu-edit"]
    embedding: TaskEmbedding
    folder: Path

    @classmethod
    def check_parts(cls, folder: Path) -> None:
        """There must be task embeddings."""
        if not known_tasks(folder):
            raise ModelError(
                "this checkpoint holds no task embeddings: `wordbrush train emu-edit` makes one that does"
            )

    def load_extras(self, folder: Path) -> None:
        """Load the task embeddings."""
        self.folder = folder
        self.embedding = load_task_embedding(folder, self.model.unet, self.model.device)

    @cached_property
    def predictor(self) -> TaskPredictor:
        """The settings', or the checkpoint's own."""
        given = self.settings.task_predictor
        if given is None and not (self.folder / PREDICTOR).is_dir():
            raise UsageError("this model has no task predictor: give --task, or --task-predictor")
        return load_task_predictor(self.folder / PREDICTOR if given is None else given)

    @cached_property
    def learned(self) -> tuple[str, Tensor] | None:
        """The task of the settings' file."""
        path = self.settings.task_file
        return None if path is None else load_vector(Path(path).expanduser(), self.embedding)

    def with_settings(self, **changes: Any) -> Self:
        """An editor with some settings changed; the model is shared."""
        other = super().with_settings(**changes)
        for name in ("predictor", "learned"):
            if other.settings != self.settings:
                vars(other).pop(name, None)
        return other

    def _result(self, job: Job, samples: Sequence[Sample], pictures: list[Image.Image]) -> EditResult:
        """With what the instruction was taken for in the record."""
        result = super()._result(job, samples, pictures)
        ranked = [[name, round(share, 4)] for name, share in samples[0].intermediates["task"]]
        return dataclasses.replace(result, settings=result.settings | {"tasks": ranked})

    def _branches(self, batch: Batch) -> tuple[Conditioning, Conditioning, Conditioning]:
        """InstructPix2Pix's, each with the task."""
        vectors = torch.stack([self._vector(sample) for sample in batch.samples])
        return told(super()._branches(batch), self.embedding(vectors))

    def _vector(self, sample: Sample) -> Tensor:
        """The vector of the task that was asked for, or else predicted; which is noted on the sample."""
        request = sample.job.request
        asked = request.task or (self.learned and self.learned[0])
        if asked is None:
            ranked = self._predict_task(request.instruction).ranked[:2]
            sample.intermediates["task"] = list(ranked)
            return self.embedding.vector(ranked[0][0])
        sample.intermediates["task"] = [(asked, 1.0)]
        if self.learned and asked == self.learned[0]:
            return self.learned[1].to(self.embedding.device)
        return self.embedding.vector(asked)

    def _predict_task(self, instruction: str) -> Prediction:
        """Of the tasks that the model knows; an instruction that clearly asks for another is refused."""
        known = set(self.embedding.names)
        ranked = self.predictor.predict([instruction])[0].ranked
        first, share = ranked[0]
        if first not in known and share > _CLEARLY:
            raise UsageError(
                f"{instruction!r} reads as the task {first!r} ({share:.0%}), which this model did not learn; "
                f"--task takes {', '.join(self.embedding.names)}"
            )
        kept = tuple((name, share) for name, share in ranked if name in known)
        if not kept:
            raise ModelError("the task predictor knows none of this model's tasks")
        return Prediction(kept)
