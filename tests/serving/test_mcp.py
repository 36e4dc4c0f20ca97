"""The tools, over standard input and output of a real process, by the SDK's own client."""

import base64
import contextlib
import io
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp.client import Client
from mcp.client.stdio import StdioServerParameters, stdio_client
from PIL import Image

import wordbrush
from tests.serving.clients import wait_for
from wordbrush.editors.session_file import load_session
from wordbrush.errors import UsageError
from wordbrush.provenance import read_provenance
from wordbrush.serving.mcp import Folder, build


@pytest.fixture(scope="module")
def replies(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the server answered to one conversation, by the name of each call; loading it takes seconds."""
    folder = tmp_path_factory.mktemp("pictures")
    Image.effect_noise((48, 32), 60).convert("RGB").save(folder / "dog.png")
    Image.new("RGB", (8, 8)).save(folder.parent / "secret.png")
    Image.new("L", (8000, 8000)).save(folder / "large.png")
    (folder / "damaged.png").write_bytes(b"no picture")
    (folder / "link.png").symlink_to(folder.parent / "secret.png")
    calls: dict[str, tuple[str, dict[str, Any]]] = {
        "edit": ("edit", {"picture": "dog.png", "instruction": "make it night", "seed": 3, "variations": 2}),
        "again": ("edit", {"picture": "dog.png", "instruction": "make it night", "settings": {"steps": 1}}),
        "chinese": ("edit", {"picture": "dog.png", "instruction": "把狗变成熊猫", "output": "zh.png"}),
        "taken": ("edit", {"picture": "dog.png", "instruction": "make it day", "output": "zh.png"}),
        "outside": ("edit", {"picture": "../secret.png", "instruction": "make it day"}),
        "linked": ("edit", {"picture": "link.png", "instruction": "make it day"}),
        "writes outside": ("edit", {"picture": "dog.png", "instruction": "x", "output": "../out.png"}),
        "url": ("edit", {"picture": "http://example.org/dog.png", "instruction": "make it day"}),
        "empty": ("edit", {"picture": "dog.png"}),
        "not understood": ("edit", {"picture": "dog.png", "instruction": "把沙发变成熊猫"}),
        "turn": ("turn", {"session": "a.session", "instruction": "make it night", "picture": "dog.png"}),
        "second": ("turn", {"session": "a.session", "instruction": "make it snow", "seed": 5}),
        "turn settings": (
            "turn",
            {"session": "b.session", "instruction": "make it night", "picture": "dog.png",
             "settings": {"steps": 1}},
        ),
        "no session": ("turn", {"session": "b.png", "instruction": "make it night", "picture": "dog.png"}),
        "missing": ("edit", {"picture": "none.png", "instruction": "make it night"}),
        "damaged": ("edit", {"picture": "damaged.png", "instruction": "make it night"}),
        "too many": ("edit", {"picture": "large.png", "instruction": "make it night", "variations": 2}),
        "undo": ("undo", {"session": "a.session"}),
        "branch": ("branch", {"session": "a.session", "turn": 0}),
        "third": ("turn", {"session": "a.session", "instruction": "make it day"}),
        "show": ("show", {"session": "a.session", "output": "shown.png"}),
        "no turn": ("branch", {"session": "a.session", "turn": 9}),
        "compare": (
            "compare",
            {"picture": "dog.png", "source": "a dog", "target": "a cat", "methods": "instruct-pix2pix",
             "instruction": "make it a cat"},
        ),
        "other model": (
            "compare", {"picture": "dog.png", "source": "a", "target": "b", "methods": "sdedit=/tmp/model"}
        ),
    }  # fmt: skip
    found: dict[str, Any] = {"folder": folder, "progress": []}

    async def on_progress(done: float, total: float | None, message: str | None) -> None:
        found["progress"].append((done, total, message))

    async def talk(ask: Callable[..., Any], client: Client) -> None:
        found["tools"] = await client.list_tools()
        for name, (tool, arguments) in calls.items():
            found[name] = await ask(
                tool, arguments, progress_callback=on_progress if name == "edit" else None
            )

    async def run() -> None:
        words = ["mcp", str(folder), "--model", str(tiny_checkpoint), "--steps", "2", "--dtype", "float32"]
        server = StdioServerParameters(
            command=sys.executable, args=["-m", "wordbrush", *words], env=dict(os.environ)
        )
        async with Client(stdio_client(server)) as client:
            await talk(client.call_tool, client)

    anyio.run(run)
    return found


def test_settings_that_concern_other_files_are_refused(tmp_path: Path):
    Image.new("RGB", (48, 32)).save(tmp_path / "dog.png")

    def never(*_: Any) -> None:
        raise AssertionError

    server = build(
        tmp_path, lambda: wordbrush.load("storybook", "prompt-to-prompt", steps=1), never, "storybook"
    )

    async def run() -> Any:
        async with Client(server) as client:
            asked = {"picture": "dog.png", "source": "a dog", "target": "a cat"}
            return await client.call_tool("edit", asked | {"settings": {"keep_inversion": True}})

    assert "keep_inversion concerns files outside of the folder" in text(anyio.run(run))


def test_over_http_an_edit_can_be_cancelled(tiny_checkpoint: Path, tmp_path: Path):
    Image.effect_noise((48, 32), 60).convert("RGB").save(tmp_path / "dog.png")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = ["mcp", str(tmp_path), "--model", str(tiny_checkpoint), "--port", str(port), "--dtype", "float32"]
    server = subprocess.Popen([sys.executable, "-m", "wordbrush", *words], stderr=subprocess.DEVNULL)
    began = anyio.Event()

    async def long(client: Client, scope: anyio.CancelScope) -> None:
        async def on_progress(done: float, total: float | None, message: str | None) -> None:
            if total == 1000 and done > 1:
                began.set()

        asked = {"picture": "dog.png", "instruction": "make it day", "settings": {"steps": 1000, "size": 128}}
        with scope:
            await client.call_tool("edit", asked, progress_callback=on_progress)

    async def run() -> Any:
        async with Client(f"http://127.0.0.1:{port}/mcp") as client, anyio.create_task_group() as tasks:
            scope = anyio.CancelScope()
            tasks.start_soon(long, client, scope)
            await began.wait()
            scope.cancel()
            asked = {"picture": "dog.png", "instruction": "make it day", "settings": {"steps": 1}}
            return await client.call_tool("edit", asked)

    try:
        wait_for(lambda: _listens(port))
        assert "dog-edited.png" in text(anyio.run(run))  # the first one has written nothing
        assert not (tmp_path / "dog-edited-2.png").exists()
    finally:
        server.kill()
        server.wait()


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
        return True
    return False


def text(reply: Any) -> str:
    return "\n".join(part.text for part in reply.content if part.type == "text")


def picture(reply: Any) -> Image.Image:
    (*_, last) = (part for part in reply.content if part.type == "image")
    return Image.open(io.BytesIO(base64.b64decode(last.data)))


def test_tools_are_described(replies: dict[str, Any]):
    tools = {tool.name: tool.description for tool in replies["tools"].tools}
    assert set(tools) == {"edit", "compare", "turn", "undo", "branch", "show"}
    assert all(tools.values())


def test_an_edit_gives_pictures_paths_and_progress(replies: dict[str, Any]):
    reply, folder = replies["edit"], replies["folder"]
    assert not reply.is_error
    assert text(reply) == "dog-edited.png (seed 3)\ndog-edited-2.png (seed 4)"
    assert picture(reply).size == (48, 32)
    assert read_provenance(folder / "dog-edited.png")["settings"]["instruction"] == "make it night"
    assert replies["progress"][0][2] == "Loading the model"
    assert replies["progress"][-1] == (2, 2, "Editing")


def test_nothing_is_overwritten(replies: dict[str, Any]):
    assert "dog-edited-3.png" in text(replies["again"])
    settings = read_provenance(replies["folder"] / "dog-edited-3.png")["settings"]
    assert settings["steps"] == 1
    assert replies["taken"].is_error
    assert "exists" in text(replies["taken"])


def test_instructions_in_other_languages(replies: dict[str, Any]):
    assert "replace the dog with a panda" in text(replies["chinese"])
    assert replies["not understood"].is_error
    assert "沙发" in text(replies["not understood"])


@pytest.mark.parametrize("name", ["outside", "linked", "writes outside"])
def test_the_folder_is_not_left(replies: dict[str, Any], name: str):
    assert replies[name].is_error
    assert "outside of the folder" in text(replies[name])
    assert not (replies["folder"].parent / "out.png").exists()


@pytest.mark.parametrize(
    ("name", "words"),
    [("url", "URLs are not fetched"), ("empty", "instruction is empty"), ("no turn", "there is no turn 9"),
     ("other model", "settled at the start"), ("no session", "ends in .session"),
     ("too many", "of this picture 1 can be made"), ("missing", "none.png: cannot be read")],
)  # fmt: skip
def test_errors_are_clear(replies: dict[str, Any], name: str, words: str):
    assert replies[name].is_error
    assert words in text(replies[name])


def test_errors_name_no_absolute_path(replies: dict[str, Any]):
    for name in ("missing", "damaged", "taken", "no turn"):
        assert str(replies["folder"].resolve().parent) not in text(replies[name])


def test_a_turn_takes_settings(replies: dict[str, Any]):
    assert not replies["turn settings"].is_error, text(replies["turn settings"])
    turn = load_session(replies["folder"] / "b.session").turns[0]
    assert turn.settings["steps"] == 1


def test_a_session_is_a_tree(replies: dict[str, Any]):
    assert "* 2 from 1: make it snow (seed 5)" in text(replies["second"])
    assert "* 1 from 0" in text(replies["undo"])
    assert "* 0 original" in text(replies["branch"])
    assert "* 3 from 0: make it day" in text(replies["third"])
    assert text(replies["show"]).count("\n") == 4
    assert picture(replies["show"]).size == Image.open(replies["folder"] / "shown.png").size


def test_compare(replies: dict[str, Any]):
    assert not replies["compare"].is_error, text(replies["compare"])
    assert text(replies["compare"]) == "dog-compare/report.html"
    assert (replies["folder"] / "dog-compare" / "instruct-pix2pix.png").exists()


def test_names_of_the_folder(tmp_path: Path):
    folder = Folder(tmp_path)
    assert folder.path("a/../b.png") == tmp_path.resolve() / "b.png"
    assert folder.path(str(tmp_path / "c.png")) == tmp_path.resolve() / "c.png"
    for name in ("", ".", "/etc/passwd", "a/../../b.png", "\0"):
        with pytest.raises(UsageError):
            folder.path(name)
    with pytest.raises(UsageError, match="does not exist"):
        Folder(tmp_path / "missing")
