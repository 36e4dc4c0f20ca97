"""Pairs that differ only where their thing is: what must hold whatever the weights are."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from tests.datagen.engine import configure, save_models, save_sentence_encoder
from wordbrush.attention.control import AttentionControl
from wordbrush.data.rows import decode
from wordbrush.data.sources import convert, open_parts, read_rows
from wordbrush.data.validation import find_problems
from wordbrush.datagen.config import identity
from wordbrush.datagen.draws import read_draws
from wordbrush.datagen.filters import PREDICATES, Funnel
from wordbrush.datagen.grounded import Candidates, GroundedGenerator, GroundedSettings, Plan, plan
from wordbrush.datagen.painting import Draw, Painter, PairSettings
from wordbrush.datagen.pipeline import make
from wordbrush.datagen.progress import Display
from wordbrush.datagen.runners import choose_runners
from wordbrush.editors.task_predictor import load_task_predictor
from wordbrush.perception.grounding import Located
from wordbrush.triplets import Triplet, write_triplets

DOG, CAT = "a dog", "a painted cat"
DRAWS = [Draw(seed, 0.0, 3.0) for seed in (1, 2, 3)]


class Upper:
    """Finds everything, or all but one name, in the upper half, or where the picture is bright enough."""

    def __init__(self, *, never: str = "", least: float = 0.0) -> None:
        self.never, self.least = never, least

    def locate(self, pictures: Sequence[Image.Image], names: Sequence[str]) -> list[Located]:
        return [self._locate(picture, name) for picture, name in zip(pictures, names, strict=True)]

    def _locate(self, picture: Image.Image, name: str) -> Located:
        mask = np.zeros((picture.height, picture.width), dtype=np.bool_)
        if name != self.never and np.asarray(picture).mean() >= self.least:
            mask[: picture.height // 2] = True
        return Located(mask, float(mask.any()))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return save_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def painter(models: dict[str, str]) -> Painter:
    values = {"batch_size": 4, "steps": 4, "device": "cpu", "dtype": "float32", "scheduler": "ddim"}
    return Painter.load(PairSettings.model_validate(models | values))


def generator(painter: Painter, grounder: Upper | None = None, **changes: Any) -> GroundedGenerator:
    made = GroundedGenerator(painter, GroundedSettings(attention_level=1, **changes))
    made.grounder = grounder
    return made


def apart(made: Candidates) -> Any:
    """(N, H, W), how much the pictures of each pair differ, of 255."""
    return np.abs(made.pixels[:, 0].astype(int) - made.pixels[:, 1]).mean(-1)


def test_every_mask_of_every_draw_gives_a_pair_that_differs_in_it(painter: Painter):
    made = generator(painter, Upper(), copied=0, cross_steps=0)(Plan(DOG, CAT, "dog"), DRAWS)
    assert made.pixels.shape == (9, 2, 32, 32, 3) and made.masks.shape == (9, 32, 32)
    assert made.draws == [draw for draw in DRAWS for _ in range(3)] and not made.not_found
    assert made.kinds == ["precise", "dilated", "box"] * 3
    inside, outside = apart(made)[:, :12].mean((1, 2)), apart(made)[:, 22:].mean((1, 2))
    assert (inside > 4 * outside).all()  # the decoder's own attention lets a little through
    assert (made.masks[0] == made.masks[2]).all()  # a half picture is its own box
    assert made.masks[1].sum() > made.masks[0].sum() and 0 < made.masks[1, 17, 0] < 255


def test_the_first_picture_is_what_it_is_when_painted_alone(painter: Painter):
    made = generator(painter, Upper())(Plan(DOG, CAT, "dog"), DRAWS[:1])
    alone = painter([DOG], DRAWS[:1], AttentionControl([]))[0, 0].astype(int)
    assert np.abs(made.pixels[:, 0] - alone).max() <= 1


@pytest.mark.parametrize(
    ("second", "changes"), [(DOG, {}), (CAT, {"copied": 1.0}), (CAT, {"copied": 0.0, "blended": 1.0})]
)
def test_pairs_are_equal_where_nothing_may_differ(painter: Painter, second: str, changes: dict[str, float]):
    wanted = Plan(DOG, second, "dog")
    if changes.get("copied") == 0.0:  # the mask of the whole picture, from outside
        made = generator(painter, Everywhere(), masks=("precise",), **changes)(
            replace(wanted, around=True), DRAWS
        )
    else:
        made = generator(painter, Upper(), **changes)(wanted, DRAWS)
    assert apart(made).max() <= 1


class Everywhere(Upper):
    """Finds everything all over the picture."""

    def _locate(self, picture: Image.Image, name: str) -> Located:
        return Located(np.ones((picture.height, picture.width), dtype=np.bool_), 1.0)


def test_masks_that_count_for_no_step_let_the_whole_picture_differ(painter: Painter):
    made = generator(painter, Upper(), copied=0, blended=0, cross_steps=0)(Plan(DOG, CAT, "dog"), DRAWS)
    assert (apart(made)[:, 22:].mean((1, 2)) > 5).all()
    whole = generator(painter, Upper(), copied=0, cross_steps=0)(Plan(DOG, CAT), DRAWS)
    assert len(whole.pixels) == 3 and (whole.masks == 255).all()
    assert np.abs(made.pixels[::3].astype(int) - whole.pixels).max() <= 1


def test_shared_words_keep_their_attention(painter: Painter):
    longer = Plan("a dog", "a dog and a painted cat", "dog")
    free = generator(painter, Upper(), copied=0, blended=0, cross_steps=0)(longer, DRAWS)
    held = generator(painter, Upper(), copied=0, blended=0, cross_steps=1)(longer, DRAWS)
    assert apart(held).mean() < apart(free).mean()


def test_an_addition_is_a_removal_backwards(painter: Painter):
    paint = generator(painter, Upper(never="cat"))
    added = paint(plan("add", DOG, "a dog and a cat", "", "a cat"), DRAWS)
    removed = paint(plan("remove", "a dog and a cat", DOG, "a cat", ""), DRAWS)
    assert (added.pixels == removed.pixels[:, ::-1]).all() and (added.masks == removed.masks).all()


def test_what_a_background_may_change_is_around_its_thing(painter: Painter):
    there = generator(painter, Upper())(plan("local", DOG, CAT, "dog", "cat"), DRAWS)
    around = generator(painter, Upper())(plan("background", DOG, CAT, "dog", ""), DRAWS)
    assert (around.masks == 255 - there.masks).all()


def test_what_is_seen_in_the_pictures_speaks_against_pairs(painter: Painter):
    local = plan("local", DOG, CAT, "dog", "cat")
    assert generator(painter, Upper())(local, DRAWS).flaws == [None] * 9
    assert generator(painter, Upper(never="cat"))(local, DRAWS).flaws == ["not_there"] * 9
    remove = plan("remove", DOG, "nothing", "dog", "")
    assert generator(painter, Upper())(remove, DRAWS).flaws == ["still_there"] * 9


def test_without_the_thing_nothing_is_painted(painter: Painter):
    brightness = [
        float(generator(painter, Upper())(Plan(DOG, CAT, "dog"), [d]).pixels[0, 0].mean()) for d in DRAWS
    ]
    some = Upper(least=sorted(brightness)[1])
    made = generator(painter, some)(Plan(DOG, CAT, "dog"), DRAWS)
    assert len(made.pixels) == 6 and len(made.not_found) == 1 and set(made.draws).isdisjoint(made.not_found)
    none = generator(painter, Upper(never="dog"))(Plan(DOG, CAT, "dog"), DRAWS)
    assert none.pixels.shape == (0, 2, 32, 32, 3) and none.not_found == DRAWS and none.flaws == []


def test_the_models_own_attention_finds_words_too(painter: Painter):
    made = generator(painter, attention_threshold=0.99)(Plan(DOG, CAT, "dog"), DRAWS)
    shares = (made.masks[::3] > 127).mean((1, 2))
    assert len(made.pixels) == 9 and (shares > 0).all() and (shares < 1).all()
    unsaid = generator(painter)(Plan(DOG, CAT, "violin"), DRAWS)
    assert unsaid.not_found == DRAWS


def test_a_run_keeps_masks_and_counts_by_task(models: dict[str, str], tmp_path: Path):
    rows = [
        Triplet(
            caption=DOG, edit="make it a cat", output="a cat", task="local", original="dog", edited="cat"
        ),
        Triplet(caption="a car", edit="add a snail", output="a car and a snail", task="add", edited="snail"),
        Triplet(caption="a boat", edit="make it night", output="a boat at night", task="global"),
    ]
    write_triplets(tmp_path / "triplets.jsonl", rows)
    source = {"source": "file", "path": str(tmp_path / "triplets.jsonl")}
    grounded = {"attention_level": 1, "attention_threshold": 0.99, "masks": ("precise", "box")}
    config = configure(
        models, source, grounded=grounded, filter=dict.fromkeys(PREDICATES, -1.0) | {"keep": 2}
    )
    about = make(config, tmp_path / "out", choose_runners(config, ray=False), Display(every=1e9))
    kept = list(read_rows(open_parts(tmp_path / "out")))
    assert {row.task for row in kept} == {"local", "add", "global"}
    assert Funnel(**about.pairs).drawn == 3 * 2 + 3 * 2 + 3
    assert {task: Funnel(**counts).kept for task, counts in about.tasks.items()} == {
        task: sum(row.task == task for row in kept) for task in ("local", "add", "global")
    }
    assert list(find_problems(open_parts(tmp_path / "out"))) == []
    assert convert(tmp_path / "out", tmp_path / "original", "original") == len(kept)
    again = list(read_rows(open_parts(tmp_path / "original")))
    assert sorted((row.unit, row.seed, row.mask_kind) for row in again) == sorted(
        (row.unit, row.seed, row.mask_kind) for row in kept
    )
    draws = read_draws(tmp_path / "out" / "draws.arrow")
    assert len(draws["fate"]) == Funnel(**about.pairs).drawn
    assert Counter(draws["mask_kind"]) == {"precise": 6, "box": 6, None: 3}
    for row in kept:
        assert row.mask is not None and (row.mask_kind is None) == (row.task == "global")
        mask = np.asarray(decode(row.mask).convert("L"))
        assert mask.shape == (32, 32) and (mask == 255).all() == (row.task == "global")


def test_the_predictor_has_the_last_word_on_the_task(models: dict[str, str], tmp_path: Path):
    """A sentence encoder of random weights finds other tasks than those that were asked for."""
    folder = save_sentence_encoder(tmp_path / "encoder")
    edits = [f"make it {word}" for word in ("night", "a watercolour", "a cat", "blue", "brighter")]
    rows = [
        Triplet(
            caption=f"a {n} dog", edit=edit, output=f"a {n} cat", task="local", original="dog", edited="cat"
        )
        for edit, n in zip(edits, ("red", "tall", "old", "small", "fast"), strict=True)
    ]
    write_triplets(tmp_path / "triplets.jsonl", rows)
    source = {"source": "file", "path": str(tmp_path / "triplets.jsonl"), "task_predictor": folder}
    config = configure(models, source, filter=dict.fromkeys(PREDICATES, -1.0) | {"keep": 1})
    about = make(config, tmp_path / "out", choose_runners(config, ray=False), Display(every=1e9))
    wanted = [found.task for found in load_task_predictor(folder).predict(edits)]
    assert [row.task for row in read_rows(open_parts(tmp_path / "out"))] == wanted
    changed = sum(task != "local" for task in wanted)
    assert about.triplets["of another task, by the predictor"] == changed > 0


def test_settings(models: dict[str, str]):
    with pytest.raises(ValidationError, match="copied must not be greater"):
        GroundedSettings(copied=0.6, blended=0.5)
    source = {"source": "storybook", "count": 3}
    plain = identity(configure(models, source))
    assert identity(configure(models, source, grounded={})) != plain
    named = configure(models, source, grounded={"grounder": models["clip"], "depth": models["model"]})
    assert {models["clip"], models["model"]} <= set(identity(named)["contents"])
