"""The configuration of a run of the data engine: a TOML file, checked."""

from __future__ import annotations

import tomllib
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from wordbrush.datagen.checks import MAX_CHARS
from wordbrush.datagen.endpoint_client import EndpointSettings
from wordbrush.datagen.filters import Thresholds
from wordbrush.datagen.grounded import GroundedSettings
from wordbrush.datagen.local_writer import Sampling
from wordbrush.datagen.painting import PairSettings
from wordbrush.errors import UsageError, one_line
from wordbrush.models import EMBEDDED, resolve
from wordbrush.storybook.edits import WEIGHTS
from wordbrush.storybook.scenes import Split
from wordbrush.tasks import TASKS

_CHANGES_NO_ROW = {
    "engine": {"workers", "price_per_hour"},
    "triplets": {
        "endpoint": {
            "base_url", "concurrency", "requests_per_minute", "timeout", "patience", "journal",
            "input_price", "output_price",
        }
    },
}  # fmt: skip
_MODEL_FILES = (".safetensors", ".bin", ".ckpt", ".json", ".txt")


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class _Triplets(_Settings):
    likeness: float = Field(
        default=0.95, ge=0, le=1, description="triplets at least so alike are repetitions"
    )
    sentence_encoder: str | None = Field(
        default=None, description="by whose vectors they are alike; default: by their letters"
    )
    task_predictor: str | None = Field(
        default=None,
        description="a task predictor, or a sentence encoder, whose word on the task of a row is the last",
    )

    @property
    def sources(self) -> list[str]:
        """Files and models that decide the triplets."""
        return [name for name in (self.task_predictor, self.sentence_encoder) if name]


class FileTriplets(_Triplets):
    """Triplets that are there already."""

    source: Literal["file"]
    path: Path = Field(description="JSONL with caption (or input), edit and output")
    count: int | None = Field(default=None, ge=1, description="only the first so many; default: all")

    @property
    def sources(self) -> list[str]:
        """Files and models that decide the triplets."""
        return [str(self.path), *super().sources]


class StorybookTriplets(_Triplets):
    """The storybook's own sampled edits."""

    source: Literal["storybook"]
    count: int = Field(ge=1, description="how many edits are drawn")
    split: Split = Field(default="train", description="train or test")
    operations: tuple[str, ...] = Field(
        default=tuple(WEIGHTS), description=f"only edits of these kinds: {', '.join(WEIGHTS)}"
    )

    @model_validator(mode="after")
    def _check(self) -> StorybookTriplets:
        if not self.operations or set(self.operations) - set(WEIGHTS):
            raise ValueError(f"operations are some of {', '.join(WEIGHTS)}")
        return self


class LocalModel(Sampling):
    """A language model on this machine."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = Field(
        default="storybook", description="causal model that learned triplets: embedded name, folder or hub id"
    )
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"


class WrittenTriplets(_Triplets):
    """Triplets that a language model writes for captions: `endpoint` or `local`, one of the two."""

    source: Literal["writer"]
    captions: str = Field(
        description="storybook; a file of text, CSV, JSON or parquet; a folder or hub data set"
    )
    count: int = Field(ge=1, description="captions to write for, after the filter of captions")
    captions_split: str = Field(default="train", description="of the data set of captions")
    column: str | None = Field(
        default=None, description="of the captions; default: the first of caption, text, TEXT, input"
    )
    tasks: tuple[str, ...] = Field(
        default=(),
        description="Emu Edit's tasks, in turn, one a caption; none: any edit, as for InstructPix2Pix",
    )
    shuffle: bool = Field(
        default=False, description="a permutation of all captions of a file or data set; else its own order"
    )
    shuffle_seed: int = Field(default=0, ge=0, description="of that permutation")
    min_chars: int = Field(default=3, ge=1, description="of a caption, at least")
    max_chars: int = Field(default=MAX_CHARS, ge=1, le=MAX_CHARS, description="of a caption, at most")
    language: str = Field(default="en", description="ISO 639-1 code of the captions to keep; '' for all")
    endpoint: EndpointSettings | None = Field(default=None, description="an OpenAI-compatible endpoint")
    examples: Path | None = Field(default=None, description="triplets (JSONL) that an endpoint is shown")
    local: LocalModel | None = Field(default=None, description="a language model on this machine")

    @model_validator(mode="after")
    def _check(self) -> WrittenTriplets:
        if (self.endpoint is None) == (self.local is None):
            raise ValueError("give either [triplets.endpoint] or [triplets.local]")
        if unknown := sorted(set(self.tasks) - set(TASKS)):
            raise ValueError(f"no task {unknown[0]!r}: one of {', '.join(TASKS)}")
        if self.min_chars > self.max_chars:
            raise ValueError("min_chars is more than max_chars")
        return self

    @property
    def sources(self) -> list[str]:
        """Files and models that decide the triplets."""
        given = [self.captions, self.examples, self.local and self.local.model]
        return [*(str(name) for name in given if name), *super().sources]


class Engine(_Settings):
    """How the work is spread. Of all this, only `threads` can change a row, in its pictures' last bits."""

    workers: int | None = Field(
        default=None, ge=1, description="at a time; default: one for each GPU, else CPUs / threads"
    )
    threads: int = Field(default=1, ge=1, description="of the CPU, of each worker")
    price_per_hour: float = Field(default=0.0, ge=0, description="of one worker, for --dry-run")


class Config(_Settings):
    """A run of the data engine."""

    seed: int = Field(default=0, description="of what is drawn for pairs")
    split: str = Field(default="train", pattern=r"^[A-Za-z]\w*$", description="name of the rows' split")
    triplets: Annotated[FileTriplets | StorybookTriplets | WrittenTriplets, Field(discriminator="source")]
    pairs: PairSettings = PairSettings()
    grounded: GroundedSettings | None = Field(
        default=None, description="confines each pair to the thing that its edit is about; default: no"
    )
    filter: Thresholds = Thresholds()
    engine: Engine = Engine()


def read_config(path: Path) -> Config:
    """Read a configuration; paths in it are relative to the working folder, as on the command line.

    Raises:
        UsageError: It cannot be read, or a setting (it is named) is missing, unknown or out of range.
    """
    try:
        return Config.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if part not in ("file", "writer", "storybook"))
        raise UsageError(f"{path}: {where or 'configuration'}: {first['msg']}") from error
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read the configuration {path}: {one_line(error)}") from error


def identity(config: Config) -> dict[str, Any]:
    """What decides the rows of a run, as JSON: its settings, and the contents of its files and models.

    A model of the hub goes by its name. Where an endpoint is, how fast it is asked, where its answers are
    kept and what anything costs are left out: a run may go on with other ones.

    Raises:
        ModelError: An embedded model is missing.
        UsageError: A file cannot be read.
    """
    names = [config.pairs.model, config.pairs.clip, *config.triplets.sources]
    names += config.grounded.models if config.grounded else []
    digests = {name: digest for name in names if (digest := _digest(name))}
    return config.model_dump(mode="json", exclude=_CHANGES_NO_ROW) | {"contents": digests}


def _digest(name: str) -> str | None:
    """Of a file, or of a model's files in a folder; None of what is not here."""
    path = resolve(name) if name in EMBEDDED else Path(name).expanduser()
    if not path.exists():
        return None
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.suffix in _MODEL_FILES)
    digest = sha256()
    try:
        for file in files:
            with file.open("rb") as stream:
                while block := stream.read(1 << 20):
                    digest.update(block)
    except OSError as error:
        raise UsageError(f"cannot read {name}: {one_line(error)}") from error
    return digest.hexdigest()
