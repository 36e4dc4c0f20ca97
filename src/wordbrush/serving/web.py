"""`wordbrush ui`: one page that edits a picture by an instruction."""

import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from threading import Event
from typing import Any

import gradio as gr
from gradio.themes import Soft

from wordbrush.controls import Control, controls
from wordbrush.errors import UsageError, WordbrushError
from wordbrush.images import open_image
from wordbrush.outputs import save_result
from wordbrush.types import Editor, EditRequest, StepInfo

EXAMPLES = (
    "make it night",
    "let it snow",
    "turn it into a pencil sketch",
    "make it a watercolour painting",
    "turn the dog into a cat",
    "make the car red",
    "remove the tree",
    "change the background to a beach",
)

_TEXTS = ("instruction",)
_PLACEHOLDERS = {
    "instruction": "make it night",
    "source_caption": "What the picture shows: a dog on a beach",
    "target_caption": "What the result shall show: a panda on a beach",
}

_INTRO = """# Wordbrush
Edit a picture by saying what should change. It all happens on the computer that serves this page."""
_THEME = Soft(primary_hue="violet", font=["system-ui", "sans-serif"], font_mono=["monospace"])
_CSS = ".gradio-container {max-width: 1180px !important; margin: auto}"
_DAY = 24 * 60 * 60


def serve(
    editor: Editor, *, texts: Sequence[str] = _TEXTS, host: str = "127.0.0.1", port: int = 7860
) -> None:
    """Show the page until Ctrl-C.

    Args:
        editor: makes the edits, one at a time for all visitors.
        texts: the fields of `EditRequest` that the visitor fills in.
        host: the address to listen on; the default is reachable from this computer alone.
        port: the port to listen on.

    Raises:
        WordbrushError: the address or the port cannot be had.
    """
    page = build(editor, texts)
    try:
        _, url, _ = launch(page, host=host, port=port)
        print(f"Wordbrush is at {url} (Ctrl-C to stop)", flush=True)
        while True:
            time.sleep(1)
    finally:
        page.close(verbose=False)


def launch(page: gr.Blocks, *, host: str, port: int | None) -> tuple[Any, str, str]:
    """Start the page's server in a thread; returns what `gradio.Blocks.launch` does."""
    try:
        return page.launch(
            server_name=host,
            server_port=port,
            prevent_thread_lock=True,
            quiet=True,
            share=False,
            show_error=True,
            footer_links=[],
            theme=_THEME,
            css=_CSS,
        )
    except (OSError, ValueError) as error:  # gradio says either when the page does not answer
        raise WordbrushError(f"cannot listen at {host}, port {port}: try another --port") from error


def build(editor: Editor, texts: Sequence[str] = _TEXTS) -> gr.Blocks:
    """The page for an editor; its settings, and the texts that it needs, become the page's controls."""
    events = _Events(editor)
    with gr.Blocks(title="Wordbrush", analytics_enabled=False, delete_cache=(_DAY, _DAY)) as page:
        gr.Markdown(_INTRO)
        with gr.Row(equal_height=False):
            with gr.Column():
                inputs, start, cancel = _input_column(editor, texts)
            with gr.Column():
                slider = gr.ImageSlider(
                    label="Before and after", height=500, max_height=500, interactive=False
                )
                status = gr.Markdown()
                download = gr.DownloadButton("Download the result", interactive=False)
        ready: dict[str, Any] = {"fn": lambda: (gr.Button(interactive=True), gr.Button(interactive=False))}
        busy: dict[str, Any] = {"fn": lambda: (gr.Button(interactive=False), gr.Button(interactive=True))}
        buttons: dict[str, Any] = {"outputs": [start, cancel], "queue": False, "api_visibility": "private"}
        begun = gr.on([start.click, *(inputs[name].submit for name in texts)], **busy, **buttons)
        work = begun.then(
            events.edit,
            inputs_kwargs=inputs,
            outputs=[slider, download, status],
            show_progress_on=slider,
            api_name="edit",
        )
        work.success(
            lambda: gr.DownloadButton(interactive=True),
            outputs=[download],
            queue=False,
            api_visibility="private",
        )
        work.then(**ready, **buttons)
        cancel.click(events.cancel, outputs=[status], queue=False, cancels=[work], api_name="cancel").then(
            **ready, **buttons
        )
        page.unload(events.leave)
    return page


def _input_column(editor: Editor, texts: Sequence[str]) -> tuple[dict[str, Any], gr.Button, gr.Button]:
    picture = gr.Image(
        label="Picture", type="filepath", image_mode=None, height=360, sources=["upload", "clipboard"]
    )
    fields = {name: _text_field(name) for name in texts}
    with gr.Row():
        start = gr.Button("Edit", variant="primary")
        cancel = gr.Button("Cancel", variant="stop", interactive=False)
    if "instruction" in fields:
        gr.Examples([[text] for text in EXAMPLES], [fields["instruction"]], label="For example")
    with gr.Accordion("Settings", open=False):
        info = "The same seed gives the same result"
        seed = gr.Textbox(label="Seed", info=info, placeholder="drawn at random")
        values = vars(editor.settings)
        settings = {
            item.name: _component(item, values[item.name]) for item in controls(type(editor.settings))
        }
    return {"picture": picture, **fields, "seed": seed, **settings}, start, cancel


def _text_field(name: str) -> gr.Textbox:
    label = name.capitalize().replace("_", " ")
    return gr.Textbox(label=label, placeholder=_PLACEHOLDERS[name], max_lines=3)


def _component(control: Control, value: Any) -> Any:
    """A slider, a number, a choice, a tick box or a line of text, whichever fits the setting."""
    info = control.description[:1].upper() + control.description[1:]
    common: dict[str, Any] = {"label": control.name.replace("_", " ").capitalize(), "info": info}
    if control.type is bool and not control.optional:
        return gr.Checkbox(value=value, **common)
    if control.type is bool or control.choices:
        choices = control.choices or ("on", "off")
        return gr.Dropdown(["automatic", *choices], value=_in_words(value), **common)
    # Not a gr.Number: it shows 0 where nothing is given.
    if control.type is str or control.optional:
        return gr.Textbox(value="" if value is None else str(value), placeholder="automatic", **common)
    low, high = control.low, control.high
    whole = control.type is int
    if low is None or high is None:
        return gr.Number(value=value, minimum=low, maximum=high, precision=0 if whole else None, **common)
    # A slider over all that is allowed would leave the sensible values in its first tenth.
    high = min(high, max(4 * (control.default or high), value))
    return gr.Slider(low, high, value=value, step=1 if whole else 0.05, **common)


class _Events:
    """What the page does when its buttons are pressed."""

    def __init__(self, editor: Editor):
        self._editor = editor
        self._folder = tempfile.TemporaryDirectory(prefix="wordbrush-")
        self._stops: dict[str, Event] = {}

    def edit(
        self,
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008 - gradio looks for it among the defaults
        *,
        picture: str | None,
        seed: str,
        **values: Any,
    ) -> tuple[Any, Any, str]:
        """Edit a picture: (before and after, the file to download, a line about it)."""
        if picture is None:
            raise gr.Error("Choose a picture first.", print_exception=False)
        session = request.session_hash or ""
        stop = self._stops[session] = Event()

        def report(info: StepInfo) -> None:
            if stop.is_set():
                raise _Cancelled
            progress((info.step + 1, info.num_steps), desc="Editing", unit="steps")

        try:
            return self._edit(Path(picture), seed, values, self._home(session), report)
        except _Cancelled:
            return gr.skip(), gr.skip(), "Cancelled."
        except WordbrushError as error:
            raise gr.Error(str(error), print_exception=False) from error
        finally:
            self._stops.pop(session, None)

    def cancel(self, request: gr.Request) -> str:
        """Stop the visitor's edit at its next step."""
        if stop := self._stops.get(request.session_hash or ""):
            stop.set()
        return "Cancelled."

    def leave(self, request: gr.Request) -> None:
        """Stop the visitor's edit and delete his files once his page is closed."""
        self.cancel(request)
        shutil.rmtree(self._home(request.session_hash or ""), ignore_errors=True)

    def _home(self, session: str) -> Path:
        """The visitor's own folder; hashed, because the name comes from outside."""
        return Path(self._folder.name) / sha256(session.encode()).hexdigest()

    def _edit(
        self,
        path: Path,
        seed: str,
        values: Mapping[str, Any],
        home: Path,
        on_step: Callable[[StepInfo], None],
    ) -> tuple[tuple[str, str], str, str]:
        started = time.monotonic()
        picture = open_image(path)
        texts = {name: values[name] for name in _PLACEHOLDERS if name in values}
        editor = self._editor.with_settings(**_given({k: v for k, v in values.items() if k not in texts}))
        request = EditRequest(image=picture.image, seed=_whole(seed), **texts)
        result = editor.edit(request, on_step=on_step)
        home.mkdir(exist_ok=True)
        before, after = home / "before.png", home / f"{path.stem}-edited.png"
        picture.image.save(before, compress_level=1)  # upright and in sRGB, as the editor saw it
        save_result(result, [after], source=picture, overwrite=True)
        for warning in (notes := [*picture.notes, *result.warnings]):
            gr.Warning(warning)
        line = f"Seed {result.seeds[0]}, {time.monotonic() - started:.1f} s"
        return (str(before), str(after)), str(after), "\n\n".join([line, *notes])


class _Cancelled(Exception):
    """Raised within an edit whose visitor asked to stop."""


_WORDS = {"automatic": None, "on": True, "off": False}


def _in_words(value: Any) -> str:
    return next((word for word, meaning in _WORDS.items() if meaning is value), str(value))


def _given(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The controls' words as settings; an emptied line of text asks for nothing."""
    words = {**_WORDS, "": None}
    return {k: words.get(value, value) if isinstance(value, str) else value for k, value in settings.items()}


def _whole(text: str) -> int | None:
    try:
        return int(text) if text.strip() else None
    except ValueError:
        raise UsageError(f"the seed is {text!r}: it must be a whole number") from None
