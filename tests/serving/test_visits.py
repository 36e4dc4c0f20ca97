"""What a visitor has: his session, his files, and that nothing is left of them."""

from pathlib import Path
from threading import Event

import pytest
from PIL import Image

import wordbrush
from wordbrush import EditRequest
from wordbrush.editors.session_file import load_session
from wordbrush.errors import ImageError, UsageError
from wordbrush.provenance import read_provenance
from wordbrush.serving.history import lines, tree
from wordbrush.serving.visits import Visit, Visits
from wordbrush.types import Editor


@pytest.fixture(scope="module")
def editor(tiny_checkpoint: Path) -> Editor:
    return wordbrush.load(tiny_checkpoint, steps=1, dtype="float32")


@pytest.fixture
def visit(tmp_path: Path, picture: Image.Image) -> Visit:
    picture.save(tmp_path / "dog.png")
    visit = Visits(tmp_path / "visits").of("somebody")
    visit.begin(tmp_path / "dog.png", "storybook")
    return visit


def turn(visit: Visit, editor: Editor, seed: int = 0, variations: int = 1) -> None:
    image = visit.session.image()
    visit.edit(editor, EditRequest(image, "make it night", seed=seed, num_variations=variations))


def test_each_turn_is_a_file_that_says_what_it_was_made_from(visit: Visit, editor: Editor):
    turn(visit, editor)
    turn(visit, editor, 1)
    first, second = (visit.file(number) for number in (1, 2))
    assert (first.name, second.name) == ("dog-edited.png", "dog-edited-2.png")
    assert read_provenance(second)["settings"]["seed"] == 1
    sources = [read_provenance(file)["source_sha256"] for file in (first, second)]
    assert sources[0] and sources[1] and sources[0] != sources[1]


def test_variations_are_branches(visit: Visit, editor: Editor):
    turn(visit, editor, variations=2)
    assert visit.made == [1, 2]
    turn(visit, editor)
    assert lines(visit.session) == [(0, 0), (1, 1), (3, 1), (2, 0)]
    html = tree(visit.session)
    assert html.count("<li") == 4 and html.count('aria-current="step"') == 1


def test_words_of_a_session_are_text_and_not_html(visit: Visit, editor: Editor):
    image = visit.session.image()
    visit.edit(editor, EditRequest(image, "<script>alert(1)</script>", seed=0))
    assert "<script" not in tree(visit.session)


def test_a_session_is_shared_and_opened(visit: Visit, editor: Editor, tmp_path: Path):
    turn(visit, editor)
    file = visit.session_file()
    assert len(load_session(file).turns) == 1
    copy = tmp_path / "copy.session"
    copy.write_bytes(file.read_bytes())
    other = Visits(tmp_path / "others").of("another")
    other.open(copy)
    assert other.file().name == "copy-edited.png" and other.file().is_file()


def test_what_is_wrong_with_a_file_is_said_without_its_place(tmp_path: Path):
    visit = Visits(tmp_path / "visits").of("somebody")
    (tmp_path / "bad.png").write_text("none")
    with pytest.raises(ImageError) as error:
        visit.begin(tmp_path / "bad.png", "storybook")
    assert str(tmp_path) not in str(error.value) and "bad.png" in str(error.value)
    with pytest.raises(ImageError, match="bad.png: not a session"):
        visit.open(tmp_path / "bad.png")
    with pytest.raises(UsageError, match="picture first"):
        _ = visit.session


def test_visitors_are_apart_and_nothing_is_left(visit: Visit, tmp_path: Path, picture: Image.Image):
    visits = Visits(tmp_path / "both")
    one, other = visits.of("one"), visits.of("other")
    picture.save(tmp_path / "in.png")
    one.begin(tmp_path / "in.png", "storybook")
    other.begin(tmp_path / "in.png", "storybook")
    assert one.home != other.home and visits.of("one") is one
    one.stop = Event()
    visits.end("one")
    assert one.stop.is_set() and not one.home.exists() and other.home.is_dir()
    visits.end_all()
    assert not (tmp_path / "both").exists()
