"""What a translator takes and gives; light, so that any module can import it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from wordbrush.errors import UsageError


class TranslationError(UsageError):
    """An instruction that is not understood; its message names the part."""


@dataclass(frozen=True)
class Translation:
    """An instruction in English.

    Attributes:
        english: What the editor is given.
        language: Of the instruction: "en", "de", "zh", ...
        source: What made it: "as it is", "tables", "tables and encoder", or the name of a checkpoint.
        unsure: The parts of the instruction that were not understood.
    """

    english: str
    language: str
    source: str
    unsure: tuple[str, ...] = ()

    @property
    def changed(self) -> bool:
        """Whether the instruction was in another language than English."""
        return self.language != "en"


class Translator(Protocol):
    """Turns an instruction in any language into an English one."""

    def translate(self, text: str) -> Translation:
        """One instruction.

        Raises:
            TranslationError: A part of it is not understood.
        """
        ...
