"""What happens on the page: every handler changes a visit, and says what is to be shown of it."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from threading import Event
from typing import Any, TypeVar

import gradio as gr
import torch
from PIL import Image

from wordbrush.editors import find_method
from wordbrush.editors.sequential import ORIGINAL, Turn
from wordbrush.editors.settings import make_settings
from wordbrush.errors import WordbrushError
from wordbrush.evaluation.judges import ClipJudge
from wordbrush.serving import notices, wand
from wordbrush.serving.advice import Advice, advise, measure
from wordbrush.serving.examples import PICTURES
from wordbrush.serving.exploring import Found, explore
from wordbrush.serving.history import tree
from wordbrush.serving.knobs import knob_name, offered, read_knobs, shown, whole
from wordbrush.serving.menu import Menu
from wordbrush.serving.visits import Visit, Visits
from wordbrush.serving.watching import Cancelled, Progress, Report, Steps, watch
from wordbrush.types import Editor, EditRequest

T = TypeVar("T")
Updates = dict[Any, Any]
"""Component -> what it becomes."""

TEXTS = ("instruction", "source_caption", "target_caption")
"""The fields of `EditRequest` that a visitor writes."""
CAPTIONS = TEXTS[1:]
SCALES = frozenset(("text_scale", "image_scale"))
"""What exploring goes over."""
PICTURE, MASK = "picture", "mask"
"""The tabs."""
CLICK, BRUSH, ERASE = "Click an area", "Brush", "Erase"
"""The ways to make a mask."""
_STARTING = Progress(0, 0)
_MAX_SEED = 2**31


@dataclass
class Stage:
    """The components that handlers set; the layout fills it in."""

    welcome: Any = None
    studio: Any = None
    drop: Any = None
    view: Any = None
    slider: Any = None
    live: Any = None
    notice: Any = None
    correct: Any = None
    advice: Any = None
    heed: Any = None
    gallery: Any = None
    history: Any = None
    undo: Any = None
    download: Any = None
    tabs: Any = None
    mask_tab: Any = None
    session_file: Any = None
    painter: Any = None
    brush: Any = None
    mask_note: Any = None
    clear_mask: Any = None
    found: Any = None
    model: Any = None
    method: Any = None
    task: Any = None
    seed: Any = None
    variations: Any = None
    explore: Any = None
    run: Any = None
    cancel: Any = None
    texts: dict[str, Any] = field(default_factory=dict[str, Any])
    groups: dict[str, Any] = field(default_factory=dict[str, Any])
    knobs: dict[str, Any] = field(default_factory=dict[str, Any])

    @property
    def shown(self) -> list[Any]:
        """What shows a visit."""
        return [
            self.welcome, self.studio, self.drop, self.view, self.slider, self.live, self.notice,
            self.correct, self.advice, self.heed, self.gallery, self.history, self.undo,
            self.download, self.tabs,
        ]  # fmt: skip

    @property
    def fresh(self) -> list[Any]:
        """What another picture sets."""
        return [*self.shown, *self.masks, self.found]

    @property
    def buttons(self) -> list[Any]:
        """What starts and stops something."""
        return [self.run, self.cancel, self.explore]

    @property
    def asked(self) -> list[Any]:
        """What an edit is asked with, and what "edit this again" therefore sets."""
        return [*self.texts.values(), self.seed, self.method, self.task, *self.knobs.values()]

    @property
    def masks(self) -> list[Any]:
        """What a mask is made with."""
        return [self.painter, self.brush, self.mask_note, self.clear_mask]


@dataclass
class _Last:
    """What the page remembers of a visitor's last edit, beside his visit."""

    advice: Advice | None = None
    english: str = ""
    found: Sequence[Found] = ()
    explored: Mapping[str, Any] = field(default_factory=dict[str, Any])


class Actions:
    """The handlers.

    Args:
        menu: What may be chosen.
        visits: Who is here.
        stage: The page's components.
        clip: What ranks explored edits; a name for `ClipJudge.load`.
    """

    def __init__(self, menu: Menu, visits: Visits, stage: Stage, *, clip: str = "storybook") -> None:
        self.menu, self.visits, self.stage = menu, visits, stage
        self._clip = clip
        self._remembered: dict[Path, _Last] = {}

    # A picture

    def begin(self, request: gr.Request, path: str | None) -> Updates:
        """Begin with an uploaded picture; the upload itself is not kept."""
        visit = self._visit(request)
        if path is None:
            return self._show(visit)
        try:
            with _one_line():
                notes = visit.begin(Path(path), self.menu.models[0])
        finally:
            Path(path).unlink(missing_ok=True)
        return self._fresh(visit, notices.line("Now say what should change.", notes))

    def begin_example(self, request: gr.Request, event: gr.SelectData) -> Updates:
        """Begin with an example, its instruction in the box."""
        picture, instruction = PICTURES[_index(event)]
        visit = self._visit(request)
        visit.begin(picture, self.menu.models[0])
        return self._fresh(visit) | {self.stage.texts["instruction"]: instruction}

    def open_session(self, request: gr.Request, path: str) -> Updates:
        """Go on with a session's file; the upload itself is not kept."""
        visit = self._visit(request)
        try:
            with _one_line():
                visit.open(Path(path))
        finally:
            Path(path).unlink(missing_ok=True)
        return self._fresh(visit)

    def new(self, request: gr.Request) -> Updates:
        """Put the picture away."""
        visit = self._visit(request)
        visit.close()
        return self._fresh(visit)

    def leave(self, request: gr.Request) -> None:
        """The page was closed: stop what runs, delete the files."""
        self._remembered.pop(self._visit(request).home, None)
        self.visits.end(request.session_hash)

    # An edit

    def run(self, request: gr.Request, **values: Any) -> Generator[Updates]:
        """Edit the current picture, with a look at it on the way."""
        visit, started = self._visit(request), time.monotonic()

        def work(report: Report) -> tuple[list[Turn], Any]:
            editor, asked = self._prepare(visit, values)
            return visit.edit(editor, asked, Steps(report)), editor.settings

        outcome = yield from self._watched(visit, work)
        if outcome is not None:
            turns, settings = outcome
            self._remember(visit, turns[0], settings)
            yield self._at_rest(visit, notices.made(turns, time.monotonic() - started))

    def start(self, request: gr.Request) -> Updates:
        """Let one thing run at a time, and show that it can be cancelled."""
        visit = self._visit(request)
        if not visit.begun:
            raise gr.Error("Choose a picture first.", print_exception=False)
        if visit.stop is not None:
            raise gr.Error("An edit is running: wait for it, or cancel it.", print_exception=False)
        visit.stop = Event()
        return self._buttons(running=True)

    def cancel(self, request: gr.Request) -> Updates:
        """Stop what runs at its next step; it shows the page at rest itself."""
        visit = self._visit(request)
        if visit.stop is None:
            return {}
        visit.stop.set()
        return {self.stage.notice: notices.line("Stopping…")}

    def refused(self, request: gr.Request) -> Updates:
        """Nothing runs: what was asked for could not be begun."""
        self._visit(request).stop = None
        return self._buttons(running=False)

    def heed(self, request: gr.Request) -> Updates:
        """Go back and set what was advised: the next run makes the edit anew."""
        visit = self._visit(request)
        advice = self._last(visit).advice
        if advice is None or visit.session.current == ORIGINAL:
            raise gr.Error("There is nothing to try.", print_exception=False)
        turn = visit.session.turn(visit.session.current)
        visit.session.undo()
        return self._asked_again(turn, advice.settings)

    def correct(self, request: gr.Request) -> Updates:
        """Go back, with the English that was used in the box."""
        visit = self._visit(request)
        english = self._last(visit).english
        with _one_line():
            visit.session.undo()
        return self._moved(visit) | {self.stage.texts["instruction"]: english}

    # History

    def go(self, request: gr.Request, event: gr.EventData) -> Updates:
        """Make a turn the current one."""
        visit = self._visit(request)
        with _one_line():
            visit.session.go_to(int(event.number))
        return self._moved(visit)

    def undo(self, request: gr.Request) -> Updates:
        """Go back by one turn."""
        visit = self._visit(request)
        with _one_line():
            visit.session.undo()
        return self._moved(visit)

    def again(self, request: gr.Request, event: gr.EventData) -> Updates:
        """Go to what a turn edited, with its words, seed and knobs: the next edit is a branch beside it."""
        visit = self._visit(request)
        with _one_line():
            turn = visit.session.turn(int(event.number))
            visit.session.go_to(turn.parent)
            return self._moved(visit) | self._asked_again(turn)

    def choose(self, request: gr.Request, event: gr.SelectData) -> Updates:
        """Take one of the variations."""
        visit = self._visit(request)
        visit.session.go_to(visit.made[_index(event)])
        return self._show(visit)

    def share(self, request: gr.Request) -> str:
        """The session as a file."""
        with _one_line():
            return str(self._visit(request).session_file())

    # A mask

    def show_mask(self, request: gr.Request, how: str, width: float) -> Updates:
        """Put the current picture where it can be clicked at or painted on, what may change under a veil."""
        visit = self._visit(request)
        brush = 0 if how == CLICK else width / 100
        return {
            self.stage.painter: notices.painter(visit.session.image(), visit.mask, brush),
            self.stage.brush: gr.Slider(visible=how != CLICK),
            **self._mask_note(visit.mask),
        }

    def paint(self, request: gr.Request, how: str, width: float, event: gr.EventData) -> Updates:
        """Add a stroke, or the area around a click, to the mask; or take a stroke from it."""
        visit = self._visit(request)
        picture = visit.session.image()
        points = [(min(max(float(x), 0), 1), min(max(float(y), 0), 1)) for x, y in event.points]
        if how == CLICK:
            x, y = points[-1]
            area = wand.click_area(picture, (int(x * picture.width), int(y * picture.height)))
        else:
            area = wand.draw_stroke(picture.size, points, width / 100)
        visit.mask = wand.remove(visit.mask, area) if how == ERASE else wand.add(visit.mask, area)
        return self.show_mask(request, how, width)

    def clear_mask(self, request: gr.Request, how: str, width: float) -> Updates:
        """Let the whole picture change."""
        self._visit(request).mask = None
        return self.show_mask(request, how, width)

    # Knobs

    def choose_model(self, model: str, method: str) -> Updates:
        """List the methods that a model can run, and set their knobs as it says."""
        names = [known.name for known in self.menu.methods(model)]
        chosen = method if method in names else names[0]
        values: dict[str, Any] = {}
        for known in self.menu.methods(model):
            values |= shown(known, self.menu.defaults(model, known.name))
        return {
            self.stage.method: gr.Dropdown(choices=names, value=chosen),
            **{self.stage.knobs[name]: value for name, value in values.items()},
        }

    def choose_method(self, method: str) -> Updates:
        """Show the knobs of a method, the texts that it reads, and exploring where it has both scales."""
        found = find_method(method)
        return {
            **{group: gr.Column(visible=name == method) for name, group in self.stage.groups.items()},
            **{box: gr.Textbox(visible=name in found.reads) for name, box in self.stage.texts.items()},
            self.stage.task: gr.Dropdown(visible="task" in found.reads),
            self.stage.explore: gr.Button(interactive={c.name for c in offered(found)} >= SCALES),
        }

    # Exploring

    def explore(self, request: gr.Request, **values: Any) -> Generator[Updates]:
        """Edit under nine pairs of scales, the best first."""
        visit = self._visit(request)
        captions = {
            name: values.pop(f"explored_{name}") or "" for name in ("source_caption", "target_caption")
        }

        def work(report: Report) -> list[Found]:
            editor, asked = self._prepare(visit, values)
            seed = random.randrange(_MAX_SEED) if asked.seed is None else asked.seed
            asked = replace(asked, seed=seed, num_variations=1, **captions)
            values["seed"] = str(seed)
            return explore(editor, asked, [self._judge], lambda _, done, n: report(Progress(done, n)))

        found = yield from self._watched(visit, work)
        if found is not None:
            last = self._last(visit)
            last.found, last.explored = found, values
            pictures = [(visit.keep(cell.picture), cell.label) for cell in found]
            told = notices.line("Explored, the best first. Choose one to make it yours.")
            yield self._at_rest(visit, told) | {self.stage.found: gr.Gallery(pictures, visible=True)}

    def adopt(self, request: gr.Request, event: gr.SelectData) -> Updates:
        """Set the scales and the seed of an explored edit; it is made when it is run."""
        last = self._last(self._visit(request))
        cell, method = last.found[_index(event)], last.explored["method"]
        scales = {"text_scale": cell.text_scale, "image_scale": cell.image_scale}
        return {self.stage.seed: last.explored["seed"]} | self._knobs(method, scales)

    @cached_property
    def _judge(self) -> ClipJudge:
        return ClipJudge.load(self._clip, device=torch.device("cpu"))

    # What is shown

    def _visit(self, request: gr.Request) -> Visit:
        return self.visits.of(request.session_hash)

    def _last(self, visit: Visit) -> _Last:
        return self._remembered.setdefault(visit.home, _Last())

    def _fresh(self, visit: Visit, notice: str = "") -> Updates:
        """A picture that was not here before."""
        self._remembered.pop(visit.home, None)
        emptied = {self.stage.found: gr.Gallery([], visible=False)}
        emptied |= self._mask_note(None) | {self.stage.tabs: gr.Tabs(selected=PICTURE)}
        return self._show(visit, notice) | emptied

    def _moved(self, visit: Visit) -> Updates:
        """Another turn: what was said of the last edit is no longer of interest."""
        last = self._last(visit)
        last.advice, last.english, visit.made = None, "", []
        return self._show(visit)

    def _remember(self, visit: Visit, turn: Turn, settings: Any) -> None:
        last, before = self._last(visit), visit.session.image(turn.parent)
        last.english = notices.english(turn)
        last.advice = advise(measure(before, turn.image, turn.request.mask), settings)

    def _show(self, visit: Visit, notice: str = "") -> Updates:
        stage = self.stage
        here = {
            stage.welcome: gr.Column(visible=not visit.begun),
            stage.studio: gr.Column(visible=visit.begun),
            stage.drop: None,
            stage.live: gr.HTML("", visible=False),
        }
        if not visit.begun:
            return here
        session, last = visit.session, self._last(visit)
        edited = session.current != ORIGINAL
        return here | {
            **self._picture(visit),
            stage.notice: notice or notices.about(session),
            stage.correct: gr.Button(f"Read as “{last.english}” – correct it", visible=bool(last.english)),
            stage.advice: gr.HTML(notices.line(last.advice.text if last.advice else "")),
            stage.heed: gr.Button(visible=last.advice is not None),
            stage.gallery: self._variations(visit),
            stage.history: tree(session),
            stage.undo: gr.Button(interactive=edited),
            stage.download: gr.DownloadButton(value=str(visit.file()), interactive=edited),
        }

    def _picture(self, visit: Visit) -> Updates:
        """The current picture, beside the one that it was made of."""
        session, stage = visit.session, self.stage
        after = str(visit.file())
        if session.current == ORIGINAL:
            return {stage.view: gr.Image(after, visible=True), stage.slider: gr.ImageSlider(visible=False)}
        before = str(visit.file(session.turn(session.current).parent))
        return {
            stage.view: gr.Image(visible=False),
            stage.slider: gr.ImageSlider((before, after), visible=True),
        }

    def _variations(self, visit: Visit) -> gr.Gallery:
        if len(visit.made) < 2:
            return gr.Gallery([], visible=False)
        seeds = (visit.session.turn(number).request.seed for number in visit.made)
        files = [(str(visit.file(n)), f"seed {seed}") for n, seed in zip(visit.made, seeds, strict=True)]
        return gr.Gallery(files, visible=True)

    def _mask_note(self, mask: Image.Image | None) -> Updates:
        return {
            self.stage.mask_note: notices.masked(mask),
            self.stage.clear_mask: gr.Button(visible=mask is not None),
        }

    def _knobs(self, method: str, settings: Mapping[str, Any]) -> Updates:
        names = {name: knob_name(method, name) for name in settings}
        return {self.stage.knobs[knob]: settings[n] for n, knob in names.items() if knob in self.stage.knobs}

    def _asked_again(self, turn: Turn, changes: Mapping[str, Any] | None = None) -> Updates:
        """What a turn was asked with, in the boxes and knobs, and what is to be different."""
        asked, method = turn.request, str(turn.settings.get("method"))
        said = turn.settings.get("said") or asked.instruction
        boxes = {"instruction": said, "source_caption": asked.source_caption}
        boxes |= {"target_caption": asked.target_caption}
        updates: Updates = {box: boxes[name] for name, box in self.stage.texts.items()}
        updates[self.stage.seed] = "" if asked.seed is None else str(asked.seed)
        updates[self.stage.task] = asked.task or ""
        if method not in self.stage.groups:  # of a session from elsewhere
            return updates
        found = find_method(method)
        names = [control.name for control in offered(found)]
        recorded = {name: turn.settings[name] for name in names if name in turn.settings}
        knobs = shown(found, make_settings(found.settings, recorded | dict(changes or {})))
        return updates | {
            self.stage.method: method,
            **{self.stage.knobs[name]: value for name, value in knobs.items()},
        }

    # What runs

    def _prepare(self, visit: Visit, values: Mapping[str, Any]) -> tuple[Editor, EditRequest]:
        """The editor and the request that the page's boxes and knobs ask for."""
        method = find_method(values["method"])
        asked = EditRequest(
            visit.session.image(),
            **{name: values[name] or "" for name in TEXTS if name in method.reads},
            mask=visit.mask,
            task=(values["task"] or None) if "task" in method.reads else None,
            seed=whole(values["seed"], "seed"),
            num_variations=int(values["variations"]),
        )
        method.check(asked)
        editor = self.menu.editor(values["model"], method.name)
        return editor.with_settings(**read_knobs(method, values)), asked

    def _watched(self, visit: Visit, work: Callable[[Report], T]) -> Generator[Updates, None, T | None]:
        """Run something before the visitor's eyes; None if it was cancelled.

        Raises:
            gr.Error: It went wrong; the page is as it was before.
        """
        stop = visit.stop or Event()
        picture, stage = visit.session.image(), self.stage
        try:
            yield {
                stage.tabs: gr.Tabs(selected=PICTURE),
                stage.view: gr.Image(visible=False),
                stage.slider: gr.ImageSlider(visible=False),
                stage.live: gr.HTML(notices.emerging(picture, _STARTING), visible=True),
            }
            watched = watch(work, stop)
            while True:
                progress = next(watched)
                picture = progress.preview or picture
                yield {stage.live: notices.emerging(picture, progress)}
        except StopIteration as finished:
            return finished.value
        except Cancelled:
            error = None
        except WordbrushError as wrong:
            error = gr.Error(str(wrong), print_exception=False)
        except Exception as wrong:
            error = gr.Error("Something went wrong here; the server's log says what.")
            error.__cause__ = wrong
        finally:
            visit.stop = None  # before the page is shown at rest: the next edit may follow at once
        yield self._at_rest(visit, notices.line("Cancelled.") if error is None else "")
        if error is not None:
            raise error
        return None

    def _at_rest(self, visit: Visit, notice: str = "") -> Updates:
        """The visit, when something that ran has ended."""
        return self._show(visit, notice) | self._buttons(running=False)

    def _buttons(self, *, running: bool) -> Updates:
        """Edit, or cancel in its place; and explore."""
        return {
            self.stage.run: gr.Button(visible=not running),
            self.stage.cancel: gr.Button(visible=running),
            self.stage.explore: gr.Button(interactive=not running),
        }


@contextmanager
def _one_line() -> Generator[None]:
    """What went wrong as one line on the page."""
    try:
        yield
    except WordbrushError as error:
        raise gr.Error(str(error), print_exception=False) from error


def _index(event: gr.SelectData) -> int:
    return event.index if isinstance(event.index, int) else int(event.index[0])
