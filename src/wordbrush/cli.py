"""The command line. Whatever is heavy is imported inside a command, so that `--help` is instant."""

import inspect
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer
from typer.core import TyperCommand
from typer.main import get_command

import wordbrush
from wordbrush.datagen.commands import data_app
from wordbrush.errors import ImageError, MissingExtraError, UsageError, WordbrushError
from wordbrush.evaluation.commands import evaluate_app
from wordbrush.outputs import (
    check_outputs,
    check_results,
    check_size,
    default_output,
    save_result,
    variation_paths,
)
from wordbrush.progress import on_step, progress
from wordbrush.training import RECIPES
from wordbrush.types import MAX_VARIATIONS, EditRequest

if TYPE_CHECKING:
    from wordbrush.controls import Control
    from wordbrush.images import Picture
    from wordbrush.progress import Show
    from wordbrush.recipe import Recipe
    from wordbrush.types import Editor, EditResult, StepInfo

_Seed = Annotated[int | None, typer.Option(help="Of the first variation. (default: drawn)")]
_Variations = Annotated[int, typer.Option(min=1, max=MAX_VARIATIONS, help="How many results to make.")]
_NegativePrompt = Annotated[str | None, typer.Option(help="What the result shall not show.")]
_Task = Annotated[
    str | None, typer.Option(help="The task that a method of many is given. (default: it is predicted)")
]
_CANCELLED = 130  # what a shell reports for a command that Ctrl-C ended

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line, then exit: 0, 2 for a wrong use, 130 after Ctrl-C, 1 for any other failure.

    Args:
        arguments: the words behind the program's name; those of the process by default.
    """
    sys.exit(_run(arguments))


def _run(arguments: Sequence[str] | None) -> int:
    try:
        code = app(args=arguments, prog_name="wordbrush", standalone_mode=False)
    except WordbrushError as error:
        return _fail(str(error), 2 if isinstance(error, UsageError) else 1)
    except typer.TyperException as error:
        return _fail(error.format_message(), error.exit_code)
    except Exception as error:
        if _debugging():
            raise
        return _fail(f"{type(error).__name__}: {error} (unexpected; WORDBRUSH_DEBUG=1 shows where)", 1)
    return _fail("cancelled", code) if code == _CANCELLED else code or 0


def _fail(message: str, code: int) -> int:
    _say(message)
    return code


def _say(message: str) -> None:
    """One line on standard error."""
    print("wordbrush:", " ".join(message.split()), file=sys.stderr)


def _debugging() -> bool:
    return os.environ.get("WORDBRUSH_DEBUG") == "1"


@dataclass(frozen=True)
class Setup:
    """The options of every command that edits, and the flags of the method's settings that were given."""

    model: Annotated[
        str | None,
        typer.Option(help="An embedded name, a folder, a single file, or a hub id. (default: storybook)"),
    ] = None
    method: Annotated[
        str | None,
        typer.Option(help="See `wordbrush methods`. (default: instruct-pix2pix; in `compare`, all)"),
    ] = None
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")] = "auto"
    dtype: Annotated[str | None, typer.Option(help="auto, float32, bfloat16 or float16. (default: auto)")] = (
        None
    )
    lora: Annotated[list[Path] | None, typer.Option(help="A LoRA file; may be given more than once.")] = None
    concept: Annotated[
        list[Path] | None,
        typer.Option(help="A file of a learned word, for use in prompts; may be given more than once."),
    ] = None
    config: Annotated[
        str | None,
        typer.Option(help="For a single file: a folder or hub id with the configuration of such models."),
    ] = None
    offload: Annotated[
        bool, typer.Option("--offload", help="Keep on the GPU only the network that is running.")
    ] = False
    translator: Annotated[
        str,
        typer.Option(
            help="What turns an instruction into English: tables (part of Wordbrush), off, or a folder or "
            "hub id of NLLB, M2M100 or Opus-MT."
        ),
    ] = "tables"
    settings: dict[str, Any] = field(default_factory=dict[str, Any])

    def over(self, recipe: "Recipe") -> "Recipe":
        """The recipe with what was given in the place of what was recorded."""
        given = {
            name: getattr(self, name) for name in ("model", "method", "dtype", "lora", "concept", "config")
        }
        return recipe.model_copy(update={name: value for name, value in given.items() if value is not None})

    def narrowed(self, method: str) -> "Setup":
        """With those settings alone that a method has, and nothing kept from one run for the next."""
        names = {f.name for f in wordbrush.METHODS[method].settings_fields()}
        settings = self.keeping_nothing(method).settings
        return replace(self, settings={name: value for name, value in settings.items() if name in names})

    def keeping_nothing(self, method: str) -> "Setup":
        """With nothing kept from one run for the next, unless it was asked for."""
        from wordbrush.controls import keep_nothing

        return replace(self, settings=keep_nothing(wordbrush.METHODS[method].settings) | self.settings)

    def load(self, recipe: "Recipe") -> "Editor":
        """The editor of a recipe, on the device that was asked for."""
        if not _debugging():
            warnings.simplefilter("ignore")  # the libraries' remarks to their own users
        from wordbrush.languages.editor import load_editor

        return load_editor(self.translator, **self.load_arguments(recipe))

    def load_arguments(self, recipe: "Recipe") -> dict[str, Any]:
        """The keywords of `wordbrush.load` for a recipe."""
        return {
            "model": recipe.model,
            "method": recipe.method,
            "device": self.device,
            "dtype": recipe.dtype,
            "offload": self.offload,
            "lora": recipe.lora,
            "concept": recipe.concept,
            "config": recipe.config,
            **recipe.settings,
            **self.settings,
        }


def _edits(function: Callable[..., None]) -> Callable[..., None]:
    """Make a command of a function, with the options of `Setup` and a flag for every setting of every method.

    The settings take longer to import than all the rest of `--help`: hence only once the command is used.
    """

    @app.command(function.__name__, cls=_later(lambda: _with_options(function)), help=function.__doc__)
    def placeholder() -> None: ...

    return function


def _later(build: Callable[[], Callable[..., None]]) -> type[TyperCommand]:
    """A command whose function, and so its flags, `build` makes only once the command is used."""

    class Command(TyperCommand):
        @cached_property
        def full(self) -> Any:
            alone = typer.Typer(add_completion=False)
            alone.command()(build())
            return get_command(alone)

        def get_params(self, ctx: Any) -> Any:
            return self.full.get_params(ctx)

        def invoke(self, ctx: Any) -> Any:
            return self.full.invoke(ctx)

    return Command


def _with_options(function: Callable[..., None]) -> Callable[..., None]:
    from wordbrush.controls import controls
    from wordbrush.editors import METHODS

    hints = get_type_hints(Setup, include_extras=True)
    options = [_option(f.name, hints[f.name], f.default) for f in fields(Setup) if f.name != "settings"]
    flags: dict[str, inspect.Parameter] = {}
    known = [(method.name, control) for method in METHODS.values() for control in controls(method.settings)]
    for method, control in known:
        # Of a setting that several methods have, the words and values of the first one are shown.
        if control.name not in flags:
            alike = {other.default for _, other in known if other.name == control.name} == {control.default}
            flags[control.name] = _flag(control, method, alike=alike)

    def run(**given: Any) -> None:
        setup = {option.name: given.pop(option.name) for option in options}
        settings = {name: value for name in flags if (value := given.pop(name)) is not None}
        function(Setup(**setup, settings=settings), **given)

    own = [p.replace(kind=p.KEYWORD_ONLY) for p in inspect.signature(function).parameters.values()][1:]
    run.__signature__ = inspect.Signature([*own, *options, *flags.values()])
    return run


def _option(name: str, hint: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hint)


def _settings_panel(setting: str) -> str:
    """The heading in `--help`: which methods have the setting."""
    from wordbrush.editors import METHODS

    found = [m.name for m in METHODS.values() if setting in (f.name for f in m.settings_fields())]
    return f"Settings of {'every method' if len(found) == len(METHODS) else ', '.join(found)}"


def _flag(control: "Control", method: str, *, alike: bool) -> inspect.Parameter:
    """An option that is None unless given, so that the model's, the method's or the recorded value stands."""
    words = _describe(control, method) + ("" if alike else " (for others see `wordbrush methods`)")
    option = typer.Option(help=words, rich_help_panel=_settings_panel(control.name))
    return _option(control.name, Annotated[control.type | None, option], None)


def _describe(control: "Control", method: str) -> str:
    """Description, range and default of a method's setting, and the embedded model's own value."""
    from wordbrush.models import EMBEDDED, own_settings

    default = control.default
    if isinstance(default, bool):
        default = "on" if default else "off"
    notes = [control.range] if control.range else []
    notes += [] if default is None else [f"default {default}"]
    values = {model: own_settings(model, method).get(control.name) for model in EMBEDDED}
    notes += [f"{model} {value}" for model, value in values.items() if value is not None]
    return "; ".join([control.description, ", ".join(notes)] if notes else [control.description])


def _show_help(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help(), end="")


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    """Edit pictures by words."""
    if version:
        print(wordbrush.__version__)
        raise typer.Exit
    _show_help(context)


@_edits
def edit(
    setup: Setup,
    picture: Annotated[Path, typer.Argument(help="The picture to edit.")],
    instruction: Annotated[str | None, typer.Argument(help='For example "make it night".')] = None,
    source: Annotated[
        str | None, typer.Option(help="What the picture shows, for methods that edit by description.")
    ] = None,
    target: Annotated[str | None, typer.Option(help="What the result shall show, for the same.")] = None,
    negative_prompt: _NegativePrompt = None,
    task: _Task = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="PNG, JPEG or WebP. (default: NAME-edited.png next to PICTURE)"),
    ] = None,
    from_metadata: Annotated[
        Path | None, typer.Option(help="Repeat the edit that made this file; what else is given wins.")
    ] = None,
    mask: Annotated[Path | None, typer.Option(help="White may change, black may not, grey blends.")] = None,
    save_mask: Annotated[
        Path | None, typer.Option(help="Write the mask that a method found: look, paint, give it to --mask.")
    ] = None,
    save_layer: Annotated[
        Path | None,
        typer.Option(help="Write the layer that a method painted: PNG or WebP, with transparency."),
    ] = None,
    upscale: Annotated[
        str | None,
        typer.Option(
            help="Make the result 4 times as wide and high: realesrgan, realesrgan-fast, or a folder or hub "
            "id of diffusers' upscale pipeline."
        ),
    ] = None,
    seed: _Seed = None,
    variations: _Variations = 1,
    quality: Annotated[int, typer.Option(min=1, max=100, help="Of a JPEG or WebP file.")] = 95,
    force: Annotated[bool, typer.Option("--force", help="Overwrite existing files.")] = False,
) -> None:
    """Edit a picture by an instruction, or by a description of the result.

    The result has the picture's size (unless --upscale is given), and its file says how it was made.
    """
    paths = variation_paths(output or default_output(picture), variations)
    found = {name: path for name, path in (("mask", save_mask), ("layer", save_layer)) if path is not None}
    if not picture.exists():
        raise ImageError(f"{picture}: no such file")
    check_outputs([*paths, *found.values()], force=force, inputs=[picture, *([mask] if mask else [])])
    if save_layer is not None and save_layer.suffix.lower() in (".jpg", ".jpeg"):
        raise UsageError(f"{save_layer}: JPEG has no transparency, write the layer as .png or .webp")
    from wordbrush.editors import find_method
    from wordbrush.images import open_image
    from wordbrush.models import is_here
    from wordbrush.provenance import save_image
    from wordbrush.recipe import Recipe, read_recipe

    if from_metadata is not None and instruction is None:
        setup = replace(setup, translator="off")  # the recorded instruction is what the model was given
    recipe = setup.over(Recipe() if from_metadata is None else read_recipe(from_metadata))
    if from_metadata is not None and setup.model is None and not is_here(recipe.model):
        raise UsageError(f"{from_metadata} asks for another model: --model {recipe.model} fetches it")
    asked = {"instruction": instruction, "source_caption": source, "target_caption": target}
    asked |= {"negative_prompt": negative_prompt, "task": task, "seed": seed}
    recipe = recipe.model_copy(update={name: value for name, value in asked.items() if value is not None})
    if upscale is not None:
        recipe = recipe.model_copy(update={"upscale": None})  # of the record: nothing is left to remark
    original, cover = open_image(picture), open_image(mask) if mask else None
    factor = 1 if upscale is None else 4
    check_size(paths, (factor * original.image.width, factor * original.image.height))
    request = recipe.request(original.image, None if cover is None else cover.image, variations)
    method = find_method(recipe.method)
    method.check(request)
    if lacking := next((name for name in found if name != method.finds), None):
        raise UsageError(f"{method.name} finds no {lacking}: there is none to save")
    unread = [f"{method.name} does not read the {name.replace('_', ' ')}" for name in method.unread(request)]
    for remark in (*recipe.differences(original, cover), *original.notes, *unread):
        _say(f"warning: {remark}")
    with progress() as show:
        show("Loading the model")
        larger = None if upscale is None else _load_upscaler(upscale, setup, recipe)
        editor = setup.load(recipe)
        result = editor.edit(request, on_step=on_step(show))
        if larger is not None:
            show("Making the result larger")
            result = larger(result)
        save_result(result, paths, source=original, mask=cover, quality=quality, overwrite=force)
        for name, path in found.items():
            save_image(result.intermediates[name][0], path, settings=result.settings, overwrite=force)
    if ranked := result.intermediates.get("task"):
        _say("task: " + ", ".join(f"{name} ({share:.0%})" for name, share in ranked[0]))
    for warning in result.warnings:
        _say(f"warning: {warning}")
    print(*paths, sep="\n")


def _load_upscaler(name: str, setup: Setup, recipe: "Recipe") -> "Callable[[EditResult], EditResult]":
    """What makes a result's pictures larger, loaded before the edit so that its errors come first."""
    from wordbrush.diffusion.runtime import prepare_process, resolve_device, resolve_dtype
    from wordbrush.editors.upscaling import enlarge, load_upscaler

    prepare_process()
    device = resolve_device(setup.device)
    upscaler = load_upscaler(name, device=device, dtype=resolve_dtype(recipe.dtype, device))
    return lambda result: enlarge(result, name, upscaler)


@_edits
def sweep(
    setup: Setup,
    picture: Annotated[Path, typer.Argument(help="The picture to edit.")],
    source: Annotated[str, typer.Option(help="What the picture shows: results are ranked by the change.")],
    target: Annotated[
        str | None, typer.Option(help="What the result shall show. (default: that of --tuned)")
    ] = None,
    etas: Annotated[str, typer.Option(help="With commas between.")] = "0.4,0.6,0.8,1",
    seed: _Seed = None,
    variations: _Variations = 4,
    clip: Annotated[
        str, typer.Option(help="What ranks the results: an embedded name, a folder, or a hub id.")
    ] = "storybook",
    out: Annotated[
        Path | None, typer.Option(help="Folder for the results. (default: NAME-sweep next to PICTURE)")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the results in the folder.")] = False,
) -> None:
    """Edit by Imagic under several eta and seeds, and rank the results.

    The folder gets every result, strip.png with all of them, and results.json; the best one is printed.
    """
    from wordbrush.recipe import Recipe

    recipe = setup.over(Recipe(method="imagic"))
    if recipe.method != "imagic":
        raise UsageError(f"a sweep over eta is for imagic: {recipe.method} has none")
    if "eta" in setup.settings:
        raise UsageError("a sweep goes over --etas: leave --eta out")
    folder = out or picture.with_name(f"{picture.stem}-sweep")
    check_results(folder, force=force)
    from wordbrush.diffusion.runtime import resolve_device
    from wordbrush.editors.eta_sweep import parse_etas, sweep_eta
    from wordbrush.editors.imagic import Imagic
    from wordbrush.images import open_image
    from wordbrush.perception.clip import Clip

    values, original = parse_etas(etas), open_image(picture)
    request = EditRequest(
        original.image,
        source_caption=source,
        target_caption=target or "",
        seed=seed,
        num_variations=variations,
    )
    with progress() as show:
        show("Loading the models")
        editor = setup.load(recipe)
        assert isinstance(editor, Imagic)
        judge = Clip.load(clip, device=resolve_device(setup.device))
        found = sweep_eta(editor, request, judge, values, on_step=on_step(show))
        found.write(folder, original)
    for warning in (*original.notes, *found.warnings):
        _say(f"warning: {warning}")
    print(folder / found.ranked[0].name, folder / "strip.png", sep="\n")


@_edits
def compare(
    setup: Setup,
    picture: Annotated[Path, typer.Argument(help="The picture to edit.")],
    source: Annotated[str, typer.Option(help="What the picture shows.")],
    target: Annotated[str, typer.Option(help="What the results shall show.")],
    instruction: Annotated[str, typer.Option(help="The same as an instruction.")] = "",
    seed: Annotated[int, typer.Option(min=0, help="Of every edit.")] = 0,
    clip: Annotated[
        str, typer.Option(help="What judges the results: an embedded name, a folder, or a hub id.")
    ] = "storybook",
    out: Annotated[
        Path | None, typer.Option(help="Folder for the results. (default: NAME-compare next to PICTURE)")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the results in the folder.")] = False,
) -> None:
    """Edit a picture by every method, side by side with time, memory and scores.

    --method takes some of them, with commas between; METHOD=MODEL is one with a model of its own. A setting
    that is given counts for every method that has it. The folder gets every result, report.html, sheet.png
    and results.json.
    """
    from wordbrush.images import open_image

    folder = out or picture.with_name(f"{picture.stem}-compare")
    check_results(folder, force=force)
    original = open_image(picture)
    request = EditRequest(original.image, instruction, source, target, seed=seed)
    with progress() as show:
        _compare(setup, request, original, setup.method, clip, folder, show)
    print(folder / "report.html", folder / "sheet.png", sep="\n")


def _compare(
    setup: Setup,
    request: EditRequest,
    original: "Picture",
    methods: str | None,
    clip: str,
    folder: Path,
    show: "Show",
) -> None:
    """Run a list of methods (None: all) on a request, and write the report."""
    from wordbrush.evaluation.compare import Run, compare_methods, parse_methods, write_report
    from wordbrush.recipe import Recipe

    recipe = setup.over(Recipe())
    runs: list[Run] = []
    for name, model in parse_methods(methods, setup.settings).items():
        own = recipe.model_copy(update={"method": name, "model": model or recipe.model})
        runs.append(Run(name, own.model, partial(setup.narrowed(name).load, own)))
    write_report(compare_methods(request, runs, clip, setup.device, show), folder, original)


@_edits
def turn(
    setup: Setup,
    session: Annotated[Path, typer.Argument(help="The session's file; begun by --picture.")],
    instruction: Annotated[str | None, typer.Argument(help='For example "make it night".')] = None,
    picture: Annotated[Path | None, typer.Option(help="Begin a session with this picture.")] = None,
    alpha: Annotated[
        float | None,
        typer.Option(help="Of a new session: a pixel that changed by less stays as it was. (default: 0.03)"),
    ] = None,
    source: Annotated[str | None, typer.Option(help="What the current picture shows.")] = None,
    target: Annotated[str | None, typer.Option(help="What the result shall show.")] = None,
    negative_prompt: _NegativePrompt = None,
    task: _Task = None,
    mask: Annotated[Path | None, typer.Option(help="White may change in this turn, black may not.")] = None,
    seed: _Seed = None,
    variations: _Variations = 1,
) -> None:
    """Edit the current picture of a session: many turns, a tree with undo and branches, in one small file.

    Between turns, pixels that hardly changed are kept as they were, so that nothing decays (Emu Edit).
    `wordbrush session` shows the turns, goes back to one, and writes its picture.
    """
    from wordbrush.editors import find_method
    from wordbrush.editors.sequential import ALPHA, Session
    from wordbrush.editors.session_file import load_session, save_session
    from wordbrush.images import open_image
    from wordbrush.outputs import check_folder
    from wordbrush.recipe import Recipe

    if picture is None and alpha is not None:
        raise UsageError("--alpha is settled when a session begins: give --picture, too")
    if picture is not None and session.exists():
        raise UsageError(f"{session} exists: go on with it without --picture, or name another file")
    check_folder(session.parent)
    notes: tuple[str, ...] = ()
    if picture is None:
        known = load_session(session)
    else:
        original = open_image(picture)
        known, notes = Session(original.image, ALPHA if alpha is None else alpha), original.notes
    recipe = setup.over(Recipe())
    asked = {"instruction": instruction, "source_caption": source, "target_caption": target}
    given: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
    cover = None if mask is None else open_image(mask).image
    request = EditRequest(
        known.image(),
        **given,
        negative_prompt=negative_prompt,
        task=task,
        mask=cover,
        seed=seed,
        num_variations=variations,
    )
    find_method(recipe.method).check(request)
    with progress() as show:
        show("Loading the model")
        editor = setup.load(recipe)
        made = known.edit(editor, request, on_step=on_step(show))
    save_session(known, session, overwrite=True)
    for warning in (*notes, *made[0].warnings):
        _say(f"warning: {warning}")
    for new in made:
        print(new.summary)


@app.command()
def session(
    file: Annotated[Path, typer.Argument(help="The session's file.")],
    undo: Annotated[bool, typer.Option("--undo", help="Go back by one turn; it stays in the tree.")] = False,
    go: Annotated[int | None, typer.Option(help="Go to the turn of this number; 0 is the original.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the current picture: PNG, JPEG or WebP.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")] = False,
) -> None:
    """Show the turns of a session, the current one marked; go to another one; write its picture."""
    if output is not None:
        check_outputs([output], force=force)
    from wordbrush.editors.session_file import load_session, save_session
    from wordbrush.provenance import save_image

    if undo and go is not None:
        raise UsageError("--undo and --go: give one of them")
    known = load_session(file)
    if undo:
        known.undo()
    if go is not None:
        known.go_to(go)
    if undo or go is not None:
        save_session(known, file, overwrite=True)
    if output is not None:
        settings = known.turn(known.current).settings if known.current else {}
        save_image(known.image(), output, settings=settings, overwrite=force)
    print(known.summary)


@_edits
def batch(
    setup: Setup,
    jobs: Annotated[Path, typer.Argument(help="One JSON object a line: image, instruction, seed, mask, ...")],
    out: Annotated[Path, typer.Option(help="The folder for the results.")],
) -> None:
    """Edit many pictures; run it again to go on where it stopped.

    Row n, counted from 0, becomes 00000n.png in the folder and a line of results.jsonl there. Rows that fail
    are reported, and tried again by the next run.
    """
    from wordbrush.batch import RESULTS, Batch
    from wordbrush.editors import find_method, settings_for
    from wordbrush.recipe import Recipe

    recipe = setup.over(Recipe())
    settings = settings_for(recipe.model, find_method(recipe.method), setup.settings)
    decides = {"model", "method", "dtype", "lora", "concept", "config"}
    made_with = recipe.model_dump(mode="json", include=decides)
    made_with |= {"translator": setup.translator, "settings": asdict(settings)}
    work = Batch(jobs, out, made_with=made_with)
    with progress() as show:
        show("Loading the model")

        def on_row_step(row: int, info: "StepInfo") -> None:
            show(f"Editing row {row + 1} of {work.num_rows}", info.step + 1, info.num_steps)

        def on_row(entry: dict[str, Any]) -> None:
            if entry["status"] == "failed":
                _say(f"row {entry['row']} failed: {entry['error']}")

        report = work.run(lambda: setup.load(recipe), on_row=on_row, on_step=on_row_step)
    print(f"{report.done} rows done, {report.failed} failed, {report.skipped} done before: {out / RESULTS}")
    if report.failed:
        raise typer.Exit(1)


@app.command()
def methods() -> None:
    """List the editing methods and their settings."""
    from wordbrush.controls import controls
    from wordbrush.editors import METHODS

    for method in METHODS.values():
        print(f"{method.name}: {method.description}")
        print(f"  needs {', '.join(['a picture', *method.needs])}")
        if method.optional:
            print(f"  takes {', '.join(method.optional)}, too")
        for control in controls(method.settings):
            print(f"  {control.flag:<20} {_describe(control, method.name)}")


def _list_models(context: typer.Context) -> None:
    from wordbrush.models import EMBEDDED

    if context.invoked_subcommand is None:
        for name, description in EMBEDDED.items():
            print(f"{name}: {description}")
        print("Any folder, single file or hub id of Stable Diffusion 1, 2 or XL is a model too.")


models_app, train_app = typer.Typer(), typer.Typer()


def _group(
    group: typer.Typer, name: str, help_: str, alone: Callable[[typer.Context], None] = _show_help
) -> None:
    """Add a command with commands of its own; `alone` is what it does without one."""
    app.add_typer(group, name=name, help=help_, callback=alone, invoke_without_command=True)


_group(models_app, "models", "List the models, or fetch one.", _list_models)
_group(data_app, "data", "Make and look at training data.")
_group(train_app, "train", "Train a model.")
_group(evaluate_app, "evaluate", "Measure a model.")


@models_app.command("list")
def list_models(context: typer.Context) -> None:
    """List the models that are part of Wordbrush."""
    _list_models(context)


@models_app.command("get")
def get_model(name: Annotated[str, typer.Argument(help="An embedded name, a path, or a hub id.")]) -> None:
    """Fetch a model, so that it works without a network from then on, and print where it is."""
    from wordbrush.models import resolve

    print(resolve(name))


def _trains(name: str, help_: str) -> None:
    """Add `train NAME`; its flags are the fields of the recipe's settings."""

    def build() -> Callable[..., None]:
        from wordbrush.training.commands import command

        return command(name)

    @train_app.command(name, cls=_later(build), help=help_)
    def placeholder() -> None: ...


for _name, _help in RECIPES.items():
    _trains(_name, _help)


@train_app.command("assemble")
def assemble_model(
    work: Annotated[Path, typer.Argument(help="The folder that the recipes trained in.")],
    folder: Annotated[Path, typer.Argument(help="The checkpoint to write or renew.")],
) -> None:
    """Put separately trained parts together as one checkpoint in half precision."""
    from wordbrush.training.assemble import assemble

    assemble(work, folder)
    print(folder)


@_edits
def ui(
    setup: Setup,
    also: Annotated[
        list[str] | None,
        typer.Option(help="Another model that visitors may choose; may be given more than once."),
    ] = None,
    host: Annotated[str, typer.Option(help="0.0.0.0 lets other computers in.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 7860,
) -> None:
    """Show the studio: a page in the browser that edits pictures by words."""
    try:
        from wordbrush.serving.web import serve
    except ModuleNotFoundError as error:
        raise MissingExtraError("the page", "ui") from error
    from wordbrush.editors import find_method
    from wordbrush.editors.settings import make_settings
    from wordbrush.models import own_settings
    from wordbrush.recipe import Recipe
    from wordbrush.serving.menu import Menu

    recipe = setup.over(Recipe())
    make_settings(find_method(recipe.method).settings, setup.settings)  # says what is wrong before loading

    def load(model: str, method: str) -> "Editor":
        # nothing is kept: a visitor's picture could be made from it again
        return setup.narrowed(method).load(recipe.model_copy(update={"model": model, "method": method}))

    def defaults(model: str, method: str) -> Any:
        given = own_settings(model, method) | setup.narrowed(method).settings
        return make_settings(find_method(method).settings, given)

    menu = Menu([recipe.model, *(also or [])], load, defaults, first=recipe.method)
    menu.editor(menu.models[0], recipe.method)  # at once: the first visitor need not wait
    serve(menu, host=host, port=port)


@_edits
def serve(
    setup: Setup,
    host: Annotated[str, typer.Option(help="0.0.0.0 lets other computers in.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes any that is free.")] = 8000,
    api_key: Annotated[
        list[str] | None,
        typer.Option(
            envvar="WORDBRUSH_API_KEY",
            help="A key that lets in; may be given more than once. (default: everybody is let in)",
        ),
    ] = None,
    api_keys_file: Annotated[
        Path | None, typer.Option(help="The same, one a line; # begins a remark.")
    ] = None,
    max_queue: Annotated[
        int, typer.Option(min=1, help="Edits that may wait; of several keys, each may have half of them.")
    ] = 100,
    max_batch: Annotated[int, typer.Option(min=1, help="Results that are made together.")] = 4,
    max_disk: Annotated[
        float, typer.Option(min=0.01, help="GiB for uploads and results; the oldest results go first.")
    ] = 10.0,
    time_limit: Annotated[float, typer.Option(min=0.1, help="Seconds that an edit may run.")] = 300.0,
    keep: Annotated[
        float, typer.Option(min=1, help="Seconds that an edit and its results are kept.")
    ] = 3600.0,
    max_pixels: Annotated[int, typer.Option(min=1, help="Of a picture.")] = 25_000_000,
    max_bytes: Annotated[int, typer.Option(min=1024, help="Of a request.")] = 32 * 2**20,
    max_size: Annotated[int, typer.Option(min=8, help="Of the setting --size in a request.")] = 1024,
    cors_origin: Annotated[
        list[str] | None,
        typer.Option(help="Web pages from there may call, such as https://example.org; may be repeated."),
    ] = None,
    folder: Annotated[
        Path | None, typer.Option(help="Where edits wait and results lie. (default: in the user's cache)")
    ] = None,
) -> None:
    """Serve edits over HTTP, as jobs and as OpenAI's clients ask for them."""
    try:
        from wordbrush.serving.http import serve as listen
    except ModuleNotFoundError as error:
        raise MissingExtraError("the service", "serve") from error
    from wordbrush.recipe import Recipe
    from wordbrush.serving.jobs import lock_folder
    from wordbrush.serving.service import Keys, Limits
    from wordbrush.serving.starting import default_folder, make_service, read_keys

    keys = [*(api_key or []), *(read_keys(api_keys_file) if api_keys_file else [])]
    if not keys and host not in ("127.0.0.1", "localhost", "::1"):
        _say("warning: whoever reaches this address may edit; --api-key lets in only those who have the key")
    recipe = setup.over(Recipe())
    home = default_folder() if folder is None else folder
    lock = lock_folder(home)
    try:
        service = make_service(
            setup.load_arguments(recipe),
            translator=setup.translator,
            folder=home,
            keys=Keys(keys),
            limits=Limits(max_bytes=max_bytes, max_pixels=max_pixels, max_size=max_size),
            max_queue=max_queue,
            max_disk=int(max_disk * 2**30),
            max_batch=max_batch,
            time_limit=time_limit,
            keep=keep,
        )
        listen(service, host=host, port=port, cors_origins=cors_origin or [])
    finally:
        lock.close()


@_edits
def mcp(
    setup: Setup,
    folder: Annotated[Path, typer.Argument(help="The only folder that is read and written.")],
    host: Annotated[str, typer.Option(help="For HTTP; 0.0.0.0 lets other computers in.")] = "127.0.0.1",
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Serve HTTP here. (default: standard input/output)")
    ] = None,
) -> None:
    """Serve tools for agents (Model Context Protocol): edit, compare, and sessions with undo and branches."""
    try:
        from wordbrush.serving.mcp import build, serve
    except ModuleNotFoundError as error:
        raise MissingExtraError("the tools", "mcp") from error
    from wordbrush.recipe import Recipe

    recipe = setup.over(Recipe())
    setup = setup.keeping_nothing(recipe.method)  # it would be kept outside of the folder

    def compare(
        request: EditRequest, original: "Picture", methods: str | None, out: Path, show: "Show"
    ) -> None:
        _compare(setup, request, original, methods, "storybook", out, show)

    serve(build(folder, partial(setup.load, recipe), compare), host=host, port=port)


if __name__ == "__main__":
    main()
