"""Benchmarks: files in the layout of the real ones are read right, and measured by the stated protocols."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from wordbrush.data.rows import DataError, encode_png
from wordbrush.errors import UsageError
from wordbrush.evaluation.benchmark_data import load_emu_edit, load_magicbrush, load_tedbench
from wordbrush.evaluation.benchmark_run import Entry, make_pictures, run, score, summarise, to_markdown
from wordbrush.evaluation.benchmarks import BENCHMARKS, find_benchmark
from wordbrush.evaluation.judges import ClipJudge, DinoJudge, Judge, PixelJudge
from wordbrush.types import Editor, EditRequest, EditResult

MAGICBRUSH, EMU_EDIT, TEDBENCH = (BENCHMARKS[name] for name in ("magicbrush", "emu-edit", "tedbench"))


def picture(seed: int, size: tuple[int, int] = (40, 40)) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 255, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)


def cell(seed: int) -> dict[str, Any]:
    """As the hub's parquet holds a picture."""
    return {"bytes": encode_png(picture(seed)), "path": None}


def save_parquet(folder: Path, split: str, rows: list[dict[str, Any]]) -> Path:
    (folder / "data").mkdir(parents=True, exist_ok=True)
    pq.write_table(
        pa.Table.from_pylist(rows), folder / "data" / f"{split}-00000-of-00001.parquet", row_group_size=2
    )
    return folder


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """MagicBrush's test set as it unpacks: a session of three turns and one of a single turn."""
    root = tmp_path / "archive"
    sessions: dict[str, Any] = {}
    captions: dict[str, Any] = {}
    for name, count in (("115066", 3), ("88", 1)):
        folder = root / "images" / name
        folder.mkdir(parents=True)
        names = [f"{name}-input.png", *(f"{name}-output{k}.png" for k in range(1, count + 1))]
        for number, file in enumerate(names):
            picture(10 * count + number).save(folder / file)
            Image.new("L", (40, 40)).save(folder / f"{name}-mask{number + 1}.png")
        sessions[name] = [
            {
                "input": names[k],
                "mask": f"{name}-mask{k + 1}.png",
                "output": names[k + 1],
                "instruction": f"turn {k + 1}",
            }
            for k in range(count)
        ]
        captions[name] = {file: f"caption of {file}"[:30] for file in names}
    (root / "edit_sessions.json").write_text(json.dumps(sessions))
    (root / "local_descriptions.json").write_text(json.dumps(captions))
    return root


def test_magicbrush_is_named_as_its_own_script_wants(archive: Path):
    edits = {edit.key: edit for edit in load_magicbrush(archive, "test")}
    assert list(edits) == [
        "115066/115066_1", "115066/115066_inde_2", "115066/115066_iter_2", "115066/115066_inde_3",
        "115066/115066_iter_3", "88/88_1",
    ]  # fmt: skip
    groups = {key.split("/")[1]: edit.groups for key, edit in edits.items()}
    assert groups == {
        "115066_1": ("single-turn",), "115066_inde_2": ("single-turn",), "115066_inde_3": ("single-turn",),
        "115066_iter_2": (), "115066_iter_3": ("multi-turn",), "88_1": ("single-turn", "multi-turn"),
    }  # fmt: skip
    follows = [edits[f"115066/115066_iter_{k}"].follows for k in (2, 3)]
    assert follows == ["115066/115066_1", "115066/115066_iter_2"]
    third = edits["115066/115066_inde_3"]
    assert third.instruction == "turn 3" and third.target_caption == "caption of 115066-output3.png"[:30]
    assert third.before and third.target
    assert third.before().tobytes() == picture(32).tobytes()  # the true result of the second turn
    assert third.target().tobytes() == picture(33).tobytes()


def test_magicbrush_from_the_hub_is_the_same_without_captions(archive: Path, tmp_path: Path):
    rows = [
        {"img_id": name, "turn_index": turn, "source_img": cell(10 * count + turn - 1), "mask_img": cell(0),
         "instruction": f"turn {turn}", "target_img": cell(10 * count + turn)}
        for name, count in (("115066", 3), ("88", 1)) for turn in range(count, 0, -1)
    ]  # fmt: skip
    ours, hubs = load_magicbrush(archive, "test"), load_magicbrush(save_parquet(tmp_path, "dev", rows), "dev")
    assert [(e.key, e.groups, e.instruction, e.follows) for e in ours] == [
        (e.key, e.groups, e.instruction, e.follows) for e in hubs
    ]
    for one, other in zip(ours, hubs, strict=True):
        assert one.target and other.target and one.target().tobytes() == other.target().tobytes()
        assert not other.target_caption


@pytest.mark.parametrize(
    "turn", [{"input": "../../x.png", "output": "a.png", "instruction": ""}, {"input": "a.png"}, 3]
)
def test_a_damaged_session_is_named(turn: Any, tmp_path: Path):
    (tmp_path / "edit_sessions.json").write_text(json.dumps({"7": [turn]}))
    (tmp_path / "local_descriptions.json").write_text("{}")
    with pytest.raises(DataError, match="session 7"):
        load_magicbrush(tmp_path, "test")


def emu_rows() -> list[dict[str, Any]]:
    texts = [
        ("add", "a dog", "a dog with a hat"),
        ("style", "a cat", "a cat"),
        ("add", "", "a bird"),
        ("add", "x", "y"),
    ]
    return [
        {"instruction": f"edit {k}", "image": cell(k), "task": task, "split": "test", "idx": k,
         "hash": f"h{k}", "input_caption": before, "output_caption": after}
        for k, (task, before, after) in enumerate(texts)
    ]  # fmt: skip


def test_emu_edit_knows_its_bad_rows(tmp_path: Path):
    edits = load_emu_edit(save_parquet(tmp_path, "test", emu_rows()), "test")
    assert [edit.problem for edit in edits] == ["", "equal captions", "no caption", ""]
    assert [edit.groups for edit in edits][:2] == [("all", "add"), ("all", "style")]
    for number in (3, 0, 2, 1):  # in any order, across row groups
        opener = edits[number].before
        assert opener and opener().tobytes() == picture(number).tobytes()


def test_tedbench_is_read_from_the_hub_and_from_its_folder(tmp_path: Path):
    hub = save_parquet(
        tmp_path / "hub", "val", [{"original_image": cell(k), "target_text": f"t{k}"} for k in range(2)]
    )
    folder = tmp_path / "folder"
    (folder / "originals").mkdir(parents=True)
    for k in range(2):
        picture(k).save(folder / "originals" / f"p{k}.png")
    entries = [{"img_name": f"p{k}.png", "target_text": f"t{k}"} for k in range(2)]
    (folder / "input_list.json").write_text(json.dumps(entries))
    for edits in (load_tedbench(hub, "val"), load_tedbench(folder, "val")):
        assert [(edit.target_caption, edit.instruction) for edit in edits] == [("t0", ""), ("t1", "")]
        assert edits[1].before and edits[1].before().tobytes() == picture(1).tobytes()
    (folder / "input_list.json").write_text(json.dumps([{"img_name": "../p0.png", "target_text": ""}]))
    with pytest.raises(DataError, match="not the name of a file"):
        load_tedbench(folder, "val")


def test_wrong_files_are_named(tmp_path: Path):
    with pytest.raises(DataError, match="no split 'test': there is no parquet"):
        load_emu_edit(tmp_path, "test")
    save_parquet(tmp_path, "test", [{"instruction": "x"}])
    with pytest.raises(DataError, match="no column task"):
        load_emu_edit(tmp_path, "test")
    (tmp_path / "data" / "test-00000-of-00001.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(DataError, match="damaged or not parquet"):
        load_emu_edit(tmp_path, "test")


def test_a_benchmark_out_of_reach_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match=r"password MagicBrush: unpack it"):
        find_benchmark("magicbrush").open(None, None)
    with pytest.raises(UsageError, match="no split 'train': one of dev, test"):
        MAGICBRUSH.open(None, "train")
    with pytest.raises(UsageError, match="one of magicbrush, emu-edit, tedbench"):
        find_benchmark("coco")


class Painter:
    """An editor's public face over a function of the request."""

    settings: Any = None

    def __init__(self, paint: Callable[[EditRequest], Image.Image]) -> None:
        self.paint, self.seen = paint, list[EditRequest]()

    def edit(self, request: EditRequest, *, on_step: Any = None) -> EditResult:
        return self.edit_batch([request])[0]

    def edit_batch(self, requests: Any, *, on_step: Any = None) -> list[EditResult]:
        self.seen += requests
        return [EditResult([self.paint(r)], [r.seed or 0], {}) for r in requests]

    def with_settings(self, **changes: Any) -> "Painter":
        return self


@pytest.fixture(scope="module")
def judges(tiny_clip: Path, tiny_dino: Path) -> list[Judge]:
    cpu = torch.device("cpu")
    clip = ClipJudge.load(str(tiny_clip), inputs="cropped", truncate=False, device=cpu)
    return [PixelJudge(), clip, DinoJudge.load(str(tiny_dino), device=cpu)]


def test_the_true_pictures_score_full(archive: Path, judges: list[Judge], tmp_path: Path):
    edits = load_magicbrush(archive, "test")
    truth = {edit.instruction + edit.target_caption: edit.target for edit in edits}

    def paint(request: EditRequest) -> Image.Image:
        target = truth[request.instruction + request.target_caption]
        assert target
        return target()

    make_pictures(edits, tmp_path / "pictures", lambda: Painter(paint), 0)
    means = summarise(MAGICBRUSH, edits, score(MAGICBRUSH, edits, tmp_path / "pictures", judges))
    assert {group: row["l1"]["n"] for group, row in means.items()} == {"single-turn": 4, "multi-turn": 2}
    for row in means.values():
        assert row["l1"]["value"] == row["l2"]["value"] == 0
        assert row["clip_sim_image"]["value"] == pytest.approx(1) and row["dino_sim"][
            "value"
        ] == pytest.approx(1)
        assert "clip_sim_1" in row


def test_turns_are_made_from_true_pictures_and_from_results(archive: Path, tmp_path: Path):
    edits = load_magicbrush(archive, "test")
    painter = Painter(lambda request: request.image.transpose(Image.Transpose.FLIP_LEFT_RIGHT))
    make_pictures(edits, tmp_path, lambda: painter, 5)
    flipped = [picture(30 + k).transpose(Image.Transpose.FLIP_LEFT_RIGHT) for k in range(3)]
    made = {p.stem: Image.open(p).convert("RGB") for p in sorted((tmp_path / "115066").iterdir())}
    assert made["115066_inde_3"].tobytes() == flipped[2].tobytes()
    assert made["115066_iter_2"].tobytes() == picture(30).tobytes()  # flipped twice
    assert made["115066_iter_3"].tobytes() == flipped[0].tobytes()
    assert sorted(request.seed or 0 for request in painter.seen) == list(range(5, 11))


def test_a_killed_run_makes_only_what_is_missing(archive: Path, tmp_path: Path):
    edits = load_magicbrush(archive, "test")
    whole = Painter(lambda request: request.image)
    make_pictures(edits, tmp_path, lambda: whole, 0)
    (tmp_path / "115066" / "115066_iter_2.png").unlink()
    again = Painter(lambda request: request.image)
    make_pictures(edits, tmp_path, lambda: again, 0)
    assert [(r.instruction, r.seed) for r in again.seen] == [("turn 2", 2)]

    def fail() -> Editor:
        raise AssertionError("loaded for nothing")

    make_pictures(edits, tmp_path, fail, 0)


def test_a_real_editor_is_measured_end_to_end(
    tiny_editor: Path, judges: list[Judge], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    data = save_parquet(tmp_path / "data", "test", emu_rows())
    folder, edits = EMU_EDIT.open(str(data), None)
    entry = Entry(str(tiny_editor), settings={"steps": 1}, device="cpu", dtype="float32")
    found = run(EMU_EDIT, folder, edits, entry, judges, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == json.loads(json.dumps(found))
    assert set(found["groups"]) == {
        "all", "all, without the bad rows", "add", "add, without the bad rows", "style"
    }  # fmt: skip
    assert (
        found["groups"]["all"]["l1"]["n"] == 4
        and found["groups"]["all, without the bad rows"]["l1"]["n"] == 2
    )
    assert found["groups"]["all"]["clip_sim_dir"]["n"] == 3, "no direction without two captions"
    assert found["known_bad"] == 2 and found["settings"] == {"detail": False, "steps": 1}
    assert len(found["data"]["sha256"]) == 64 and found["judges"][1]["inputs"] == "cropped"
    text = to_markdown(EMU_EDIT, found)
    assert "| CLIPdir | CLIPim | CLIPout | L1 | DINO |" in text and "Known bad rows: 2." in text
    with pytest.raises(UsageError, match="other seed"):
        run(EMU_EDIT, folder, edits, replace(entry, seed=1), judges, tmp_path / "out")
    with pytest.raises(UsageError, match="other data"):
        run(EMU_EDIT, folder, edits[:2], entry, judges, tmp_path / "out")


def test_a_method_that_needs_what_is_not_there_is_refused(tmp_path: Path, judges: list[Judge]):
    data = save_parquet(tmp_path, "val", [{"original_image": cell(0), "target_text": "t"}])
    _, edits = TEDBENCH.open(str(data), None)
    with pytest.raises(UsageError, match="tedbench has no instruction, which instruct-pix2pix needs"):
        run(TEDBENCH, data, edits, Entry(), judges, tmp_path / "out")


def test_every_card_is_whole():
    for benchmark in BENCHMARKS.values():
        assert all(benchmark.card().values()), benchmark.name
        assert set(benchmark.columns) <= {
            "l1", "l2", "clip_sim_image", "clip_sim_dir", "clip_sim_1", "dino_sim", "lpips",
            "efficientnet_lite0_distance",
        }  # fmt: skip
    pinned = MAGICBRUSH.card()["metric_models"]
    assert list(pinned) == ["openai/clip-vit-base-patch32", "facebook/dino-vits16"]
    assert all(len(commit) == 40 for commit in pinned.values())
    assert Entry().settings_for(MAGICBRUSH) == {"detail": False, "steps": 100}
