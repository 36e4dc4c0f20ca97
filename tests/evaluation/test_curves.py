"""Curves: every setting of every example is measured once, whatever kills the run, and compared in pairs."""

import csv
import json
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import wordbrush
from wordbrush import EditRequest
from wordbrush.data.rows import Row, encode_png
from wordbrush.data.shards import write_shards
from wordbrush.errors import UsageError
from wordbrush.evaluation import plots
from wordbrush.evaluation.comparison import compare, compare_all, differences
from wordbrush.evaluation.curves import DIRECTION, KEPT, Plan, measure, summarise
from wordbrush.evaluation.curves_report import conclude, run
from wordbrush.evaluation.examples import (
    Example,
    dataset_examples,
    digest_of,
    storybook_examples,
)
from wordbrush.evaluation.journal import Journal
from wordbrush.evaluation.judges import ClipJudge, Judge, PixelJudge, Sample, judge_all
from wordbrush.evaluation.sweeps import SWEEPS, Line, Sweep, make_lines, parse_sweep
from wordbrush.storybook.sprites import SpriteLibrary
from wordbrush.types import Editor

SWEPT = (Sweep("instruct-pix2pix", "image_scale", (1.0, 2.0)), Sweep("sdedit", "strength", (0.5, 1.0)))


def picture(seed: int, size: tuple[int, int] = (40, 32)) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 255, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)


def row(number: int, **changes: Any) -> Row:
    values: dict[str, Any] = {
        "input_image": encode_png(picture(number)),
        "edit_prompt": f"edit {number}",
        "edited_image": encode_png(picture(number + 100)),
        "source_caption": "a dog",
        "target_caption": f"a cat {number}",
    }
    return Row(**(values | changes))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_shards(folder, "test", [row(k) for k in range(5)])
    return folder


@pytest.fixture(scope="module")
def judges(tiny_clip: Path) -> list[Judge]:
    return [PixelJudge(), ClipJudge.load(str(tiny_clip), device=torch.device("cpu"))]


@pytest.fixture(scope="module")
def plan(tiny_editor: Path, data: Path) -> Plan:
    return Plan(
        make_lines([str(tiny_editor)], SWEPT), dataset_examples(data, 5), scales=(1, 2),
        settings={"steps": 2}, seed=3, num_pictures=2, batch_size=2, device="cpu", dtype="float32",
    )  # fmt: skip


@pytest.fixture(scope="module")
def whole(plan: Plan, judges: list[Judge], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an unbroken run."""
    folder = tmp_path_factory.mktemp("curves")
    run(plan, judges, folder)
    return folder


def read(folder: Path) -> dict[tuple[Any, ...], dict[str, Any]]:
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    keyed = {(r["curve"], r["scale"], r["value"], r["example"]): r for r in rows}
    assert len(keyed) == len(rows), "nothing is measured twice"
    return keyed


def test_every_setting_of_every_example_is_measured(whole: Path, plan: Plan):
    rows = read(whole)
    assert len(rows) == 2 * 2 * 2 * 5
    assert {(r["scale"], r["size"]) for r in rows.values()} == {(1, 32), (2, 64)}
    assert {(r["curve"], r["value"]) for r in rows.values()} == {
        ("instruct-pix2pix", 1.0), ("instruct-pix2pix", 2.0), ("sdedit", 0.5), ("sdedit", 1.0)
    }  # fmt: skip


@pytest.mark.parametrize(
    "method, setting, value", [("instruct-pix2pix", "image_scale", 2.0), ("sdedit", "strength", 0.5)]
)
def test_a_row_is_what_the_public_call_gives(
    method: str, setting: str, value: float, whole: Path, plan: Plan, judges: list[Judge], tiny_editor: Path
):
    editor = wordbrush.load(tiny_editor, method, device="cpu", dtype="float32", steps=2, **{setting: value})
    wanted = public_scores(editor, plan, judges, 4, 64)
    found = read(whole)[(method, 2, value, 4)]
    # In another batch a pixel may round to its neighbour.
    assert {name: found[name] for name in wanted} == pytest.approx(wanted, abs=2e-3)


def public_scores(
    editor: Editor, plan: Plan, judges: list[Judge], number: int, size: int
) -> dict[str, float]:
    example = plan.examples[number]
    before, texts = example.open(size), (example.instruction, example.source_caption, example.target_caption)
    exact = editor.with_settings(size=size, detail=False)
    edited = exact.edit(EditRequest(before, *texts, seed=plan.seed + number)).images[0]
    assert before.size == edited.size == (size * 5 // 4, size)
    return judge_all(judges, [Sample(edited, before, *texts[1:])])[0]


def test_prompt_to_prompt_is_swept_over_both_its_step_windows(
    plan: Plan, judges: list[Judge], tiny_editor: Path, tmp_path: Path
):
    lines = make_lines([str(tiny_editor)], [parse_sweep("prompt-to-prompt:cross_steps+self_steps=0,1")])
    settings = {"steps": 3, "keep_inversion": False, "null_text_steps": 1}
    small = replace(plan, lines=lines, examples=plan.examples[:2], scales=(1,), settings=settings)
    run(small, judges, tmp_path)
    rows = read(tmp_path)
    editor = wordbrush.load(tiny_editor, "prompt-to-prompt", device="cpu", dtype="float32", **settings)
    for value in (0.0, 1.0):
        wanted = public_scores(
            editor.with_settings(cross_steps=value, self_steps=value), small, judges, 1, 32
        )
        found = rows[("prompt-to-prompt", 1, value, 1)]
        assert {name: found[name] for name in wanted} == pytest.approx(wanted, abs=2e-3)
    assert rows[("prompt-to-prompt", 1, 0.0, 1)]["l1"] != rows[("prompt-to-prompt", 1, 1.0, 1)]["l1"]
    assert "by its cross steps and self steps" in (tmp_path / "report.html").read_text()


def test_a_killed_run_goes_on_to_the_same_numbers(
    plan: Plan, judges: list[Judge], whole: Path, tmp_path: Path
):
    for limit in (2, 4):

        def show(text: str, done: int, total: int, limit: int = limit) -> None:
            nonlocal calls
            calls += 1
            if calls > limit:
                raise KeyboardInterrupt

        calls = 0
        with pytest.raises(KeyboardInterrupt):
            measure(plan, judges, tmp_path, show)
    with (tmp_path / "rows.jsonl").open("a") as file:
        file.write('{"curve": "sded')  # what a kill in the middle of a line leaves
    run(plan, judges, tmp_path)
    assert read(tmp_path) == read(whole)
    assert (tmp_path / "results.json").read_text() == (whole / "results.json").read_text()
    names = [sorted(path.name for path in (folder / "pictures").iterdir()) for folder in (tmp_path, whole)]
    assert names[0] == names[1] and len(names[0]) == 2 * 2 * 2 * 2


def test_a_finished_run_loads_no_model(
    plan: Plan, judges: list[Judge], whole: Path, monkeypatch: pytest.MonkeyPatch
):
    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(wordbrush, "load", fail)
    assert len(measure(plan, judges, whole).rows) == 40


def test_a_folder_with_other_results_is_refused(plan: Plan, judges: list[Judge], whole: Path, tmp_path: Path):
    with pytest.raises(UsageError, match="other seed"):
        measure(replace(plan, seed=4), judges, whole)
    with pytest.raises(UsageError, match="other judges"):
        measure(plan, judges[:1], whole)
    with pytest.raises(UsageError, match="other examples"):
        measure(replace(plan, examples=plan.examples[:4]), judges, whole)
    (tmp_path / "rows.jsonl").write_text("{}\n")
    with pytest.raises(UsageError, match="no about.json"):
        measure(plan, judges, tmp_path)


def test_a_checkpoints_own_settings_are_on_record(plan: Plan, tiny_editor: Path, tmp_path: Path):
    folder = shutil.copytree(tiny_editor, tmp_path / "model")
    (folder / "wordbrush.json").write_text('{"sdedit": {"text_scale": 4.0}}')
    lines = make_lines([str(folder)], SWEPT)
    settings = replace(plan, lines=lines).about([])["settings"]
    assert settings["sdedit"]["text_scale"] == 4 and settings["instruct-pix2pix"]["text_scale"] == 7.5
    given = replace(plan, lines=lines, settings={"text_scale": 2.0}).about([])["settings"]
    assert given["sdedit"]["text_scale"] == 2


class Page(HTMLParser):
    """Tags and what they point to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]


def test_the_report_holds_everything_itself(whole: Path):
    page = Page((whole / "report.html").read_text())
    assert page.tags.count("svg") == 2 and "script" not in page.tags
    assert page.tags.count("img") == 2 * 2 * 2 * 3  # curves, sizes, examples; before and two settings
    assert all(link.startswith(("data:image/jpeg;base64,", "#")) for link in page.links)
    results = json.loads((whole / "results.json").read_text())
    assert len(results["points"]) == 8 and len(results["comparisons"]) == 2
    rows = list(csv.DictReader((whole / "points.csv").open()))
    by_json = {
        (p["curve"], p["size"], p["value"], n): m for p in results["points"] for n, m in p["means"].items()
    }
    assert len(rows) == len(by_json)
    for line in rows:
        mean = by_json[(line["curve"], int(line["size"]), float(line["value"]), line["measure"])]
        assert [float(line[n]) for n in ("mean", "low", "high", "n")] == [
            mean[n] for n in ("value", "low", "high", "n")
        ]


def test_the_table_has_every_point(whole: Path):
    lines = (whole / "table.md").read_text().splitlines()
    points = json.loads((whole / "results.json").read_text())["points"]
    assert [line.split(" | ")[:3] for line in lines[2:10]] == [
        [f"| {p['curve']}", f"{p['size']} px", f"{p['setting'].replace('_', ' ')} {p['value']:g}"]
        for p in points
    ]
    assert all(
        f"{p['means'][KEPT]['value']:.3f} ± " in line for p, line in zip(points, lines[2:], strict=False)
    )
    assert (
        "over 5 edits" in lines[11] and sum(line.startswith(("By CLIP image", "At ")) for line in lines) == 2
    )


def test_the_sheet_has_the_first_examples_by_every_curve(whole: Path, plan: Plan):
    with Image.open(whole / "pictures.jpg") as sheet:
        cell = plan.examples[0].open(32)
        assert sheet.width == 3 * (cell.width + 8) + 8  # before, and two settings
        assert sheet.height > 2 * 2 * cell.height  # examples, curves
        edited = sheet.convert("RGB").crop(
            (8 + cell.width + 8, sheet.height - 8 - 16, sheet.width - 8, sheet.height - 8)
        )
    assert np.asarray(edited).std() > 5  # a picture, not the white of the sheet


def test_labels_are_text(plan: Plan, judges: list[Judge], tiny_editor: Path, tmp_path: Path):
    lines = make_lines([f"<b>&={tiny_editor}", f"two|three={tiny_editor}"], SWEPT[:1])
    small = replace(plan, lines=lines, examples=plan.examples[:2], scales=(1,))
    run(small, judges, tmp_path)
    assert r"| two\|three |" in (tmp_path / "table.md").read_text()
    text = (tmp_path / "report.html").read_text()
    assert "<b>" not in text and "&lt;b&gt;&amp;" in text


def synthetic(
    tmp_path: Path, curves: dict[str, tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]
) -> tuple[Plan, Journal]:
    """A journal with given scores: label -> direction and image similarity, each (values, examples)."""
    examples = [
        Example("x", "a", "b", picture, str(k)) for k in range(next(iter(curves.values()))[0].shape[1])
    ]
    values = tuple(float(v) for v in range(len(next(iter(curves.values()))[0])))
    lines = [Line(label, "storybook", Sweep("sdedit", "strength", values)) for label in curves]
    journal = Journal(tmp_path, {})
    journal.append(
        {"curve": label, "scale": 1, "value": value, "size": 32, "example": k,
         DIRECTION: float(x[i, k]), KEPT: float(y[i, k])}
        for label, (x, y) in curves.items() for i, value in enumerate(values) for k in range(len(examples))
    )  # fmt: skip
    return Plan(lines, examples, num_pictures=0), journal


def slope(
    noise: int, height: float, shared: np.ndarray[Any, Any]
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Four points on a falling line, with what all curves of an example share and a little of their own."""
    x = np.linspace(0.1, 0.4, 4)[:, None] + 0.01 * np.random.default_rng(noise).normal(size=(4, len(shared)))
    y = 1 - x + height + shared + 0.01 * np.random.default_rng(noise + 1).normal(size=x.shape)
    return x, y


def test_a_curve_above_another_is_found_above(tmp_path: Path):
    shared = np.random.default_rng(9).normal(size=200) * 0.1
    plan, journal = synthetic(tmp_path, {"low": slope(0, 0.0, shared), "high": slope(2, 0.1, shared)})
    found = compare(plan, journal, plan.lines[1], plan.lines[0], 1)
    assert found.gain[:, 0] == pytest.approx(0.1, abs=0.005)
    assert found.above == 1 and found.below == 0
    assert 0.09 < found.direction[0] < 0.11 and 0.39 < found.direction[-1] < 0.41
    turned = compare(plan, journal, plan.lines[0], plan.lines[1], 1)
    assert turned.below == 1 and turned.gain[:, 0] == pytest.approx(-found.gain[:, 0])
    assert "high keeps more of the picture than low on 100%" in conclude(found)
    assert "low keeps less of the picture than high on 100%" in conclude(turned)


def test_what_is_kept_is_compared_by_a_distance_too(tmp_path: Path):
    """Of which less is more: the curve that is above by CLIP is here the farther one."""
    shared = np.random.default_rng(9).normal(size=200) * 0.1
    plan, journal = synthetic(tmp_path, {"low": slope(0, 0.0, shared), "high": slope(2, 0.1, shared)})
    for row in journal.rows:
        row["efficientnet_lite0_distance"] = row[KEPT]
    by_clip, by_distance = compare_all(plan, journal)
    assert (by_clip.measure, by_distance.measure) == (KEPT, "efficientnet_lite0_distance")
    assert by_clip.below == by_distance.above == 1
    assert by_distance.gain[:, 0] == pytest.approx(-by_clip.gain[:, 0])
    assert conclude(by_distance).startswith(
        "By 1 - EfficientNet-Lite0 distance, at the native size, low keeps more"
    )


def test_curves_of_one_sweep_differ_at_the_same_setting(tmp_path: Path):
    """What all curves of an example share falls out."""
    shared = np.random.default_rng(9).normal(size=200) * 0.3
    plan, journal = synthetic(tmp_path, {"low": slope(0, 0.0, shared), "high": slope(2, 0.1, shared)})
    found = differences(plan, journal)
    assert [(d.other, d.value) for d in found] == [("high", value) for value in plan.lines[0].sweep.values]
    for difference in found:
        kept = difference.means[KEPT]
        assert kept.value == pytest.approx(-0.1, abs=0.01) and kept.high - kept.low < 0.01
    other = replace(plan.lines[1], sweep=replace(plan.lines[1].sweep, setting="text_scale"))
    assert not differences(replace(plan, lines=[plan.lines[0], other]), journal)


def test_pairs_narrow_the_gain_and_not_the_bands(tmp_path: Path):
    """What makes an example hard for both curves is no doubt about which is better."""
    shared = np.random.default_rng(9).normal(size=200) * 0.3
    plan, journal = synthetic(tmp_path, {"low": slope(0, 0.0, shared), "high": slope(2, 0.02, shared)})
    found = compare(plan, journal, plan.lines[1], plan.lines[0], 1)
    assert found.above == found.below == 0 and "overlap everywhere" in conclude(found)
    assert (found.gain[:, 1] > 0).all(), "while every interval of the gain lies above zero"
    width = found.bands[0, :, 2] - found.bands[0, :, 1]
    assert width.mean() == pytest.approx(2 * 1.96 * 0.3 / 200**0.5, rel=0.2)


def test_curves_without_a_common_range_are_not_compared(tmp_path: Path):
    shared = np.zeros(50)
    x, y = slope(0, 0.0, shared)
    plan, journal = synthetic(tmp_path, {"left": (x - 1, y), "right": (x, y)})
    found = compare(plan, journal, plan.lines[0], plan.lines[1], 1)
    assert not len(found.direction) and found.above == found.below == 0
    assert "cannot be compared" in conclude(found)
    assert json.dumps(found.as_json())


def test_the_figure_is_drawn_for_many_curves(tmp_path: Path):
    shared = np.zeros(50)
    curves = {f"arm {k}": slope(k, 0.05 * k, shared) for k in range(4)}
    plan, journal = synthetic(tmp_path, curves)
    points = summarise(plan, journal)
    comparisons = [compare(plan, journal, plan.lines[0], line, 1) for line in plan.lines[1:]]
    drawn = plots.trade_off(points, comparisons)
    assert drawn == plots.trade_off(points, comparisons) and drawn.startswith("<svg")
    colours = set(plots._COLOURS[:4])  # pyright: ignore[reportPrivateUsage]
    assert all(colour in drawn for colour in colours)


def test_sweeps_are_the_papers_or_those_given():
    assert parse_sweep("instruct-pix2pix").values == (1.0, 1.2, 1.4, 1.6, 1.8, 2.0, 2.2)
    assert parse_sweep("sdedit") is SWEEPS["sdedit"]
    assert parse_sweep("sdedit:text_scale=1,7.5") == Sweep("sdedit", "text_scale", (1.0, 7.5))
    assert parse_sweep("prompt-to-prompt").at(0.4) == {"cross_steps": 0.4, "self_steps": 0.4}
    for text, reason in {
        "no-such-editor": "unknown method 'no-such-editor'",
        "sdedit:window=1": "no setting 'window'",
        "sdedit:strength+window=1": "no setting 'window'",
        "diffedit": "no sweep of its own",
        "sdedit:strength=": "must be numbers",
        "sdedit:strength=a,b": "must be numbers",
    }.items():
        with pytest.raises(UsageError, match=reason):
            parse_sweep(text)


def test_curves_have_labels_of_their_own():
    ip2p, sdedit = SWEEPS["instruct-pix2pix"], SWEEPS["sdedit"]
    assert [line.label for line in make_lines(["storybook"], [ip2p, sdedit])] == [
        "instruct-pix2pix",
        "sdedit",
    ]
    lines = make_lines(["10 %=runs/a", "all=runs/b"], [ip2p])
    assert [(line.label, line.model) for line in lines] == [("10 %", "runs/a"), ("all", "runs/b")]
    assert make_lines(["a=x", "b=y"], [ip2p, sdedit])[3].label == "b · sdedit"
    own = make_lines(["x"], [ip2p, sdedit], {"sdedit": "y"})
    assert [(line.label, line.model) for line in own] == [("instruct-pix2pix", "x"), ("sdedit", "y")]
    with pytest.raises(UsageError, match="two curves are called 'a'"):
        make_lines(["a=x", "a=y"], [ip2p])


def test_examples_of_a_data_set_have_two_captions_and_one_of_each_unit(tmp_path: Path):
    rows = [
        row(0, unit="u"),
        row(1, unit="u"),
        row(2, source_caption=None),
        row(3, target_caption="a dog"),
        row(4),
    ]
    write_shards(tmp_path, "test", rows)
    examples = dataset_examples(tmp_path, 9)
    assert [example.instruction for example in examples] == ["edit 0", "edit 4"]
    assert examples[0].open(64).size == (80, 64)
    assert dataset_examples(tmp_path, 9, split="test") and digest_of(examples) != digest_of(examples[:1])
    with pytest.raises(UsageError, match="no split 'train'"):
        dataset_examples(tmp_path, 9, split="train")


def test_examples_of_the_storybook_are_held_out_and_rendered_at_any_size(
    sprites: SpriteLibrary, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(SpriteLibrary, "load", lambda: sprites)
    examples = storybook_examples(6)
    assert digest_of(examples) == digest_of(storybook_examples(6)) != digest_of(storybook_examples(6, seed=1))
    assert all(example.source_caption != example.target_caption for example in examples)
    assert examples[0].open(32).size == (32, 32) and examples[0].open(64).size == (64, 64)
