"""`wordbrush evaluate methods`: held-out storybook edits by every method, or by one under several settings.

The same edits are asked for as an instruction and as two captions, so that methods that read the one compare
with those that read the others. A recogniser says whether the edit was made and how much of the rest was
kept; CLIP and a perceptual distance say how far the result went towards the caption and from the picture,
which is the plane of Imagic's figure (2210.09276): its curve over eta, and its ablation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from PIL import Image

import wordbrush
from wordbrush.editors import find_method, settings_for
from wordbrush.editors.settings import record_of
from wordbrush.errors import UsageError
from wordbrush.evaluation.identity import identity
from wordbrush.evaluation.journal import Journal
from wordbrush.evaluation.judges import Judge, Sample, judge_all
from wordbrush.evaluation.kept_pictures import save_jpeg, shown_path
from wordbrush.evaluation.report import APART
from wordbrush.evaluation.storybook import Case, draw_cases
from wordbrush.progress import Show, silent
from wordbrush.storybook.edits import TASKS
from wordbrush.storybook.recogniser import Recogniser
from wordbrush.storybook.render import Renderer
from wordbrush.types import Editor, EditRequest

OPERATIONS = tuple(name for name in TASKS if name not in APART)
METHODS = ("instruct-pix2pix", "sdedit", "prompt-to-prompt", "diffedit", "imagic", "text2live")
"""Those that are compared unless others are named."""
REFERENCES = ("unedited input (floor)", "exact target (the recogniser's own errors)")
_SAME_CAPTIONS = ("move", "swap")
"""Operations that captions do not tell of."""
_BATCH = 4
"""Edits between two entries of the journal: some methods take a minute for one."""


@dataclass(frozen=True)
class Arm:
    """A method under some settings; others are the checkpoint's own.

    Attributes:
        label: In the report.
        method: One of `wordbrush methods`.
        settings: As they were given.
    """

    label: str
    method: str
    settings: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True)
class Line:
    """The arms of one argument: with several values of a setting they make a curve.

    Attributes:
        method: Of all of them.
        setting: The swept one; "" where nothing is swept.
        arms: In the order of their values.
    """

    method: str
    setting: str
    arms: tuple[Arm, ...]


def parse_lines(text: str, model: str) -> list[Line]:
    """`diffedit`, or `imagic:eta=0/0.5/1,model_steps=0`: values with "/" between, settings with commas.

    The first setting with several values makes a curve; each combination of the others' a curve of its own.

    Raises:
        UsageError: No such method or setting, or a value that is none.
    """
    name, _, rest = text.partition(":")
    method = find_method(name.strip())
    pairs = [part.partition("=") for part in rest.split(",") if part.strip()]
    values = {key.strip(): listed.split("/") for key, _, listed in pairs}
    swept = next((key for key, listed in values.items() if len(listed) > 1), "")
    found: list[Line] = []
    for chosen in product(*(listed for key, listed in values.items() if key != swept)):
        fixed = dict(zip((key for key in values if key != swept), chosen, strict=True))
        sets = [fixed | {swept: value} for value in values[swept]] if swept else [fixed]
        sets = [{key: settings[key] for key in values} for settings in sets]  # in the order given
        for settings in sets:
            settings_for(model, method, settings)
        arms = tuple(Arm(label_of(method.name, settings), method.name, settings) for settings in sets)
        found.append(Line(method.name, swept, arms))
    return found


def label_of(method: str, settings: Mapping[str, str]) -> str:
    """A method with some settings, in words."""
    return ", ".join([method, *(f"{name.replace('_', ' ')} {value}" for name, value in settings.items())])


@dataclass(frozen=True)
class Plan:
    """What to measure.

    Attributes:
        lines: The arms; the methods' order is theirs.
        model: An embedded name or a storybook checkpoint's folder.
        operations: Kinds of edits.
        num: Edits of each.
        seed: Edit k has seed + k under every arm.
        shown: How many edits of each operation the report shows.
        device: Where the editors run.
        dtype: Their precision.
    """

    lines: Sequence[Line]
    model: str = "storybook"
    operations: Sequence[str] = OPERATIONS
    num: int = 4
    seed: int = 0
    shown: int = 1
    device: str = "auto"
    dtype: str = "auto"

    def __post_init__(self) -> None:
        for name in self.operations:
            if name not in TASKS or name in _SAME_CAPTIONS:
                known = ", ".join(known for known in TASKS if known not in _SAME_CAPTIONS)
                raise UsageError(f"no edits {name!r} that captions tell of: one of {known}")
        labels = [arm.label for arm in self.arms]
        if twice := sorted({label for label in labels if labels.count(label) > 1}):
            raise UsageError(f"{twice[0]!r} is given twice")

    @property
    def arms(self) -> list[Arm]:
        """Of all lines."""
        return [arm for line in self.lines for arm in line.arms]

    def about(self, judges: Sequence[Judge]) -> dict[str, Any]:
        """All that decides the numbers."""
        own = {arm.label: record_of(self.settings_of(arm)) for arm in self.arms}
        names = ("operations", "num", "seed", "shown", "dtype")
        return {name: getattr(self, name) for name in names} | {
            "model": identity(self.model),
            "arms": own,
            "judges": [judge.identity for judge in judges],
        }

    def settings_of(self, arm: Arm) -> Any:
        """The whole settings of an arm."""
        return settings_for(self.model, find_method(arm.method), dict(arm.settings))

    def draw(self, render: Renderer) -> list[Case]:
        """The edits, an operation after the other."""
        return [case for name in self.operations for case in draw_cases(render, name, self.num)]


def measure(
    plan: Plan, cases: Sequence[Case], judges: Sequence[Judge], recogniser: Recogniser, folder: Path,
    show: Show = silent,
) -> Journal:  # fmt: skip
    """Edit and judge whatever the folder does not hold yet.

    All arms of a method edit some pictures before the next ones come, so that what a method keeps of a
    picture (Imagic's tuning, an inversion) is made once for all of them.

    Raises:
        UsageError: The folder holds another evaluation.
        ModelError: The model is missing or does not fit a method.
        OutputError: The folder cannot be written.
    """
    journal = Journal(folder, plan.about(judges))
    done = {(row["arm"], row["edit"]) for row in journal.rows}
    total = (len(REFERENCES) + len(plan.arms)) * len(cases)

    def note(label: str, numbers: Sequence[int], pictures: Sequence[Image.Image]) -> None:
        some = [cases[number] for number in numbers]
        scores = _judge(some, pictures, judges, recogniser)
        journal.append(
            {"arm": label, "edit": number, "scores": row} for number, row in zip(numbers, scores, strict=True)
        )

    for label in REFERENCES:
        if todo := [number for number in range(len(cases)) if (label, number) not in done]:
            exact = label != REFERENCES[0]
            note(label, todo, [cases[k].target if exact else cases[k].before for k in todo])
    for method in dict.fromkeys(arm.method for arm in plan.arms):
        arms = [arm for arm in plan.arms if arm.method == method]
        if all((arm.label, number) in done for arm in arms for number in range(len(cases))):
            continue
        editor = wordbrush.load(plan.model, method, device=plan.device, dtype=plan.dtype)
        for start, arm in product(range(0, len(cases), _BATCH), arms):
            todo = [k for k in range(len(cases))[start : start + _BATCH] if (arm.label, k) not in done]
            if todo:
                show(arm.label, len(journal.rows), total)
                pictures = _edit(plan, editor.with_settings(**arm.settings), cases, todo)
                for number, picture in zip(todo, pictures, strict=True):
                    if number % plan.num < plan.shown:
                        save_jpeg(picture, shown_path(folder, plan.arms.index(arm), number))
                note(arm.label, todo, pictures)
    return journal


def _edit(plan: Plan, editor: Editor, cases: Sequence[Case], numbers: Sequence[int]) -> list[Image.Image]:
    edits = [(number, cases[number].edit) for number in numbers]
    requests = [
        EditRequest(
            cases[number].before, e.instruction, e.source_caption, e.target_caption, seed=plan.seed + number
        )
        for number, e in edits
    ]
    return [result.images[0] for result in editor.edit_batch(requests)]


def _judge(
    cases: Sequence[Case], pictures: Sequence[Image.Image], judges: Sequence[Judge], recogniser: Recogniser
) -> list[dict[str, float]]:
    """`made` and `kept`, and the judges' measures against the picture before."""
    samples = [
        Sample(picture, case.before, case.edit.source_caption, case.edit.target_caption)
        for picture, case in zip(pictures, cases, strict=True)
    ]
    rows = judge_all(judges, samples)
    read = recogniser.read(pictures)
    return [case.score(seen) | row for case, seen, row in zip(cases, read, rows, strict=True)]
