"""What a visitor of the page has: his session, his mask, and the files that are shown to him."""

from __future__ import annotations

import shutil
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from threading import Event, Lock
from uuid import uuid4

from PIL import Image

from wordbrush.editors.sequential import ORIGINAL, Session, Turn, thresholds
from wordbrush.editors.session_file import load_session, save_session
from wordbrush.errors import ImageError, UsageError
from wordbrush.images import Picture, open_image
from wordbrush.outputs import make_folder, save_result
from wordbrush.types import Editor, EditRequest, EditResult, OnStep


@dataclass
class Visit:
    """One open page.

    Attributes:
        home: The folder of his files; it goes when he leaves.
        stop: Set to cancel what runs for him; None: nothing does.
        mask: Where the picture may change, by clicks: "L", white may.
        made: Numbers of the variations of the last edit, to choose from.
    """

    home: Path
    stop: Event | None = None
    mask: Image.Image | None = None
    made: list[int] = field(default_factory=list[int])
    _session: Session | None = None
    _source: Picture | None = None
    _stem: str = "picture"

    @property
    def session(self) -> Session:
        """His picture and its turns.

        Raises:
            UsageError: There is no picture yet.
        """
        if self._session is None:
            raise UsageError("choose a picture first")
        return self._session

    @property
    def begun(self) -> bool:
        """Whether there is a picture."""
        return self._session is not None

    def begin(self, path: Path, model: str) -> Sequence[str]:
        """Begin with a picture, to be edited by a model; returns what to know of how it was read.

        Raises:
            ImageError: It cannot be read.
        """
        with _named(path):
            picture = open_image(path)
        self._start(Session(picture.image, *thresholds(model)), path.stem, picture)
        return picture.notes

    def open(self, path: Path) -> None:
        """Go on with a session's file.

        Raises:
            ImageError: It is no session, or damaged.
        """
        with _named(path):
            session = load_session(path)
        self._start(session, path.stem, None)

    def close(self) -> None:
        """Stop what runs, forget the picture and delete the files."""
        if self.stop is not None:
            self.stop.set()
        self._session, self._source, self.mask, self.made = None, None, None, []
        shutil.rmtree(self.home, ignore_errors=True)

    def edit(self, editor: Editor, request: EditRequest, on_step: OnStep | None = None) -> list[Turn]:
        """Edit the current picture; see `Session.edit`."""
        made = self.session.edit(editor, request, on_step=on_step)
        self.made = [turn.number for turn in made]
        return made

    def file(self, number: int | None = None) -> Path:
        """The picture of a turn, by default of the current one, as a file that says how it was made."""
        number = self.session.current if number is None else number
        if number == ORIGINAL:
            return self.home / "original.png"
        path = self.home / f"{self._stem}-edited{'' if number == 1 else f'-{number}'}.png"
        if not path.exists():
            self._write(self.session.turn(number), path)
        return path

    def keep(self, picture: Image.Image) -> str:
        """A picture that is only shown, as a file of a new name: browsers remember files by their names."""
        path = self.home / f"{uuid4().hex}.png"
        picture.save(path, compress_level=1)
        return str(path)

    def session_file(self) -> Path:
        """The session as it is now, as a file."""
        path = self.home / f"{self._stem}.session"
        save_session(self.session, path, overwrite=True)
        return path

    def _start(self, session: Session, stem: str, source: Picture | None) -> None:
        self.close()
        make_folder(self.home)
        self._session, self._stem = session, stem
        original = self.home / "original.png"
        session.original.save(original, compress_level=1)  # upright and in sRGB, as the editors see it
        self._source = source or open_image(original)

    def _write(self, turn: Turn, path: Path) -> None:
        result = EditResult([turn.image], [turn.settings["seed"]], turn.settings)
        save_result(result, [path], source=self._edited(turn), mask=self._mask(turn), overwrite=True)

    def _edited(self, turn: Turn) -> Picture:
        """The picture that a turn edited, as he has it in a file."""
        assert self._source is not None
        if turn.parent == ORIGINAL:
            return self._source
        return replace(open_image(self.file(turn.parent)), exif=self._source.exif)

    def _mask(self, turn: Turn) -> Picture | None:
        if turn.request.mask is None:
            return None
        path = self.home / f"mask-{turn.number}.png"
        turn.request.mask.save(path)
        return open_image(path)


class Visits:
    """All who have the page open, each by himself.

    Args:
        folder: Where their files lie, each in a folder of his own.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._visits: dict[str, Visit] = {}
        self._lock = Lock()

    def __iter__(self) -> Iterator[Visit]:
        return iter(list(self._visits.values()))

    def of(self, key: str | None) -> Visit:
        """The visit of a page, by the key that its requests carry; a new one at first."""
        # hashed, because the key comes from outside
        name = sha256((key or "").encode()).hexdigest()
        with self._lock:
            return self._visits.setdefault(name, Visit(self._folder / name))

    def end(self, key: str | None) -> None:
        """Stop what runs for a visitor and delete what he had."""
        visit = self.of(key)
        visit.close()
        with self._lock:
            self._visits.pop(visit.home.name, None)

    def end_all(self) -> None:
        """The same for everybody."""
        for visit in self:
            visit.close()
        self._visits.clear()
        shutil.rmtree(self._folder, ignore_errors=True)


@contextmanager
def _named(path: Path) -> Generator[None]:
    """Errors about a file name it as the visitor does, not by its place on this computer."""
    try:
        yield
    except ImageError as error:
        raise ImageError(str(error).replace(str(path), path.name)) from error
