"""Checked and marked results: by every way in."""

import json
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from PIL import Image

import wordbrush
from tests import tiny
from tests.serving.clients import ended
from tests.serving.services import make, running
from wordbrush import watermark
from wordbrush.cli import main
from wordbrush.editors.sequential import Session
from wordbrush.editors.session_file import load_session
from wordbrush.errors import WithheldError
from wordbrush.provenance import read_provenance
from wordbrush.safety import Safety
from wordbrush.types import Editor, EditRequest, StepInfo

FLAGS = ["--steps", "2", "--dtype", "float32", "--device", "cpu"]


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A check that finds every picture unsafe."""
    return tiny.classifier(tmp_path_factory.mktemp("checks") / "strict", ["sfw", "nsfw"], leaning=1)


@pytest.fixture(scope="module")
def mild(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that finds every picture safe."""
    return tiny.classifier(tmp_path_factory.mktemp("checks") / "mild", ["sfw", "nsfw"], leaning=0)


@pytest.fixture
def folder(tmp_path: Path, picture: Image.Image, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with `dog.png` in it, large enough to be marked."""
    picture.resize((288, 256), Image.Resampling.BICUBIC).save(tmp_path / "dog.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*words: str) -> Any:
    with pytest.raises(SystemExit) as ended:
        main(words)
    return ended.value.code


def edit(checkpoint: Path, *words: str) -> Any:
    return run("edit", "dog.png", "make it night", "--seed", "3", "--model", str(checkpoint), *FLAGS, *words)


def editor(checkpoint: Path, safety: Safety) -> Editor:
    return safety.guard(wordbrush.load(str(checkpoint), dtype="float32", device="cpu", steps=2), "cpu")


def test_off_changes_nothing(tiny_checkpoint: Path, folder: Path, mild: Path):
    assert edit(tiny_checkpoint, "-o", "plain.png") == 0
    assert edit(tiny_checkpoint, "-o", "off.png", "--nsfw-check", "off") == 0
    assert edit(tiny_checkpoint, "-o", "checked.png", "--nsfw-check", str(mild)) == 0
    assert Path("plain.png").read_bytes() == Path("off.png").read_bytes()
    assert Image.open("plain.png").tobytes() == Image.open("checked.png").tobytes()
    assert not {"nsfw_check", "watermark"} & read_provenance("plain.png")["settings"].keys()
    assert read_provenance("checked.png")["settings"]["nsfw_check"] == "mild"


def test_a_withheld_result_is_one_line_and_no_file(
    tiny_checkpoint: Path, folder: Path, strict: Path, capsys: pytest.CaptureFixture[str]
):
    assert edit(tiny_checkpoint, "-o", "out.png", "--nsfw-check", str(strict), "--variations", "2") == 1
    said = "withheld: strict finds 2 of 2 results not safe for work; try other words or another seed"
    assert capsys.readouterr().err == f"wordbrush: {said}\n"
    assert not list(folder.glob("out*"))


def test_a_watermark_is_found_again(tiny_checkpoint: Path, folder: Path, capsys: pytest.CaptureFixture[str]):
    pytest.importorskip("imwatermark", exc_type=ImportError)
    assert edit(tiny_checkpoint, "-o", "marked.png", "--watermark") == 0
    assert edit(tiny_checkpoint, "-o", "plain.png") == 0
    assert read_provenance("marked.png")["settings"]["watermark"] == "wordbrush"
    change = np.asarray(Image.open("marked.png"), int) - np.asarray(Image.open("plain.png"), int)
    assert 0 < np.abs(change).mean() < 3
    capsys.readouterr()
    assert run("watermark", "marked.png") == 0
    assert run("watermark", "marked.png", "plain.png") == 1
    assert capsys.readouterr().out.splitlines()[1:] == [
        "marked.png: carries the watermark",
        "plain.png: does not carry the watermark",
    ]
    edit(tiny_checkpoint, "-o", "again.png", "--from-metadata", "marked.png")
    assert "--watermark puts it in again" in capsys.readouterr().err


def test_what_is_too_small_is_refused_before_the_work(
    tiny_checkpoint: Path, folder: Path, picture: Image.Image, capsys: pytest.CaptureFixture[str]
):
    pytest.importorskip("imwatermark", exc_type=ImportError)
    picture.save("dog.png")
    assert edit(tiny_checkpoint, "--watermark") == 1
    assert "48 x 32 is too small for a watermark" in capsys.readouterr().err


def test_a_turn_that_keeps_pixels_is_marked_all_over(tiny_checkpoint: Path, folder: Path):
    pytest.importorskip("imwatermark", exc_type=ImportError)
    words = ["--model", str(tiny_checkpoint), *FLAGS, "--watermark"]
    assert run("turn", "dog.session", "make it night", "--picture", "dog.png", *words) == 0
    assert watermark.is_in(load_session(Path("dog.session")).image())
    keeping = Session(Image.open("dog.png"), alpha=10)  # every pixel
    turns = keeping.edit(
        editor(tiny_checkpoint, Safety(watermark=True)), EditRequest(keeping.image(), "snow")
    )
    assert watermark.is_in(turns[0].image)


def test_a_larger_result_is_marked(tiny_checkpoint: Path, folder: Path):
    pytest.importorskip("imwatermark", exc_type=ImportError)
    pytest.importorskip("ncnn")
    assert edit(tiny_checkpoint, "-o", "large.png", "--watermark", "--upscale", "realesrgan-fast") == 0
    large = Image.open("large.png")
    assert large.size == (4 * 288, 4 * 256)
    assert watermark.is_in(large)


def test_in_a_batch_the_row_fails_and_another_check_is_another_batch(
    tiny_checkpoint: Path, folder: Path, strict: Path, mild: Path, capsys: pytest.CaptureFixture[str]
):
    Path("jobs.jsonl").write_text('{"image": "dog.png", "instruction": "make it night", "seed": 0}\n')
    words = ["batch", "jobs.jsonl", "--out", "out", "--model", str(tiny_checkpoint), *FLAGS]
    assert run(*words, "--nsfw-check", str(strict)) == 1
    assert "withheld: strict finds the result not safe for work" in capsys.readouterr().err
    assert run(*words, "--nsfw-check", str(mild)) == 0
    entry = json.loads(Path("out/results.jsonl").read_text())
    assert entry["settings"]["nsfw_check"] == "mild"
    assert run(*words) == 2  # what was made without a check is not told from the rest


def test_unsafe_pictures_are_not_shown_on_their_way(
    tiny_checkpoint: Path, picture: Image.Image, strict: Path, mild: Path
):
    shown: dict[Path, list[Image.Image]] = {strict: [], mild: []}
    for check, seen in shown.items():

        def look(info: StepInfo, seen: list[Image.Image] = seen) -> None:
            seen.extend(info.preview())

        try:
            guarded = editor(tiny_checkpoint, Safety(nsfw_check=str(check)))
            guarded.edit(EditRequest(picture, "make it night"), on_step=look)
        except WithheldError:
            assert check == strict
    assert [image is picture for image in shown[strict]] == [True, True]
    assert not any(image is picture for image in shown[mild])


def post(client: httpx.Client) -> dict[str, Any]:
    asked: Any = {"files": {"image": ("dog.png", Path("dog.png").read_bytes())}}
    return client.post("/v1/edits", **asked, data={"instruction": "make it night", "seed": 3}).json()


def test_the_service_says_what_it_did(tiny_checkpoint: Path, folder: Path, mild: Path):
    pytest.importorskip("imwatermark", exc_type=ImportError)
    safety = Safety(nsfw_check=str(mild), watermark=True)
    with running(make(tiny_checkpoint, folder / "service", safety=safety)) as client:
        status = ended(client, post(client)["id"])
        assert (status["settings"]["nsfw_check"], status["settings"]["watermark"]) == ("mild", "wordbrush")
        Path("result.png").write_bytes(client.get(f"/v1/edits/{status['id']}/result").content)
        [model] = client.get("/v1/models").json()["data"]
        assert (model["nsfw_check"], model["watermark"]) == ("mild", True)
    assert watermark.is_in(Image.open("result.png"))
    assert read_provenance("result.png")["settings"]["nsfw_check"] == "mild"


def test_the_service_withholds_with_a_status_that_says_so(tiny_checkpoint: Path, folder: Path, strict: Path):
    service = make(tiny_checkpoint, folder / "service", safety=Safety(nsfw_check=str(strict)))
    with running(service) as client:
        edits = [post(client)["id"] for _ in range(2)]  # perhaps in one batch: each is told by itself
        for edit_id in edits:
            status = ended(client, edit_id)
            assert status["status"] == "failed"
            words = "withheld: strict finds the result not safe for work; try other words or another seed"
            assert status["error"]["message"] == words
            result = client.get(f"/v1/edits/{edit_id}/result")
            assert result.status_code == 422
            error = result.json()["error"]
            assert (error["code"], error["type"]) == ("moderation_blocked", "image_generation_user_error")
            assert error == status["error"]
        sdk = openai.OpenAI(api_key="none", base_url=str(client.base_url.join("/v1")), max_retries=0)
        with pytest.raises(openai.UnprocessableEntityError, match="withheld") as refused:
            sdk.images.edit(image=("dog.png", Path("dog.png").read_bytes()), prompt="make it night")
        assert refused.value.code == "moderation_blocked"
    assert not list(folder.glob("service/files/*/*.png"))
