"""Reasons to reject rows, on plain cases, on the storybook's rows, and by their invariances."""

import io
from collections.abc import Sequence

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from wordbrush.datagen.checks import (
    MAX_CHARS,
    UNSAFE_WORDS,
    ImageDuplicates,
    TextDuplicates,
    Vectors,
    difference_hash,
    hashed_ngrams,
    malformed,
    row_flaw,
    unchanged,
    unsafe,
)
from wordbrush.training.instruction_writer import storybook_triplet
from wordbrush.triplets import Triplet


def row(caption: str, edit: str, output: str) -> Triplet:
    return Triplet(caption=caption, edit=edit, output=output)


@pytest.mark.parametrize(
    "text", ["", "...", "two\nlines", "a\u2028b", "a ## b", "a %% b", "x" * (MAX_CHARS + 1)]
)
def test_malformed_texts(text: str):
    assert (malformed(text) or "").startswith("malformed")


@pytest.mark.parametrize("text", ["a dog", "犬", "#1 fan, 100% cotton", "x" * MAX_CHARS])
def test_texts_that_are_not_malformed(text: str):
    assert malformed(text) is None


@pytest.mark.parametrize("word", UNSAFE_WORDS)
def test_unsafe_words_count_in_any_case_but_only_whole(word: str):
    assert unsafe("fine", f"A {word.upper()}, painted") == f"unsafe: {word}"
    assert unsafe(f"un{word}s", f"{word}ish", f"{word}_") is None


@pytest.mark.parametrize("text", ["Sussex downs", "Edward Gorey", "a sextant", "grape harvest", "Nudelsuppe"])
def test_harmless_words_with_unsafe_ones_inside(text: str):
    assert unsafe(text) is None


@pytest.mark.parametrize(
    ("task", "original", "edited", "reason"),
    [
        ("", "", "", None),
        ("local", "dog", "cat", None),
        ("local", "Small dog.", "small cat", None),
        ("local", "", "cat", "ungrounded: the original object is not in the caption"),
        ("local", "dog", "bird", "ungrounded: the edited object is not in the caption"),
        ("remove", "dog", "", None),
        ("remove", "cow", "", "ungrounded: the original object is not in the caption"),
        ("add", "", "cat", None),
        ("global", "", "", None),
        ("cook", "dog", "cat", "malformed: no task"),
    ],
)
def test_a_row_of_a_task_names_what_it_is_about(task: str, original: str, edited: str, reason: str | None):
    found = DOG.model_copy(update={"task": task, "original": original, "edited": edited})
    assert row_flaw(found) == reason


def test_unchanged_is_judged_without_looks():
    assert unchanged(row("A dog.", "make it nicer", "a  dog"))
    assert unchanged(row("a dog", "make it a cat", "a cat")) is None


@pytest.mark.parametrize(
    ("flawed", "reason"),
    [
        (row("a dog", "", "a cat"), "malformed"),
        (row("a dog", "make it a nude", "a nude"), "unsafe"),
        (row("a dog", "make it a dog", "a dog"), "unchanged"),
    ],
)
def test_a_row_gets_its_reason(flawed: Triplet, reason: str):
    assert (row_flaw(flawed) or "").startswith(reason)


def test_no_storybook_row_is_flawed_and_few_are_near_duplicates():
    rows = [storybook_triplet(i) for i in range(300)]
    assert not any(map(row_flaw, rows))
    reasons = TextDuplicates().add(rows)
    assert sum(reason is not None for reason in reasons) <= 3


DOG = row(
    "a small dog on a long sandy beach at noon", "make it a cat", "a small cat on a long sandy beach at noon"
)


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (row(f" {DOG.caption.upper()}.", "Make it a cat!", DOG.output), "the same texts"),
        (
            row(DOG.caption.replace("a long", "the long"), "make it a cat", DOG.output),
            "nearly the same texts",
        ),
        (row(DOG.caption, "make it a fox", DOG.output.replace("cat", "fox")), None),
        (row("a dog in a forest", "make it a cat", "a cat in a forest"), None),
    ],
)
def test_repeated_texts(other: Triplet, reason: str | None):
    assert TextDuplicates().add([DOG, other]) == [None, reason and f"duplicate: {reason}"]


def test_a_long_caption_may_have_edits_that_differ_in_a_word():
    caption = (
        "a woman with a hat on her head stands " + "beside a very long and winding river " * 3 + "at dawn"
    )
    red, blue = (
        row(caption, f"make the hat {colour}", caption.replace("a hat", f"a {colour} hat"))
        for colour in ("red", "blue")
    )
    likeness = [hashed_ngrams([a, b]) for a, b in ((red.output, blue.output), (red.edit, blue.edit))]
    output, edit = (float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)) for a, b in likeness)
    assert (2 * output + edit) / 3 < 1 and (1 + output + edit) / 3 > 0.9  # most of it is alike
    assert TextDuplicates(threshold=0.9).add([red, blue, red]) == [None, None, "duplicate: the same texts"]


def test_reasons_do_not_depend_on_how_rows_are_handed_over():
    rows = [storybook_triplet(i % 290) for i in range(300)]
    rows += [row(r.caption + " now", r.edit, r.output + " now") for r in rows[:40]]
    at_once, one_by_one = TextDuplicates(), TextDuplicates()
    reasons = at_once.add(rows)
    assert reasons == [reason for r in rows for reason in one_by_one.add([r])]
    assert reasons[290:300] == ["duplicate: the same texts"] * 10 and any("nearly" in r for r in reasons if r)


def test_a_rejected_row_shadows_no_other():
    near = row(DOG.caption.replace("a long", "the long"), DOG.edit, DOG.output)
    duplicates = TextDuplicates()
    assert [reason is None for reason in duplicates.add([DOG, near, near])] == [True, False, False]
    assert TextDuplicates().add([near, near]) == [None, "duplicate: the same texts"]


def test_any_embedding_can_tell_what_is_alike():
    def counts_vowels(texts: Sequence[str]) -> Vectors:
        return np.array([[text.count(vowel) for vowel in "aeiou"] for text in texts], dtype=np.float32)

    anagram = row(
        "a tall god on a nosy sandy beach am noon",
        "make it a tac",
        "a tall tac on a nosy sandy beach am noon",
    )
    assert TextDuplicates().add([DOG, anagram])[1] is None
    assert TextDuplicates(counts_vowels).add([DOG, anagram])[1] == "duplicate: nearly the same texts"
    assert TextDuplicates(counts_vowels, threshold=1.01).add([DOG, anagram])[1] is None


def test_the_cosine_of_hashed_ngrams_follows_likeness():
    vectors = hashed_ngrams(
        ["a dog on a beach", "A dog on a beach.", "a dog on the beach", "oil painting, 1890"]
    )
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    same, near, far = (unit @ unit[0])[1:]
    assert same == pytest.approx(1) and 0.6 < near < 0.95 and abs(far) < 0.3


def noise(seed: int, size: tuple[int, int] = (96, 64)) -> Image.Image:
    small = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


def distance(one: Image.Image, two: Image.Image) -> int:
    return (difference_hash(one) ^ difference_hash(two)).bit_count()


def jpeg(image: Image.Image) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=60)
    return Image.open(buffer)


def test_the_hash_is_64_bits_of_rising_and_falling():
    rising = Image.linear_gradient("L").rotate(90)
    assert {difference_hash(rising), difference_hash(rising.rotate(180))} == {0, 2**64 - 1}


@pytest.mark.parametrize("seed", range(5))
def test_the_hash_survives_scaling_compression_and_light(seed: int):
    picture = noise(seed)
    for copy in (noise(seed, (288, 192)), jpeg(picture), ImageEnhance.Brightness(picture).enhance(0.8)):
        assert distance(picture, copy) <= 2
    assert distance(picture, noise(seed + 100)) > 12


def test_repeated_pictures_are_found_only_where_all_of_a_row_repeat():
    duplicates = ImageDuplicates()
    assert duplicates.add(noise(0), noise(1)) is None
    assert duplicates.add(noise(0), noise(2)) is None
    assert duplicates.add(noise(1), noise(0)) is None
    assert duplicates.add(jpeg(noise(0)), jpeg(noise(1))) == "duplicate: nearly the same pictures"
    assert [duplicates.add(noise(i), noise(i + 500)) for i in range(10, 200)] == [None] * 190
    assert duplicates.add(noise(150), noise(650)) == "duplicate: nearly the same pictures"
