from pathlib import Path

import numpy as np
import pytest

from tests.world import make_small_shards
from wordbrush.errors import WordbrushError
from wordbrush.storybook.dataset import RenderedEdits, make
from wordbrush.storybook.edits import sample_edit
from wordbrush.storybook.render import Renderer
from wordbrush.storybook.scenes import scene_rng
from wordbrush.storybook.sprites import SpriteLibrary
from wordbrush.storybook.vision import draw_vision_edit, render_vision_edit


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch, sprites: SpriteLibrary):
    make_small_shards(monkeypatch, sprites, 3)


def test_shards_hold_the_edits_of_their_numbers(
    tmp_path: Path, sprites: SpriteLibrary, render: Renderer, small_shards: None
):
    edits = make(tmp_path, 5, split="test", size=64)
    assert len(edits) == 6 and sorted(p.name for p in tmp_path.iterdir()) == [
        "00000.jsonl", "00000.npy", "00001.jsonl", "00001.npy", "made.json",
    ]  # fmt: skip
    small = Renderer(sprites, size=64)
    for number in range(6):
        sample = sample_edit(small, "test", number)
        assert (edits.pair(number)[0] == np.asarray(sample.before)).all()
        assert (edits.pair(number)[1] == np.asarray(sample.after)).all()
        row = edits.rows[number]
        assert row["instruction"] == sample.edit.instruction and row["operation"] == sample.edit.operation
        assert row["source_caption"] == sample.edit.source_caption


def test_making_goes_on_where_it_stopped(tmp_path: Path, small_shards: None):
    make(tmp_path, 3, size=64)
    first = (tmp_path / "00000.npy").stat().st_mtime_ns
    (tmp_path / "00001.partial").write_bytes(b"killed while writing")
    (tmp_path / "00001.jsonl").write_text("")
    assert len(make(tmp_path, 6, size=64)) == 6
    assert (tmp_path / "00000.npy").stat().st_mtime_ns == first
    assert not list(tmp_path.glob("*.partial"))


def test_folders_are_opened_together(tmp_path: Path, small_shards: None):
    make(tmp_path / "a", 3, size=64)
    make(tmp_path / "b", 3, split="test", size=64)
    both = RenderedEdits.open(tmp_path / "a", tmp_path / "b")
    assert len(both) == 6 and both.pair(3).shape == (2, 64, 64, 3)
    assert len(RenderedEdits.open(tmp_path)) == 0


def test_edits_are_drawn_again_from_their_numbers(tmp_path: Path, small_shards: None):
    folders = [tmp_path / name for name in ("scenes", "things", "test", "vision")]
    make(folders[0], 6, size=64)
    make(folders[1], 6, kind="things", size=64)
    make(folders[2], 3, split="test", size=64)
    make(folders[3], 3, kind="vision", size=64)
    (folders[0] / "made.json").unlink()  # as folders were before they said what they hold
    edits = RenderedEdits.open(*folders)
    for index in range(15):
        edit, row = edits.edit(index), edits.rows[index]
        assert (edit.instruction, edit.target_caption) == (row["instruction"], row["target_caption"])
    with pytest.raises(WordbrushError, match="vision holds edits of vision, not of drawn scenes"):
        edits.edit(15)
    edits.rows[4]["instruction"] = "another"
    with pytest.raises(WordbrushError, match="edit 1 of .*00001.npy is not the one"):
        edits.edit(4)


def test_shards_of_vision_tasks(tmp_path: Path, render: Renderer, small_shards: None):
    edits = make(tmp_path, 3, kind="vision", split="test", size=64)
    edit = draw_vision_edit(scene_rng("test", 1), "test")
    pictures = render_vision_edit(Renderer(render.sprites, size=64), edit)
    assert (edits.pair(1) == np.stack([np.asarray(picture) for picture in pictures])).all()
    assert (edits.rows[1]["instruction"], edits.rows[1]["task"]) == (edit.instruction, edit.task)


def test_a_folder_holds_edits_of_one_making(tmp_path: Path, small_shards: None):
    make(tmp_path, 3, size=64)
    for other in ({"kind": "things", "size": 64}, {"size": 32}, {"split": "test", "size": 64}):
        with pytest.raises(WordbrushError, match="name another folder"):
            make(tmp_path, 6, **other)
    assert len(RenderedEdits.open(tmp_path)) == 3


def test_shards_of_things_are_other_scenes_and_only_of_their_edits(tmp_path: Path, small_shards: None):
    scenes, things = (make(tmp_path / kind, 12, kind=kind, size=64) for kind in ("scenes", "things"))
    assert {row["operation"] for row in things.rows} <= {"replace", "add", "resize", "move", "swap", "count"}
    assert not {row["source_caption"] for row in scenes.rows} & {row["source_caption"] for row in things.rows}
