"""The seed set: well formed, varied, without repetition, and as its datasheet says."""

import json
import re
from collections import Counter
from collections.abc import Iterator
from difflib import SequenceMatcher
from itertools import combinations
from pathlib import Path
from statistics import median, quantiles

import pytest

from wordbrush.datagen.captions import CaptionFilter
from wordbrush.datagen.checks import TextDuplicates, row_flaw
from wordbrush.triplets import Caption, normalise, read_triplets

DATA = Path(__file__).parents[2] / "data"
FILE, SHEET = DATA / "seed_triplets.jsonl", DATA / "README.md"
ROWS = read_triplets(FILE)
CAPTIONS, EDITS = [row.caption for row in ROWS], [row.edit for row in ROWS]


def words(text: str) -> list[str]:
    return re.findall(r"[\w']+", text.lower())


# Words that say nothing of what a picture shows.
EMPTY = set(words("a an and as at by for from her his in into is it its of on or that the their to with"))
# Some brands and characters that captions of the web are full of; those that are used like words above all.
OWNED = (
    "adidas", "airbus", "barbie", "batman", "bmw", "boeing", "cadillac", "chanel", "chevrolet", "coca-cola",
    "corvette", "crayola", "disney", "facebook", "ferrari", "formica", "frisbee", "godzilla", "google",
    "gucci", "guinness", "harley", "harry potter", "hello kitty", "hobbit", "hoover", "ikea", "instagram",
    "iphone", "jacuzzi", "jeep", "kodak", "land rover", "lego", "leica", "marvel", "mcdonald's", "mercedes",
    "mickey", "netflix", "nike", "nikon", "nintendo", "nutella", "oreo", "pepsi", "photoshop", "pixar",
    "playmobil", "playstation", "pokemon", "polaroid", "porsche", "rolex", "simpsons", "snoopy",
    "spider-?man", "star wars", "starbucks", "superman", "tesla", "thermos", "toyota", "tupperware",
    "velcro", "vespa", "volkswagen",
)  # fmt: skip
# Words whose sound and spelling disagree about "a" and "an".
CONSONANT_SOUND, VOWEL_SOUND = ("uni", "use", "ute", "one", "eu"), ("hour", "heir", "honest", "x-", "18", "8")


def telling(text: str) -> set[str]:
    return set(words(text)) - EMPTY


def stems(some: set[str]) -> set[str]:
    """Rough ones: smile and smiling, carve and carving, but not knit and crochet."""
    return {word[:4] for word in some}


def opening(edit: str, num_words: int) -> str:
    return " ".join(words(edit)[:num_words])


def test_every_line_is_the_original_schema():
    lines = FILE.read_bytes().decode().split("\n")
    assert lines.pop() == ""
    for line in lines:
        row = json.loads(line)
        assert list(row) == ["input", "edit", "output"]
        assert line == json.dumps(row, ensure_ascii=False)
        for text in row.values():
            assert isinstance(text, str) and text.isprintable()
            assert text == " ".join(text.split())


def test_there_are_seven_hundred():
    assert len(ROWS) == 700


def test_rows_pass_the_checks_that_generated_rows_must_pass():
    """Well formed, harmless and changed, one by one; then no two alike, far below the engine's threshold."""
    assert {row.caption: row_flaw(row) for row in ROWS if row_flaw(row)} == {}
    assert set(TextDuplicates(threshold=0.5).add(ROWS)) == {None}


def test_captions_pass_the_filter_that_captions_of_the_web_must_pass():
    """But for those of one word, and one that ends in "free shipping", as captions of shops do."""
    accepted = CaptionFilter("en")
    kept = {caption.text for caption in accepted(Caption(text=text) for text in CAPTIONS)}
    dropped = [text for text in CAPTIONS if text not in kept]
    assert accepted.counts == {"kept": 693, "few words": 6, "price or offer": 1}
    assert sorted(len(text.split()) == 1 for text in dropped) == [False] + [True] * 6


@pytest.mark.parametrize("name", ["seed_triplets", "task_exemplars", "task_instructions"])
def test_no_row_names_a_brand_or_a_character_that_someone_owns(name: str):
    text = (DATA / f"{name}.jsonl").read_text(encoding="utf-8")
    assert re.findall(rf"\b(?:{'|'.join(OWNED)})s?\b", text, re.IGNORECASE) == []


@pytest.mark.parametrize(
    "texts", [CAPTIONS, EDITS, [row.output for row in ROWS]], ids=["caption", "edit", "output"]
)
def test_nothing_is_there_twice(texts: list[str]):
    assert [text for text, count in Counter(map(normalise, texts)).items() if count > 1] == []


@pytest.mark.parametrize(("texts", "most"), [(CAPTIONS, 0.4), (EDITS, 0.6)], ids=["caption", "edit"])
def test_no_two_share_most_of_their_words(texts: list[str], most: float):
    """Jaccard's overlap of the words that tell something."""
    pairs = combinations([(text, telling(text)) for text in texts], 2)
    assert [(a, b) for (a, x), (b, y) in pairs if len(x & y) > most * len(x | y)] == []


def test_each_change_is_in_the_words():
    """Not in their order, spelling or punctuation alone."""
    assert [row.edit for row in ROWS if telling(row.caption) == telling(row.output)] == []


def test_each_change_leaves_something():
    assert [row.edit for row in ROWS if not stems(telling(row.caption)) & stems(telling(row.output))] == []


def test_most_edits_name_what_changes():
    """Few say it in other words altogether ("shave him": clean-shaven does not begin like shave)."""
    named = [stems(telling(row.caption) ^ telling(row.output)) & stems(telling(row.edit)) for row in ROWS]
    assert sum(map(bool, named)) >= 0.9 * len(ROWS)


def test_most_words_stay_where_they_were():
    """Prompt-to-Prompt wants two captions that differ where the pictures shall differ."""
    kept = [SequenceMatcher(None, words(row.caption), words(row.output), False).ratio() for row in ROWS]
    assert median(kept) >= 0.75
    assert sum(ratio >= 0.5 for ratio in kept) >= 0.9 * len(ROWS)


def test_edits_are_worded_in_many_ways():
    assert len(set(map(normalise, EDITS))) >= 500
    (_, first), (_, two) = (Counter(opening(edit, n) for edit in EDITS).most_common(1)[0] for n in (1, 2))
    assert first <= 0.08 * len(EDITS)
    assert two <= 0.03 * len(EDITS)
    assert len({opening(edit, 1) for edit in EDITS}) >= 300
    assert len({opening(edit, 2) for edit in EDITS}) >= 500


def test_captions_are_of_many_lengths_and_words():
    lengths = [len(text.split()) for text in CAPTIONS]
    assert 7 <= median(lengths) <= 12
    assert min(lengths) <= 2 and quantiles(lengths, n=20)[0] <= 4 and quantiles(lengths, n=20)[-1] >= 20
    assert len(set().union(*map(words, CAPTIONS))) >= 2500
    assert max(Counter(opening(text, 1) for text in CAPTIONS).values()) <= 0.04 * len(CAPTIONS)


def test_articles():
    def wrong(text: str) -> Iterator[str]:
        for article, word in re.findall(r"\b(an?) ([\w-]+)", text.lower()):
            vowel = (
                word.startswith(VOWEL_SOUND) or word[0] in "aeiou" and not word.startswith(CONSONANT_SOUND)
            )
            if (article == "an") != vowel:
                yield f"{article} {word}"

    texts = [text for row in ROWS for text in (row.caption, row.edit, row.output)]
    assert [found for text in texts for found in wrong(text)] == []


def listed(heading: str) -> dict[str, list[int]]:
    """A block of the datasheet, "label: 1, 2, 3" where lines may go on indented: label -> numbers of rows."""
    block = re.search(rf"^{heading}\n+```\n(.*?)\n```", SHEET.read_text(encoding="utf-8"), re.M | re.S)
    assert block, heading
    lines = re.sub(r"\n +", " ", block[1]).splitlines()
    pairs = (line.split(": ") for line in lines)
    return {label: [int(number) for number in numbers.split(", ")] for label, numbers in pairs}


@pytest.mark.parametrize("heading", ["Rows by subject:", "Rows by kind of edit:"])
def test_the_datasheet_files_each_row_once_and_counts_right(heading: str):
    groups = listed(heading)
    assert sorted(sum(groups.values(), [])) == list(range(1, len(ROWS) + 1))
    cells = re.findall(r"^\| ([^|]+) \| (\d+) \| ([^|]+) \|$", SHEET.read_text(encoding="utf-8"), re.M)
    table = {label: (int(count), example) for label, count, example in cells}
    for label, numbers in groups.items():
        count, example = table[label]
        assert count == len(numbers)
        assert example in [text for n in numbers for text in (ROWS[n - 1].caption, ROWS[n - 1].edit)]


def test_the_datasheet_gives_the_figures_that_are_measured():
    def spread(texts: list[str]) -> str:
        twentieths = quantiles((len(text.split()) for text in texts), n=20, method="inclusive")
        return f"{twentieths[0]:.0f} / {twentieths[9]:.0f} / {twentieths[18]:.0f}"

    two, count = Counter(opening(edit, 2) for edit in EDITS).most_common(1)[0]
    figures = {
        "rows": f"{len(ROWS)}",
        "different captions": f"{len(set(map(normalise, CAPTIONS)))}",
        "different instructions": f"{len(set(map(normalise, EDITS)))}",
        "words of a caption (5 % / median / 95 %)": spread(CAPTIONS),
        "words of an instruction (5 % / median / 95 %)": spread(EDITS),
        "different first two words of an instruction": f"{len({opening(edit, 2) for edit in EDITS})}",
        "most frequent first two words": f"{two}: {count} rows",
    }
    sheet = SHEET.read_text(encoding="utf-8")
    assert [
        f"| {name} | {value} |" for name, value in figures.items() if f"| {name} | {value} |" not in sheet
    ] == []
