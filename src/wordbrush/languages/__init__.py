"""An instruction in any language, into English."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wordbrush.languages.translation import Translator

TABLES = "tables"
"""The translator that is part of Wordbrush."""
OFF = "off"
"""No translator."""


def load_translator(name: str | Path = TABLES) -> Translator:
    """A translator by its name.

    Args:
        name: "tables", or a folder or hub id of an NLLB, M2M100 or Opus-MT checkpoint.

    Raises:
        ModelError: There is no such checkpoint, or it is of another kind.
    """
    if name == TABLES:
        from wordbrush.languages.tables import TableTranslator

        return TableTranslator.load()
    from wordbrush.languages.neural import Seq2SeqTranslator

    return Seq2SeqTranslator.load(name)
