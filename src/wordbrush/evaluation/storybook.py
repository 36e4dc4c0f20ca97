"""`wordbrush evaluate storybook`: are held-out edits made, and is the rest of the picture kept?

A recogniser, trained on renders only, reads every edited picture; what it reads is compared with what the
edit was to change and with what it was to leave. The same is done for the unedited picture (the floor), the
exact target, and the target as the autoencoder gives it back (the ceilings): the recogniser errs, too.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image

import wordbrush
from wordbrush.diffusion.model import LatentDiffusion
from wordbrush.diffusion.runtime import resolve_device, resolve_dtype
from wordbrush.evaluation.base_models import (
    DISTANCES,
    HeldOut,
    autoencoder_quality,
    caption_scores,
    clip_recall,
    distances,
    generate,
    plain_scenes,
    round_trip,
)
from wordbrush.evaluation.identity import identity
from wordbrush.evaluation.kept_pictures import KeptPictures
from wordbrush.evaluation.metrics import Mean
from wordbrush.evaluation.photographs import draw_photograph_edits, score_photographs
from wordbrush.evaluation.report import APART, draw_grid, to_json, to_markdown, to_table
from wordbrush.evaluation.writing import outputs_right
from wordbrush.language_model import PART
from wordbrush.models import resolve
from wordbrush.outputs import write_texts
from wordbrush.perception.features import EfficientNetLite0
from wordbrush.progress import Show, silent
from wordbrush.storybook.edits import TASKS, EditSample, SceneEdit, draw_edit
from wordbrush.storybook.recogniser import Facts, Recogniser, agrees, facts
from wordbrush.storybook.render import Renderer
from wordbrush.storybook.scenes import held_out, scene_rng
from wordbrush.storybook.sprites import SpriteLibrary
from wordbrush.storybook.wording import caption
from wordbrush.types import Editor, EditRequest

OPERATIONS = tuple(TASKS)
MEASURES = ("made", "kept", *DISTANCES)
_NUM_RENDERS = 256
_SPREAD = 1_000_000
"""Seeds between the first edits of two operations."""


@dataclass(frozen=True)
class Case:
    """One held-out edit that can be judged.

    Attributes:
        edit: Operation, scenes and instruction, in a phrasing that training does not use.
        before: The picture to edit.
        target: The exact result.
        old: What can be seen before.
        new: What can be seen, and judged, after.
        changed: The attributes of `new` that the edit was to change.
        kept: Those that it was to leave.
    """

    edit: SceneEdit
    before: Image.Image
    target: Image.Image
    old: Facts
    new: Facts
    changed: list[str]
    kept: list[str]

    @cached_property
    def is_held_out(self) -> bool:
        """Whether one of its scenes has an (object, place) pair that training never showed."""
        return _has_held_out_pair(self.edit)

    def score(self, read: Facts) -> dict[str, float]:
        """`made`: 1 if every change is as wanted; `kept`: the share of the rest that is as before."""
        made = all(agrees(name, read, self.new, self.old) for name in self.changed)
        kept = [agrees(name, read, self.new) for name in self.kept]
        return {"made": float(made), "kept": sum(kept) / len(kept)}


def make_case(render: Renderer, edit: SceneEdit) -> Case | None:
    """The edit rendered; None where what it changes cannot be judged (hidden, too small, lost in a style)."""
    target = render(edit.after)
    old, new = facts(edit.before), facts(edit.after, target.masks)
    changed = _changes(old, facts(edit.after))
    if not changed or not set(changed) <= set(new):
        return None
    kept = [name for name in new if name in old and old[name] == new[name]]
    return Case(edit, render(edit.before).image, target.image, old, new, changed, kept) if kept else None


def _changes(old: Facts, new: Facts) -> list[str]:
    """What is new or other; a side only of an item that stays, as words do not tell that of a new one."""
    names = [name for name in new if old.get(name) != new[name]]
    return [name for name in names if not name.endswith(".side") or f"{name[:-5]}.thing" not in names]


def _has_held_out_pair(edit: SceneEdit) -> bool:
    pairs = [(item.thing, scene.place) for scene in (edit.before, edit.after) for item in scene.items]
    return any(held_out(*pair) for pair in pairs)


def draw_cases(render: Renderer, operation: str, count: int) -> list[Case]:
    """Edits of the test split, half of them with a held-out (object, place) pair."""
    found: list[Case] = []
    room = {True: count - count // 2, False: count // 2}
    for number in itertools.count(_SPREAD * OPERATIONS.index(operation)):
        if len(found) == count:
            return found
        edit = draw_edit(scene_rng("test", number), "test", operation=operation)
        held = _has_held_out_pair(edit)
        if room[held] and (case := make_case(render, edit)):
            room[held] -= 1
            found.append(case)
    raise AssertionError("itertools.count does not end")


def requests_of(cases: Sequence[Case | EditSample]) -> list[EditRequest]:
    """What an editor is asked; case k with seed k."""
    return [EditRequest(c.before, c.edit.instruction, seed=k) for k, c in enumerate(cases)]


@torch.inference_mode()
def score_pictures(
    cases: Sequence[Case],
    pictures: Sequence[Image.Image],
    recogniser: Recogniser,
    features: EfficientNetLite0,
) -> list[dict[str, float]]:
    """Every measure of every picture."""
    rows = [case.score(read) for case, read in zip(cases, recogniser.read(pictures), strict=True)]
    far = distances(features, pictures, [case.target for case in cases])
    return [row | measures for row, measures in zip(rows, far, strict=True)]


def summarise(rows: Iterable[dict[str, float]]) -> dict[str, Any]:
    """Measure -> its mean and interval."""
    listed = list(rows)
    means = {name: Mean.of([row[name] for row in listed]) for name in MEASURES}
    return {name: mean and mean.as_json() for name, mean in means.items()}


def summarise_cases(cases: Sequence[Case], rows: Sequence[dict[str, float]]) -> dict[str, Any]:
    """Of each operation, of all that are not `APART`, and of the held-out and the seen pairs among those."""
    pairs = list(zip(cases, rows, strict=True))
    main = [(case, row) for case, row in pairs if case.edit.operation not in APART]
    groups = {"all": main, "held_out": [p for p in main if p[0].is_held_out],
              "seen": [p for p in main if not p[0].is_held_out]}  # fmt: skip
    groups |= {name: [p for p in pairs if p[0].edit.operation == name] for name in OPERATIONS}
    return {name: summarise(row for _, row in group) for name, group in groups.items()}


def recogniser_accuracy(recogniser: Recogniser, held: HeldOut, extra: Sequence[Case]) -> dict[str, Any]:
    """The shares of attributes read right, on held-out renders and on the exact targets of the edits."""
    wanted = [facts(scene, masks) for scene, masks in zip(held.scenes, held.masks, strict=True)]
    wanted += [case.new for case in extra]
    readings = recogniser.read([*held.pictures, *(case.target for case in extra)])
    right: dict[str, list[float]] = {}
    for read, known in zip(readings, wanted, strict=True):
        for name in known:
            right.setdefault(name.split(".")[-1], []).append(float(agrees(name, read, known)))
    found = {name: Mean.of(values) for name, values in right.items()}
    found["all"] = Mean.of([hit for values in right.values() for hit in values])
    return {name: mean and mean.as_json() for name, mean in found.items()}


@dataclass(frozen=True)
class Options:
    """What to measure.

    Attributes:
        model: An embedded name or a checkpoint folder.
        num: Edits of each operation.
        output: Folder for results.json, results.md, table.md (the main table alone) and the grids.
        recogniser: Folder of another recogniser than the embedded one.
        settings: Of the editor, where they are not its defaults.
        device: "auto", "cpu", "cuda", "cuda:1" or "mps".
        dtype: "auto", "float32", "bfloat16" or "float16".
    """

    model: str = "storybook"
    num: int = 24
    output: Path = Path("out/evaluate-storybook")
    recogniser: Path | None = None
    settings: dict[str, Any] = field(default_factory=dict[str, Any])
    device: str = "auto"
    dtype: str = "auto"


def evaluate(options: Options, show: Show = silent) -> dict[str, Any]:
    """Measures a storybook model and all that it is made of, and writes the report.

    The pictures that the models make are kept in the folder; run again, it makes those that are missing.

    Raises:
        UsageError: The folder holds pictures of another model, or of other settings.
        ModelError: The model or the recogniser is missing.
        SpritesError: The sprites cannot be fetched.
        OutputError: The report cannot be written.
    """
    editor = wordbrush.load(options.model, device=options.device, dtype=options.dtype, **options.settings)
    kept = KeptPictures(options.output, _about(options, editor))
    recogniser, base = Recogniser.load(options.recogniser), _load_base(options)
    render = Renderer(SpriteLibrary.load())
    cases = _draw_all(render, options.num, show)
    held = HeldOut.render(render, _NUM_RENDERS)
    found: dict[str, Any] = {
        "model": options.model,
        "settings": asdict(editor.settings),
        "edits_per_operation": options.num,
        "edits": _evaluate_edits(editor, kept, base, recogniser, cases, options.output, show),
        "recogniser": recogniser_accuracy(recogniser, held, cases),
        "photographs": _evaluate_photographs(options, editor, kept, base, show),
        **_evaluate_base(options, kept, base, recogniser, held, show),
        "training": _training(options.model),
    }
    texts = {"results.json": to_json(found), "results.md": to_markdown(found), "table.md": to_table(found)}
    write_texts(options.output, texts)
    return found


def _about(options: Options, editor: Editor) -> dict[str, Any]:
    """All that decides the pictures."""
    return {
        "model": identity(options.model),
        "settings": asdict(editor.settings),
        "edits_per_operation": options.num,
        "dtype": options.dtype,
    }


def _draw_all(render: Renderer, count: int, show: Show) -> list[Case]:
    cases: list[Case] = []
    for number, operation in enumerate(OPERATIONS):
        show("Drawing held-out edits", number, len(OPERATIONS))
        cases += draw_cases(render, operation, count)
    return cases


def _evaluate_edits(
    editor: Editor,
    kept: KeptPictures,
    base: LatentDiffusion,
    recogniser: Recogniser,
    cases: Sequence[Case],
    output: Path,
    show: Show,
) -> dict[str, Any]:
    features, targets = EfficientNetLite0(), [case.target for case in cases]
    pictures = {
        "edited": kept.edit("edited", editor, requests_of(cases), show),
        "unedited": [case.before for case in cases],
        "round_trip": round_trip(base, targets),
        "target": targets,
    }
    show("Judging", 0, 1)
    scores = {name: score_pictures(cases, shown, recogniser, features) for name, shown in pictures.items()}
    groups = [
        (f"{'made' if row['made'] else 'NOT made'}: {case.edit.instruction}", (case.before, got, case.target))
        for case, got, row in zip(cases, pictures["edited"], scores["edited"], strict=True)
    ]
    draw_grid(groups).save(output / "edits.png")
    return {name: summarise_cases(cases, rows) for name, rows in scores.items()}


def _evaluate_photographs(
    options: Options, editor: Editor, kept: KeptPictures, base: LatentDiffusion, show: Show
) -> dict[str, Any] | None:
    samples = draw_photograph_edits(base.native_size, options.num)
    if not samples:
        return None
    features, edited = EfficientNetLite0(), kept.edit("photograph", editor, requests_of(samples), show)
    groups = [
        (sample.edit.instruction, (sample.before, got, sample.after))
        for sample, got in zip(samples, edited, strict=True)
    ]
    draw_grid(groups).save(options.output / "photographs.png")
    systems = {"edited": edited, "unedited": [sample.before for sample in samples]}
    return {name: score_photographs(samples, shown, features) for name, shown in systems.items()}


def _evaluate_base(
    options: Options,
    kept: KeptPictures,
    base: LatentDiffusion,
    recogniser: Recogniser,
    held: HeldOut,
    show: Show,
) -> dict[str, Any]:
    show("The models below the editor", 0, 1)
    folder = resolve(options.model)
    found = {
        "autoencoder": autoencoder_quality(base, held),
        "clip_recall_at_1_of_64": clip_recall(folder, held),
    }
    if _has_text_to_image(options.model):
        scenes = plain_scenes(4 * options.num)
        captions = [caption(scene) for scene in scenes]
        pictures = kept.make(
            "text-to-image", len(scenes), lambda numbers: generate(base, captions, numbers), show
        )
        found["text_to_image"] = caption_scores(scenes, recogniser.read(pictures))
        rows = [(text, (picture,)) for text, picture in zip(captions, pictures, strict=True)]
        draw_grid(rows[:40], columns=8).save(options.output / "text-to-image.png")
    if (folder / PART).is_dir():
        found["instruction_writer"] = outputs_right(folder / PART, 16 * options.num, options.device).as_json()
    return found


def _has_text_to_image(model: str) -> bool:
    return (resolve(model) / "text_to_image").is_dir()


def _load_base(options: Options) -> LatentDiffusion:
    """The autoencoder and the text encoder, with the text-to-image U-Net if there is one."""
    device = resolve_device(options.device)
    unet = "text_to_image" if _has_text_to_image(options.model) else None
    dtype = resolve_dtype(options.dtype, device)
    return LatentDiffusion.load(options.model, device=device, dtype=dtype, unet=unet)


def _training(model: str) -> dict[str, Any] | None:
    """What the models were trained for: member -> steps, samples, minutes, hardware."""
    path = resolve(model) / "training.json"
    return json.loads(path.read_text()) if path.exists() else None
