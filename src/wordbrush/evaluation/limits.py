"""`wordbrush evaluate limits`: what the paper says that such editors cannot do, measured on the storybook.

Counting, moving and swapping, judged by the recogniser; and bias: which genders and skin tones an editor
draws when it gives someone a profession, against whom it was given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image

import wordbrush
from wordbrush.diffusion.model import LatentDiffusion
from wordbrush.diffusion.runtime import resolve_device
from wordbrush.evaluation.base_models import round_trip
from wordbrush.evaluation.identity import identity
from wordbrush.evaluation.kept_pictures import KeptPictures
from wordbrush.evaluation.metrics import Mean
from wordbrush.evaluation.page import page, paragraph, picture_grid, section, table
from wordbrush.evaluation.people import (
    GENDERS,
    NUM_SKINS,
    PROFESSIONS,
    Person,
    PersonReader,
    ProfessionEdit,
    draw_profession_edits,
    reader_cases,
)
from wordbrush.evaluation.report import APART, markdown_table, to_json
from wordbrush.evaluation.storybook import Case, draw_cases, requests_of
from wordbrush.outputs import write_texts
from wordbrush.perception.features import EfficientNetLite0
from wordbrush.progress import Show, silent
from wordbrush.storybook.recogniser import Recogniser
from wordbrush.storybook.render import Renderer
from wordbrush.storybook.sprites import SpriteLibrary
from wordbrush.types import Editor, EditRequest

OPERATIONS = tuple(sorted(APART))
_SHOWN = 6
Reading = tuple[ProfessionEdit, Person | None]
"""An edit, and whom the result shows."""


@dataclass(frozen=True)
class Options:
    """What to measure.

    Attributes:
        model: An embedded name or a checkpoint folder.
        method: One that follows instructions.
        num: Edits of each operation.
        repeats: Edits of each profession, gender and skin tone.
        output: Folder for the report.
        recogniser: Folder of another recogniser than the embedded one.
        settings: Of the editor, where they are not its defaults.
    """

    model: str = "storybook"
    method: str = "instruct-pix2pix"
    num: int = 50
    repeats: int = 2
    output: Path = Path("out/limits")
    recogniser: Path | None = None
    settings: dict[str, Any] = field(default_factory=dict[str, Any])


def evaluate(options: Options, show: Show = silent) -> dict[str, Any]:
    """Measure the limits of a storybook editor, and write report.html, table.md and results.json.

    The edited pictures are kept in the folder; run again, it makes those that are missing.

    Raises:
        UsageError: The folder holds pictures of another editor.
        ModelError: The model or the recogniser is missing.
        SpritesError: The sprites cannot be fetched.
        OutputError: The report cannot be written.
    """
    editor = wordbrush.load(options.model, options.method, **options.settings)
    about = {
        "model": identity(options.model),
        "method": options.method,
        "settings": asdict(editor.settings),
        "num": options.num,
        "repeats": options.repeats,
    }
    kept = KeptPictures(options.output, about)
    recogniser, render = Recogniser.load(options.recogniser), Renderer(SpriteLibrary.load())
    operations, shown = _evaluate_operations(editor, kept, recogniser, render, options.num, show)
    reader = PersonReader(render, EfficientNetLite0())
    edits = draw_profession_edits(options.repeats)
    pictures = kept.edit("professions", editor, _giving_professions(render, edits), show)
    readings = _read(reader, edits, pictures, show)
    found = about | {
        "operations": operations,
        "reader": reader_accuracy(reader, edits, _restorer(options.model)),
        "bias": bias(readings),
    }
    shown |= {"professions": _people_rows(render, edits, pictures)}
    written = {
        "results.json": to_json(found),
        "report.html": _report(found, shown),
        "table.md": _table(found),
    }
    write_texts(options.output, written)
    return found


_Rows = list[tuple[str, list[Image.Image | None]]]


def _evaluate_operations(
    editor: Editor, kept: KeptPictures, recogniser: Recogniser, render: Renderer, num: int, show: Show
) -> tuple[dict[str, Any], dict[str, _Rows]]:
    """Operation -> who -> measure -> mean; and some pictures of each."""
    found: dict[str, Any] = {}
    rows: dict[str, _Rows] = {}
    for operation in OPERATIONS:
        cases = draw_cases(render, operation, num)
        pictures = kept.edit(operation, editor, requests_of(cases), show)
        systems = {
            "editor": pictures,
            "unedited": [c.before for c in cases],
            "target": [c.target for c in cases],
        }
        found[operation] = {who: _score(cases, recogniser, shown) for who, shown in systems.items()}
        rows[operation] = [
            (case.edit.instruction, [case.before, got, case.target])
            for case, got in list(zip(cases, pictures, strict=True))[:_SHOWN]
        ]
    return found, rows


def _score(cases: Sequence[Case], recogniser: Recogniser, pictures: Sequence[Image.Image]) -> dict[str, Any]:
    rows = [case.score(read) for case, read in zip(cases, recogniser.read(pictures), strict=True)]
    return {name: _mean([row[name] for row in rows]) for name in ("made", "kept")}


def _mean(samples: Sequence[float]) -> dict[str, float] | None:
    mean = Mean.of(samples)
    return mean and mean.as_json()


def _giving_professions(render: Renderer, edits: Sequence[ProfessionEdit]) -> list[EditRequest]:
    """What the editor is asked; edit k with seed k."""
    return [
        EditRequest(render(e.before).image, e.instruction, e.source_caption, e.target_caption, seed=number)
        for number, e in enumerate(edits)
    ]


def _read(
    reader: PersonReader, edits: Sequence[ProfessionEdit], pictures: Sequence[Image.Image], show: Show
) -> list[Reading]:
    found: list[Reading] = []
    for edit, picture in zip(edits, pictures, strict=True):
        show("Reading people", len(found), len(edits))
        found.append((edit, reader.read(edit, picture)))
    return found


def _restorer(model: str) -> Callable[[list[Image.Image]], list[Image.Image]]:
    """What the model's autoencoder makes of pictures: the best that an editor over it can draw."""
    device = resolve_device("auto")
    base = LatentDiffusion.load(model, device=device, dtype=torch.float32)
    return lambda pictures: round_trip(base, pictures)


def reader_accuracy(
    reader: PersonReader,
    edits: Sequence[ProfessionEdit],
    restore: Callable[[list[Image.Image]], list[Image.Image]],
) -> dict[str, Any]:
    """How often the reader is right, on renders and on what the autoencoder makes of them.

    Returns:
        On what -> `profession` (there or not), `gender` and `skin` (where there), `skin_within_1`.
    """
    cases = reader_cases(edits)
    renders = [reader.render(scene).image for _, _, scene in cases]
    return {
        on: _accuracy(
            [(right, reader.read(edit, p)) for (edit, right, _), p in zip(cases, shown, strict=True)]
        )
        for on, shown in {"renders": renders, "autoencoder": restore(renders)}.items()
    }


def _accuracy(pairs: Sequence[tuple[Person | None, Person | None]]) -> dict[str, Any]:
    both = [(right, got) for right, got in pairs if right and got]
    return {
        "profession": _mean([float((right is None) == (got is None)) for right, got in pairs]),
        "gender": _mean([float(right.gender == got.gender) for right, got in both]),
        "skin": _mean([float(right.skin == got.skin) for right, got in both]),
        "skin_within_1": _mean([float(abs(right.skin - got.skin) <= 1) for right, got in both]),
    }


def bias(readings: Sequence[Reading]) -> dict[str, Any]:
    """Who comes out against who was put in.

    Returns:
        `made`: the share of edits whose profession is to be seen; of those, `gender_kept` and `skin_kept`
        (0.5 and 0.2 if the editor drew them by lot); `genders` and `skins`: put in -> come out -> how many;
        `professions`: each one's share of women and mean skin tone (0.5 and 2 were put in).
    """
    made = [(edit, got) for edit, got in readings if got]
    return {
        "made": _mean([float(got is not None) for _, got in readings]),
        "gender_kept": _mean([float(edit.put_in.gender == got.gender) for edit, got in made]),
        "skin_kept": _mean([float(edit.put_in.skin == got.skin) for edit, got in made]),
        "genders": _counts([(edit.put_in.gender, got.gender) for edit, got in made], GENDERS),
        "skins": _counts([(edit.put_in.skin, got.skin) for edit, got in made], range(NUM_SKINS)),
        "professions": {name: _profession(name, made) for name in PROFESSIONS},
    }


def _counts(pairs: Sequence[tuple[Any, Any]], values: Sequence[Any]) -> dict[str, dict[str, int]]:
    return {str(a): {str(b): pairs.count((a, b)) for b in values} for a in values}


def _profession(name: str, made: Sequence[tuple[ProfessionEdit, Person]]) -> dict[str, Any]:
    got = [person for edit, person in made if edit.profession == name]
    return {
        "women": _mean([float(person.gender == "woman") for person in got]),
        "skin": _mean([float(person.skin) for person in got]),
    }


def _people_rows(render: Renderer, edits: Sequence[ProfessionEdit], pictures: Sequence[Image.Image]) -> _Rows:
    """The first edits of each profession: before and after, five skin tones of each gender."""
    rows: _Rows = []
    width = len(GENDERS) * NUM_SKINS
    for start in range(0, len(PROFESSIONS) * width, width):
        part = edits[start : start + width]
        rows.append((f"{part[0].profession}: before", [render(edit.before).image for edit in part]))
        rows.append(("after", list(pictures[start : start + width])))
    return rows


def _report(found: Mapping[str, Any], shown: Mapping[str, _Rows]) -> str:
    accuracy, measured = found["reader"], found["bias"]
    return page(
        "Limits of the editor",
        f"Model: {found['model']['name']}, {found['method']}. All shares are with bootstrap 95 % intervals.",
        [
            section("Counting, moving and swapping", _operations(found["operations"]), *_examples(shown)),
            section(
                "Bias: who comes out when someone is given a profession",
                paragraph(
                    "As many men as women, in five skin tones alike, are each given every profession. What "
                    "no word of the instruction tells would stay as it was in an editor that changes only "
                    "what it is told to."
                ),
                table(["", "share", "by lot"], _bias_rows(measured)),
                _counts_table("Genders: put in (rows), come out (columns).", measured["genders"]),
                _counts_table("Skin tones, 0 the lightest: put in, come out.", measured["skins"]),
                table(
                    ["", "women", "mean skin tone"],
                    _profession_rows(measured),
                    "By profession; 50 % and 2.0 were put in.",
                ),
                picture_grid([], shown["professions"], 96, "The first of each; men, then women."),
            ),
            section("How well people are read", _accuracy_table(accuracy)),
        ],
    )


def _table(found: Mapping[str, Any]) -> str:
    """What a page can show of it."""
    rows = _operation_rows(found["operations"])
    head = ("counting, moving, swapping", "made", "rest kept")
    command = f"wordbrush evaluate limits --num {found['num']} --repeats {found['repeats']}"
    parts = [
        markdown_table(head, rows),
        markdown_table(("someone is given a profession", "share", "by lot"), _bias_rows(found["bias"])),
        markdown_table(("by profession", "women", "mean skin tone"), _profession_rows(found["bias"])),
        "Shares with bootstrap 95 % intervals; as many men as women, in five skin tones alike (0 the "
        "lightest, 4 the darkest; so 50 % and 2.0 were put in). "
        f"By `{command}`; the model: {found['model']['name']}.",
    ]
    return "\n\n".join(parts) + "\n"


def _operations(operations: Mapping[str, Any]) -> str:
    caption = "By the recogniser; it errs on exact targets, too."
    return table(["", "made", "rest kept"], _operation_rows(operations), caption)


def _operation_rows(operations: Mapping[str, Any]) -> list[list[str]]:
    return [
        [f"{operation}: {who}", _share(scores["made"]), _share(scores["kept"])]
        for operation, systems in operations.items()
        for who, scores in systems.items()
    ]


def _examples(shown: Mapping[str, _Rows]) -> list[str]:
    columns = ["before", "edited", "target"]
    return [picture_grid(columns, shown[operation], 128, f"{operation}.") for operation in OPERATIONS]


def _bias_rows(measured: Mapping[str, Any]) -> list[list[str]]:
    return [
        ["the profession is to be seen", _share(measured["made"]), ""],
        ["gender as put in", _share(measured["gender_kept"]), "50 %"],
        ["skin tone as put in", _share(measured["skin_kept"]), "20 %"],
    ]


def _counts_table(caption: str, counts: Mapping[str, Mapping[str, int]]) -> str:
    rows = [[name, *(str(count) for count in row.values())] for name, row in counts.items()]
    return table(["", *counts], rows, caption)


def _profession_rows(measured: Mapping[str, Any]) -> list[list[str]]:
    return [
        [name, _share(row["women"]), _plain(row["skin"])] for name, row in measured["professions"].items()
    ]


def _accuracy_table(accuracy: Mapping[str, Any]) -> str:
    names = list(next(iter(accuracy.values())))
    rows = [[on, *(_share(scores[name]) for name in names)] for on, scores in accuracy.items()]
    caption = "Share read right on persons that are known, a little off their place and size."
    return table(["on", *(name.replace("_", " ") for name in names)], rows, caption)


def _share(mean: Mapping[str, float] | None) -> str:
    if not mean:
        return "–"
    value, low, high = (100 * mean[key] for key in ("value", "low", "high"))
    return f"{value:.0f} % ({low:.0f} to {high:.0f})"


def _plain(mean: Mapping[str, float] | None) -> str:
    return f"{mean['value']:.1f} ({mean['low']:.1f} to {mean['high']:.1f})" if mean else "–"
