"""`wordbrush mcp`: edit, compare and sessions as tools for agents, over one folder."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import anyio
import anyio.from_thread
import anyio.to_thread
from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver import Image as ImageOut
from mcp.server.mcpserver.exceptions import ToolError
from PIL import Image

from wordbrush import __version__
from wordbrush.controls import controls
from wordbrush.editors.sequential import Session, thresholds
from wordbrush.editors.session_file import load_session, save_session
from wordbrush.errors import UsageError, WordbrushError
from wordbrush.images import Picture, open_image
from wordbrush.outputs import check_outputs, default_output, save_result, variation_paths
from wordbrush.progress import Show, on_step
from wordbrush.types import Editor, EditRequest

T = TypeVar("T")
Compare = Callable[[EditRequest, Picture, str | None, Path, Show], None]
"""Compares the methods of a list ("a,b", None: all) on a request, and writes the report into a folder."""

_SHOWN = 768
"""Longest side of a picture that is sent back, in pixels; the saved one has its full size."""
_MAX_PIXELS = 100_000_000
"""Of all variations of an edit together, which are in memory at once."""
_SESSION = ".session"
_ABOUT = """Edits the pictures of one folder by words. Paths are relative to that folder. No picture is
overwritten. An instruction may be in any language; the reply says which English was used."""


class Folder:
    """The only folder that is read and written.

    Args:
        root: It must exist.

    Raises:
        UsageError: It does not.
    """

    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            raise UsageError(f"the folder {root} does not exist")
        self.root = root.resolve()

    def path(self, name: str) -> Path:
        """The path of a name in the folder, links followed.

        Raises:
            UsageError: It is a URL, or it leads out of the folder.
        """
        if "://" in name:
            raise UsageError(
                f"{name}: URLs are not fetched; put the picture into the folder and name its file"
            )
        try:
            path = (self.root / name).resolve()
        except (OSError, ValueError, RuntimeError) as error:
            raise UsageError(f"{name!r} is no file name") from error
        if not path.is_relative_to(self.root) or path == self.root:
            raise UsageError(f"{name}: outside of the folder that is served")
        return path

    def name(self, path: Path) -> str:
        """The other way round."""
        return path.relative_to(self.root).as_posix()

    def free(self, path: Path) -> Path:
        """The path, or the first one with a number that does not exist."""
        number, found = 2, path
        while found.exists():
            found, number = path.with_name(f"{path.stem}-{number}{path.suffix}"), number + 1
        return found


class Tools:
    """What an agent can ask for; each method is one tool, and its first paragraph the description.

    Args:
        folder: Where the pictures are.
        load: Gives the editor; it is called once, by the first edit.
        compare: See `Compare`.
        model: Whose thresholds new sessions have.
    """

    def __init__(self, folder: Folder, load: Callable[[], Editor], compare: Compare, model: str) -> None:
        self.folder, self._model = folder, model
        self._load, self._compare = load, compare
        self._editor: Editor | None = None
        self._one = anyio.Lock()

    async def edit(
        self,
        context: Context[Any],
        picture: str,
        instruction: str = "",
        source: str = "",
        target: str = "",
        mask: str | None = None,
        seed: int | None = None,
        variations: int = 1,
        settings: dict[str, Any] | None = None,
        output: str | None = None,
    ) -> list[str | ImageOut]:
        """Edit a picture file by an instruction such as "make it night".

        `source` and `target` say what the picture shows and what the result shall show, for methods that edit
        by description. White in `mask` may change, black may not. `settings` are the method's, for example
        {"text_scale": 6}. Gives each result's path and the picture.
        """
        asked = partial(
            self._edit, picture, instruction, source, target, mask, seed, variations, settings or {}, output
        )
        return await self._run(context, asked)

    async def compare(
        self,
        context: Context[Any],
        picture: str,
        source: str,
        target: str,
        instruction: str = "",
        methods: str | None = None,
        seed: int = 0,
        output: str | None = None,
    ) -> list[str | ImageOut]:
        """Edit a picture by several methods, side by side with time and scores.

        `source` and `target` say what the picture shows and what the results shall show. `methods` are names
        with commas between; all by default. `output` names a new folder for the report. Slow.
        """
        asked = partial(self._compared, picture, source, target, instruction, methods, seed, output)
        return await self._run(context, asked)

    async def turn(
        self,
        context: Context[Any],
        session: str,
        instruction: str,
        picture: str | None = None,
        mask: str | None = None,
        seed: int | None = None,
        settings: dict[str, Any] | None = None,
    ) -> list[str | ImageOut]:
        """Edit the current picture of a session file; `picture` begins a new session, named NAME.session.

        What hardly changes stays byte for byte, so that many turns do not decay. `settings` are those of
        `edit`.
        """
        asked = partial(self._turn, session, instruction, picture, mask, seed, settings or {})
        return await self._run(context, asked)

    async def undo(self, context: Context[Any], session: str) -> list[str | ImageOut]:
        """Go back by one turn; it stays in the session's tree."""
        return await self._run(context, partial(self._moved, session, Session.undo))

    async def branch(self, context: Context[Any], session: str, turn: int) -> list[str | ImageOut]:
        """Go to any turn of a session (0 is the original); the next turn grows a branch from there."""
        return await self._run(context, partial(self._moved, session, lambda known: known.go_to(turn)))

    async def show(
        self, context: Context[Any], session: str, output: str | None = None
    ) -> list[str | ImageOut]:
        """Show the turns of a session and its current picture; `output` also writes that picture."""
        return await self._run(context, partial(self._shown, session, output))

    async def _run(self, context: Context[Any], work: Callable[[Show], T]) -> T:
        """Do the work in a thread, one at a time; its errors are the tool's."""

        def report(text: str, done: int, total: int) -> None:
            anyio.from_thread.check_cancelled()
            anyio.from_thread.run(context.report_progress, done, total, text)

        async with self._one:
            try:
                return await anyio.to_thread.run_sync(work, report)
            except WordbrushError as error:
                raise ToolError(self._relative(str(error))) from error

    def _relative(self, text: str) -> str:
        """A message in one line, with the names of files as an agent knows them."""
        root = str(self.folder.root)
        return " ".join(text.replace(f"{root}/", "").replace(root, "the folder").split())

    def _edit(
        self,
        picture: str,
        instruction: str,
        source: str,
        target: str,
        mask: str | None,
        seed: int | None,
        variations: int,
        settings: dict[str, Any],
        output: str | None,
        report: Show,
    ) -> list[str | ImageOut]:
        path = self.folder.path(picture)
        first = self.folder.free(default_output(path)) if output is None else self.folder.path(output)
        paths = variation_paths(first, variations)
        check_outputs(paths, force=False)
        original, cover = open_image(path), open_image(self.folder.path(mask)) if mask else None
        most = max(1, _MAX_PIXELS // (original.image.width * original.image.height))
        if variations > most:
            raise UsageError(f"{variations} variations are too many: of this picture {most} can be made")
        request = EditRequest(
            original.image,
            instruction,
            source,
            target,
            mask=None if cover is None else cover.image,
            seed=seed,
            num_variations=variations,
        )
        editor = self._loaded(report, settings)
        if not (instruction or source or target):
            raise UsageError("say what to do: the instruction is empty")
        result = editor.edit(request, on_step=on_step(report))
        save_result(result, paths, source=original, mask=cover)
        said = [f"warning: {text}" for text in (*original.notes, *result.warnings)]
        made: list[str | ImageOut] = []
        for image, saved, used in zip(result.images, paths, result.seeds, strict=True):
            made += [f"{self.folder.name(saved)} (seed {used})", _shrunk(image)]
        return [*said, *made]

    def _compared(
        self,
        picture: str,
        source: str,
        target: str,
        instruction: str,
        methods: str | None,
        seed: int,
        output: str | None,
        report: Show,
    ) -> list[str | ImageOut]:
        path = self.folder.path(picture)
        default = self.folder.free(path.with_name(f"{path.stem}-compare"))
        out = default if output is None else self.folder.path(output)
        if out.exists():
            raise UsageError(f"{self.folder.name(out)} exists: name another folder")
        if methods is not None and "=" in methods:
            raise UsageError("methods are names with commas between; their models were settled at the start")
        original = open_image(path)
        request = EditRequest(original.image, instruction, source, target, seed=seed)
        self._compare(request, original, methods, out, report)
        sheet = open_image(out / "sheet.png").image
        return [f"{self.folder.name(out)}/report.html", _shrunk(sheet)]

    def _turn(
        self,
        session: str,
        instruction: str,
        picture: str | None,
        mask: str | None,
        seed: int | None,
        settings: dict[str, Any],
        report: Show,
    ) -> list[str | ImageOut]:
        path = self.folder.path(session)
        if picture is not None and path.suffix != _SESSION:
            raise UsageError(f"{session}: a session's name ends in {_SESSION}")
        if picture is not None and path.exists():
            raise UsageError(f"{session} exists: go on with it without a picture, or name another file")
        known = load_session(path) if picture is None else self._begun(picture)
        cover = None if mask is None else self._picture(mask)
        request = EditRequest(known.image(), instruction, mask=cover, seed=seed)
        (new,) = known.edit(self._loaded(report, settings), request, on_step=on_step(report))
        save_session(known, path, overwrite=picture is None)
        said = [f"warning: {text}" for text in new.warnings]
        return [*said, known.summary, f"saved in {self.folder.name(path)}", _shrunk(new.image)]

    def _moved(self, session: str, move: Callable[[Session], None], report: Show) -> list[str | ImageOut]:
        path = self.folder.path(session)
        known = load_session(path)
        move(known)
        save_session(known, path, overwrite=True)
        return [known.summary, f"saved in {self.folder.name(path)}", _shrunk(known.image())]

    def _shown(self, session: str, output: str | None, report: Show) -> list[str | ImageOut]:
        from wordbrush.provenance import save_image

        known = load_session(self.folder.path(session))
        said: list[str] = []
        if output is not None:
            path = self.folder.path(output)
            check_outputs([path], force=False)
            settings = known.turn(known.current).settings if known.current else {}
            save_image(known.image(), path, settings=settings)
            said = [f"written to {self.folder.name(path)}"]
        return [known.summary, *said, _shrunk(known.image())]

    def _loaded(self, report: Show, settings: dict[str, Any]) -> Editor:
        """The editor with some settings changed."""
        if self._editor is None:
            report("Loading the model", 0, 1)
            self._editor = self._load()
        for control in controls(type(self._editor.settings)):
            if control.local and control.name in settings:
                raise UsageError(f"{control.name} concerns files outside of the folder: settled at the start")
        return self._editor.with_settings(**settings)

    def _begun(self, picture: str) -> Session:
        return Session(self._picture(picture), *thresholds(self._model))

    def _picture(self, name: str) -> Image.Image:
        return open_image(self.folder.path(name)).image


def build(folder: Path, load: Callable[[], Editor], compare: Compare, model: str) -> MCPServer[Any]:
    """The server, with its tools.

    Args:
        folder: The only one that is read and written.
        load: Gives the editor.
        compare: See `Compare`.
        model: That of the editor.

    Raises:
        UsageError: There is no such folder.
    """
    tools = Tools(Folder(folder), load, compare, model)
    server: MCPServer[Any] = MCPServer(
        "wordbrush", instructions=_ABOUT, version=__version__, log_level="ERROR"
    )
    for tool in (tools.edit, tools.compare, tools.turn, tools.undo, tools.branch, tools.show):
        server.tool(structured_output=False)(tool)
    return server


def serve(server: MCPServer[Any], *, host: str, port: int | None) -> None:
    """Answer on standard input and output, or at http://HOST:PORT/mcp where a port is given."""
    if port is None:
        server.run("stdio")
    else:
        server.run("streamable-http", host=host, port=port)


def _shrunk(image: Image.Image) -> ImageOut:
    """The picture as an agent gets to see it."""
    small, file = image.copy(), io.BytesIO()
    small.thumbnail((_SHOWN, _SHOWN))
    small.save(file, "PNG")
    return ImageOut(data=file.getvalue(), format="png")
