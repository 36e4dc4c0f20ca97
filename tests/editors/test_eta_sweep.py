"""A sweep over eta tunes once, and ranks what it finds."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import wordbrush
from tests import tiny
from tests.evaluation.models import save_clip
from wordbrush import EditRequest, StepInfo, UsageError
from wordbrush.cli import main
from wordbrush.editors.eta_sweep import Candidate, Sweep, parse_etas, sweep_eta
from wordbrush.editors.imagic import Imagic
from wordbrush.perception.clip import Clip
from wordbrush.provenance import read_provenance


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def clip(clip_folder: Path) -> Clip:
    return Clip.load(clip_folder, device=torch.device("cpu"))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save("sd1", tmp_path_factory.mktemp("sweep"), in_channels=4, vae="tiny")


@pytest.fixture(scope="module")
def editor(checkpoint: Path) -> Imagic:
    made = wordbrush.load(
        checkpoint, "imagic", device="cpu", dtype="float32", steps=2, size=32, embedding_steps=2,
        model_steps=2, embedding_rate=0.1, lora_rank=2, keep_tuned=False,
    )  # fmt: skip
    assert isinstance(made, Imagic)
    return made


def test_every_eta_and_seed_once_tuned(editor: Imagic, clip: Clip, picture: Image.Image):
    request = EditRequest(
        picture, source_caption="a dog", target_caption="a sitting dog", seed=3, num_variations=2
    )
    seen: list[StepInfo] = []
    sweep = sweep_eta(editor, request, clip, [0.2, 0.8, 1.0], on_step=seen.append)
    assert [(c.eta, c.seed) for c in sweep.candidates] == [
        (0.2, 3), (0.2, 4), (0.8, 3), (0.8, 4), (1.0, 3), (1.0, 4)
    ]  # fmt: skip
    sampling_alone = [10, 11, 16, 17]  # after the first
    assert [info.step for info in seen] == [*range(6), *sampling_alone]
    assert {info.num_steps for info in seen} == {18}
    alone = editor.with_settings(eta=0.8).edit(request)
    assert np.array_equal(sweep.candidates[3].image, alone.images[1])
    assert sweep.strip().width > 4 * picture.width


def test_the_picture_itself_is_preserved_and_not_edited(editor: Imagic, clip: Clip, picture: Image.Image):
    from wordbrush.editors.eta_sweep import _scores  # pyright: ignore[reportPrivateUsage]

    request = EditRequest(picture, source_caption="a dog", target_caption="a cat")
    ((direction, kept),) = _scores(clip, request, [picture])
    assert direction == pytest.approx(0, abs=1e-6) and kept == pytest.approx(1, abs=1e-5)


def test_the_best_one_changed_as_asked_and_kept_the_rest(picture: Image.Image):
    scores = {0.2: (0.05, 0.95), 0.6: (0.25, 0.8), 1.0: (0.3, 0.4), 1.2: (-0.5, -0.5)}
    sweep = Sweep(picture, [Candidate(eta, 0, picture, {}, *both) for eta, both in scores.items()])
    assert [candidate.eta for candidate in sweep.ranked] == [0.6, 1.0, 0.2, 1.2]


@pytest.mark.parametrize(
    ("etas", "source", "message"),
    [([], "a dog", "at least one eta"), ([0.5], "", "source caption"), ([0.5, 3.0], "a dog", "eta")],
)
def test_bad_input(
    editor: Imagic, clip: Clip, picture: Image.Image, etas: list[float], source: str, message: str
):
    request = EditRequest(picture, source_caption=source, target_caption="a cat")
    with pytest.raises(UsageError, match=message):
        sweep_eta(editor, request, clip, etas)


def test_etas_are_a_list_of_numbers():
    assert parse_etas("1, 0.4,1") == [0.4, 1.0]
    with pytest.raises(UsageError, match="'0.4;1' is not a list of numbers"):
        parse_etas("0.4;1")


def test_the_command_writes_all_and_names_the_best(
    checkpoint: Path,
    clip_folder: Path,
    tmp_path: Path,
    picture: Image.Image,
    capsys: pytest.CaptureFixture[str],
):
    picture.save(tmp_path / "dog.png")
    words = ["sweep", str(tmp_path / "dog.png"), "--source", "a dog", "--target", "a sitting dog", "--model",
             str(checkpoint), "--clip", str(clip_folder), "--dtype", "float32", "--size", "32",
             "--steps", "1", "--embedding-steps", "1", "--model-steps", "0", "--no-keep-tuned", "--seed", "7",
             "--etas", "0.5,1", "--variations", "2"]  # fmt: skip

    def run(*more: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as exit_:
            main([*words, *more])
        return int(exit_.value.code or 0), *capsys.readouterr()

    code, out, err = run()
    assert (code, err) == (0, "")
    folder = tmp_path / "dog-sweep"
    rows = json.loads((folder / "results.json").read_text())
    assert out.splitlines() == [str(folder / rows[0]["file"]), str(folder / "strip.png")]
    assert [row["score"] for row in rows] == sorted((row["score"] for row in rows), reverse=True)
    record = read_provenance(folder / "eta-0.5-seed-8.png")["settings"]
    assert (record["eta"], record["seed"], record["num_variations"]) == (0.5, 8, 1)
    for more, hint in (
        ((), "holds results"),
        (("--method", "sdedit"), "for imagic"),
        (("--eta", "0.5"), "leave --eta out"),
        (("--force", "--etas", "x"), "not a list"),
    ):
        code, out, err = run(*more)
        assert (code, out) == (2, "") and hint in err
