"""Captions from real files through `datasets`, the filter's reasons, and the storybook's captions."""

import json
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from wordbrush.datagen.captions import CaptionFilter, read_captions, storybook_captions
from wordbrush.datagen.checks import flaw
from wordbrush.errors import UsageError
from wordbrush.triplets import Caption

ROWS = [
    {"caption": "a dog on a beach", "url": "http://x/1.jpg"},
    {"caption": "Mont Blanc,  winter\tmorning", "url": None},
    {"caption": "犬と海", "url": "http://x/3.jpg"},
]
CAPTIONS = [
    Caption(text="a dog on a beach", url="http://x/1.jpg"),
    Caption(text="Mont Blanc, winter morning"),
    Caption(text="犬と海", url="http://x/3.jpg"),
]


def write_jsonl(path: Path, rows: list[dict[str, str | None]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_jsonl_and_parquet_and_a_folder_of_it_hold_the_same(tmp_path: Path):
    folder = tmp_path / "folder"
    folder.mkdir()
    pq.write_table(pa.Table.from_pylist(ROWS), folder / "train.parquet")
    for source in (write_jsonl(tmp_path / "rows.jsonl", ROWS), folder / "train.parquet", folder):
        assert list(read_captions(source)) == CAPTIONS, source


def test_text_has_one_caption_a_line(tmp_path: Path):
    file = tmp_path / "captions.txt"
    file.write_text("".join(f"{row['caption']}\n" for row in ROWS), encoding="utf-8")
    assert list(read_captions(file)) == [Caption(text=caption.text) for caption in CAPTIONS]


def test_the_columns_of_web_data_are_found_and_any_can_be_named(tmp_path: Path):
    rows: list[dict[str, str | None]] = [{"URL": "http://x", "TEXT": "a dog", "alt": "a cat"}]
    file = write_jsonl(tmp_path / "rows.jsonl", rows)
    assert list(read_captions(file)) == [Caption(text="a dog", url="http://x")]
    assert list(read_captions(file, column="alt")) == [Caption(text="a cat", url="http://x")]
    with pytest.raises(UsageError, match=r"no column title but URL, TEXT, alt"):
        next(read_captions(file, column="title"))


def test_large_files_are_streamed(tmp_path: Path):
    file = tmp_path / "rows.jsonl"
    with file.open("w") as out:
        out.writelines(
            json.dumps({"caption": f"dog {i} " + "on a beach " * 50_000}) + "\n" for i in range(30)
        )
        out.write("{broken\n")  # 16 MB from the start: not in the block that is read first
    captions = read_captions(file)
    assert next(captions).text.startswith("dog 0 on a beach")
    with pytest.raises(UsageError, match=r"cannot read captions from .*rows\.jsonl"):
        list(captions)


@pytest.mark.parametrize("source", ["nobody/has-this-data-set", "missing.jsonl", "missing.parquet"])
def test_what_is_not_there_is_one_line(source: str):
    with pytest.raises(UsageError, match=source) as caught:
        next(read_captions(source))
    assert "\n" not in str(caught.value)


def test_the_filter_counts_its_reasons():
    texts = [
        ("a dog on a beach", "u1"),
        ("A dog on a beach.", "u2"),
        ("a cat on a beach", "u1"),
        ("a cat on a beach", ""),
        ("a fox", ""),
        ("Leuchtturm in der Abenddämmerung", ""),
        ("a nude on a beach", ""),
        ("ox", ""),
        ("dogs and " * 50, ""),
    ]
    keep = CaptionFilter()
    kept = list(keep(Caption(text=text, url=url) for text, url in texts))
    assert [caption.text for caption in kept] == ["a dog on a beach", "a cat on a beach", "a fox"]
    assert keep.counts == {
        "kept": 3, "repeated caption": 1, "repeated URL": 1, "other language": 1, "unsafe": 1, "too short": 1,
        "too long": 1,
    }  # fmt: skip


ENGLISH = [
    "Portrait of a woman with red hair", "Sunset in Santorini, Greece", "Mona Lisa by Leonardo da Vinci",
    "Vintage Chevrolet Corvette 1963 Stingray", "New York City skyline at night canvas print", "Mount Fuji",
    "Fantasy castle concept art by Greg Rutkowski", "Hollywood Cemetery, Richmond, Virginia",
]  # fmt: skip
OTHERS = {
    "fr": "Portrait d'une femme aux cheveux roux", "de": "Ein Hund am Strand", "es": "un perro en la playa",
    "ru": "девушка с рыжими волосами у окна", "zh": "海滩上的狗", "ja": "浜辺の犬",
    "it": "Un cane sulla spiaggia", "nl": "Zonsondergang boven de zee", "tr": "kedi ve köpek sahilde",
    "ar": "كلب على الشاطئ",
}  # fmt: skip


def test_the_language_of_captions_is_told():
    every = [Caption(text=text) for text in [*ENGLISH, *OTHERS.values()]]
    assert [caption.text for caption in CaptionFilter()(every)] == ENGLISH
    assert len(list(CaptionFilter(language=None)(every))) == len(every)


@pytest.mark.parametrize("language", OTHERS)
def test_other_languages_than_english_can_be_wanted(language: str):
    wanted = [text for text in OTHERS.values() if list(CaptionFilter(language)([Caption(text=text)]))]
    assert OTHERS[language] in wanted and len(wanted) <= 2  # Dutch might be German


def test_an_unknown_language_is_refused():
    with pytest.raises(UsageError, match="'english'"):
        CaptionFilter("english")


def test_the_storybooks_captions_repeat_and_begin_anywhere():
    captions = list(islice(storybook_captions(), 40))
    assert list(islice(storybook_captions(start=10), 30)) == captions[10:]
    assert list(islice(storybook_captions("test"), 40)) != captions
    assert len({caption.text for caption in captions}) > 35
    assert not any(flaw(caption.text) for caption in captions)
