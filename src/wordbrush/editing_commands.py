"""The commands that edit, on the command line. Whatever is heavy is imported inside a command."""

from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wordbrush.command_setup import Setup, describe, edits, say
from wordbrush.errors import ImageError, UsageError
from wordbrush.outputs import (
    check_outputs,
    check_results,
    check_size,
    default_output,
    save_result,
    variation_paths,
)
from wordbrush.progress import on_step, progress
from wordbrush.types import MAX_VARIATIONS, EditRequest

if TYPE_CHECKING:
    from wordbrush.images import Picture
    from wordbrush.progress import Show
    from wordbrush.recipe import Recipe
    from wordbrush.types import EditResult, StepInfo

editing_app = typer.Typer()

_Seed = Annotated[int | None, typer.Option(help="Of the first variation. (default: drawn)")]
_Variations = Annotated[int, typer.Option(min=1, max=MAX_VARIATIONS, help="How many results to make.")]
_NegativePrompt = Annotated[str | None, typer.Option(help="What the result shall not show.")]
_Task = Annotated[
    str | None, typer.Option(help="The task that a method of many is given. (default: it is predicted)")
]


@edits(editing_app)
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
    from wordbrush.provenance import save_image

    if from_metadata is not None and instruction is None:
        setup = replace(setup, translator="off")  # the recorded instruction is what the model was given
    asked = {"instruction": instruction, "source_caption": source, "target_caption": target}
    asked |= {"negative_prompt": negative_prompt, "task": task, "seed": seed}
    recipe = _recorded(setup, from_metadata)
    recipe = recipe.model_copy(update={name: value for name, value in asked.items() if value is not None})
    again = {"upscale": upscale is not None, "watermark": setup.watermark}
    # of the record: nothing is left to remark
    recipe = recipe.model_copy(update={name: None for name, given in again.items() if given})
    original, cover = open_image(picture), open_image(mask) if mask else None
    factor = 1 if upscale is None else 4
    check_size(paths, (factor * original.image.width, factor * original.image.height))
    request = recipe.request(original.image, None if cover is None else cover.image, variations)
    method = find_method(recipe.method)
    method.check(request)
    if lacking := next((name for name in found if name != method.finds), None):
        raise UsageError(f"{method.name} finds no {lacking}: there is none to save")
    unread = [f"{method.name} does not read the {name.replace('_', ' ')}" for name in method.unread(request)]
    _warn(recipe.differences(original, cover), original.notes, unread)
    with progress() as show:
        show("Loading the model")
        larger = None if upscale is None else _load_upscaler(upscale, setup, recipe)
        editor = setup.load(recipe)
        result = editor.edit(request, on_step=on_step(show))
        if larger is not None:
            show("Making the result larger")
            result = larger(result)
        save_result(result, paths, source=original, mask=cover, quality=quality, overwrite=force)
        unmarked = {name: value for name, value in result.settings.items() if name != "watermark"}
        for name, path in found.items():
            save_image(result.intermediates[name][0], path, settings=unmarked, overwrite=force)
    if ranked := result.intermediates.get("task"):
        say("task: " + ", ".join(f"{name} ({share:.0%})" for name, share in ranked[0]))
    if decibels := result.intermediates.get("reconstruction_psnr"):
        say(f"the picture comes back from its inversion at {decibels[0]:.1f} dB")
    _warn(result.warnings)
    print(*paths, sep="\n")


def _recorded(setup: Setup, made: Path | None) -> "Recipe":
    """The recipe by which a file was made, or that of the defaults; with what `setup` gives in its place."""
    from wordbrush.models import is_here
    from wordbrush.recipe import Recipe, read_recipe

    recipe = setup.over(Recipe() if made is None else read_recipe(made))
    if made is not None and setup.model is None and not is_here(recipe.model):
        raise UsageError(f"{made} asks for another model: --model {recipe.model} fetches it")
    return recipe


def _warn(*remarks: Iterable[str]) -> None:
    for remark in chain(*remarks):
        say(f"warning: {remark}")


def _load_upscaler(name: str, setup: Setup, recipe: "Recipe") -> "Callable[[EditResult], EditResult]":
    """What makes a result's pictures larger, loaded before the edit so that its errors come first."""
    from wordbrush.diffusion.runtime import prepare_process, resolve_device, resolve_dtype
    from wordbrush.editors.upscaling import enlarge, load_upscaler

    prepare_process()
    device = resolve_device(setup.device)
    upscaler = load_upscaler(name, device=device, dtype=resolve_dtype(recipe.dtype, device))
    return lambda result: enlarge(result, name, upscaler)


@edits(editing_app)
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
    if setup.nsfw_check != "off" or setup.watermark:
        raise UsageError("a sweep has no --nsfw-check and no --watermark: `wordbrush edit` has")
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
    _warn(original.notes, found.warnings)
    print(folder / found.ranked[0].name, folder / "strip.png", sep="\n")


@edits(editing_app)
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
    """Edit a picture by every method of the model, side by side with time, memory and scores.

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
        run_methods(setup, request, original, setup.method, clip, folder, show)
    print(folder / "report.html", folder / "sheet.png", sep="\n")


def run_methods(
    setup: Setup,
    request: EditRequest,
    original: "Picture",
    methods: str | None,
    clip: str,
    folder: Path,
    show: "Show",
) -> None:
    """Run a list of methods (None: all that the model fits) on a request, and write the report."""
    from wordbrush.editors import METHODS
    from wordbrush.editors.fitting import fitting_methods
    from wordbrush.evaluation.compare import Run, compare_methods, parse_methods, write_report
    from wordbrush.recipe import Recipe

    recipe = setup.over(Recipe())
    runs: list[Run] = []
    if methods is None:
        fitting = [method.name for method in fitting_methods(recipe.model)]
        if others := sorted(set(METHODS) - set(fitting)):
            say(f"{recipe.model} is no model for {', '.join(others)}: --method {others[0]}=MODEL compares it")
        methods = ",".join(fitting)
    for name, model in parse_methods(methods, setup.settings).items():
        own = recipe.model_copy(update={"method": name, "model": model or recipe.model})
        runs.append(Run(name, own.model, partial(setup.narrowed(name).load, own)))
    write_report(compare_methods(request, runs, clip, setup.device, show), folder, original)


@edits(editing_app)
def turn(
    setup: Setup,
    session: Annotated[Path, typer.Argument(help="The session's file; begun by --picture.")],
    instruction: Annotated[str | None, typer.Argument(help='For example "make it night".')] = None,
    picture: Annotated[Path | None, typer.Option(help="Begin a session with this picture.")] = None,
    alpha: Annotated[
        float | None,
        typer.Option(
            help="Of a new session: a pixel that changed by less stays as it was. "
            "(default: as the model says, else 0.03; storybook: 0.1)"
        ),
    ] = None,
    low_pass: Annotated[
        float | None,
        typer.Option(
            help="Of a new session: the Gaussian over these changes, in short sides of the picture. "
            "(default: as the model says, else 0.01; storybook: 0.03)"
        ),
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
    from wordbrush.editors.sequential import Session, thresholds
    from wordbrush.editors.session_file import load_session, save_session
    from wordbrush.images import open_image
    from wordbrush.outputs import check_folder
    from wordbrush.recipe import Recipe

    if picture is None and (alpha is not None or low_pass is not None):
        raise UsageError("--alpha and --low-pass are settled when a session begins: give --picture, too")
    if picture is not None and session.exists():
        raise UsageError(f"{session} exists: go on with it without --picture, or name another file")
    check_folder(session.parent)
    notes: tuple[str, ...] = ()
    recipe = setup.over(Recipe())
    if picture is None:
        known = load_session(session)
    else:
        original = open_image(picture)
        known = Session(original.image, *thresholds(recipe.model, alpha, low_pass))
        notes = original.notes
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
    _warn(notes, made[0].warnings)
    for new in made:
        print(new.summary)


@editing_app.command()
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


@edits(editing_app)
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
    made_with |= {name: value for name, value in asdict(setup.safety).items() if value not in ("off", False)}
    work = Batch(jobs, out, made_with=made_with)
    with progress() as show:
        show("Loading the model")

        def on_row_step(row: int, info: "StepInfo") -> None:
            show(f"Editing row {row + 1} of {work.num_rows}", info.step + 1, info.num_steps)

        def on_row(entry: dict[str, Any]) -> None:
            if entry["status"] == "failed":
                say(f"row {entry['row']} failed: {entry['error']}")

        report = work.run(lambda: setup.load(recipe), on_row=on_row, on_step=on_row_step)
    print(f"{report.done} rows done, {report.failed} failed, {report.skipped} done before: {out / RESULTS}")
    if report.failed:
        raise typer.Exit(1)


@editing_app.command()
def watermark(
    pictures: Annotated[list[Path], typer.Argument(help="Pictures that may carry the mark of --watermark.")],
) -> None:
    """Look for the invisible watermark that --watermark puts in; the exit status is 1 where one lacks it."""
    from wordbrush.images import open_image
    from wordbrush.watermark import is_in

    found = [is_in(open_image(picture).image) for picture in pictures]
    for picture, marked in zip(pictures, found, strict=True):
        print(f"{picture}: {'carries' if marked else 'does not carry'} the watermark")
    if not all(found):
        raise typer.Exit(1)


@editing_app.command()
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
            print(f"  {control.flag:<20} {describe(control, method.name)}")
