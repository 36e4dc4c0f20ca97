"""The `wordbrush evaluate ...` commands. Whatever is heavy is imported inside a command."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wordbrush.errors import UsageError
from wordbrush.progress import progress

if TYPE_CHECKING:
    from wordbrush.evaluation.judges import Judge

evaluate_app = typer.Typer()

_Storybook = Annotated[str, typer.Option(help="The embedded model, or a folder of that layout.")]
_Recogniser = Annotated[Path | None, typer.Option(help="The judge. (default: the embedded one)")]
_Model = Annotated[str, typer.Option(help="An embedded name, a path or a hub id.")]
_Report = Annotated[Path, typer.Option("--output", "-o", help="Folder for the report.")]
_Steps = Annotated[int | None, typer.Option(min=1, help="See `wordbrush methods`.")]
_Scale = Annotated[float | None, typer.Option(help="See `wordbrush methods`.")]
_Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")]
_Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")]
_Seed = Annotated[int, typer.Option(min=0, help="Of the first edit; edit k has seed + k.")]
_ClipName = Annotated[
    str, typer.Option(help="The judge: an embedded name, a folder, or openai/clip-vit-large-patch14.")
]
_ClipInput = Annotated[
    str, typer.Option(help="stretched, cropped, or original-script (the range bug of InstructPix2Pix's).")
]
_Dino = Annotated[str | None, typer.Option(help="Judge by this, too, such as facebook/dino-vits16.")]
_Lpips = Annotated[bool, typer.Option("--lpips", help="Judge by LPIPS, too; needs torchvision.")]
_AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]


@evaluate_app.command("storybook")
def evaluate_storybook(
    model: _Storybook = "storybook",
    num: Annotated[int, typer.Option(min=2, help="Held-out edits of each operation.")] = 24,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for tables and grids.")] = Path(
        "out/evaluate-storybook"
    ),
    recogniser: _Recogniser = None,
    text_scale: _Scale = None,
    image_scale: _Scale = None,
    steps: _Steps = None,
    device: _Device = "auto",
    dtype: _Dtype = "auto",
    as_json: _AsJson = False,
) -> None:
    """Measure a storybook model: its edits, judged by a recogniser, and the models below it.

    Writes tables and grids; run it again to go on where it stopped.
    """
    from wordbrush.evaluation.report import to_json, to_markdown
    from wordbrush.evaluation.storybook import Options, evaluate

    settings = _given(text_scale=text_scale, image_scale=image_scale, steps=steps)
    with progress() as show:
        found = evaluate(Options(model, num, output, recogniser, settings, device, dtype), show)
    print(to_json(found) if as_json else to_markdown(found), end="")


@evaluate_app.command("task-predictor")
def evaluate_task_predictor(
    model: Annotated[
        str, typer.Option(help="An embedded name, a trained predictor, or a sentence encoder.")
    ] = "storybook",
    data: Annotated[
        list[Path] | None, typer.Option(help="Labelled instructions, of which the held-out ones are asked.")
    ] = None,
    i2ebench: Annotated[Path | None, typer.Option(help="The folder EditData of I2EBench.")] = None,
    num: Annotated[int, typer.Option(min=1, help="Storybook instructions, in held-out phrasings.")] = 1000,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder for table.md and results.json. (default: none)"),
    ] = None,
    as_json: _AsJson = False,
) -> None:
    """Measure a task predictor: how often it is right, and what it takes for what."""
    from wordbrush.editors.task_predictor import load_task_predictor
    from wordbrush.evaluation.report import to_json
    from wordbrush.evaluation.task_prediction import ask, collect, to_markdown
    from wordbrush.outputs import make_folder, write_texts

    predictor = load_task_predictor(model)
    found = {title: ask(predictor, questions) for title, questions in collect(data or [], i2ebench, num)}
    tables = "\n".join(map(to_markdown, found, found.values()))
    if output is not None:
        make_folder(output)
        write_texts(output, {"table.md": tables, "results.json": to_json(found)})
    print(to_json(found) if as_json else tables, end="")


@evaluate_app.command("languages")
def evaluate_languages(
    rows: Annotated[Path, typer.Argument(help="One JSON object a line: language, text, english.")],
    translator: Annotated[str, typer.Option(help="tables, or a folder or hub id.")] = "tables",
) -> None:
    """Measure a translator: how often an instruction in English still asks for the same edit."""
    from wordbrush.evaluation.languages import measure, read_rows, to_markdown
    from wordbrush.languages import load_translator

    print(to_markdown(measure(load_translator(translator), read_rows(rows))), end="")


@evaluate_app.command("curves")
def evaluate_curves(
    editors: Annotated[
        str, typer.Option(help="Methods, with commas between; METHOD=MODEL for one with another model.")
    ] = "instruct-pix2pix,sdedit",
    sweep: Annotated[
        list[str] | None,
        typer.Option(help="METHOD:SETTING[+SETTING]=V1,V2,... in the place of its own; may repeat."),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(help="[LABEL=]MODEL; may be repeated, a curve each. (default: storybook)"),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="A data set with captions. (default: held-out storybook edits)")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Of the data set. (default: all)")] = None,
    num: Annotated[int, typer.Option(min=2, help="How many edits, each made under every setting.")] = 200,
    scales: Annotated[str, typer.Option(help="Working sizes, as multiples of the native one.")] = "1",
    output: _Report = Path("out/curves"),
    pictures: Annotated[int, typer.Option(min=0, help="How many edits the report shows.")] = 6,
    clip: _ClipName = "storybook",
    clip_input: _ClipInput = "stretched",
    dino: _Dino = None,
    lpips: _Lpips = False,
    steps: _Steps = None,
    text_scale: _Scale = None,
    seed: _Seed = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Edits at once.")] = 16,
    device: _Device = "auto",
    dtype: _Dtype = "auto",
) -> None:
    """Draw the paper's curves: how far edits go against what they keep (figures 8 and 10).

    Writes report.html, results.json, points.csv and SVG files; run it again to go on where it stopped.
    """
    from wordbrush.diffusion.runtime import prepare_process
    from wordbrush.evaluation.curves import Plan
    from wordbrush.evaluation.curves_report import run
    from wordbrush.evaluation.examples import dataset_examples, storybook_examples
    from wordbrush.evaluation.sweeps import make_lines

    own_models, sweeps = _sweeps(editors, sweep or [])
    lines = make_lines(model or ["storybook"], sweeps, own_models)
    multiples = _numbers("--scales", scales, int)
    prepare_process()
    examples = dataset_examples(data, num, split=split, seed=seed) if data else storybook_examples(num, seed)
    settings = _given(steps=steps, text_scale=text_scale)
    plan = Plan(lines, examples, multiples, settings, seed, pictures, batch_size, device, dtype)
    judges = _judges(clip, clip_input, dino, lpips, device)
    with progress() as show:
        sentences = run(plan, judges, output, show)
    print(*sentences, output / "report.html", sep="\n")


def _labelled(given: Sequence[str]) -> list[tuple[str, str]]:
    """Label and name of each [LABEL=]NAME."""
    pairs = [text.rpartition("=") for text in given]
    return [(label or name, name) for label, _, name in pairs]


def _sweeps(editors: str, given: list[str]) -> tuple[dict[str, str], list[Any]]:
    """The models of methods that have one to themselves, and the sweeps: those given, else the known."""
    from wordbrush.evaluation.sweeps import parse_sweep

    pairs = [name.strip().partition("=") for name in editors.split(",") if name.strip()]
    replaced = {sweep.method: sweep for sweep in map(parse_sweep, given)}
    chosen = {name: replaced.get(name) or parse_sweep(name) for name, _, _ in pairs}
    return {name: model for name, _, model in pairs if model}, list((chosen | replaced).values())


@evaluate_app.command("tasks")
def evaluate_tasks(
    model: Annotated[
        list[str] | None, typer.Option(help="[LABEL=]MODEL; may be repeated. (default: storybook)")
    ] = None,
    task_file: Annotated[
        list[str] | None,
        typer.Option(help="[LABEL=]FILE of a learned task, for the first model; may be repeated."),
    ] = None,
    tasks: Annotated[
        str | None, typer.Option(help="Only these, with commas between. (default: all that are trained)")
    ] = None,
    num: Annotated[int, typer.Option(min=2, help="Held-out edits of each task, at least.")] = 48,
    output: _Report = Path("out/tasks"),
    recogniser: _Recogniser = None,
    clip: _ClipName = "storybook",
    dino: _Dino = None,
    steps: _Steps = None,
    text_scale: _Scale = None,
    image_scale: _Scale = None,
    seed: _Seed = 0,
    device: _Device = "auto",
    dtype: _Dtype = "auto",
) -> None:
    """Measure editors task by task: told the true task, predicting it, told a learned one, or without any.

    Writes report.html, results.md, table.md and results.json; run it again to go on where it stopped.
    """
    from wordbrush.diffusion.runtime import prepare_process
    from wordbrush.evaluation import task_edits
    from wordbrush.evaluation.task_edits import Arm, Plan, arms_of, draw_tasks, measure, references
    from wordbrush.evaluation.task_report import write_report
    from wordbrush.storybook.recogniser import Recogniser
    from wordbrush.storybook.render import Renderer
    from wordbrush.storybook.sprites import SpriteLibrary

    prepare_process()
    operations = task_edits.operations_of(tasks.split(",")) if tasks else task_edits.OPERATIONS
    models, files = _labelled(model or ["storybook"]), _labelled(task_file or [])
    first = models[0][1]
    arms = [arm for label, name in models for arm in arms_of(label, name, list(operations.values()))]
    arms += [Arm(label, first, "emu-edit", task_file=file) for label, file in files]
    arms += references(first)
    if len({arm.label for arm in arms}) < len(arms):
        raise UsageError("--model, --task-file: two have the same label")
    settings = _given(steps=steps, text_scale=text_scale, image_scale=image_scale)
    plan = Plan(arms, operations, num, settings, seed, device=device, dtype=dtype)
    judge = Recogniser.load(recogniser)
    judges = _judges(clip, "stretched", dino, lpips=False, device=device)
    cases = draw_tasks(Renderer(SpriteLibrary.load()), num, operations)
    with progress() as show:
        journal = measure(plan, cases, judges, judge, output, show)
    write_report(plan, cases, journal, plan.about(judges))
    print(output / "report.html")


@evaluate_app.command("turns")
def evaluate_turns(
    model: _Model = "storybook",
    method: Annotated[str, typer.Option(help="One that follows instructions.")] = "instruct-pix2pix",
    num: Annotated[int, typer.Option(min=2, help="Sessions.")] = 20,
    turns: Annotated[int, typer.Option(min=1, help="Of each session.")] = 8,
    alpha: Annotated[
        float | None, typer.Option(min=0, help="Threshold of unchanged pixels. (default: the model's)")
    ] = None,
    low_pass: Annotated[
        float | None, typer.Option(min=0, help="Of its filter, in short sides. (default: the model's)")
    ] = None,
    output: _Report = Path("out/turns"),
    recogniser: _Recogniser = None,
    steps: _Steps = None,
    text_scale: _Scale = None,
    image_scale: _Scale = None,
    seed: _Seed = 0,
    device: _Device = "auto",
    dtype: _Dtype = "auto",
) -> None:
    """Measure many turns on one picture: what becomes of that which no turn was to touch.

    With and without the threshold of unchanged pixels, and with the region locked. Writes report.html,
    table.md and results.json; run it again to go on where it stopped.
    """
    from wordbrush.diffusion.runtime import prepare_process
    from wordbrush.editors.sequential import thresholds
    from wordbrush.evaluation.journal import Journal
    from wordbrush.evaluation.turns import Plan, draw_plot, measure, ways
    from wordbrush.evaluation.turns_report import write_report
    from wordbrush.storybook.recogniser import Recogniser
    from wordbrush.storybook.render import Renderer
    from wordbrush.storybook.sprites import SpriteLibrary

    prepare_process()
    settings = _given(steps=steps, text_scale=text_scale, image_scale=image_scale)
    compared = ways(*thresholds(model, alpha, low_pass))
    plan = Plan(model, method, compared, num, turns, settings, seed, device=device, dtype=dtype)
    about, render, judge = plan.about(recogniser), Renderer(SpriteLibrary.load()), Recogniser.load(recogniser)
    journal = Journal(output, about)
    with progress() as show:
        measure(plan, render, judge, journal, show)
    shown = [draw_plot(render, number, turns) for number in range(min(num, plan.shown))]
    write_report(plan, shown, journal, about)
    print(output / "report.html")


@evaluate_app.command("methods")
def evaluate_methods(
    arm: Annotated[
        list[str] | None,
        typer.Option(
            help="METHOD[:SETTING=VALUE[/VALUE...],...]; may repeat; several values make a curve. "
            "(default: every method once)"
        ),
    ] = None,
    operations: Annotated[
        str | None,
        typer.Option(help="Kinds of edits, with commas between. (default: all but move, swap and count)"),
    ] = None,
    num: Annotated[int, typer.Option(min=2, help="Held-out edits of each kind.")] = 4,
    model: _Storybook = "storybook",
    output: _Report = Path("out/methods"),
    recogniser: _Recogniser = None,
    clip: _ClipName = "storybook",
    lpips: _Lpips = False,
    seed: _Seed = 0,
    device: _Device = "auto",
    dtype: _Dtype = "auto",
) -> None:
    """Measure every method on the same held-out edits: made or not, and what was kept.

    Writes report.html, table.md, results.json and a figure; run it again to go on where it stopped. With
    --arm imagic:eta=0/0.2/0.4/0.6/0.8/1 it is Imagic's curve: each picture is tuned once for all of them.
    """
    from wordbrush.diffusion.runtime import prepare_process
    from wordbrush.evaluation.method_edits import METHODS, OPERATIONS, Plan, measure, parse_lines
    from wordbrush.evaluation.method_report import write_report
    from wordbrush.storybook.recogniser import Recogniser
    from wordbrush.storybook.render import Renderer
    from wordbrush.storybook.sprites import SpriteLibrary

    prepare_process()
    lines = [line for text in arm or METHODS for line in parse_lines(text, model)]
    chosen = [name.strip() for name in operations.split(",")] if operations else OPERATIONS
    plan = Plan(lines, model, chosen, num, seed, device=device, dtype=dtype)
    judges = _judges(clip, "stretched", None, lpips, device)
    cases = plan.draw(Renderer(SpriteLibrary.load()))
    with progress() as show:
        journal = measure(plan, cases, judges, Recogniser.load(recogniser), output, show)
    print(*write_report(plan, cases, journal, plan.about(judges)), output / "report.html", sep="\n")


@evaluate_app.command("inversions")
def evaluate_inversions(
    model: _Model = "storybook",
    data: Annotated[
        Path | None, typer.Option(help="A data set with captions. (default: held-out storybook pictures)")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Of the data set. (default: all)")] = None,
    num: Annotated[int, typer.Option(min=2, help="How many pictures.")] = 24,
    text_scales: Annotated[str, typer.Option(help="Of the guidance, with commas between.")] = "1,3,7.5",
    steps: Annotated[int, typer.Option(min=1, max=500, help="Of the inversion, and of the way back.")] = 50,
    null_text_steps: Annotated[int, typer.Option(min=1, max=1000, help="See `wordbrush methods`.")] = 10,
    output: _Report = Path("out/inversions"),
    seed: Annotated[int, typer.Option(min=0, help="Of the choice of pictures.")] = 0,
    device: _Device = "auto",
    dtype: _Dtype = "auto",
) -> None:
    """Measure how well pictures come back from DDIM and from null-text inversion, in dB.

    Writes report.html, table.md and results.json; run it again to go on where it stopped.
    """
    from wordbrush.diffusion.runtime import prepare_process
    from wordbrush.evaluation.examples import dataset_examples, storybook_examples
    from wordbrush.evaluation.inversions import Plan, run

    scales = _numbers("--text-scales", text_scales, float)
    prepare_process()
    examples = dataset_examples(data, num, split=split, seed=seed) if data else storybook_examples(num, seed)
    plan = Plan(examples, model, scales, steps, null_text_steps, device, dtype)
    with progress() as show:
        print(run(plan, output, show), output / "report.html", sep="\n")


@evaluate_app.command("guidance-grid")
def evaluate_guidance_grid(
    picture: Annotated[Path, typer.Argument(help="The picture to edit.")],
    instruction: Annotated[str, typer.Argument(help='For example "make it night".')],
    source_caption: Annotated[str, typer.Option(help="Of the picture, for the directional score.")] = "",
    target_caption: Annotated[str, typer.Option(help="Of the edited picture, likewise.")] = "",
    text_scales: Annotated[str, typer.Option(help="With commas between.")] = "3,5,7.5,10",
    image_scales: Annotated[str, typer.Option(help="With commas between.")] = "1,1.25,1.5,2",
    model: _Model = "storybook",
    method: Annotated[str, typer.Option(help="One with both scales.")] = "instruct-pix2pix",
    output: _Report = Path("out/guidance-grid"),
    clip: _ClipName = "storybook",
    clip_input: _ClipInput = "stretched",
    dino: _Dino = None,
    lpips: _Lpips = False,
    steps: _Steps = None,
    seed: _Seed = 0,
    device: _Device = "auto",
    dtype: _Dtype = "auto",
) -> None:
    """Edit one picture under every pair of the two guidance scales, with scores (figure 4).

    Writes report.html and results.json; run it again to go on where it stopped.
    """
    import wordbrush
    from wordbrush.evaluation.guidance_grid import check_scales, make_grid, write_grid
    from wordbrush.evaluation.identity import identity
    from wordbrush.evaluation.kept_pictures import KeptPictures
    from wordbrush.images import open_image

    texts = _numbers("--text-scales", text_scales, float)
    scales = _numbers("--image-scales", image_scales, float)
    source = open_image(picture)
    request = wordbrush.EditRequest(
        source.image.convert("RGB"), instruction, source_caption, target_caption, seed=seed
    )
    editor = wordbrush.load(model, method, device=device, dtype=dtype, **_given(steps=steps))
    check_scales(editor)
    judges = _judges(clip, clip_input, dino, lpips, device)
    about = {"model": identity(model), "method": method, "settings": asdict(editor.settings), "seed": seed}
    about |= {"picture": source.sha256, "instruction": instruction, "scales": [texts, scales]}
    about |= {"source_caption": source_caption, "target_caption": target_caption}
    with progress() as show:
        grid = make_grid(editor, request, texts, scales, judges, show, KeptPictures(output, about))
    write_grid(grid, about | {"judges": [judge.identity for judge in judges]}, output)
    print(output / "report.html")


@evaluate_app.command("benchmark")
def evaluate_benchmark(
    name: Annotated[str, typer.Argument(help="magicbrush, emu-edit or tedbench.")],
    model: _Model = "storybook",
    method: Annotated[str, typer.Option(help="See `wordbrush methods`.")] = "instruct-pix2pix",
    data: Annotated[str | None, typer.Option(help="Its folder, or a hub id. (default: its own)")] = None,
    split: Annotated[str | None, typer.Option(help="(default: the benchmark's)")] = None,
    num: Annotated[int | None, typer.Option(min=1, help="Only the first edits. (default: all)")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for the results. (default: out/NAME)")
    ] = None,
    clip: Annotated[str | None, typer.Option(help="Another than the protocol's.")] = None,
    dino: Annotated[str | None, typer.Option(help="Another than the protocol's; none to do without.")] = None,
    lpips: _Lpips = False,
    steps: _Steps = None,
    text_scale: _Scale = None,
    image_scale: _Scale = None,
    seed: _Seed = 0,
    device: _Device = "auto",
    dtype: _Dtype = "auto",
    as_json: _AsJson = False,
) -> None:
    """Measure an editor on a benchmark of the field, by its protocol; run it again to go on."""
    from wordbrush.diffusion.runtime import prepare_process
    from wordbrush.evaluation.benchmark_run import Entry, run, to_markdown
    from wordbrush.evaluation.benchmarks import find_benchmark
    from wordbrush.evaluation.report import to_json

    benchmark = find_benchmark(name)
    folder, edits = benchmark.open(data, split)
    prepare_process()
    chosen = benchmark.dino if dino is None else None if dino == "none" else dino
    judges = _judges(clip or benchmark.clip, "cropped", chosen, lpips, device, truncate=benchmark.truncate)
    settings = _given(steps=steps, text_scale=text_scale, image_scale=image_scale)
    entry = Entry(model, method, settings, seed, device, dtype)
    with progress() as show:
        found = run(benchmark, folder, edits[:num], entry, judges, output or Path("out") / name, show)
    print(to_json(found) if as_json else to_markdown(benchmark, found), end="")


@evaluate_app.command("limits")
def evaluate_limits(
    model: _Storybook = "storybook",
    method: Annotated[str, typer.Option(help="One that follows instructions.")] = "instruct-pix2pix",
    num: Annotated[int, typer.Option(min=2, help="Edits of each operation.")] = 50,
    repeats: Annotated[int, typer.Option(min=1, help="Of each profession, gender and skin tone.")] = 2,
    output: _Report = Path("out/limits"),
    recogniser: _Recogniser = None,
    steps: _Steps = None,
    text_scale: _Scale = None,
    image_scale: _Scale = None,
) -> None:
    """Measure what the paper names as limits: counting, moving, swapping, and bias about people.

    Writes report.html, table.md and results.json; run it again to go on where it stopped.
    """
    from wordbrush.evaluation.limits import Options, evaluate

    settings = _given(steps=steps, text_scale=text_scale, image_scale=image_scale)
    with progress() as show:
        evaluate(Options(model, method, num, repeats, output, recogniser, settings), show)
    print(output / "report.html")


def _given(**settings: Any) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if value is not None}


def _numbers(flag: str, text: str, kind: type[Any]) -> list[Any]:
    try:
        found = [kind(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"{flag}: {text!r} is not a list of numbers with commas between") from None
    if min(found) < 0 or (kind is int and 0 in found):
        raise UsageError(f"{flag}: {text!r}: too small")
    return list(dict.fromkeys(found))


def _judges(
    clip: str, clip_input: str, dino: str | None, lpips: bool, device: str, *, truncate: bool = True
) -> list[Judge]:
    from wordbrush.diffusion.runtime import resolve_device
    from wordbrush.evaluation.judges import ClipJudge, DinoJudge, EfficientNetJudge, LpipsJudge, PixelJudge

    place = resolve_device(device)
    found: list[Judge] = [
        PixelJudge(),
        ClipJudge.load(clip, inputs=clip_input, truncate=truncate, device=place),
        EfficientNetJudge(),
    ]
    found += [DinoJudge.load(dino, device=place)] if dino else []
    return found + ([LpipsJudge.load()] if lpips else [])
