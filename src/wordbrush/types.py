"""What goes into an editor and what comes out; light, so that any module can import it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, Self

if TYPE_CHECKING:
    from PIL import Image

MAX_VARIATIONS = 1000
"""Of one request: they are kept in memory until all are made."""


@dataclass(frozen=True)
class EditRequest:
    """What the user wants done to one picture.

    Each method says which fields it needs; a missing one is a `UsageError` that names it.
    """

    image: Image.Image
    instruction: str = ""
    source_caption: str = ""
    target_caption: str = ""
    negative_prompt: str | None = None
    mask: Image.Image | None = None
    """Of the picture's size: white may change, black may not, grey blends."""
    task: str | None = None
    seed: int | None = None
    """Variation k uses seed + k; None draws one and records it in the result."""
    num_variations: int = 1


@dataclass(frozen=True)
class EditResult:
    """The edited pictures of one request (one a variation), each of the input's pixel size."""

    images: list[Image.Image]
    seeds: list[int]
    settings: dict[str, Any]
    """JSON values that reproduce the result, given the picture and a seed."""
    intermediates: dict[str, Any] = field(default_factory=dict[str, Any])
    warnings: list[str] = field(default_factory=list[str])


@dataclass(frozen=True)
class StepInfo:
    """Where an edit is, handed to `on_step` after each denoising step."""

    step: int
    """Counts from 0 over the whole call, all its batches included."""
    num_steps: int
    latents: Any
    """(B, C, h, w) tensor of the samples being denoised."""
    preview: Callable[[], list[Image.Image]]
    """Decodes the latents as they are, at the working size; costs one pass of the decoder."""


OnStep = Callable[[StepInfo], None]


class Editor(Protocol):
    """An editing method bound to a loaded model and to its settings."""

    @property
    def settings(self) -> Any:
        """The method's frozen settings dataclass."""
        ...

    def edit(self, request: EditRequest, *, on_step: OnStep | None = None) -> EditResult:
        """Edit one picture."""
        ...

    def edit_batch(
        self, requests: Sequence[EditRequest], *, on_step: OnStep | None = None
    ) -> list[EditResult]:
        """Edit many pictures, in order; an exception raised in `on_step` cancels the call cleanly."""
        ...

    def with_settings(self, **changes: Any) -> Self:
        """The same loaded model with some settings changed; cheap."""
        ...
