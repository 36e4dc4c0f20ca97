"""What a language model is told, and the examples of each task."""

import random
from collections import Counter
from pathlib import Path

from wordbrush.datagen.checks import TextDuplicates, row_flaw
from wordbrush.datagen.prompts import VERBS, system_prompt, vary_verb
from wordbrush.storybook.edits import WEIGHTS, draw_edit
from wordbrush.storybook.scenes import scene_rng
from wordbrush.tasks import TASKS
from wordbrush.triplets import Triplet, normalise, read_triplets

ROWS = read_triplets(Path(__file__).parents[2] / "data" / "task_exemplars.jsonl")


def test_every_task_has_a_prompt_of_its_own():
    prompts = {task: system_prompt(task) for task in ("", *TASKS)}
    assert len(set(prompts.values())) == len(TASKS) + 1
    assert "stays as it is" in prompts["background"] and "is changed" in prompts["local"]
    assert "`original`, an empty text" in prompts["add"] and "`edited`, an empty text" in prompts["remove"]


def test_a_verb_becomes_another_of_its_kind():
    random_verbs = random.Random(0)
    found = {vary_verb("Remove the dog", random_verbs) for _ in range(100)}
    assert found == {f"{verb.capitalize()} the dog" for verb in VERBS[1]}
    assert {vary_verb("paint it red", random_verbs) for _ in range(10)} == {"paint it red"}
    assert {vary_verb("adder in the grass", random_verbs) for _ in range(10)} == {"adder in the grass"}


def test_the_examples_of_tasks_are_sound_and_even():
    assert [row_flaw(row) for row in ROWS] == [None] * len(ROWS)
    assert TextDuplicates().add(ROWS) == [None] * len(ROWS)
    counts = Counter(row.task for row in ROWS)
    assert set(counts.values()) == {8} and set(counts) <= set(TASKS)
    assert all(task in counts for task, known in TASKS.items() if known.group != "vision")
    for row in ROWS:
        assert bool(row.original) == ("original" in TASKS[row.task].objects)
        assert bool(row.edited) == ("edited" in TASKS[row.task].objects)


def _draw(operation: str, number: int) -> Triplet:
    return draw_edit(scene_rng("train", number), operation=operation).triplet


def test_the_storybooks_own_edits_say_what_they_are_about():
    for number, operation in enumerate(WEIGHTS):
        drawn = [_draw(operation, 100 * number + n) for n in range(30)]
        sound = [row for row in drawn if normalise(row.caption) != normalise(row.output)]
        assert [row_flaw(row) for row in sound] == [None] * len(sound), operation
