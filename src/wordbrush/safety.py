"""What is done to results before anybody gets them: a check that they are safe for work, and a watermark."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

from PIL import Image

from wordbrush import watermark
from wordbrush.diffusion.runtime import resolve_device
from wordbrush.errors import WithheldError
from wordbrush.perception.nsfw import OFF, Checker, load_checker
from wordbrush.types import Editor, EditRequest, EditResult, OnStep, StepInfo


@dataclass(frozen=True)
class Safety:
    """Which of the two is on.

    Attributes:
        nsfw_check: "off", or a name for `load_checker`.
        watermark: Whether results are marked.
    """

    nsfw_check: str = OFF
    watermark: bool = False

    def guard(self, editor: Editor, device: str = "auto") -> Editor:
        """The editor with what is on, or the editor itself.

        Args:
            editor: Of any method.
            device: Where the check's network goes: "auto", "cpu", "cuda", ...

        Raises:
            ModelError: The check's model cannot be loaded.
            MissingExtraError: What is on needs packages that are not installed.
        """
        if self == Safety():
            return editor
        if self.watermark:
            watermark.check_installed()
        checks = self.nsfw_check != OFF
        checker = load_checker(self.nsfw_check, device=resolve_device(device)) if checks else None
        return Guarded(editor, checker, marks=self.watermark)


class Guarded:
    """An editor whose results are checked, marked, or both, and whose records say so.

    Args:
        editor: Makes them.
        checker: See `load_checker`; None checks nothing.
        marks: Whether results get the watermark, where a mask says "unchanged", too.
    """

    def __init__(self, editor: Editor, checker: Checker | None, *, marks: bool) -> None:
        self.editor, self.checker, self.marks = editor, checker, marks

    @property
    def settings(self) -> Any:
        """Those of the editor."""
        return self.editor.settings

    def working_size(self, size: tuple[int, int]) -> Any:
        """That of the editor, if it has one."""
        editor: Any = self.editor
        return editor.working_size(size)

    def edit(self, request: EditRequest, *, on_step: OnStep | None = None) -> EditResult:
        """Edit one picture."""
        return self.edit_batch([request], on_step=on_step)[0]

    def edit_batch(
        self, requests: Sequence[EditRequest], *, on_step: OnStep | None = None
    ) -> list[EditResult]:
        """Edit many pictures; one result that is withheld withholds all.

        Raises:
            WithheldError: A result is not safe for work.
            ImageError: A picture cannot be marked.
        """
        for request in requests if self.marks else ():
            watermark.check_size(request.image)
        results = self.editor.edit_batch(requests, on_step=self._discreet(requests, on_step))
        return [self._released(result) for result in results]

    def with_settings(self, **changes: Any) -> Self:
        """The same with some settings changed; the models are shared."""
        return type(self)(self.editor.with_settings(**changes), self.checker, marks=self.marks)

    def _released(self, result: EditResult) -> EditResult:
        images, record = result.images, dict(result.settings)
        if self.checker is not None:
            if num_unsafe := sum(self.checker.unsafe(images)):
                raise WithheldError(self.checker.name, num_unsafe, len(images))
            record["nsfw_check"] = self.checker.name
        if self.marks:
            images = [watermark.put_in(image) for image in images]
            record[watermark.KEY] = watermark.MESSAGE
        return dataclasses.replace(result, images=images, settings=record)

    def _discreet(self, requests: Sequence[EditRequest], on_step: OnStep | None) -> OnStep | None:
        """Of pictures on their way that are not safe, show the first that is edited instead."""
        checker = self.checker
        if checker is None or on_step is None:
            return on_step

        def checked(info: StepInfo) -> None:
            def preview() -> list[Image.Image]:
                seen = info.preview()
                verdicts = zip(seen, checker.unsafe(seen), strict=True)
                return [requests[0].image if unsafe else picture for picture, unsafe in verdicts]

            on_step(dataclasses.replace(info, preview=preview))

        return checked
