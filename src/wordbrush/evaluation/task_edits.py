"""`wordbrush evaluate tasks`: edits of all the storybook's tasks, and what knowing the task is worth.

Emu Edit's ablation (2311.10089, section 5): the same held-out edits by editors that are told the true task,
that predict it, or that know of none; and by editors that were trained in other ways.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from PIL import Image

import wordbrush
from wordbrush.diffusion.task_embedding import PART
from wordbrush.editors import METHODS
from wordbrush.editors.task_predictor import PART as PREDICTOR
from wordbrush.evaluation.curves import save_jpeg
from wordbrush.evaluation.identity import identity
from wordbrush.evaluation.journal import Journal
from wordbrush.evaluation.judges import Judge, PixelJudge, Sample, judge_all
from wordbrush.evaluation.storybook import Case, draw_cases
from wordbrush.models import resolve
from wordbrush.progress import Show, silent
from wordbrush.storybook import edits, vision
from wordbrush.storybook.recogniser import Facts, Recogniser, agrees, facts
from wordbrush.storybook.render import Rendered, Renderer
from wordbrush.storybook.scenes import scene_rng
from wordbrush.storybook.vision import VisionEdit, draw_vision_edit, vision_pictures
from wordbrush.storybook.vision_scores import overlap
from wordbrush.types import EditRequest

OPERATIONS: dict[str, str] = edits.TASKS | vision.TASKS
"""Every operation of the storybook, and the task that it is of."""
TASKS = tuple(dict.fromkeys(OPERATIONS.values()))
_BATCH = 16
_SPREAD = 1_000_000
"""Seeds between the first edits of two operations."""
_FROM = 500_000_000
"""Seeds of vision edits are others than those of scenes."""


@dataclass(frozen=True)
class VisionCase:
    """A held-out edit of a vision task; the fields that it shares with `Case` mean the same."""

    edit: VisionEdit
    before: Image.Image
    target: Image.Image
    found: Rendered

    @cached_property
    def _facts(self) -> Facts:
        return facts(self.edit.scene, self.found.masks)

    def measure(self, edited: Image.Image, read: Facts) -> dict[str, float]:
        """`overlap`, and `seen`: the share of the scene that is to be seen again, where it is."""
        found: dict[str, float] = {}
        marked = overlap(self.edit, self.found, edited)
        if marked is not None:
            found["overlap"] = marked
        if self.edit.operation.startswith(("from_", "text_")):
            seen = [agrees(name, read, self._facts) for name in self._facts]
            found["seen"] = sum(seen) / len(seen)
        return found


Drawn = Case | VisionCase


def draw_tasks(render: Renderer, num: int) -> list[Drawn]:
    """Held-out edits of every operation, at least `num` of each task, which its operations share."""
    found: list[Drawn] = []
    for number, (operation, task) in enumerate(OPERATIONS.items()):
        count = -(-num // list(OPERATIONS.values()).count(task))
        if operation in edits.TASKS:
            found += draw_cases(render, operation, count)
        else:
            found += [_vision_case(render, operation, _FROM + _SPREAD * number + k) for k in range(count)]
    return found


def _vision_case(render: Renderer, operation: str, number: int) -> VisionCase:
    edit = draw_vision_edit(scene_rng("test", number), "test", operation=operation)
    found = render(edit.scene)
    return VisionCase(edit, *vision_pictures(found, edit), found)


@dataclass(frozen=True)
class Arm:
    """An editor that is compared.

    Attributes:
        label: In the report.
        model: An embedded name, a path or a hub id.
        method: `emu-edit`, or one that knows of no task.
        task: Whether the editor is told the true task or predicts it; None where it knows of none.
    """

    label: str
    model: str
    method: str
    task: Literal["true", "predicted"] | None

    def request(self, drawn: Drawn, seed: int) -> EditRequest:
        """What it is asked."""
        edit = drawn.edit
        told = edit.task if self.task == "true" else None
        return EditRequest(drawn.before, edit.instruction, seed=seed, task=told)


def arms_of(label: str, model: str) -> list[Arm]:
    """A model with tasks is told the true ones and, with a predictor, finds them; another is as it is."""
    folder = resolve(model)
    if not (folder / PART).is_dir():
        return [Arm(label, model, "instruct-pix2pix", None)]
    told = Arm(f"{label}, true task", model, "emu-edit", "true")
    if not (folder / PREDICTOR).is_dir():
        return [told]
    return [told, replace(told, label=f"{label}, predicted task", task="predicted")]


@dataclass(frozen=True)
class Plan:
    """What to measure.

    Attributes:
        arms: The editors; the first is compared with each other one.
        num: Edits of each task.
        settings: Of every editor whose method has them.
        seed: Edit k has seed + k.
        shown: How many pictures of each operation are kept for the report.
        device: Where the editors run.
        dtype: Their precision.
    """

    arms: Sequence[Arm]
    num: int = 48
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])
    seed: int = 0
    shown: int = 2
    device: str = "auto"
    dtype: str = "auto"

    def settings_of(self, arm: Arm) -> dict[str, Any]:
        """Those that its method has."""
        known = {f.name for f in METHODS[arm.method].settings_fields()}
        return {name: value for name, value in self.settings.items() if name in known}

    def about(self, judges: Sequence[Judge]) -> dict[str, Any]:
        """All that decides the numbers."""
        arms = [asdict(arm) | {"model": identity(arm.model)} for arm in self.arms]
        names = ("num", "seed", "shown", "dtype")
        return {name: getattr(self, name) for name in names} | {
            "arms": arms,
            "settings": dict(self.settings),
            "judges": [judge.identity for judge in judges],
        }


def measure(
    plan: Plan, cases: Sequence[Drawn], judges: Sequence[Judge], recogniser: Recogniser, folder: Path,
    show: Show = silent,
) -> Journal:  # fmt: skip
    """Edit and judge whatever the folder does not hold yet.

    Raises:
        UsageError: The folder holds another evaluation.
        ModelError: A model is missing or does not fit its method.
        OutputError: The folder cannot be written.
    """
    journal = Journal(folder, plan.about(judges))
    done = {(row["arm"], row["edit"]) for row in journal.rows}
    shown = _shown(cases, plan.shown)
    for arm in plan.arms:
        todo = [number for number in range(len(cases)) if (arm.label, number) not in done]
        if not todo:
            continue
        editor = wordbrush.load(
            arm.model, arm.method, device=plan.device, dtype=plan.dtype, **plan.settings_of(arm)
        )
        for start in range(0, len(todo), _BATCH):
            part = todo[start : start + _BATCH]
            show(arm.label, len(journal.rows), len(plan.arms) * len(cases))
            results = editor.edit_batch([arm.request(cases[k], plan.seed + k) for k in part])
            pictures = [result.images[0] for result in results]
            rows = _judge([cases[k] for k in part], pictures, judges, recogniser)
            for k, picture, row, result in zip(part, pictures, rows, results, strict=True):
                if k in shown:
                    save_jpeg(picture, picture_path(folder, plan.arms.index(arm), k))
                if arm.task == "predicted":
                    row["task_right"] = float(result.intermediates["task"][0][0][0] == cases[k].edit.task)
            journal.append(
                {"arm": arm.label, "edit": k, "task": cases[k].edit.task, "scores": row}
                for k, row in zip(part, rows, strict=True)
            )
    return journal


def picture_path(folder: Path, arm: int, number: int) -> Path:
    """Where the picture of an edit lies, for the first few of each operation."""
    return folder / "pictures" / f"{arm:02d}-{number:04d}.jpg"


def _shown(cases: Sequence[Drawn], num: int) -> set[int]:
    """The numbers of the first edits of each operation."""
    by_operation: dict[str, list[int]] = {}
    for number, drawn in enumerate(cases):
        by_operation.setdefault(drawn.edit.operation, []).append(number)
    return {number for numbers in by_operation.values() for number in numbers[:num]}


def _judge(
    cases: Sequence[Drawn], pictures: Sequence[Image.Image], judges: Sequence[Judge], recogniser: Recogniser
) -> list[dict[str, float]]:
    """The judges' measures, against the picture before; `target_l1`; and those of the case."""
    against_before = [
        Sample(picture, c.before, c.edit.source_caption, c.edit.target_caption)
        for picture, c in zip(pictures, cases, strict=True)
    ]
    against_target = [Sample(picture, c.target) for picture, c in zip(pictures, cases, strict=True)]
    far = PixelJudge()(against_target)["l1"]
    rows = judge_all(judges, against_before)
    for row, c, picture, l1, read in zip(rows, cases, pictures, far, recogniser.read(pictures), strict=True):
        row["target_l1"] = l1
        row |= c.score(read) if isinstance(c, Case) else c.measure(picture, read)
    return rows
