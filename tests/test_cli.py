import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image, ImageChops

from tests import tiny
from wordbrush.cli import main
from wordbrush.editors import METHODS
from wordbrush.errors import ModelError
from wordbrush.progress import progress
from wordbrush.provenance import read_provenance, save_image


@pytest.fixture
def folder(tmp_path: Path, picture: Image.Image, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with `dog.png` in it."""
    picture.save(tmp_path / "dog.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Shell:
    """Runs a command line in this process."""

    def __init__(self, checkpoint: Path, capsys: pytest.CaptureFixture[str]):
        self.checkpoint = checkpoint
        self._capsys = capsys

    def __call__(self, *words: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as exit_:
            main(words)
        out, err = self._capsys.readouterr()
        assert isinstance(exit_.value.code, int)
        return exit_.value.code, out, err

    def edit(self, *words: str) -> tuple[int, str, str]:
        return self("edit", *words, "--model", str(self.checkpoint), "--steps", "2", "--dtype", "float32")

    def refused(self, *words: str) -> tuple[int, str]:
        """For a command that must fail: its code and its one line."""
        code, out, err = self(*words)
        assert out == ""
        assert err.startswith("wordbrush: ")
        assert err.count("\n") == 1
        return code, err


@pytest.fixture
def shell(tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(tiny_checkpoint, capsys)


def difference(first: str, second: str) -> int:
    """The largest difference between two pictures, of 255."""
    extrema = ImageChops.difference(Image.open(first), Image.open(second)).getextrema()
    return max(int(high) for _, high in extrema)


def test_help_imports_nothing_heavy():
    code = (
        "import sys, wordbrush.cli as cli\n"
        "try: cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'diffusers', 'pydantic', 'PIL', 'gradio'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "evaluate" in done.stdout
    assert done.stdout.endswith("[]\n")


def test_flags_come_from_the_settings(shell: Shell):
    _, text, _ = shell("edit", "--help")
    for method in METHODS.values():
        for field in method.settings_fields():
            assert "--" + field.name.replace("_", "-") in text
    assert "--no-detail" in text


def test_edit_writes_next_to_the_picture(folder: Path, shell: Shell):
    code, out, err = shell.edit(
        "dog.png", "make it night", "--variations", "2", "--text-scale", "5", "--no-detail"
    )
    assert (code, out, err) == (0, "dog-edited.png\ndog-edited-2.png\n", "")
    assert Image.open("dog-edited.png").size == (48, 32)
    first, second = (read_provenance(name)["settings"] for name in ("dog-edited.png", "dog-edited-2.png"))
    assert (first["text_scale"], first["detail"], first["num_variations"]) == (5.0, False, 1)
    assert second["seed"] == first["seed"] + 1


def test_a_session_of_turns(folder: Path, shell: Shell):
    setup = ("--model", str(shell.checkpoint), "--steps", "2", "--dtype", "float32")
    begin = shell(
        "turn", "s.session", "make it night", "--picture", "dog.png", "--seed", "3", "--alpha", "0", *setup
    )
    assert begin == (0, "1 from 0: make it night (seed 3)\n", "")
    code, out, _ = shell("turn", "s.session", "add a dog", "--seed", "5", "--variations", "2", *setup)
    assert (code, out) == (0, "2 from 1: add a dog (seed 5)\n3 from 1: add a dog (seed 6)\n")
    code, out, _ = shell("session", "s.session", "--undo", "-o", "one.png")
    assert code == 0 and "* 1 from 0: make it night (seed 3)" in out.splitlines()
    shell.edit("dog.png", "make it night", "--seed", "3")
    assert difference("one.png", "dog-edited.png") == 0
    assert read_provenance("one.png")["settings"]["instruction"] == "make it night"
    shell("session", "s.session", "--go", "0", "-o", "zero.png")
    assert difference("zero.png", "dog.png") == 0
    before = Path("s.session").read_bytes()
    for words in (
        ("turn", "s.session", "add a dog", "--picture", "dog.png", *setup),
        ("turn", "s.session", "add a dog", "--alpha", "0.1", *setup),
        ("turn", "s.session", "add a dog", "--low-pass", "0.1", *setup),
        ("turn", "s.session", *setup),
        ("turn", "new.session", "add a dog", "--picture", "dog.png", "--alpha", "-1", *setup),
        ("session", "s.session", "--go", "9"),
        ("session", "s.session", "--undo"),
        ("session", "s.session", "-o", "one.png"),
    ):
        assert shell.refused(*words)[0] == 2, words
    assert shell.refused("turn", "none.session", "add a dog", *setup)[0] == 1
    assert Path("s.session").read_bytes() == before
    assert not Path("none.session").exists() and not Path("new.session").exists()


def test_a_turn_passes_on_remarks(folder: Path, shell: Shell):
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    frames[0].save("moving.gif", save_all=True, append_images=frames[1:])
    setup = ("--model", str(shell.checkpoint), "--steps", "1", "--dtype", "float32")
    words = "make it night " * 20
    code, _, err = shell("turn", "s.session", words, "--picture", "moving.gif", *setup)
    assert code == 0 and "first" in err and "warning: the instruction" in err and err.count("warning") == 2


def test_from_metadata_repeats_an_edit(folder: Path, shell: Shell, picture: Image.Image):
    Image.new("L", (48, 32), 255).save("mask.png")
    shell.edit("dog.png", "make it night", "--mask", "mask.png", "--variations", "2", "--text-scale", "5")
    assert difference("dog-edited.png", "dog-edited-2.png") > 1
    again = ("edit", "--from-metadata", "dog-edited-2.png", "dog.png", "-o", "again.png")
    code, _, err = shell(*again, "--mask", "mask.png")
    assert (code, err) == (0, "")
    assert difference("again.png", "dog-edited-2.png") <= 1  # the float tolerance of another batch
    assert read_provenance("again.png") == read_provenance("dog-edited-2.png")

    code, _, err = shell(*again, "--force")
    assert code == 0
    assert "not the mask" in err

    picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save("dog.png")
    code, _, err = shell(*again, "--mask", "mask.png", "--force", "--steps", "1")
    assert code == 0
    assert "not the picture" in err
    assert read_provenance("again.png")["settings"]["steps"] == 1


def test_existing_outputs_are_refused_before_any_computing(folder: Path, shell: Shell):
    Path("dog-edited-2.png").write_text("precious")
    words = ("edit", "dog.png", "x", "--model", "nowhere")
    assert shell.refused(*words, "--variations", "2")[0] == 2
    assert Path("dog-edited-2.png").read_text() == "precious"
    assert shell.refused(*words)[0] == 1  # now it is the model that is missing
    assert shell.edit("dog.png", "x", "--variations", "2", "--force")[0] == 0


def test_wrong_use_exits_2(folder: Path, shell: Shell):
    model = ("--model", str(shell.checkpoint))
    for words, hint in (
        (("edti",), "edti"),
        (("edit",), "picture"),
        (("edit", "dog.png"), "instruction"),
        (("edit", "dog.png", "  "), "instruction"),
        (("edit", "dog.png", "--target", "a cat"), "target caption is for other methods"),
        (("edit", "dog.png", "x", "-o", "out.bmp"), ".bmp"),
        (("edit", "dog.png", "x", "-o", "."), "."),
        (("edit", "dog.png", "x", "--save-layer", "layer.jpg"), "transparency"),
        (("edit", "dog.png", "x", "--method", "magic"), "instruct-pix2pix"),
        (("edit", "dog.png", "x", "--steps", "many"), "--steps"),
        (("edit", "dog.png", "x", "--steps", "0", *model), "steps"),
        (("edit", "dog.png", "x", "--text-scale", "nan", *model), "text_scale"),
        (("edit", "dog.png", "x", "--scheduler", "magic", *model), "euler-a"),
        (("edit", "dog.png", "x", "--seed", "-1", *model), "seed"),
        (("batch", "none.jsonl", "--out", "out"), "none.jsonl"),
    ):
        code, line = shell.refused(*words)
        assert code == 2, words
        assert hint in line
    assert not list(folder.glob("dog-*"))


def test_failures_exit_1_and_leave_nothing(folder: Path, shell: Shell):
    Path("text.png").write_text("not a picture")
    Path("cut.png").write_bytes(Path("dog.png").read_bytes()[:200])
    Path("broken").mkdir()
    Image.new("L", (9, 9)).save("small.png")
    model = ("--model", str(shell.checkpoint))
    for words in (
        ("edit", "none.png", "x"),
        ("edit", "text.png", "x"),
        ("edit", "cut.png", "x"),
        ("edit", "dog.png", "x", "-o", "none/out.png"),
        ("edit", "dog.png", "x", "--model", "none"),
        ("edit", "dog.png", "x", "--model", "broken"),
        ("edit", "dog.png", "x", "--mask", "small.png", *model),
        ("edit", "dog.png", "--from-metadata", "dog.png"),
        ("edit", "dog.png", "x", "--device", "cuda:99", *model),
    ):
        assert shell.refused(*words)[0] == 1, words
    assert shell.refused("edit", "none/dog.png", "x") == (1, "wordbrush: none/dog.png: no such file\n")
    assert not list(folder.glob("*-edited*")) + list(folder.glob("*.tmp"))


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write anywhere")
def test_an_unwritable_folder_is_refused_before_any_computing(folder: Path, shell: Shell):
    Path("locked").write_text("a file, which even root cannot write into")
    code, line = shell.refused("edit", "dog.png", "x", "-o", "locked/out.png", "--model", "none")
    assert code == 1
    assert "locked" in line


def test_a_name_that_is_too_long_is_one_line(folder: Path, shell: Shell):
    code, line = shell.refused("edit", "dog.png", "x", "-o", "x" * 300 + ".png", "--model", "none")
    assert code == 1 and "too long" in line


def test_a_format_that_cannot_hold_the_picture_is_refused_before_any_computing(folder: Path, shell: Shell):
    Image.new("RGB", (20_000, 3)).save("wide.png")
    code, line = shell.refused("edit", "wide.png", "x", "-o", "wide.webp", "--model", "none")
    assert code == 2 and "16383" in line


def test_a_record_does_not_fetch_a_model(folder: Path, shell: Shell):
    forged = {"model": "someone/weights", "instruction": "x"}
    save_image(Image.open("dog.png"), "forged.png", settings=forged)
    code, line = shell.refused("edit", "dog.png", "--from-metadata", "forged.png")
    assert code == 2 and "--model someone/weights" in line


def test_the_mask_that_a_method_found_is_saved(folder: Path, shell: Shell, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WORDBRUSH_CACHE", str(folder))
    tiny.pipeline(in_channels=4).save_pretrained("model")
    words = ("dog.png", "--target", "a cat", "--save-mask", "mask.png", "-o", "out.png", "--steps", "2")
    assert shell("edit", *words, "--method", "diffedit", "--mask-samples", "1", "--model", "model")[0] == 0
    assert Image.open("mask.png").size == Image.open("dog.png").size


def test_a_mask_that_a_method_does_not_find_is_refused_before_any_computing(folder: Path, shell: Shell):
    for flag, name in (("--save-mask", "mask"), ("--save-layer", "layer")):
        code, line = shell.refused("edit", "dog.png", "x", flag, "found.png", "--model", "nowhere")
        assert code == 2
        assert f"finds no {name}" in line


def test_no_file_is_given_twice(folder: Path, shell: Shell):
    words = ("edit", "dog.png", "x", "--model", "nowhere", "--force")
    for output in ("dog.png", "./dog.png", str(folder / "dog.png")):
        assert "given twice" in shell.refused(*words, "-o", output)[1]
    assert "given twice" in shell.refused(*words, "-o", "a.png", "--save-mask", "a.png")[1]


def test_a_recorded_instruction_is_not_translated_again(folder: Path, shell: Shell):
    shell.edit("dog.png", "mach es zur Nacht", "--translator", "off", "-o", "off.png")
    code, _, err = shell("edit", "dog.png", "--from-metadata", "off.png", "-o", "again.png")
    assert (code, err) == (0, "")
    assert difference("off.png", "again.png") == 0


def test_a_batch_does_not_take_results_of_other_settings_for_its_own(folder: Path, shell: Shell):
    Path("jobs.jsonl").write_text('{"image": "dog.png", "instruction": "x", "seed": 1}\n')
    words = ("batch", "jobs.jsonl", "--out", "out", "--model", "storybook", "--steps", "1")
    assert shell(*words)[0] == 0
    for other in (("--text-scale", "7.5"), ("--dtype", "bfloat16")):  # the model's own scale is another
        assert "other settings" in shell.refused(*words, *other)[1]
    code, out, _ = shell(*words, "--text-scale", "3")
    assert code == 0 and "1 done before" in out


def test_warnings_are_shown(folder: Path, shell: Shell):
    frames = [Image.new("RGB", (40, 40), colour) for colour in ("red", "blue")]
    frames[0].save("two.gif", save_all=True, append_images=frames[1:])
    code, out, err = shell.edit("two.gif", "word " * 60, "--source", "a red picture")
    assert (code, out) == (0, "two-edited.png\n")
    assert err.count("wordbrush: warning: ") == 3
    assert "instruct-pix2pix does not read the source caption" in err
    assert "first" in err
    assert "dropped" in err


def test_unexpected_errors_show_a_traceback_only_when_debugging(
    folder: Path, shell: Shell, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("wordbrush.editing_commands.check_outputs", lambda *_, **__: 1 / 0)
    code, line = shell.refused("edit", "dog.png", "x")
    assert code == 1
    assert "ZeroDivisionError" in line
    assert "WORDBRUSH_DEBUG=1" in line
    monkeypatch.setenv("WORDBRUSH_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        main(["edit", "dog.png", "x"])


def test_batch_reports_and_fails(folder: Path, shell: Shell):
    Path("jobs.jsonl").write_text(
        '{"image": "dog.png", "instruction": "x"}\n{"image": "cat.png", "instruction": "x"}\n'
    )
    words = ("batch", "jobs.jsonl", "--out", "out", "--model", str(shell.checkpoint), "--steps", "1")
    code, out, err = shell(*words)
    assert code == 1
    assert "1 rows done, 1 failed, 0 done before" in out
    assert "row 1 failed: cat.png" in err
    assert Path("out/000000.png").exists()


def test_models_and_methods_are_listed(shell: Shell):
    assert shell("models") == shell("models", "list")
    assert "storybook" in shell("models")[1]
    assert shell("models", "get", str(shell.checkpoint))[1].strip() == str(shell.checkpoint)
    _, text, _ = shell("methods")
    assert all(name in text for name in METHODS)
    assert "--text-scale" in text


@pytest.mark.skipif(os.name == "nt", reason="sends the signal of Ctrl-C")
def test_ctrl_c_ends_cleanly(folder: Path, tiny_checkpoint: Path):
    words = ["edit", "dog.png", "x", "--model", str(tiny_checkpoint), "--steps", "1000", "--size", "256"]
    code = (
        "import signal, wordbrush.cli\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "import wordbrush.editors.instruct_pix2pix\n"
        "print('ready', flush=True)\n"
        f"wordbrush.cli.main({words!r})"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out, err) == (130, "", "wordbrush: cancelled\n")
    assert not list(folder.glob("*-edited*"))


def _taken_for_an_error() -> None:
    """As safetensors does while it opens a file."""
    try:
        signal.raise_signal(signal.SIGINT)
    except KeyboardInterrupt:
        raise ModelError("unable to load") from None


def _passed_over() -> None:
    """As Python does in a destructor."""
    with progress() as show:
        show("Loading the model")
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        show("Editing", 1, 1000)
    raise AssertionError


@pytest.mark.parametrize(
    "interrupted", [_taken_for_an_error, _passed_over, lambda: signal.raise_signal(signal.SIGINT)]
)
def test_ctrl_c_is_heard_wherever_it_comes(
    interrupted: Callable[[], None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def command(**_: object) -> None:
        interrupted()

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    monkeypatch.setattr("wordbrush.cli.app", command)
    try:
        with pytest.raises(SystemExit) as ended:
            main(["edit"])
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert (ended.value.code, capsys.readouterr().err) == (130, "wordbrush: cancelled\n")
