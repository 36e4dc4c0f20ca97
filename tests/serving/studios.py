"""A studio over tiny random checkpoints, for tests."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from wordbrush.editors import find_method
from wordbrush.editors.settings import make_settings
from wordbrush.languages.editor import load_editor
from wordbrush.safety import Safety
from wordbrush.serving import web
from wordbrush.serving.menu import Menu
from wordbrush.serving.visits import Visits
from wordbrush.types import Editor


def menu(model: Path, safety: Safety | None = None, first: str = "instruct-pix2pix", **settings: Any) -> Menu:
    """Of one model, whose methods have these settings."""

    def load(name: str, method: str) -> Editor:
        editor = load_editor("tables", model=name, method=method, dtype="float32", **settings)
        return (safety or Safety()).guard(editor, "cpu")

    def defaults(_: str, method: str) -> Any:
        return make_settings(find_method(method).settings, settings)

    return Menu([str(model)], load, defaults, first=first)


@contextmanager
def running(model: Path, **settings: Any) -> Iterator[tuple[str, Visits]]:
    """The address of a page, and who is there."""
    page, visits = web.build(menu(model, **settings))
    try:
        yield web.launch(page, host="127.0.0.1", port=None)[1], visits
    finally:
        visits.end_all()
        page.close(verbose=False)
