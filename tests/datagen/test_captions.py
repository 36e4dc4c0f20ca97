"""Captions from real files through `datasets`, the filter's reasons, and the storybook's captions."""

import gzip
import json
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from wordbrush.datagen.caption_text import noise, tidy
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


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
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


def test_other_formats_and_packed_files_hold_the_same(tmp_path: Path):
    (tmp_path / "rows.json").write_text(json.dumps(ROWS))
    lines = "".join(f'"{row["caption"]}",{row["url"] or ""}\n' for row in ROWS)
    (tmp_path / "rows.csv").write_text(f"caption,url\n{lines}", encoding="utf-8")
    jsonl = write_jsonl(tmp_path / "rows.jsonl", ROWS).read_bytes()
    (tmp_path / "packed.jsonl.gz").write_bytes(gzip.compress(jsonl))
    for name in ("rows.json", "rows.csv", "packed.jsonl.gz"):
        assert list(read_captions(tmp_path / name)) == CAPTIONS, name
    (tmp_path / "packed.txt.gz").write_bytes(gzip.compress(b"a dog on a beach\na red car\n"))
    assert [c.text for c in read_captions(tmp_path / "packed.txt.gz")] == ["a dog on a beach", "a red car"]


@pytest.mark.parametrize("name", ["captions.tsv", "captions", "captions.gz", "captions.jsonl.zst"])
def test_a_file_of_no_known_format_is_not_taken_for_a_hub_id(tmp_path: Path, name: str):
    (tmp_path / name).write_text("a dog on a beach\n")
    with pytest.raises(UsageError, match=r"\.txt, \.csv, \.json, \.jsonl, \.parquet"):
        next(read_captions(tmp_path / name))


def test_of_a_list_of_captions_the_first_is_taken(tmp_path: Path):
    rows = [{"caption": ["a dog", "the dog"]}, {"caption": []}, {"caption": None}]
    captions = read_captions(write_jsonl(tmp_path / "rows.jsonl", rows))
    assert [caption.text for caption in captions] == ["a dog", "", ""]


@pytest.mark.parametrize("value", [7, 0.5, True, {"en": "a dog"}, [["a dog"]]])
def test_what_is_no_text_is_refused_with_its_column(tmp_path: Path, value: Any):
    file = write_jsonl(tmp_path / "rows.jsonl", [{"caption": value, "alt": "a dog"}])
    with pytest.raises(UsageError, match=r"column caption holds \w+, not text"):
        next(read_captions(file))
    assert next(read_captions(file, column="alt")).text == "a dog"


def test_captions_can_be_shuffled_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    texts = [f"a dog {number}" for number in range(2000)]
    file = write_jsonl(tmp_path / "rows.jsonl", [{"caption": text} for text in texts])
    first, again, other = (
        [caption.text for caption in read_captions(file, shuffle_seed=seed)] for seed in (0, 0, 1)
    )
    assert first == again != other
    assert sorted(first) == sorted(texts)
    drawn = sorted(int(text.split()[-1]) for text in first[:100])
    assert drawn[0] < 200 and drawn[-1] > 1800  # from the whole file, not from its beginning


def test_the_columns_of_web_data_are_found_and_any_can_be_named(tmp_path: Path):
    rows = [{"URL": "http://x", "TEXT": "a dog", "alt": "a cat"}]
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


@pytest.mark.parametrize(
    ("text", "tidied"),
    [
        ("Women&#39;s hat &amp;amp; scarf", "Women's hat & scarf"),
        ("<b>red</b>&nbsp;car<br/>on a road", "red car on a road"),
        ("&lt;p class=x&gt;a dog&lt;/p&gt;", "a dog"),
        ("\uff21 \uff44\uff4f\uff47", "A dog"),
        ("a \ufb01sh\u200b in\ufeff a po\u00adnd\x00", "a fish in a pond"),
        (" a\tdog\r\non\u2003a\x85beach ", "a dog on a beach"),
        ("3 < 4 and 5 > 4", "3 < 4 and 5 > 4"),
    ],
)
def test_texts_are_tidied(text: str, tidied: str):
    assert tidy(text) == tidied == tidy(tidied)


@pytest.mark.parametrize(
    ("reason", "texts"),
    [
        ("address", ["see http://x.org/1", "a dog www.dogs.de", "write to me@dogs.co", "dog from Dogs.com"]),
        ("file name", ["IMG_2034.jpg", "my dog (2).JPEG", "holiday video.mp4 of dogs"]),
        ("price or offer", ["blue hat $12.99", "red hat 12 €", "50% off hats", "a hat, FREE SHIPPING"]),
        ("few words", ["12345", "!!!!", "dog", "DSC_0034", "IMG_2034 1920x1080", "狗", "कुत्ता", "собака"]),
        (
            None,
            ["a fox", "Corvette Stingray 1963", "3D render", "St. Petersburg", "dollar sign $", "кот и кит"],
        ),
        (None, ["海滩上的狗", "海狗", "浜辺の犬", "หมาบนชายหาด", "समुद्र पर कुत्ता"]),
    ],
)
def test_noise_has_a_name(reason: str | None, texts: list[str]):
    assert {text: noise(text) for text in texts} == dict.fromkeys(texts, reason)


def test_what_hides_in_a_text_is_seen(tmp_path: Path):
    rows = [
        {"caption": text}
        for text in (
            "a dog on a beach",
            "\uff41 dog on a beach",
            "a d\u200bog on a beach",
            "a n\u00adude on a beach",
        )
    ]
    keep = CaptionFilter()
    list(keep(read_captions(write_jsonl(tmp_path / "rows.jsonl", rows))))
    assert keep.counts == {"kept": 1, "repeated caption": 2, "unsafe": 1}


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
        ("a dog at http://x.org", ""),
        ("a dog.jpg", ""),
        ("a dog for $5", ""),
        ("Havana", ""),
    ]
    keep = CaptionFilter()
    kept = list(keep(Caption(text=text, url=url) for text, url in texts))
    assert [caption.text for caption in kept] == ["a dog on a beach", "a cat on a beach", "a fox"]
    assert keep.counts == {
        "kept": 3, "repeated caption": 1, "repeated URL": 1, "other language": 1, "unsafe": 1, "too short": 1,
        "too long": 1, "address": 1, "file name": 1, "price or offer": 1, "few words": 1,
    }  # fmt: skip
    narrow = CaptionFilter(min_chars=7, max_chars=15)
    assert not list(narrow(Caption(text=text) for text in ("a fox", "a dog on a beach")))
    assert narrow.counts == {"too short": 1, "too long": 1}


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
