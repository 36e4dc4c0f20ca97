"""What a translator takes and gives; light, so that any module can import it."""

from __future__ import annotations

from collections.abc import Sequence
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


@dataclass(frozen=True)
class Heard:
    """An instruction in another language, and how it was read."""

    said: str
    english: str
    language: str
    translator: str
    """What turned it into English."""
    unsure: Sequence[str] = ()
    """The parts that were not understood."""

    @property
    def warning(self) -> str:
        """The same in a line for people."""
        line = f"“{self.said}” was read as “{self.english}”"
        return f"{line}; not understood: {', '.join(self.unsure)}" if self.unsure else line

    @property
    def record(self) -> dict[str, str]:
        """What the record of a result says of it."""
        return {"said": self.said, "said_in": self.language, "translator": self.translator}


def hear(translator: Translator, instruction: str) -> Heard | None:
    """Turn an instruction into English; None for what is English, or nothing.

    Raises:
        TranslationError: A part of it is not understood.
    """
    found = translator.translate(instruction) if instruction.strip() else None
    if found is None or not found.changed:
        return None
    return Heard(instruction, found.english, found.language, found.source, found.unsure)


class Translator(Protocol):
    """Turns an instruction in any language into an English one."""

    def translate(self, text: str) -> Translation:
        """One instruction.

        Raises:
            TranslationError: A part of it is not understood.
        """
        ...
