"""`wordbrush ui`: the studio, a page that edits pictures by words. Its layout and its wiring."""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any
from uuid import uuid4

import gradio as gr
from gradio.themes import Base, Color

from wordbrush.editors import Method, find_method
from wordbrush.errors import WordbrushError
from wordbrush.serving import history
from wordbrush.serving.actions import BRUSH, CAPTIONS, CLICK, ERASE, MASK, PICTURE, TEXTS, Actions, Stage
from wordbrush.serving.examples import INSTRUCTIONS, PICTURES
from wordbrush.serving.knobs import make_knobs
from wordbrush.serving.menu import Menu
from wordbrush.serving.visits import Visits
from wordbrush.tasks import TASKS

MAX_VARIATIONS = 8
"""That a visitor may ask for at once."""

_FOLDER = Path(str(files("wordbrush"))) / "serving"
_LABELS = {
    "instruction": ("What should change?", "make it night – in any language"),
    "source_caption": ("What the picture shows", "a dog in a meadow"),
    "target_caption": ("What the result shall show", "a dog in a meadow at night"),
}
_HEIGHT = "min(56vh, 520px)"
_DAY = 24 * 60 * 60
_FONT = ["system-ui", "sans-serif"]
_VIOLET = Color(
    *("#f6f4ff", "#ece8ff", "#d9d1ff", "#bcaeff", "#9a84fb", "#7c5cf3"),
    *("#6a41e6", "#5832c7", "#4829a1", "#3b2480", "#241455"),
)
_THEME = Base(primary_hue=_VIOLET, neutral_hue="slate", radius_size="lg", font=_FONT, font_mono=["monospace"])
_HEADER = """
<div class="brand">
<svg viewBox="0 0 32 32" aria-hidden="true"><path d="M5 23c0-5 3-6 5-6 3 0 5 2 5 5 0 4-4 6-10 6 1-1 0-3 0-5Z"
/>
<path d="M13 16 25 4c1-1 4 1 3 3L17 20c-1-2-2-3-4-4Z"/></svg>
<h1>Wordbrush</h1></div>"""
_INTRO = """
<h2>Say what should change.</h2>
<p>Drop a picture, describe the edit in your own words and language, and brush on from there.
Everything happens on the computer that serves this page; your pictures are deleted when you leave.</p>"""


def serve(menu: Menu, *, host: str = "127.0.0.1", port: int = 7860) -> None:
    """Show the page until Ctrl-C.

    Args:
        menu: What visitors may choose from.
        host: The address to listen on; the default is reachable from this computer alone.
        port: The port to listen on.

    Raises:
        WordbrushError: The address or the port cannot be had.
    """
    page, visits = build(menu)
    try:
        _, url, _ = launch(page, host=host, port=port)
        print(f"Wordbrush is at {url} (Ctrl-C to stop)", flush=True)
        while True:
            time.sleep(1)
    finally:
        visits.end_all()
        page.close(verbose=False)


def launch(page: gr.Blocks, *, host: str, port: int | None) -> tuple[Any, str, str]:
    """Start the page's server in a thread; returns what `gradio.Blocks.launch` does.

    Raises:
        WordbrushError: The address or the port cannot be had.
    """
    try:
        return page.launch(
            server_name=host,
            server_port=port,
            prevent_thread_lock=True,
            quiet=True,
            share=False,
            show_error=False,  # what is not for the visitor stays in the server's log
            footer_links=[],
            theme=_THEME,
            css_paths=_FOLDER / "studio.css",
            js=(_FOLDER / "studio.js").read_text(encoding="utf-8"),
        )
    except (OSError, ValueError) as error:  # gradio says either when the page does not answer
        raise WordbrushError(f"cannot listen at {host}, port {port}: try another --port") from error


def build(menu: Menu) -> tuple[gr.Blocks, Visits]:
    """The page, and who is there."""
    stage = Stage()
    with gr.Blocks(title="Wordbrush", analytics_enabled=False, delete_cache=(_DAY, _DAY)) as page:
        # Within gradio's folder: of files from elsewhere it would make copies, which nobody deletes in time.
        visits = Visits(Path(page.GRADIO_CACHE) / f"wordbrush-{uuid4().hex}")
        actions = Actions(menu, visits, stage)
        opener, new = _header()
        examples = _welcome(stage)
        with gr.Column(visible=False, elem_id="studio") as stage.studio, gr.Row(elem_id="columns"):
            with gr.Column(scale=7, min_width=340):
                how, chips = _canvas(stage)
            with gr.Column(scale=4, min_width=320, elem_id="panel"):
                save, captions = _panel(stage, menu)
        _wire_pictures(stage, actions, opener, new, examples)
        _wire_edits(stage, actions, chips, captions)
        _wire_history(stage, actions, save)
        _wire_masks(stage, actions, how)
        page.unload(actions.leave)
    return page, visits


def _header() -> tuple[gr.UploadButton, gr.Button]:
    with gr.Row(elem_id="header"):
        gr.HTML(_HEADER, elem_classes="grow")
        opener = gr.UploadButton("Open session", file_types=[".session"], size="sm", variant="secondary")
        new = gr.Button("New picture", size="sm", variant="secondary", elem_id="new")
        gr.Button("◐", size="sm", elem_id="theme", variant="secondary", min_width=40)
    return opener, new


def _welcome(stage: Stage) -> gr.Gallery:
    with gr.Column(elem_id="welcome") as stage.welcome:
        gr.HTML(_INTRO)
        stage.drop = gr.Image(
            label="Picture",
            type="filepath",
            image_mode=None,
            height=300,
            sources=["upload", "webcam"],  # pasting is studio.js's: gradio's own works once
            placeholder="# Drop a picture here\nor paste one, or click to choose; the camera is below",
            elem_id="drop",
        )
        # Gradio would open the file by itself, with errors of its own and not the formats that we read.
        stage.drop.preprocess = _place
        return gr.Gallery(
            [(str(path), text) for path, text in PICTURES],
            label="Or begin with an example",
            columns=4,
            allow_preview=False,
            interactive=False,
            buttons=[],
            height="auto",
            elem_id="examples",
        )


def _place(upload: Any) -> str | None:
    return upload and upload.path


def _canvas(stage: Stage) -> tuple[gr.Radio, gr.Dataset]:
    """The picture, and below it what is said about it."""
    with gr.Tabs(elem_id="tabs") as stage.tabs:
        with gr.Tab("Picture", id=PICTURE):
            _pictures(stage)
        with gr.Tab("Mask", id=MASK) as stage.mask_tab:
            how = _mask(stage)
    with gr.Row(elem_id="mask-note"):
        stage.mask_note = gr.HTML()
        stage.clear_mask = gr.Button("Clear the mask", size="sm", visible=False, min_width=120, scale=0)
    stage.notice = gr.HTML(elem_id="notice")
    with gr.Row(elem_id="advice"):
        stage.advice = gr.HTML()
        stage.heed = gr.Button("Try that", size="sm", visible=False, scale=0, min_width=110, elem_id="heed")
    stage.correct = gr.Button(size="sm", visible=False, elem_id="correct")
    stage.gallery = _choices("Variations: choose one", "variations", columns=4)
    with gr.Row(elem_id="go"):
        with gr.Column(scale=1):
            stage.texts = {name: _text(name) for name in TEXTS}
        stage.run = gr.Button("Edit", variant="primary", elem_id="run", scale=0, min_width=120)
        stage.cancel = gr.Button(
            "Cancel", variant="stop", elem_id="cancel", visible=False, scale=0, min_width=120
        )
    samples = [[text] for text in INSTRUCTIONS]
    chips = gr.Dataset(components=["textbox"], samples=samples, label="For example", elem_id="chips")
    return how, chips


def _choices(label: str, elem_id: str, *, columns: int) -> gr.Gallery:
    """Pictures of which one is chosen; there are none yet."""
    return gr.Gallery(
        label=label,
        columns=columns,
        allow_preview=False,
        visible=False,
        interactive=False,
        height="auto",
        buttons=[],
        elem_id=elem_id,
    )


def _pictures(stage: Stage) -> None:
    common: dict[str, Any] = {"show_label": False, "interactive": False, "buttons": ["fullscreen"]}
    stage.view = gr.Image(label="Picture", height=_HEIGHT, elem_id="view", alt_text="Your picture", **common)
    stage.slider = gr.ImageSlider(
        label="Before and after",
        height=_HEIGHT,
        max_height=520,
        visible=False,
        elem_id="slider",
        type="filepath",
        image_mode=None,
        **common,
    )
    stage.live = gr.HTML(visible=False, elem_id="live")


def _mask(stage: Stage) -> gr.Radio:
    with gr.Row():
        how = gr.Radio([CLICK, BRUSH, ERASE], value=CLICK, label="What may change", elem_id="how", scale=2)
        stage.brush = gr.Slider(1, 40, value=10, step=1, label="Brush, % of the picture", visible=False)
    stage.painter = gr.HTML(js_on_load=(_FOLDER / "painter.js").read_text("utf-8"), elem_id="painter")
    return how


def _text(name: str) -> gr.Textbox:
    label, example = _LABELS[name]
    return gr.Textbox(label=label, placeholder=example, max_lines=3, elem_id=name.replace("_", "-"))


def _panel(stage: Stage, menu: Menu) -> tuple[gr.Button, dict[str, gr.Textbox]]:
    with gr.Tabs(elem_id="panel-tabs"):
        with gr.Tab("History"):
            save = _history(stage)
        with gr.Tab("Settings"):
            _settings(stage, menu)
        with gr.Tab("Explore"):
            captions = _explorer(stage)
    return save, captions


def _history(stage: Stage) -> gr.Button:
    stage.history = gr.HTML(js_on_load=history.LISTEN, elem_id="history")
    with gr.Row():
        stage.undo = gr.Button("Undo", size="sm", interactive=False, min_width=80, elem_id="undo")
        stage.download = gr.DownloadButton("Download", size="sm", interactive=False, min_width=110)
        save = gr.Button("Save session", size="sm", min_width=120)
    stage.session_file = gr.DownloadButton(visible="hidden", elem_id="session-file")
    return save


def _settings(stage: Stage, menu: Menu) -> None:
    model = menu.models[0]
    names = [method.name for method in menu.methods(model)]
    with gr.Row():
        stage.model = gr.Dropdown(menu.models, value=model, label="Model", min_width=130)
        stage.method = gr.Dropdown(names, value=menu.first, label="Method", min_width=160)
    with gr.Row():
        stage.variations = gr.Slider(1, MAX_VARIATIONS, value=1, step=1, label="Variations", min_width=150)
        stage.seed = gr.Textbox(label="Seed", placeholder="drawn at random", min_width=120)
    stage.task = gr.Dropdown(
        [("found from the words", ""), *TASKS],
        value="",
        label="Task",
        visible="task" in find_method(menu.first).reads,
        allow_custom_value=True,  # of a task that the model was taught besides
        elem_id="task",
    )
    for method in menu.all_methods():
        _group(stage, menu, method)
    for name, box in stage.texts.items():
        box.visible = name in find_method(menu.first).reads


def _group(stage: Stage, menu: Menu, method: Method) -> None:
    """The knobs of one method, seen only while it is chosen."""
    model = next(name for name in menu.models if method in menu.methods(name))
    with gr.Column(visible=method.name == menu.first, elem_classes="knobs") as stage.groups[method.name]:
        gr.HTML(f"<p class='about'>{method.description[:1].upper()}{method.description[1:]}.</p>")
        stage.knobs |= make_knobs(method, menu.defaults(model, method.name))


def _explorer(stage: Stage) -> dict[str, gr.Textbox]:
    gr.HTML(
        "<p class='about'>Nine edits about the two guidance scales, with one seed; CLIP says which "
        "followed the words while keeping the picture. Captions sharpen its eye.</p>"
    )
    captions = {
        f"explored_{name}": gr.Textbox(label=_LABELS[name][0], placeholder=f"optional: {_LABELS[name][1]}")
        for name in CAPTIONS
    }
    stage.explore = gr.Button("Explore", variant="secondary", elem_id="explore")
    stage.found = _choices("The best first: choose one", "found", columns=2)
    return captions


_PRIVATE: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
_QUICK: dict[str, Any] = {**_PRIVATE, "queue": False}


def _wire_pictures(
    stage: Stage, actions: Actions, opener: gr.UploadButton, new: gr.Button, examples: gr.Gallery
) -> None:
    instruction = stage.texts["instruction"]
    stage.drop.input(actions.begin, [stage.drop], stage.fresh, **_PRIVATE)
    examples.select(actions.begin_example, None, [*stage.fresh, instruction], **_PRIVATE)
    opener.upload(actions.open_session, [opener], stage.fresh, **_PRIVATE)
    new.click(actions.new, None, stage.fresh, **_QUICK)


def _wire_edits(
    stage: Stage,
    actions: Actions,
    chips: gr.Dataset,
    captions: dict[str, gr.Textbox],
) -> None:
    inputs: dict[str, Any] = {
        **stage.texts,
        "model": stage.model,
        "method": stage.method,
        "task": stage.task,
        "seed": stage.seed,
        "variations": stage.variations,
        **stage.knobs,
    }

    def work(begun: Any, handler: Callable[..., Any], given: dict[str, Any], outputs: list[Any]) -> None:
        """Run a handler while only `cancel` can be pressed."""
        started = begun(actions.start, None, stage.buttons, **_QUICK)
        edit = started.success(
            handler,
            inputs_kwargs=given,
            outputs=[*outputs, *stage.buttons],
            concurrency_limit=1,
            concurrency_id="model",
            trigger_mode="multiple",  # else the page drops it while the last one is not put away yet
            **_PRIVATE,
        )
        edit.failure(actions.refused, None, stage.buttons, **_QUICK)

    def any_of(*events: Any) -> Callable[..., Any]:
        return lambda *given, **options: gr.on(list(events), *given, **options)

    submitted = [box.submit for box in stage.texts.values()]
    work(any_of(stage.run.click, *submitted), actions.run, inputs, stage.shown)
    adopted = stage.found.select(actions.adopt, None, [stage.seed, *stage.knobs.values()], **_QUICK)
    heeded = stage.heed.click(actions.heed, None, stage.asked, **_QUICK)
    for event in (adopted, heeded):
        work(event.then, actions.run, inputs, stage.shown)
    work(stage.explore.click, actions.explore, inputs | captions, [*stage.shown, stage.found])
    stage.cancel.click(actions.cancel, None, [stage.notice], **_QUICK)
    stage.correct.click(actions.correct, None, [*stage.shown, stage.texts["instruction"]], **_QUICK)
    stage.gallery.select(actions.choose, None, stage.shown, **_QUICK)
    chips.click(_first, [chips], [stage.texts["instruction"]], **_QUICK)
    stage.model.change(
        actions.choose_model,
        [stage.model, stage.method],
        [stage.method, *stage.knobs.values()],
        **_QUICK,
    )
    stage.method.change(
        actions.choose_method,
        [stage.method],
        [*stage.groups.values(), *stage.texts.values(), stage.task, stage.explore],
        **_QUICK,
    )


def _first(sample: list[str]) -> str:
    return sample[0]


def _wire_history(stage: Stage, actions: Actions, save: gr.Button) -> None:
    stage.history.select(actions.go, None, stage.shown, **_QUICK)
    stage.history.retry(actions.again, None, [*stage.shown, *stage.asked], **_QUICK)
    stage.undo.click(actions.undo, None, stage.shown, **_QUICK)
    saved = save.click(actions.share, None, [stage.session_file], **_QUICK)
    saved.then(None, js="() => document.querySelector('#session-file').click()", **_QUICK)


def _wire_masks(stage: Stage, actions: Actions, how: gr.Radio) -> None:
    given = [how, stage.brush]
    shown = [stage.mask_tab.select, how.change, stage.brush.release]
    gr.on(shown, actions.show_mask, given, stage.masks, **_QUICK)
    stage.painter.select(actions.paint, given, stage.masks, **_QUICK)
    stage.clear_mask.click(actions.clear_mask, given, stage.masks, **_QUICK)
