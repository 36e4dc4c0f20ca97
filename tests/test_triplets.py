from pathlib import Path

import pytest

from wordbrush.errors import UsageError
from wordbrush.triplets import (
    GroundedEdit,
    Triplet,
    WrittenEdit,
    completion,
    normalise,
    parse_completion,
    prompt,
    read_triplets,
    write_triplets,
)

ROW = Triplet(caption="a dog", edit="make it a cat", output="a cat", url="http://x/1.jpg")


def test_the_text_is_the_papers():
    assert prompt("a dog") == "a dog\n##\n"
    assert completion(ROW) == "make it a cat\n%%\na cat\nEND"


def test_a_completion_reads_back():
    written = WrittenEdit(edit="make it a cat", output="a cat")
    assert parse_completion(completion(ROW)) == written
    assert parse_completion(completion(ROW) + " and more\n%%\nof it") == written


def test_with_a_task_the_answer_says_what_it_is_about():
    row = ROW.model_copy(update={"task": "local", "original": "dog", "edited": "cat"})
    assert prompt(row.caption, row.task) == "local: a dog\n##\n"
    assert completion(row) == "make it a cat\n%%\ndog\n%%\ncat\n%%\na cat\nEND"
    written = GroundedEdit(edit="make it a cat", original="dog", edited="cat", output="a cat")
    assert parse_completion(completion(row)) == written


@pytest.mark.parametrize(
    "text", ["", "make it a cat\nEND", "a\n%%\nb\n%%\nc\nEND", "make it a cat\n%%\na cat", "a %% b\nEND"]
)
def test_what_is_not_two_parts_and_an_end_is_none(text: str):
    assert parse_completion(text) is None


def test_keys_of_people_and_of_generators_are_read(tmp_path: Path):
    file = tmp_path / "rows.jsonl"
    file.write_text(
        '\ufeff{"input": "a dog", "edit": "make it a cat ", "output": "a cat", "topic": "animals"}\n\n'
        '{"caption": "a dog", "edit": "make it a cat", "output": "a cat", "url": "http://x/1.jpg"}\n'
    )
    assert read_triplets(file) == [ROW.model_copy(update={"url": ""}), ROW]


def test_rows_are_written_with_generated_keys_and_read_back(tmp_path: Path):
    file = tmp_path / "rows.jsonl"
    rows = [ROW, Triplet(caption="ein Hund 犬", edit='say "hi"', output="line\u2028separator")]
    write_triplets(file, rows)
    assert read_triplets(file) == rows
    line = file.read_text().splitlines()[0]
    assert line == '{"caption":"a dog","edit":"make it a cat","output":"a cat","url":"http://x/1.jpg"}'


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"input": "a dog", "edit": "x"}', "line 2: output"),
        ('{"input": 3, "edit": "x", "output": "y"}', "line 2: input"),
        ("not json", "line 2: row"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, said: str):
    file = tmp_path / "rows.jsonl"
    file.write_text(ROW.model_dump_json() + "\n" + line + "\n")
    with pytest.raises(UsageError, match=said):
        read_triplets(file)


def test_a_missing_file_is_one_clear_error(tmp_path: Path):
    with pytest.raises(UsageError, match=r"none\.jsonl"):
        read_triplets(tmp_path / "none.jsonl")


def test_normalised_texts_differ_in_more_than_looks():
    assert normalise("  A  dog.") == normalise("a dog!") == "a dog"
    assert normalise("a dog, running") != normalise("a dog running")
