"""`wordbrush evaluate tasks`: edits of all the storybook's tasks, and what knowing the task is worth.

Emu Edit's ablation (2311.10089, section 5): the same held-out edits by editors that are told the true task,
that predict it, or that know of none; by editors that were trained in other ways; and, of tasks that none was
trained on, under a task that was learned from few examples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from PIL import Image

import wordbrush
from wordbrush.diffusion.model import LatentDiffusion
from wordbrush.diffusion.runtime import resolve_device, resolve_dtype
from wordbrush.diffusion.task_embedding import ANY, known_tasks
from wordbrush.editors import METHODS
from wordbrush.editors.task_predictor import PART as PREDICTOR
from wordbrush.errors import UsageError
from wordbrush.evaluation.base_models import round_trip
from wordbrush.evaluation.identity import identity
from wordbrush.evaluation.journal import Journal
from wordbrush.evaluation.judges import Judge, PixelJudge, Sample, judge_all
from wordbrush.evaluation.kept_pictures import save_jpeg, shown_path
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
"""Every operation of the storybook that models are trained on, and the task that it is of."""
_NUMBERS = {name: number for number, name in enumerate(OPERATIONS | vision.UNSEEN)}
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
        if self.edit.operation.startswith(("from_", "text_", "upscale", "inpaint")):
            seen = [agrees(name, read, self._facts) for name in self._facts]
            found["seen"] = sum(seen) / len(seen)
        return found


Drawn = Case | VisionCase


def operations_of(tasks: Sequence[str]) -> dict[str, str]:
    """The operations of some tasks, among them those that no embedded model is trained on, and their tasks.

    Raises:
        UsageError: The storybook has no such task.
    """
    known = OPERATIONS | vision.UNSEEN
    if unknown := [task for task in tasks if task not in known.values()]:
        names = ", ".join(dict.fromkeys(known.values()))
        raise UsageError(f"the storybook has no edits of {unknown[0]!r}; of {names}")
    return {operation: task for operation, task in known.items() if task in tasks}


def draw_tasks(render: Renderer, num: int, operations: Mapping[str, str]) -> list[Drawn]:
    """Held-out edits of each operation, at least `num` of each task, which its operations share."""
    found: list[Drawn] = []
    for operation, task in operations.items():
        count = -(-num // list(operations.values()).count(task))
        if operation in edits.TASKS:
            found += draw_cases(render, operation, count)
        else:
            first = _FROM + _SPREAD * _NUMBERS[operation]
            found += [_vision_case(render, operation, first + k) for k in range(count)]
    return found


def _vision_case(render: Renderer, operation: str, number: int) -> VisionCase:
    edit = draw_vision_edit(scene_rng("test", number), "test", operation=operation)
    found = render(edit.scene)
    return VisionCase(edit, *vision_pictures(found, edit), found)


@dataclass(frozen=True)
class Arm:
    """An editor that is compared, or the floor or the ceiling of what editors can reach.

    Attributes:
        label: In the report.
        model: An embedded name, a path or a hub id.
        method: `emu-edit`, or one that knows of no task; or `UNEDITED`, or `ROUND_TRIP`.
        task: Whether the editor is told the true task or predicts it; None where it knows of none.
        task_file: Of a task that it is told for every edit, learned by task inversion.
    """

    label: str
    model: str
    method: str
    task: Literal["true", "predicted"] | None = None
    task_file: str | None = None

    def request(self, drawn: Drawn, seed: int) -> EditRequest:
        """What it is asked."""
        edit = drawn.edit
        told = edit.task if self.task == "true" else None
        return EditRequest(drawn.before, edit.instruction, seed=seed, task=told)


UNEDITED, ROUND_TRIP = "unedited", "exact result through the autoencoder"


def references(model: str) -> list[Arm]:
    """The floor and the ceiling: the picture before, and the exact result as a model gives it back."""
    return [Arm(name, model, name) for name in (UNEDITED, ROUND_TRIP)]


def arms_of(label: str, model: str, tasks: Sequence[str]) -> list[Arm]:
    """A model with tasks is told the true ones, if it knows them, and finds them, if it has a predictor.

    And it is told none, if it follows instructions alone, too. Another one is as it is.

    Raises:
        UsageError: A model with tasks does not know these, and has no predictor.
    """
    folder = resolve(model)
    alone = Arm(label, model, "instruct-pix2pix")
    known = known_tasks(folder)
    if not known:
        return [alone]
    unknown = [task for task in tasks if task not in known]
    told = Arm(f"{label}, true task", model, "emu-edit", "true")
    guessed = replace(told, label=f"{label}, predicted task", task="predicted")
    found = ([] if unknown else [told]) + ([guessed] if (folder / PREDICTOR).is_dir() else [])
    found += [replace(alone, label=f"{label}, no task")] if ANY in known else []
    if not found:
        raise UsageError(f"{model} knows no task {unknown[0]!r}, and has no task predictor")
    return found


@dataclass(frozen=True)
class Plan:
    """What to measure.

    Attributes:
        arms: The editors; the first is compared with each other one.
        operations: Whose edits, and the task of each.
        num: Edits of each task.
        settings: Of every editor whose method has them.
        seed: Edit k has seed + k.
        shown: How many pictures of each operation are kept for the report.
        device: Where the editors run.
        dtype: Their precision.
    """

    arms: Sequence[Arm]
    operations: Mapping[str, str] = field(default_factory=lambda: OPERATIONS)
    num: int = 48
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])
    seed: int = 0
    shown: int = 2
    device: str = "auto"
    dtype: str = "auto"

    def settings_of(self, arm: Arm) -> dict[str, Any]:
        """Those that its method has."""
        own = {} if arm.task_file is None else {"task_file": arm.task_file}
        return METHODS[arm.method].known(self.settings) | own

    def about(self, judges: Sequence[Judge]) -> dict[str, Any]:
        """All that decides the numbers."""
        arms = [
            asdict(arm)
            | {"model": identity(arm.model), "task_file": arm.task_file and identity(arm.task_file)}
            for arm in self.arms
        ]
        names = ("num", "seed", "shown", "dtype")
        return {name: getattr(self, name) for name in names} | {
            "operations": list(self.operations),
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
        make = _maker(plan, arm)
        for start in range(0, len(todo), _BATCH):
            part = todo[start : start + _BATCH]
            show(arm.label, len(journal.rows), len(plan.arms) * len(cases))
            made = make([cases[k] for k in part], [plan.seed + k for k in part])
            pictures = [picture for picture, _ in made]
            rows = _judge([cases[k] for k in part], pictures, judges, recogniser)
            for k, (picture, task), row in zip(part, made, rows, strict=True):
                if k in shown:
                    save_jpeg(picture, shown_path(folder, plan.arms.index(arm), k))
                if arm.task == "predicted":
                    row["task_right"] = float(task == cases[k].edit.task)
            journal.append(
                {"arm": arm.label, "edit": k, "task": cases[k].edit.task, "scores": row}
                for k, row in zip(part, rows, strict=True)
            )
    return journal


_Make = Callable[[Sequence[Drawn], Sequence[int]], list[tuple[Image.Image, str | None]]]
"""Edits and their seeds -> the results, each with the task that it was made under, where there was one."""


def _maker(plan: Plan, arm: Arm) -> _Make:
    if arm.method == UNEDITED:
        return lambda cases, seeds: [(drawn.before, None) for drawn in cases]
    if arm.method == ROUND_TRIP:
        device = resolve_device(plan.device)
        base = LatentDiffusion.load(arm.model, device=device, dtype=resolve_dtype(plan.dtype, device))
        return lambda cases, seeds: [(p, None) for p in round_trip(base, [drawn.target for drawn in cases])]
    editor = wordbrush.load(
        arm.model, arm.method, device=plan.device, dtype=plan.dtype, **plan.settings_of(arm)
    )

    def edit(cases: Sequence[Drawn], seeds: Sequence[int]) -> list[tuple[Image.Image, str | None]]:
        results = editor.edit_batch([arm.request(*pair) for pair in zip(cases, seeds, strict=True)])
        tasks = [result.intermediates.get("task") for result in results]
        return [(r.images[0], task and task[0][0][0]) for r, task in zip(results, tasks, strict=True)]

    return edit


def _shown(cases: Sequence[Drawn], num: int) -> set[int]:
    """The numbers of the first edits of each operation."""
    by_operation: dict[str, list[int]] = {}
    for number, drawn in enumerate(cases):
        by_operation.setdefault(drawn.edit.operation, []).append(number)
    return {number for numbers in by_operation.values() for number in numbers[:num]}


def _judge(
    cases: Sequence[Drawn], pictures: Sequence[Image.Image], judges: Sequence[Judge], recogniser: Recogniser
) -> list[dict[str, float]]:
    """The judges' measures, against the picture before; `target_l1` and `target_psnr`; the case's own."""
    against_before = [
        Sample(picture, c.before, c.edit.source_caption, c.edit.target_caption)
        for picture, c in zip(pictures, cases, strict=True)
    ]
    against_target = [Sample(picture, c.target) for picture, c in zip(pictures, cases, strict=True)]
    far, rows = PixelJudge()(against_target), judge_all(judges, against_before)
    for number, (c, picture, read) in enumerate(zip(cases, pictures, recogniser.read(pictures), strict=True)):
        rows[number] |= {f"target_{name}": far[name][number] for name in ("l1", "psnr")}
        rows[number] |= c.score(read) if isinstance(c, Case) else c.measure(picture, read)
    return rows
