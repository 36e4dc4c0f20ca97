import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.data.edits import row, rows
from wordbrush.cli import main
from wordbrush.data.rows import SCORES
from wordbrush.data.shards import write_card, write_shards
from wordbrush.datagen.draws import write_draws
from wordbrush.datagen.filters import Thresholds

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def data(capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs `wordbrush data ...` in this process."""

    def run(*words: str | Path) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as exit_:
            main(["data", *map(str, words)])
        out, err = capsys.readouterr()
        assert isinstance(exit_.value.code, int)
        return exit_.value.code, out, err

    return run


@pytest.fixture
def edits(tmp_path: Path) -> Path:
    write_shards(tmp_path / "edits", "train", rows(8))
    write_card(tmp_path / "edits", ["train"], "Edits")
    return tmp_path / "edits"


def test_a_data_set_is_converted_checked_and_counted(data: Command, edits: Path, tmp_path: Path):
    assert data("convert", edits, tmp_path / "tars", "--to", "webdataset") == (
        0,
        f"8 rows in {tmp_path / 'tars'}\n",
        "",
    )
    assert data("convert", tmp_path / "tars", tmp_path / "b", "--to", "parquet")[0] == 0
    shard = "data/train-00000.parquet"
    assert (tmp_path / "b" / shard).read_bytes() == (edits / shard).read_bytes()
    assert data("validate", tmp_path / "tars") == (0, "8 rows without problems\n", "")
    _, text, _ = data("stats", edits)
    assert text.startswith("8 rows of 4 units\n") and "the filter on these rows" in text
    code, out, _ = data("stats", edits, "--json")
    assert code == 0 and json.loads(out)["funnel"]["drawn"] == 8


def test_problems_are_lines_and_exit_1(data: Command, tmp_path: Path):
    write_shards(tmp_path / "edits", "train", [row(0, edit_prompt=" "), row(1, mask=b"junk"), row(2)])
    code, out, err = data("validate", tmp_path / "edits")
    assert (code, err) == (1, "")
    assert len(out.splitlines()) == 2
    assert "edit_prompt" in out.splitlines()[0] and "mask" in out.splitlines()[1]


def test_stats_can_score_by_a_clip(data: Command, edits: Path):
    _, out, _ = data("stats", edits, "--clip", "storybook", "--share", "0.5", "--json")
    values = json.loads(out)
    assert values["scores"]["clip_sim_image"]["mean"] != 0.8
    assert values["funnel"]["drawn"] == 5 and values["funnel"]["kept"] >= 2
    assert 0 <= values["mismatched_share"] <= 1


def test_stats_of_a_made_set_are_of_all_that_was_drawn(data: Command, edits: Path):
    draws = {name: [0.8, 0.1, None] for name in SCORES} | {"seed": [1, 2, 3]}
    draws |= {"p2p_threshold": [0.5] * 3, "guidance_scale": [3.0] * 3}
    fates = {"fate": ["kept", "clip_sim_dir", "not_found"]}
    write_draws(edits / "draws.arrow", [("0000001", draws | fates)])
    made_from = {"filter": Thresholds(clip_sim_dir=0.4, keep=2).model_dump()}
    pairs = {"drawn": 3, "failed": {"clip_sim_dir": 1, "not_found": 1}, "surplus": 0}
    (edits / "run.json").write_text(json.dumps({"made_from": made_from, "pairs": pairs}))
    _, out, _ = data("stats", edits)
    assert (
        "score of the pairs drawn" in out and "-1  clip_sim_dir below 0.400" in out and "-1  not_found" in out
    )
    values = json.loads(data("stats", edits, "--json")[1])
    assert values["scores"]["clip_sim_0"]["count"] == 2 and values["funnel"]["kept"] == 1
    (edits / "run.json").write_text("{}")
    code, _, err = data("stats", edits)
    assert code == 1 and "run.json is damaged" in err


def test_show_writes_a_page_once(data: Command, edits: Path, tmp_path: Path):
    page = tmp_path / "edits.html"
    assert data("show", edits, "--num", "3") == (0, f"{page}\n", "")
    assert page.read_text().count("<article>") == 3
    code, out, err = data("show", edits)
    assert (code, out) == (2, "") and "--force" in err
    assert data("show", edits, "--force")[0] == 0
    assert page.read_text().count("<article>") == 8
    assert data("show", edits, "-o", tmp_path / "none" / "page.html")[0] == 1


def test_get_lists_what_is_known(data: Command):
    code, out, _ = data("get")
    assert code == 0
    for name in (
        "timbrooks/instructpix2pix-clip-filtered",
        "osunlp/MagicBrush",
        "facebook/emu_edit_test_set",
    ):
        assert name in out


def test_failures_are_one_line(data: Command, edits: Path, tmp_path: Path):
    cut = tmp_path / "cut"
    write_shards(cut, "train", rows(2))
    shard = cut / "data" / "train-00000.parquet"
    shard.write_bytes(shard.read_bytes()[:500])
    for words, code, hint in (
        (("stats", tmp_path / "none"), 1, "no data set"),
        (("stats", cut), 1, "damaged"),
        (("show", cut), 1, "damaged"),
        (("convert", cut, tmp_path / "out"), 1, "damaged"),
        (("convert", edits, tmp_path / "out", "--to", "zip"), 2, "webdataset"),
        (("convert", edits, edits), 2, "exists"),
        (("convert", edits), 2, "folder"),
        (("stats", edits, "--clip", str(tmp_path)), 1, "CLIP"),
        (("stats", edits, "--clip", "storybook", "--device", "cuda:99"), 1, "cuda:99"),
        (("get", "nowhere"), 2, "MagicBrush"),
        (("push", edits, "nowhere"), 2, "OWNER/NAME"),
        (("push", tmp_path, "a/b"), 1, "convert"),
        (("storybook", tmp_path / "out", "--count", "1", "--kind", "films"), 2, "scenes"),
    ):
        found, out, err = data(*words)
        assert (found, out, err.count("\n")) == (code, "", 1), words
        assert err.startswith("wordbrush: ") and hint in err, words
    assert data("validate", cut)[:1] == (1,)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut", "edits"]


def test_the_group_explains_itself(data: Command):
    _, text, _ = data()
    for name in ("storybook", "make", "get", "convert", "validate", "show", "stats", "push"):
        assert name in text
