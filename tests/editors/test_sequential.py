"""What no turn touched stays; turns make a tree that can be walked, replayed and saved."""

import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import wordbrush
from wordbrush import EditRequest, ImageError, UsageError
from wordbrush.editors import session_file
from wordbrush.editors.sequential import ALPHA, LOW_PASS, ORIGINAL, Session, keep_unchanged, thresholds
from wordbrush.editors.session_file import load_session, save_session
from wordbrush.types import Editor, StepInfo

SIZE = (48, 32)


def noise(seed: int, mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (SIZE[1], SIZE[0], len(mode)), dtype=np.uint8)
    return Image.fromarray(pixels)


def same(a: Image.Image, b: Image.Image) -> bool:
    return a.mode == b.mode and a.tobytes() == b.tobytes()


@pytest.fixture(scope="module")
def editor(tiny_checkpoint: Path) -> Editor:
    return wordbrush.load(tiny_checkpoint, device="cpu", dtype="float32", steps=2, size=32)


@pytest.fixture
def session() -> Session:
    return Session(noise(0), alpha=None)


def test_a_model_may_have_thresholds_of_its_own(tmp_path: Path):
    assert thresholds(tmp_path) == (ALPHA, LOW_PASS)
    (tmp_path / "wordbrush.json").write_text('{"turns": {"alpha": 0.2}}')
    assert thresholds(tmp_path) == (0.2, LOW_PASS)
    assert thresholds(tmp_path, 0.5, 0.0) == (0.5, 0.0)
    assert thresholds("storybook") == (0.1, 0.03)


def turn(session: Session, editor: Editor, instruction: str, **asked: object) -> int:
    request = EditRequest(session.original, instruction, **{"seed": 1} | asked)  # type: ignore[arg-type]
    return session.edit(editor, request)[0].number


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
@pytest.mark.parametrize("low_pass", [0.0, 0.05])
def test_the_same_picture_stays_and_a_threshold_of_zero_takes_the_new_one(mode: str, low_pass: float):
    old, new = noise(0, mode), noise(1, mode)
    assert same(keep_unchanged(old, old.copy(), low_pass=low_pass), old)
    assert same(keep_unchanged(old, new, alpha=0, low_pass=low_pass), new)
    assert same(keep_unchanged(old, new, alpha=4, low_pass=low_pass), old)


def test_what_hardly_changed_is_kept_byte_for_byte_and_the_rest_is_new():
    old = np.asarray(noise(0)).clip(3, 250).astype(np.int16)
    new = old + np.random.default_rng(2).integers(
        -2, 3, old.shape
    )  # 2/255 in each channel: below 0.03 together
    new[8:24, 8:24] = 255 - old[8:24, 8:24]
    pictures = [Image.fromarray(pixels.astype(np.uint8)) for pixels in (old, new)]
    kept = np.asarray(keep_unchanged(*pictures, low_pass=0.01))
    away = np.ones(old.shape[:2], dtype=bool)
    away[6:26, 6:26] = False
    assert (kept[away] == old[away]).all()
    changed = np.abs(new - old).sum(-1)[8:24, 8:24] > 3 * 0.03 * 255
    assert (kept[8:24, 8:24][changed] == new[8:24, 8:24][changed]).all()


def test_the_low_pass_forgives_single_pixels():
    old = Image.new("RGB", (64, 64), (90, 120, 150))
    new = old.copy()
    new.putpixel((32, 32), (120, 150, 180))
    assert same(keep_unchanged(old, new, low_pass=0), new)
    assert same(keep_unchanged(old, new, low_pass=0.05), old)


def test_senseless_thresholds_and_other_sizes_are_refused():
    with pytest.raises(UsageError, match="at least 0"):
        keep_unchanged(noise(0), noise(1), alpha=-0.1)
    with pytest.raises(UsageError, match="at least 0"):
        Session(noise(0), alpha=-0.1)
    with pytest.raises(ImageError, match="keep the picture's size"):
        keep_unchanged(noise(0), Image.new("RGB", (8, 8)))


def test_each_turn_edits_the_last_picture(session: Session, editor: Editor):
    first = turn(session, editor, "make it night")
    second = turn(session, editor, "add a dog")
    once = editor.edit(EditRequest(session.original, "make it night", seed=1)).images[0]
    twice = editor.edit(EditRequest(once, "add a dog", seed=1)).images[0]
    assert same(session.image(first), once) and same(session.image(second), twice)
    assert [t.number for t in session.path()] == [first, second]


def test_undo_and_a_branch_leave_the_old_turns_in_the_tree(session: Session, editor: Editor):
    first, second = turn(session, editor, "make it night"), turn(session, editor, "add a dog")
    session.undo()
    branch = turn(session, editor, "add a cat")
    assert [t.number for t in session.path()] == [first, branch]
    assert [t.number for t in session.path(second)] == [first, second]
    session.go_to(ORIGINAL)
    assert same(session.image(), session.original)
    with pytest.raises(UsageError, match="nothing to undo"):
        session.undo()
    with pytest.raises(UsageError, match="no turn 9: the last one is 3"):
        session.go_to(9)


def test_variations_are_branches_to_choose_from(session: Session, editor: Editor):
    made = session.edit(editor, EditRequest(session.original, "make it night", seed=5, num_variations=3))
    assert [t.request.seed for t in made] == [5, 6, 7] and {t.parent for t in made} == {ORIGINAL}
    assert session.current == made[0].number
    alone = editor.edit(EditRequest(session.original, "make it night", seed=6)).images[0]
    assert np.abs(np.asarray(alone, dtype=int) - np.asarray(made[1].image)).max() <= 1


def test_a_locked_region_is_byte_equal(session: Session, editor: Editor):
    mask = Image.new("L", SIZE)
    mask.paste(255, (0, 0, 20, 32))
    number = turn(session, editor, "make it night", mask=mask)
    before, after = np.asarray(session.original), np.asarray(session.image(number))
    assert (before[:, 20:] == after[:, 20:]).all() and (before[:, :20] != after[:, :20]).any()


def test_a_cancelled_turn_leaves_the_session_as_it_was(session: Session, editor: Editor):
    number = turn(session, editor, "make it night")

    def cancel(info: StepInfo) -> None:
        raise KeyboardInterrupt

    for work in (
        lambda: session.edit(editor, EditRequest(session.original, "add a dog"), on_step=cancel),
        lambda: session.replay(editor, on_step=cancel),
    ):
        with pytest.raises(KeyboardInterrupt):
            work()
        assert len(session.turns) == 1 and session.current == number


def test_replaying_gives_the_same_pictures_on_a_branch_of_its_own(session: Session, editor: Editor):
    for instruction in ("make it night", "add a dog", "let it snow"):
        turn(session, editor, instruction)
    again = session.replay(editor)
    assert [t.number for t in again] == [4, 5, 6] and again[0].parent == ORIGINAL
    assert all(same(session.image(k), session.image(k + 3)) for k in (1, 2, 3))
    without = session.replay(editor, [1, 3])
    assert [t.request.instruction for t in session.path()] == ["make it night", "let it snow"]
    assert same(without[0].image, session.image(1)) and not same(without[1].image, session.image(3))


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_a_saved_session_comes_back(mode: str, editor: Editor, tmp_path: Path):
    session = Session(noise(0, mode), alpha=0.2)
    turn(session, editor, "make it night")
    mask = Image.new("L", SIZE)
    mask.paste(255, (10, 10, 20, 20))
    turn(session, editor, "add a dog", mask=mask)
    session.undo()
    turn(session, editor, "add a cat", negative_prompt="tail")
    save_session(session, tmp_path / "s.wordbrush")
    back = load_session(tmp_path / "s.wordbrush")
    assert (back.alpha, back.low_pass, back.current) == (0.2, session.low_pass, 3)
    assert [same(back.image(k), session.image(k)) for k in range(4)] == [True] * 4
    for new, old in zip(back.turns, session.turns, strict=True):
        assert (new.parent, new.settings) == (old.parent, json.loads(json.dumps(old.settings)))
        assert new.request.negative_prompt == old.request.negative_prompt
    assert back.turns[1].request.mask and same(back.turns[1].request.mask, mask)
    again = back.replay(editor)
    assert same(again[-1].image, session.image(3))


def test_a_turn_that_changes_little_takes_little_room(tmp_path: Path, editor: Editor):
    session = Session(noise(0), alpha=None)
    save_session(session, tmp_path / "empty")
    mask = Image.new("L", SIZE)
    mask.paste(255, (10, 10, 14, 14))
    for _ in range(3):
        turn(session, editor, "add a dog", mask=mask)
    save_session(session, tmp_path / "full")
    added = (tmp_path / "full").stat().st_size - (tmp_path / "empty").stat().st_size
    assert added < 3 * 2500 < 3 * len(session.original.tobytes())


def rewrite(path: Path, index: str | None = None, **members: bytes) -> None:
    """The same archive with some members in place of its own."""
    with zipfile.ZipFile(path) as old:
        contents: dict[str, bytes] = {name: old.read(name) for name in old.namelist()}
    contents |= {name.replace("_", "."): data for name, data in members.items()}
    if index is not None:
        contents["session.json"] = index.encode()
    with zipfile.ZipFile(path, "w") as new:
        for name, data in contents.items():
            new.writestr(name, data)


@pytest.fixture
def saved(editor: Editor, tmp_path: Path) -> Path:
    session = Session(noise(0))
    turn(session, editor, "make it night")
    save_session(session, tmp_path / "s.wordbrush")
    return tmp_path / "s.wordbrush"


def index_of(path: Path) -> dict[str, object]:
    with zipfile.ZipFile(path) as archive:
        return json.loads(archive.read("session.json"))


def spoil_deflate(path: Path) -> None:
    """The index's compressed bytes, without their length."""
    data = bytearray(path.read_bytes())
    start = data.find(b"session.json") + len("session.json")
    data[start : start + 8] = b"\xff" * 8
    path.write_bytes(data)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "gone": lambda path: path.unlink(),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:200]),
    "text": lambda path: path.write_text("no session"),
    "deflate": spoil_deflate,
    "no index": lambda path: rewrite(path, "{"),
    "no such turn": lambda path: rewrite(path, json.dumps(index_of(path) | {"current": 7})),
    "threshold": lambda path: rewrite(path, json.dumps(index_of(path) | {"alpha": -1})),
    "no picture": lambda path: rewrite(path, original_png=b"no picture"),
    "half a turn": lambda path: rewrite(path, json.dumps(index_of(path) | {"turns": [{"parent": 1}]})),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_gives_one_clear_line(damage: str, saved: Path):
    DAMAGES[damage](saved)
    with pytest.raises(ImageError) as caught:
        load_session(saved)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("changed", [[0, 0, 9, 9], [40, 20, 88, 52]])
def test_a_patch_that_does_not_fit_is_refused(changed: list[int], saved: Path):
    index = index_of(saved)
    index["turns"][0]["changed"] = changed  # type: ignore[index]
    rewrite(saved, json.dumps(index))
    with pytest.raises(ImageError, match="patch of turn 1 does not fit"):
        load_session(saved)


def test_a_turn_cannot_edit_a_later_one(saved: Path):
    index = index_of(saved)
    index["turns"][0]["parent"] = 1  # type: ignore[index]
    rewrite(saved, json.dumps(index))
    with pytest.raises(ImageError, match="turn 1 edits turn 1"):
        load_session(saved)


def test_what_unpacks_to_too_much_is_refused_before_it_is_read(saved: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(session_file, "MAX_BYTES", 1000)
    with pytest.raises(ImageError, match="when unpacked"):
        load_session(saved)
    monkeypatch.setattr(session_file, "MAX_BYTES", 10**9)
    monkeypatch.setattr(session_file, "MAX_PIXELS", 48 * 32 - 1)
    with pytest.raises(ImageError, match="pixels in all turns"):
        load_session(saved)
