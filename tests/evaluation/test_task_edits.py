import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.evaluation import models
from tests.tasked import teach
from wordbrush.cli import main
from wordbrush.diffusion.task_embedding import TaskEmbedding, save_vector
from wordbrush.errors import UsageError
from wordbrush.evaluation import task_edits
from wordbrush.evaluation.task_edits import (
    OPERATIONS,
    ROUND_TRIP,
    UNEDITED,
    VisionCase,
    arms_of,
    draw_tasks,
    operations_of,
)
from wordbrush.storybook import vision
from wordbrush.storybook.recogniser import facts
from wordbrush.storybook.render import Renderer
from wordbrush.storybook.vision_scores import overlap
from wordbrush.tasks import TASKS as KNOWN


@pytest.fixture(scope="module")
def cases(render: Renderer) -> list[Any]:
    return draw_tasks(render, 4, OPERATIONS | vision.UNSEEN)


def test_every_task_of_the_storybook_has_its_share(cases: list[Any]):
    known = OPERATIONS | vision.UNSEEN
    counts = {task: sum(case.edit.task == task for case in cases) for task in known.values()}
    assert set(OPERATIONS.values()) <= set(KNOWN) and min(counts.values()) >= 4
    assert {case.edit.operation for case in cases} == set(known)
    for case in cases:
        assert case.edit.task == known[case.edit.operation]


def test_operations_are_chosen_by_their_tasks():
    assert operations_of(["depth", "contours"]) == {
        "to_depth": "depth",
        "from_depth": "depth",
        "contour": "contours",
    }
    with pytest.raises(UsageError, match="no edits of 'pose'"):
        operations_of(["pose"])


def test_edits_of_a_task_are_the_same_whatever_else_is_asked_for(cases: list[Any], render: Renderer):
    alone = draw_tasks(render, 4, operations_of(["contours"]))
    assert [case.edit for case in alone] == [case.edit for case in of(cases, "contour")]


def of(cases: list[Any], *operations: str) -> list[VisionCase]:
    return [case for case in cases if case.edit.operation in operations]


def test_the_exact_result_overlaps_wholly_and_the_picture_before_not_at_all(cases: list[Any]):
    marked = of(cases, "detect", "segment", "to_map", "contour")
    assert len(marked) >= 14
    for case in marked:
        exact = overlap(case.edit, case.found, case.target)
        before = overlap(case.edit, case.found, case.before)
        assert exact is not None and exact > 0.99
        assert before is not None and before < 0.5


def test_a_box_that_is_off_overlaps_less(cases: list[Any]):
    for case in of(cases, "detect"):
        shifted = Image.fromarray(np.roll(np.asarray(case.target), 20, axis=1))
        exact, off = (overlap(case.edit, case.found, picture) for picture in (case.target, shifted))
        assert exact is not None and off is not None and off < exact


def test_a_smeared_result_of_another_size_still_counts(cases: list[Any]):
    for case in of(cases, "segment", "to_map"):
        large = case.target.resize((200, 200), Image.Resampling.BICUBIC)
        found = overlap(case.edit, case.found, large)
        assert found is not None and found > 0.75


def test_lines_that_are_off_by_one_still_overlap(cases: list[Any]):
    for case in of(cases, "contour"):
        pixels = np.asarray(case.target)
        near, far = (
            overlap(case.edit, case.found, Image.fromarray(np.roll(pixels, by, axis=1))) for by in (1, 8)
        )
        assert near is not None and far is not None and near > 0.45 > far


def test_what_marks_nothing_has_no_overlap_but_a_scene_to_be_seen(cases: list[Any]):
    for case in of(cases, "from_depth", "from_sketch", "from_map", "text_remove"):
        assert overlap(case.edit, case.found, case.target) is None
        known = facts(case.edit.scene, case.found.masks)
        assert case.measure(case.target, known) == {"seen": 1.0}
        assert case.measure(case.target, dict.fromkeys(known, "nothing"))["seen"] < 0.5


@pytest.fixture(scope="module")
def tasked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An editor of native size 32 px that takes a task, with an untrained predictor."""
    return teach(models.save_editor(tmp_path_factory.mktemp("tasked")))


def test_a_model_with_tasks_is_told_them_and_predicts_them(tasked: Path, tiny_editor: Path, tmp_path: Path):
    assert [(arm.label, arm.method, arm.task) for arm in arms_of("A", str(tasked), ["add"])] == [
        ("A, true task", "emu-edit", "true"),
        ("A, predicted task", "emu-edit", "predicted"),
    ]
    assert [(arm.label, arm.method, arm.task) for arm in arms_of("B", str(tiny_editor), ["add"])] == [
        ("B", "instruct-pix2pix", None)
    ]
    alone = Path(shutil.copytree(tasked, tmp_path / "alone", ignore=lambda *_: ["task_predictor"]))
    assert [arm.task for arm in arms_of("C", str(alone), ["add"])] == ["true"]
    assert [arm.task for arm in arms_of("A", str(tasked), ["contours"])] == ["predicted"]
    with pytest.raises(UsageError, match="knows no task 'contours'"):
        arms_of("C", str(alone), ["contours"])
    known: Any = TaskEmbedding.from_pretrained(alone / "task_embedding")
    known.grown(["any"]).save_pretrained(alone / "task_embedding")
    assert [(arm.label, arm.method, arm.task) for arm in arms_of("D", str(alone), ["add"])] == [
        ("D, true task", "emu-edit", "true"),
        ("D, no task", "instruct-pix2pix", None),
    ]


def test_the_command_measures_and_goes_on(
    tasked: Path,
    tiny_editor: Path,
    tiny_clip: Path,
    recogniser: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    few = {name: OPERATIONS[name] for name in ("remove", "detect", "to_map", "from_depth", "text_add")}
    monkeypatch.setattr(task_edits, "OPERATIONS", few)
    out = tmp_path / "out"
    command = ["evaluate", "tasks", "--num", "2", "--steps", "1", "-o", str(out), "--device", "cpu",
               "--clip", str(tiny_clip), "--recogniser", str(recogniser), "--dtype", "float32",
               "--model", f"told={tasked}", "--model", f"plain={tiny_editor}"]  # fmt: skip

    def run() -> dict[str, Any]:
        with pytest.raises(SystemExit) as ended:
            main(command)
        assert ended.value.code == 0
        return json.loads((out / "results.json").read_text())

    found = run()
    whole = (out / "rows.jsonl").read_text()
    rows = [json.loads(line) for line in whole.splitlines()]
    assert len(rows) == 5 * 10
    groups = found["groups"]
    labels = ["told, true task", "told, predicted task", "plain", UNEDITED, ROUND_TRIP]
    assert list(groups["all"]["means"]) == labels
    assert groups["all"]["means"]["plain"]["l1"]["n"] == 10
    assert "task_right" in groups["all"]["means"][labels[1]]
    assert {"made", "kept"} <= set(groups["remove"]["means"]["plain"])
    detected = groups["detect"]["means"]["plain"]
    assert "overlap" in detected and "made" not in detected
    assert groups["all"]["means"][UNEDITED]["l1"]["value"] == 0
    first, plain = (groups["all"]["means"][label]["l1"]["value"] for label in (labels[0], "plain"))
    assert groups["all"]["differences"]["plain"]["l1"]["value"] == pytest.approx(plain - first, abs=2e-4)
    assert "told, predicted task against the first" in (out / "results.md").read_text()
    assert (out / "report.html").read_text().count("<img") == 10 * (2 + 5)
    table = (out / "table.md").read_text()
    assert table.count("against the first") == 4 * 4  # all, region, free-form and vision
    assert "CLIPdir" in table and "Edits" not in table and "10 of all, 2 of region" in table

    (out / "rows.jsonl").write_text("".join(f"{line}\n" for line in whole.splitlines()[:10]))
    assert run() == found
    assert sorted((out / "rows.jsonl").read_text().splitlines()) == sorted(whole.splitlines())


def test_a_task_that_no_model_was_trained_on_is_measured_under_a_learned_one(
    tasked: Path, tiny_clip: Path, recogniser: Path, tmp_path: Path
):
    embedding: Any = TaskEmbedding.from_pretrained(tasked / "task_embedding")
    save_vector(embedding.vector("add"), "lines", tmp_path / "lines.safetensors")
    expert = Path(shutil.copytree(tasked, tmp_path / "expert", ignore=lambda *_: ["task_predictor"]))
    embedding.grown(["contours"]).save_pretrained(expert / "task_embedding")
    out = tmp_path / "out"
    command = ["evaluate", "tasks", "--tasks", "contours", "--num", "2", "--steps", "1", "-o", str(out),
               "--clip", str(tiny_clip), "--recogniser", str(recogniser), "--device", "cpu",
               "--model", f"as it is={tasked}", "--model", f"expert={expert}",
               "--task-file", f"1 example={tmp_path / 'lines.safetensors'}"]  # fmt: skip
    with pytest.raises(SystemExit) as ended:
        main(command)
    assert ended.value.code == 0
    means = json.loads((out / "results.json").read_text())["groups"]["contours"]["means"]
    assert list(means) == [
        "as it is, predicted task", "expert, true task", "1 example", UNEDITED, ROUND_TRIP,
    ]  # fmt: skip
    assert all({"overlap", "target_l1", "target_psnr"} <= set(row) for row in means.values())
    table = (out / "table.md").read_text()
    assert table.count("| contours |") == 5 and "2 of contours" in table and "| all |" not in table


def test_vision_tasks_are_among_the_known():
    assert set(vision.TASKS.values()) <= set(KNOWN)
