"""The `wordbrush data ...` commands. Whatever is heavy is imported inside a command."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from wordbrush.errors import UsageError

data_app = typer.Typer()

_Source = Annotated[
    Path, typer.Argument(help="A folder of parquet, tars or rendered edits; a file of these.")
]


@contextmanager
def _counting(what: str) -> Generator[Callable[[], None]]:
    """Yields a function to call after each row, which counts on standard error if that is a terminal."""
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = SpinnerColumn(), TextColumn("{task.description} {task.completed:,} rows"), TimeElapsedColumn()
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not sys.stderr.isatty()) as bars:
        task = bars.add_task(what, total=None)
        yield lambda: bars.advance(task)


@data_app.command("storybook")
def render_storybook(
    folder: Annotated[Path, typer.Argument(help="Where the shards go.")],
    count: Annotated[int, typer.Option(min=1, help="How many edits.")],
    kind: Annotated[
        str,
        typer.Option(
            help="scenes, things, photographs, vision; for new tasks super-resolution, inpainting, contours."
        ),
    ] = "scenes",
) -> None:
    """Render edits of the storybook world; run it again to go on where it stopped."""
    from wordbrush.storybook.dataset import KINDS, make

    if kind not in KINDS:
        raise UsageError(f"--kind: one of {', '.join(KINDS)}")
    print(f"{len(make(folder, count, kind=kind))} edits in {folder}")


@data_app.command("make")
def make_data(
    config: Annotated[Path, typer.Argument(help="A TOML file, see examples/data.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The new folder.")],
    ray: Annotated[bool, typer.Option("--ray", help="Run on Ray (RAY_ADDRESS, or this machine).")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Measure a few units, and print what the run will take.")
    ] = False,
) -> None:
    """Make pairs of pictures by instructions; run it again to go on where it stopped.

    Captions get instructions, each pair of captions becomes pairs of pictures, and the best are kept. The
    folder appears when all is done; until then the work is in FOLDER.work.
    """
    from wordbrush.datagen.config import read_config

    settings = read_config(config)
    if dry_run:
        from wordbrush.datagen.estimate import estimate, free_bytes

        print(estimate(settings).as_text(free_bytes(output)))
        return
    from wordbrush.datagen.pipeline import make
    from wordbrush.datagen.progress import Display
    from wordbrush.datagen.runners import choose_runners

    print(make(settings, output, choose_runners(settings, ray=ray), Display()).as_text())
    print(output)


@data_app.command("attention")
def show_attention(
    caption: Annotated[str, typer.Argument(help="Of the first picture.")],
    output_caption: Annotated[str, typer.Argument(metavar="OUTPUT", help="Of the second one.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The sheet, a PNG.")] = Path("attention.png"),
    model: Annotated[str, typer.Option(help="A text-to-image checkpoint.")] = "storybook",
    seed: Annotated[int, typer.Option(min=0, help="Of the first row's noise.")] = 0,
    num: Annotated[int, typer.Option(min=1, help="Rows, each of another noise.")] = 2,
    shared: Annotated[float, typer.Option(min=0, max=1, help="Part of the steps with control.")] = 0.8,
    steps: Annotated[int | None, typer.Option(min=1, help="(default: the model's own, or 50)")] = None,
    guidance: Annotated[float | None, typer.Option(help="(default: the model's own, or 7.5)")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite.")] = False,
) -> None:
    """Paint two captions with and without attention control, and show where each word looks."""
    from wordbrush.datagen.attention_sheet import draw_attention
    from wordbrush.datagen.painting import Draw, Painter, PairSettings
    from wordbrush.models import own_settings
    from wordbrush.outputs import check_outputs
    from wordbrush.provenance import atomic_file

    check_outputs([output], force=force)
    own = own_settings(model, "prompt-to-prompt")
    painter = Painter.load(
        PairSettings(model=model, scheduler="dpm++", steps=steps or int(own.get("steps", 50)))
    )
    scale = own.get("text_scale", 7.5) if guidance is None else guidance
    draws = [Draw(seed + row, shared, scale) for row in range(num)]
    sheet = draw_attention(painter, caption, output_caption, draws)
    with atomic_file(output, overwrite=force) as file:
        sheet.save(file, "PNG")
    print(output)


@data_app.command("get")
def get_data(
    name: Annotated[str | None, typer.Argument(help="A hub id, such as osunlp/MagicBrush.")] = None,
    out: Annotated[Path | None, typer.Option(help="A folder for it. (default: the hub's cache)")] = None,
) -> None:
    """Fetch a data set from the hub and print where it is; run it again to go on where it stopped.

    Without NAME, list those that are known. HF_ENDPOINT names another server than huggingface.co.
    """
    from wordbrush.data.hub import KNOWN, get

    if name is not None:
        print(get(name, out))
        return
    for known, description in KNOWN.items():
        print(f"{known}: {description}")


@data_app.command("convert")
def convert_data(
    source: _Source,
    folder: Annotated[Path, typer.Argument(help="The new folder.")],
    to: Annotated[str, typer.Option(help="parquet, webdataset or original (InstructPix2Pix's).")] = "parquet",
    split: Annotated[str | None, typer.Option(help="Only this one. (default: all)")] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            "--filter",
            help="Only rows that the filter of this `data make` configuration keeps. (default: all)",
        ),
    ] = None,
    units: Annotated[
        int | None, typer.Option(min=1, help="Of each split, only so many caption pairs. (default: all)")
    ] = None,
) -> None:
    """Write a data set in another layout, or a part of it.

    A set that was made with a low filter can so be filtered again with higher thresholds, without painting.
    """
    from wordbrush.data.rows import Row
    from wordbrush.data.sources import convert
    from wordbrush.datagen.config import read_config
    from wordbrush.datagen.filters import filter_rows, first_units

    thresholds = None if config is None else read_config(config).filter

    def choose(rows: Iterable[Row]) -> Iterable[Row]:
        part = rows if units is None else first_units(rows, units)
        return part if thresholds is None else filter_rows(part, thresholds)

    with _counting("Converting") as on_row:
        count = convert(source, folder, to, split=split, choose=choose, on_row=on_row)
    print(f"{count} rows in {folder}")


@data_app.command("derive")
def derive_data(
    source: _Source,
    folder: Annotated[Path, typer.Argument(help="The new folder.")],
    tasks: Annotated[
        str,
        typer.Option(
            help="Some of color, sketch, text, style; with models depth, normal, pose, detect, segment, "
            "segmentation."
        ),
    ] = "color,sketch,text,style",
    depth: Annotated[
        str | None,
        typer.Option(help="For depth and normal: such as depth-anything/Depth-Anything-V2-Small-hf."),
    ] = None,
    pose: Annotated[
        str | None,
        typer.Option(help="For pose: such as PekingU/rtdetr_v2_r18vd+usyd-community/vitpose-base-simple."),
    ] = None,
    grounder: Annotated[
        str | None,
        typer.Option(help="For detect, segment and segmentation: such as CIDAS/clipseg-rd64-refined."),
    ] = None,
    things: Annotated[
        str, typer.Option(help="What it looks for, where a caption names it, with commas between.")
    ] = "",
    seed: Annotated[int, typer.Option(min=0, help="Of what is drawn for each pair.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")] = "auto",
) -> None:
    """Make pairs that follow from one picture each, of the pictures before the edits of a data set.

    Of each task one a row, where what it is about is found: styles, colour and light; outlines, depth,
    normals, skeletons and maps (to and from); lettering (put on, taken off); boxes around things, and their
    shapes.
    """
    from wordbrush.data.sources import convert
    from wordbrush.datagen.derived import Deriver
    from wordbrush.editors.settings import parse_words

    deriver = Deriver.load(
        parse_words(tasks), depth=depth, pose=pose, grounder=grounder, things=parse_words(things),
        seed=seed, device=device,
    )  # fmt: skip
    with _counting("Deriving") as on_row:
        count = convert(source, folder, "parquet", choose=deriver, on_row=on_row)
    print(f"{count} rows in {folder}")


@data_app.command("validate")
def validate_data(source: _Source) -> None:
    """Check every row of a data set; prints a line for each problem, and exits 1 if there are any."""
    from wordbrush.data.sources import open_parts
    from wordbrush.data.validation import find_problems

    rows = problems = 0

    with _counting("Checking") as on_row:

        def count() -> None:
            nonlocal rows
            rows += 1
            on_row()

        for problem in find_problems(open_parts(source), on_row=count):
            problems += 1
            print(" ".join(problem.split()))
    if problems:
        raise typer.Exit(1)
    print(f"{rows} rows without problems")


@data_app.command("show")
def show_data(
    source: _Source,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The page. (default: SOURCE.html next to SOURCE)")
    ] = None,
    num: Annotated[int, typer.Option(min=1, help="How many edits.")] = 60,
    seed: Annotated[int, typer.Option(help="Which edits are drawn.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing page.")] = False,
) -> None:
    """Make a page with some edits of a data set, to look at in a browser."""
    from wordbrush.data.contact_sheet import make_sheet, sample
    from wordbrush.data.sources import open_parts, read_rows
    from wordbrush.provenance import atomic_file

    whole = source.resolve()
    page = output or whole.with_name(f"{whole.name}.html")
    if page.exists() and not force:
        raise UsageError(f"{page} exists: give another name with -o, or --force to overwrite it")
    rows, total = sample(read_rows(open_parts(source)), num, seed)
    with atomic_file(page, overwrite=force) as file:
        file.write(make_sheet(whole.name, rows, total).encode())
    print(page)


@data_app.command("stats")
def show_statistics(
    source: _Source,
    clip: Annotated[str | None, typer.Option(help="Score the rows by this CLIP (such as storybook).")] = None,
    share: Annotated[
        float, typer.Option(min=0.01, max=1, help="With --clip: of rows that shall pass.")
    ] = 0.9,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Count a data set: tasks, lengths of texts, CLIP's scores, and what InstructPix2Pix's filter would keep.

    Of a data set that `data make` made, the scores and the filter are those of all pairs that it drew.

    With --clip, the scores are measured by that CLIP, and the filter has the thresholds at which SHARE of
    the rows pass: a calibration, if the rows are as they should be.
    """
    from wordbrush.data.sources import open_parts, read_rows
    from wordbrush.datagen.filters import Thresholds
    from wordbrush.datagen.statistics import gather, measure, with_run

    rows = read_rows(open_parts(source))
    if clip is None:
        statistics = with_run(gather(rows, Thresholds()), source)
    else:
        from wordbrush.diffusion.runtime import prepare_process, resolve_device
        from wordbrush.perception.clip import Clip

        prepare_process()
        statistics = measure(rows, Clip.load(clip, device=resolve_device(device)), share, Thresholds().keep)
    print(statistics.as_json() if as_json else statistics.as_text())


@data_app.command("push")
def push_data(
    folder: Annotated[Path, typer.Argument(help="A data set in parquet, with its README.md.")],
    repo: Annotated[str, typer.Argument(help="OWNER/NAME on the hub.")],
    private: Annotated[bool, typer.Option("--private", help="If the repository is new.")] = False,
    license: Annotated[str | None, typer.Option(help="For the card, such as cc-by-4.0.")] = None,
) -> None:
    """Upload a data set to the hub in the place of an earlier one, and print its address."""
    from wordbrush.data.hub import push

    print(push(folder, repo, private=private, license=license))
