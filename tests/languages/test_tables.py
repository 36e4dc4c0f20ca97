"""Instructions into English by tables. The sentences here are not those of the held-out file."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wordbrush.evaluation.languages import meanings, measure, read_rows
from wordbrush.languages import load_translator
from wordbrush.languages.detection import detect
from wordbrush.languages.tables import TableTranslator
from wordbrush.languages.translation import TranslationError
from wordbrush.languages.vocabulary import english, labels, languages, table
from wordbrush.storybook.catalogue import COLOURS, PLACES, STYLES, THING, TIMES, TONES, WEATHERS
from wordbrush.storybook.wording import PHRASINGS

HELD_OUT = Path(__file__).parents[2] / "data" / "held_out_instructions.jsonl"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("把狗变成熊猫", "replace the dog with a panda"),
        ("用老虎代替猫", "replace the cat with a tiger"),
        ("把红色的车变成蓝色", "make the red car blue"),
        ("犬を消してください", "remove the dog"),
        ("猫をトラに変えて", "replace the cat with a tiger"),
        ("夜にして", "make it night"),
        ("quita el coche rojo", "remove the red car"),
        ("pinta el coche azul", "make the car blue"),
        ("haz que sea de noche", "make it night"),
        ("entferne den Hund", "remove the dog"),
        ("Mach das Auto rot", "make the car red"),
        ("verwandle den Hund in eine Katze", "replace the dog with a cat"),
        ("enlève le chien", "remove the dog"),
        ("ajoute un chat à droite", "add a cat on the right"),
        ("犬と猫を入れ替えて", "swap the dog and the cat"),
        ("je veux la tulipe rose", "make the tulip pink"),
        ("ajoute une rose", "add a rose"),
        ("pon un gato en lugar del perro", "replace the dog with a cat"),
        ("metti un gatto al posto del cane", "replace the dog with a cat"),
        ("troque o cão por um gato", "replace the dog with a cat"),
        ("강아지를 판다로 바꿔줘", "replace the dog with a panda"),
        ("écris « oui » en haut", 'write "oui" at the top'),
    ],
)
def test_tables_alone(text: str, wanted: str):
    assert TableTranslator().translate(text).english == wanted


@pytest.mark.parametrize(
    "text",
    [
        "make it night", "turn the dog into a panda", "add fog", "replace the cat with a tiger",
        "turn him into a cyborg", "give it a cinematic look", "a castle on the left please", "no text please",
        "add a unicorn", "Make it look like a Monet", "le chat becomes a dog in a hat", "remove the piñata",
    ],
)  # fmt: skip
def test_english_passes_unchanged(text: str):
    found = TableTranslator().translate(text)
    assert (found.english, found.changed) == (text, False)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("把沙发变成熊猫", "沙发"),
        ("quita el sofá del cuadro verde", "sofa"),
        ("no quites el perro", "quites"),
        ("ソファを消して", "ソファ"),
        ("verwandle den Hund in einen Hamster", "hamster"),
    ],
)
def test_what_is_not_understood_is_named(text: str, part: str):
    for translator in (TableTranslator(), load_translator()):
        with pytest.raises(TranslationError, match="not understood") as error:
            translator.translate(text)
        assert part in str(error.value)
        assert "\n" not in str(error.value)


def test_languages_are_told_apart():
    texts = {
        "zh": "变亮",
        "ja": "夜にして",
        "ko": "밤으로 바꿔줘",
        "es": "quita el perro",
        "en": "make it rain",
    }
    assert {language: detect(text) for language, text in texts.items()} == {name: name for name in texts}


def test_what_comes_out_is_what_the_editor_learned():
    """Every English phrase is one of the storybook's own."""
    words: dict[str, Any] = {"old": "dog", "new": "cat", "thing": "dog", "a_thing": "a dog", "a_new": "a cat",
                             "things": "dogs", "number": "two", "colour": "red", "slot": "left",
                             "at_slot": "on the left", "a_place": "a beach", "a_style": "an oil painting",
                             "word": "hello"}  # fmt: skip
    for operation, wordings in english()["english"].items():
        variant = "running" if operation == "pose" else "happy"
        own = words | {"pose": variant, "expression": variant}
        assert meanings(wordings[0].format(**own)), operation


@pytest.mark.parametrize("language", languages())
def test_a_table_knows_the_whole_world(language: str):
    words = [*table(language).words.values(), *table(language).seconds.values()]
    known = {(word.kind, word.value) for word in words}
    wanted = {("thing", name) for name in THING} | {("colour", name) for name in COLOURS}
    wanted |= {("place", name) for name in PLACES} | {("time", name) for name in TIMES}
    wanted |= {("weather", name) for name in WEATHERS}
    wanted |= {("style", name) for name in STYLES if name != "none"}
    wanted |= {("tone", name) for name in TONES if name != "none"}
    assert not wanted - known
    assert {value for kind, value in known if kind == "thing"} == set(THING)
    operations = {phrase.operation for phrase in table(language).phrases}
    missing = set(PHRASINGS) & set(english()["english"]) - operations
    assert not missing - {"bigger", "smaller"}


def test_emojibase_names_everything_in_many_languages():
    assert len(labels()) >= 26
    assert all(set(names) == set(THING) for names in labels().values())


class _Blind:
    """An encoder to which everything looks the same."""

    def encode(self, texts: list[str]) -> Any:
        return np.ones((len(texts), 1))


def test_no_meaning_is_chosen_where_several_are_as_near():
    with pytest.raises(TranslationError):
        TableTranslator(_Blind()).translate("狗好像应该怎么样")


def test_held_out_instructions():
    """The measured number, less a little: see docs/languages.md."""
    found = measure(load_translator(), read_rows(HELD_OUT))
    assert {language: tally.num for language, tally in found.items()} == dict.fromkeys(
        ("zh", "ja", "es", "de", "fr"), 40
    )
    assert sum(tally.same for tally in found.values()) >= 180


def test_meanings():
    assert meanings("make it a pixel art") == meanings("Turn it into a pixel art.")
    assert meanings("swap the dog and the cat") == meanings("switch the places of the cat and the dog")
    assert meanings("remove the puppy") == meanings("delete the dog")
    assert not meanings("remove the dog") & meanings("remove the cat")
    assert not meanings("reticulate the splines")
