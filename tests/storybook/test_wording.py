import re

import numpy as np
import pytest

from wordbrush.storybook.catalogue import THING, THINGS
from wordbrush.storybook.edits import WEIGHTS, draw_edit
from wordbrush.storybook.scenes import Item, Scene, Split, scene_rng
from wordbrush.storybook.wording import PHRASINGS, SYNONYMS, article, caption, noun, phrase, phrasings, short


@pytest.mark.parametrize("operation", PHRASINGS)
def test_no_phrasing_is_both_trained_on_and_tested_on(operation: str):
    train, test = phrasings(operation, "train"), phrasings(operation, "test")
    assert train and test and not set(train) & set(test)
    assert set(train) | set(test) == set(PHRASINGS[operation])


def test_instructions_of_the_splits_are_never_phrased_alike():
    """Also as filled in: the words around the blanks, not only the templates."""
    for operation in WEIGHTS:
        train = {draw_edit(scene_rng("train", n), operation=operation).instruction.lower() for n in range(60)}
        test = {
            draw_edit(scene_rng("test", n), "test", operation=operation).instruction.lower()
            for n in range(60)
        }
        assert not train & test, operation


def test_a_phrase_is_of_its_split():
    rng = np.random.default_rng(0)
    for _ in range(30):
        assert phrase(rng, "night", "test").lower() in phrasings("night", "test")


def test_captions_name_everything_that_is_not_hidden():
    items = (Item("car", "left", colour="blue"), Item("man", "right", variant="kneeling", size="large"))
    scene = Scene("beach", items, time="night", weather="rain", style="pencil")
    expected = "a blue car and a large kneeling man on a beach at night in the rain, pencil sketch"
    assert caption(scene) == expected


def test_captions_count_equal_things_and_tell_an_empty_place():
    three = tuple(Item("mouse", slot) for slot in ("left", "middle", "right"))
    assert caption(Scene("snow", three)) == "three mice in the snow"
    assert caption(Scene("moon")) == "an empty place on the moon"


@pytest.mark.parametrize(
    ("words", "expected"),
    [("dog", "a dog"), ("apple", "an apple"), ("umbrella", "an umbrella"), ("unicorn", "a unicorn"),
     ("ufo", "a ufo"), ("orange car", "an orange car"), ("ice cream", "an ice cream")],
)  # fmt: skip
def test_articles(words: str, expected: str):
    assert article(words) == expected


def test_every_thing_has_a_plural_of_its_own_and_synonyms_are_not_other_things():
    for thing in THINGS:
        assert thing.plural and noun(Item(thing.name, "left"), plural=True) == thing.plural
    for name, others in SYNONYMS.items():
        assert not set(others) & set(THING) - {name}


def test_the_words_for_an_item_are_unambiguous():
    rng = np.random.default_rng(0)
    cars = (Item("car", "left", colour="red"), Item("car", "right", colour="blue"), Item("dog", "middle"))
    scene = Scene("city", cars)
    assert short(rng, scene, 0) == "red car"
    assert {short(rng, scene, 2) for _ in range(50)} <= {"dog", "puppy"}
    same = Scene("city", (cars[0], Item("car", "right", colour="red")))
    assert short(rng, same, 1) == "red car on the right"


def test_phrasings_kept_for_the_test_have_no_word_that_training_does_not_have():
    def words(split: Split) -> set[str]:
        texts = [text for operation in PHRASINGS for text in phrasings(operation, split)]
        return {word for text in texts for word in re.findall(r"[a-z]+(?![a-z_]*})", text)}

    assert words("test") <= words("train") and len(words("test")) > 50
