"""The command line. Whatever is heavy is imported inside a command, so that `--help` is instant."""

import inspect
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer
from typer.core import TyperCommand
from typer.main import get_command

import wordbrush
from wordbrush.datagen.commands import data_app
from wordbrush.errors import UsageError, WordbrushError
from wordbrush.evaluation.commands import evaluate_app
from wordbrush.outputs import check_outputs, check_size, default_output, save_result, variation_paths
from wordbrush.progress import progress
from wordbrush.training import RECIPES
from wordbrush.types import MAX_VARIATIONS

if TYPE_CHECKING:
    from wordbrush.controls import Control
    from wordbrush.recipe import Recipe
    from wordbrush.types import Editor, EditResult

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
        str | None, typer.Option(help="See `wordbrush methods`. (default: instruct-pix2pix)")
    ] = None
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")] = "auto"
    dtype: Annotated[str | None, typer.Option(help="auto, float32, bfloat16 or float16. (default: auto)")] = (
        None
    )
    lora: Annotated[list[Path] | None, typer.Option(help="A LoRA file; may be given more than once.")] = None
    config: Annotated[
        str | None,
        typer.Option(help="For a single file: a folder or hub id with the configuration of such models."),
    ] = None
    offload: Annotated[
        bool, typer.Option("--offload", help="Keep on the GPU only the network that is running.")
    ] = False
    settings: dict[str, Any] = field(default_factory=dict[str, Any])

    def over(self, recipe: "Recipe") -> "Recipe":
        """The recipe with what was given in the place of what was recorded."""
        given = {name: getattr(self, name) for name in ("model", "method", "dtype", "lora", "config")}
        return recipe.model_copy(update={name: value for name, value in given.items() if value is not None})

    def load(self, recipe: "Recipe") -> "Editor":
        """The editor of a recipe, on the device that was asked for."""
        if not _debugging():
            warnings.simplefilter("ignore")  # the libraries' remarks to their own users
        return wordbrush.load(
            recipe.model,
            recipe.method,
            device=self.device,
            dtype=recipe.dtype,
            offload=self.offload,
            lora=recipe.lora,
            config=recipe.config,
            **recipe.settings | self.settings,
        )


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
    for control in (c for method in METHODS.values() for c in controls(method.settings)):
        # Of a setting that several methods have, the words of the first one are shown.
        if control.name not in flags:
            flags[control.name] = _flag(control, _settings_panel(control.name))

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


def _flag(control: "Control", panel: str) -> inspect.Parameter:
    """An option that is None unless given, so that the method's own default or the recorded value stands."""
    option = typer.Option(help=_describe(control), rich_help_panel=panel)
    return _option(control.name, Annotated[control.type | None, option], None)


def _describe(control: "Control") -> str:
    """Description, range and default of a setting."""
    default = control.default
    if isinstance(default, bool):
        default = "on" if default else "off"
    notes = [control.range] if control.range else []
    notes += [] if default is None else [f"default {default}"]
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
    negative_prompt: Annotated[str | None, typer.Option(help="What the result shall not show.")] = None,
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
    seed: Annotated[int | None, typer.Option(help="Of the first variation. (default: drawn)")] = None,
    variations: Annotated[int, typer.Option(min=1, max=MAX_VARIATIONS, help="How many results to make.")] = 1,
    quality: Annotated[int, typer.Option(min=1, max=100, help="Of a JPEG or WebP file.")] = 95,
    force: Annotated[bool, typer.Option("--force", help="Overwrite existing files.")] = False,
) -> None:
    """Edit a picture by an instruction, or by a description of the result.

    The result has the picture's size, and its file says how it was made.
    """
    paths = variation_paths(output or default_output(picture), variations)
    check_outputs([*paths, *([save_mask] if save_mask else [])], force=force)
    from wordbrush.editors import find_method
    from wordbrush.images import open_image
    from wordbrush.models import is_here
    from wordbrush.recipe import Recipe, read_recipe

    recipe = setup.over(Recipe() if from_metadata is None else read_recipe(from_metadata))
    if from_metadata is not None and setup.model is None and not is_here(recipe.model):
        raise UsageError(f"{from_metadata} asks for another model: --model {recipe.model} fetches it")
    asked = {"instruction": instruction, "source_caption": source, "target_caption": target}
    asked |= {"negative_prompt": negative_prompt, "seed": seed}
    recipe = recipe.model_copy(update={name: value for name, value in asked.items() if value is not None})
    original, cover = open_image(picture), open_image(mask) if mask else None
    check_size(paths, original.image.size)
    request = recipe.request(original, cover, variations)
    find_method(recipe.method).check(request)
    for remark in (*recipe.differences(original, cover), *original.notes):
        _say(f"warning: {remark}")
    with progress() as show:
        show("Loading the model")
        editor = setup.load(recipe)
        result = editor.edit(request, on_step=lambda info: show("Editing", info.step + 1, info.num_steps))
        save_result(result, paths, source=original, mask=cover, quality=quality, overwrite=force)
    if save_mask is not None:
        _save_mask(result, save_mask, force)
    for warning in result.warnings:
        _say(f"warning: {warning}")
    print(*paths, sep="\n")


def _save_mask(result: "EditResult", path: Path, force: bool) -> None:
    """The mask of the first variation."""
    from wordbrush.provenance import save_image

    if "mask" not in result.intermediates:
        raise UsageError(f"{result.settings['method']} finds no mask: there is none to save")
    save_image(
        result.intermediates["mask"][0].convert("RGB"), path, settings=result.settings, overwrite=force
    )


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
    from wordbrush.editors import find_method
    from wordbrush.editors.settings import make_settings
    from wordbrush.recipe import Recipe

    recipe = setup.over(Recipe())
    settings = make_settings(find_method(recipe.method).settings, setup.settings)
    made_with = recipe.model_dump(mode="json", include={"model", "method", "lora", "config"})
    work = Batch(jobs, out, made_with=made_with | {"settings": asdict(settings)})
    with progress() as show:
        show("Loading the model")

        def on_row(entry: dict[str, Any]) -> None:
            show("Editing", entry["row"] + 1, work.num_rows)
            if entry["status"] == "failed":
                _say(f"row {entry['row']} failed: {entry['error']}")

        report = work.run(lambda: setup.load(recipe), on_row=on_row)
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
        for control in controls(method.settings):
            print(f"  {control.flag:<20} {_describe(control)}")


def _list_models(context: typer.Context) -> None:
    from wordbrush.models import EMBEDDED

    if context.invoked_subcommand is None:
        for name, description in EMBEDDED.items():
            print(f"{name}: {description}")
        print("Any folder, single file or hub id of Stable Diffusion 1, 2 or XL is a model too.")


def _group(name: str, description: str, alone: Callable[[typer.Context], None] = _show_help) -> typer.Typer:
    """A command with commands of its own; `alone` is what it does without one."""
    group = typer.Typer()
    app.add_typer(group, name=name, help=description, callback=alone, invoke_without_command=True)
    return group


models_app = _group("models", "List the models, or fetch one.", _list_models)
app.add_typer(
    data_app,
    name="data",
    help="Make and look at training data.",
    callback=_show_help,
    invoke_without_command=True,
)
train_app = _group("train", "Train a model.")
app.add_typer(
    evaluate_app,
    name="evaluate",
    help="Measure a model.",
    callback=_show_help,
    invoke_without_command=True,
)


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
    host: Annotated[str, typer.Option(help="0.0.0.0 lets other computers in.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 7860,
) -> None:
    """Show a page in the browser that edits pictures."""
    try:
        from wordbrush.serving.web import serve
    except ModuleNotFoundError as error:
        raise WordbrushError("the page needs gradio: pip install 'wordbrush[ui]'") from error
    from wordbrush.editors import find_method
    from wordbrush.recipe import Recipe

    recipe = setup.over(Recipe())
    method = find_method(recipe.method)
    if "keep_inversion" in (f.name for f in method.settings_fields()):
        setup.settings.setdefault("keep_inversion", False)  # a visitor's picture could be made from it again
    texts = method.needs
    serve(setup.load(recipe), texts=texts, host=host, port=port)


if __name__ == "__main__":
    main()
