import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data.edits import bare, jpeg, picture, row, rows
from wordbrush.data.original import SEEDS, read_original, write_original
from wordbrush.data.rows import DataError, Row, decode


def photographs(count: int) -> list[Row]:
    """Rows whose pictures are JPEG, as the original's are; two pairs in each folder."""
    texts = {"turn": None}
    return [
        row(number, input_image=jpeg(picture(number)), edited_image=jpeg(picture(-number - 1 + 100)),
            edit_prompt=f"edit {number // 2}", target_caption="a cat", task=None, **texts)
        for number in range(count)
    ]  # fmt: skip


def test_the_files_are_those_of_the_original(tmp_path: Path):
    write_original(tmp_path / "a", photographs(6))
    folder = tmp_path / "a" / "0000001"
    seeds = [2**40 + 2, 2**40 + 3]
    pictures = {f"{seed}_{side}.jpg" for seed in seeds for side in (0, 1)}
    assert {path.name for path in folder.iterdir() if "mask" not in path.name} == {
        "prompt.json", "metadata.jsonl", *pictures
    }  # fmt: skip
    prompt = json.loads((folder / "prompt.json").read_text())
    assert {key: prompt[key] for key in ("input", "edit", "output")} == {
        "input": "a dog, 1", "edit": "edit 1", "output": "a cat"
    }  # fmt: skip
    lines = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    assert [set(line) for line in lines] == [
        {"seed", "p2p_threshold", "cfg_scale", "clip_sim_0", "clip_sim_1", "clip_sim_dir", "clip_sim_image"}
    ] * 2
    assert [line["seed"] for line in lines] == seeds


def test_the_list_of_seeds_is_what_the_original_would_make_of_the_tree(tmp_path: Path):
    """By its prepare_dataset.py: sorted by file name, so that 10 stands before 1."""
    same = {
        "edit_prompt": "x",
        "source_caption": "y",
        "target_caption": "z",
        "task": None,
        "unit": "u",
        "turn": 1,
    }
    write_original(tmp_path / "a", [*(row(seed, seed=seed, **same) for seed in (1, 10, 2)), *photographs(4)])
    listed = sorted(
        [folder.name, [path.name.split("_")[0] for path in sorted(folder.glob("*_0.jpg"))]]
        for folder in (tmp_path / "a").iterdir()
        if folder.is_dir()
    )
    assert json.loads((tmp_path / "a" / SEEDS).read_text()) == listed
    assert listed[0] == ["0000000", ["10", "1", "2"]]


def test_jpeg_rows_survive_the_round_trip_byte_for_byte(tmp_path: Path):
    data = [*photographs(6), row(9, input_image=jpeg(picture(1)), edited_image=jpeg(picture(2)), mask=None)]
    write_original(tmp_path / "a", data)
    assert list(read_original(tmp_path / "a")) == data
    again = tmp_path / "b"
    write_original(again, read_original(tmp_path / "a"))
    names = sorted(path.relative_to(again) for path in again.rglob("*") if path.is_file())
    assert names == sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*") if p.is_file())
    assert all((again / name).read_bytes() == (tmp_path / "a" / name).read_bytes() for name in names)


def test_other_rows_become_jpeg_of_quality_100_and_get_numbers_for_seeds(tmp_path: Path):
    write_original(tmp_path / "a", [bare(0), bare(0), bare(1)])
    found = list(read_original(tmp_path / "a"))
    assert [(r.unit, r.seed) for r in found] == [("0000000", 0), ("0000000", 1), ("0000001", 0)]
    for one, other in zip(found, (bare(0), bare(0), bare(1)), strict=True):
        difference = np.asarray(decode(one.input_image), int) - np.asarray(decode(other.input_image), int)
        assert np.abs(difference).mean() < 8
    with Image.open(tmp_path / "a" / "0000000" / "0_0.jpg") as image:
        assert image.format == "JPEG" and max(image.quantization[0]) == 1  # pyright: ignore


def test_data_of_the_original_without_our_keys(tmp_path: Path):
    """Generated prompts have "caption" and "url"; metadata may be missing; the best pair comes first."""
    folder = tmp_path / "0000042"
    folder.mkdir()
    for seed in ("5", "40"):
        for side in (0, 1):
            (folder / f"{seed}_{side}.jpg").write_bytes(jpeg(picture(side)))
    prompt = {"caption": "a", "edit": "b", "output": "c", "url": "http://"}
    (folder / "prompt.json").write_text(json.dumps(prompt))
    (tmp_path / SEEDS).write_text(json.dumps([["0000042", ["40", "5"]]]))
    found = list(read_original(tmp_path))
    assert [(r.source_caption, r.edit_prompt, r.target_caption, r.seed) for r in found] == [
        ("a", "b", "c", 40), ("a", "b", "c", 5)
    ]  # fmt: skip
    metadata = [
        {"seed": 5, "cfg_scale": 9, "clip_sim_dir": 0.4},
        {"seed": 40, "p2p_threshold": 0.5},
        {"seed": 7},
    ]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in metadata))
    found = list(read_original(tmp_path))
    assert [(r.seed, r.guidance_scale, r.clip_sim_dir, r.p2p_threshold) for r in found] == [
        (5, 9.0, 0.4, None), (40, None, None, 0.5)
    ]  # fmt: skip


def test_two_rows_of_one_seed_are_refused(tmp_path: Path):
    with pytest.raises(DataError, match="have the seed 1"):
        write_original(
            tmp_path / "a", rows(2, seed=1, edit_prompt="x", target_caption="y", task="add", turn=1)
        )


def test_a_picture_that_cannot_be_encoded_is_named(tmp_path: Path):
    with pytest.raises(DataError, match="'make it 1', seed 5: .*not a picture"):
        write_original(tmp_path / "a", [row(1, seed=5, edited_image=b"junk")])


def test_damage_is_one_line(tmp_path: Path):
    write_original(tmp_path / "whole", photographs(4))
    changes = {
        SEEDS: ["{", "{}", '[["../elsewhere", ["1"]]]', '[["0000000", ["../../1"]]]', "[3]", "[[[], []]]"],
        "0000001/prompt.json": ["[]", "{}", '{"edit": 3}', None],
        "0000001/metadata.jsonl": ["3", "{", '{"seed": 1099511627778, "cfg_scale": "x"}'],
        f"0000001/{2**40 + 2}_1.jpg": [None],
    }
    for name, texts in changes.items():
        for text in texts:
            shutil.copytree(tmp_path / "whole", tmp_path / "a")
            (tmp_path / "a" / name).unlink()
            if text is not None:
                (tmp_path / "a" / name).write_text(text)
            with pytest.raises(DataError, match=str(tmp_path)) as caught:
                list(read_original(tmp_path / "a"))
            assert "\n" not in str(caught.value), (name, text)
            shutil.rmtree(tmp_path / "a")
