"""Any editor, asked in any language."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Self

import wordbrush
from wordbrush.editors import find_method
from wordbrush.languages import OFF, load_translator
from wordbrush.languages.translation import Heard, Translator, hear
from wordbrush.types import Editor, EditRequest, EditResult, OnStep


def load_editor(translator: str, **options: Any) -> Editor:
    """`wordbrush.load`, and instructions in any language, where the method takes instructions.

    Args:
        translator: For `load_translator`; "off" leaves instructions as they are.
        options: Of `wordbrush.load`.

    Raises:
        ModelError: The model or the translator cannot be loaded.
    """
    editor = wordbrush.load(**options)
    if translator == OFF or "instruction" not in find_method(options["method"]).needs:
        return editor
    return InAnyLanguage(editor, load_translator(translator))


class InAnyLanguage:
    """An editor whose instructions are turned into English first.

    The result says what English was used: in its warnings, and in its settings, which therefore make the
    same edit again; there `said` is what the user wrote, and `said_in` the language.

    Args:
        editor: Understands English.
        translator: See `load_translator`.
    """

    def __init__(self, editor: Editor, translator: Translator) -> None:
        self.editor, self.translator = editor, translator

    @property
    def settings(self) -> Any:
        """Those of the editor."""
        return self.editor.settings

    def edit(self, request: EditRequest, *, on_step: OnStep | None = None) -> EditResult:
        """Edit one picture."""
        return self.edit_batch([request], on_step=on_step)[0]

    def edit_batch(
        self, requests: Sequence[EditRequest], *, on_step: OnStep | None = None
    ) -> list[EditResult]:
        """Edit many pictures; nothing is edited if one instruction is not understood.

        Raises:
            TranslationError: It names the part that is not understood.
        """
        heard = [hear(self.translator, request.instruction) for request in requests]
        english = [
            request if found is None else dataclasses.replace(request, instruction=found.english)
            for request, found in zip(requests, heard, strict=True)
        ]
        results = self.editor.edit_batch(english, on_step=on_step)
        return [
            result if found is None else _told(result, found)
            for result, found in zip(results, heard, strict=True)
        ]

    def with_settings(self, **changes: Any) -> Self:
        """The same with some settings changed; the model is shared."""
        return type(self)(self.editor.with_settings(**changes), self.translator)


def _told(result: EditResult, heard: Heard) -> EditResult:
    return dataclasses.replace(
        result, settings=result.settings | heard.record, warnings=[heard.warning, *result.warnings]
    )
