"""Any editor, asked in any language."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import pytest
from PIL import Image

from wordbrush.languages.editor import InAnyLanguage
from wordbrush.languages.tables import TableTranslator
from wordbrush.languages.translation import TranslationError
from wordbrush.types import EditRequest, EditResult, OnStep


@dataclass
class Parrot:
    """Gives every picture back and notes what it was asked."""

    settings: Any = None
    asked: list[str] = field(default_factory=list[str])

    def edit(self, request: EditRequest, *, on_step: OnStep | None = None) -> EditResult:
        return self.edit_batch([request])[0]

    def edit_batch(
        self, requests: Sequence[EditRequest], *, on_step: OnStep | None = None
    ) -> list[EditResult]:
        self.asked += [request.instruction for request in requests]
        return [EditResult([r.image], [0], {"instruction": r.instruction}) for r in requests]

    def with_settings(self, **changes: Any) -> Self:
        return self


def ask(*texts: str) -> tuple[Parrot, list[EditResult]]:
    parrot = Parrot()
    editor = InAnyLanguage(parrot, TableTranslator()).with_settings()
    return parrot, editor.edit_batch([EditRequest(Image.new("RGB", (8, 8)), text) for text in texts])


def test_the_editor_hears_english_and_the_result_says_so():
    parrot, (chinese, english, nothing) = ask("把狗变成熊猫", "make it night", "")
    assert parrot.asked == ["replace the dog with a panda", "make it night", ""]
    assert chinese.warnings == ["“把狗变成熊猫” was read as “replace the dog with a panda”"]
    assert chinese.settings["instruction"] == "replace the dog with a panda"
    assert (chinese.settings["said"], chinese.settings["said_in"]) == ("把狗变成熊猫", "zh")
    assert not english.warnings
    assert "said" not in english.settings | nothing.settings


def test_what_is_not_understood_is_not_edited():
    with pytest.raises(TranslationError, match="沙发"):
        ask("make it night", "把沙发变成熊猫")
