"""The task reaches the U-Net in both ways, is predicted or given, and can be learned on its own."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from PIL import Image

import wordbrush
from tests import tiny
from tests.tasked import teach
from wordbrush import EditRequest, ModelError, UsageError
from wordbrush.cli import main
from wordbrush.diffusion.task_embedding import TaskEmbedding, save_vector, take_task
from wordbrush.editors.fitting import fitting_methods
from wordbrush.tasks import TASKS

OPTIONS: dict[str, Any] = {"device": "cpu", "dtype": "float32", "steps": 2}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return teach(tiny.save("sd1", tmp_path_factory.mktemp("emu") / "model"))


def edited(editor: Any, picture: Image.Image, **asked: Any) -> bytes:
    return editor.edit(EditRequest(picture, "make it night", seed=1, **asked)).images[0].tobytes()


def test_the_task_changes_the_result_and_the_same_task_gives_the_same(checkpoint: Path, picture: Image.Image):
    editor = wordbrush.load(checkpoint, "emu-edit", **OPTIONS)
    one, two, again = (edited(editor, picture, task=task) for task in ("global", "remove", "global"))
    assert one == again != two


@pytest.mark.parametrize("way", ["to_time", "to_token"])
def test_either_way_alone_tells_tasks_apart(way: str, checkpoint: Path, tmp_path: Path, picture: Image.Image):
    folder = Path(shutil.copytree(checkpoint, tmp_path / "model"))
    found: Any = TaskEmbedding.from_pretrained(folder / "task_embedding")
    other = {"to_time": "to_token", "to_token": "to_time"}[way]
    torch.nn.init.zeros_(getattr(found, other).weight)
    found.save_pretrained(folder / "task_embedding")
    editor = wordbrush.load(folder, "emu-edit", **OPTIONS)
    assert edited(editor, picture, task="global") != edited(editor, picture, task="remove")


def test_a_u_net_that_takes_a_zero_vector_computes_what_it_did(checkpoint: Path):
    torch.manual_seed(1)
    unet = tiny.unet()
    inputs = torch.randn(2, 8, 16, 16), torch.tensor(7), torch.randn(2, 5, 32)
    with torch.inference_mode():
        before = unet(*inputs).sample
        after = take_task(unet)(*inputs, class_labels=torch.zeros(2, 64)).sample
    assert torch.equal(before, after)
    assert TaskEmbedding.for_unet(unet, ["a"])(torch.randn(2, 32))[0].abs().max() == 0


def test_a_folder_with_tasks_opens_in_diffusers_pipeline_which_tells_none(checkpoint: Path, tmp_path: Path):
    """And so does its U-Net, written once it took tasks."""
    pipeline = tiny.opened_by_diffusers(checkpoint)
    editor: Any = wordbrush.load(checkpoint, "emu-edit", **OPTIONS)
    editor.model.unet.save_pretrained(tmp_path)
    inputs = torch.randn(1, 8, 16, 16), torch.tensor(7), torch.randn(1, 5, 32)
    with torch.inference_mode():
        stock = UNet2DConditionModel.from_pretrained(tmp_path)(*inputs).sample
        assert torch.equal(stock, pipeline.unet(*inputs).sample)


def test_without_a_task_the_predictor_chooses_and_says_how_sure_it_is(checkpoint: Path, picture: Image.Image):
    editor = wordbrush.load(checkpoint, "emu-edit", **OPTIONS)
    result = editor.edit(EditRequest(picture, "make it night", seed=1, num_variations=2))
    (first, sure), (second, less) = result.intermediates["task"][0]
    assert [name for name, _ in result.settings["tasks"]] == [first, second]
    assert (
        first in TASKS and second in TASKS and 0 < less <= sure < 1 and len(result.intermediates["task"]) == 2
    )
    assert result.images[0].tobytes() == edited(editor, picture, task=first)


def test_an_instruction_of_a_task_that_the_model_did_not_learn_is_refused(picture: Image.Image):
    editor = wordbrush.load("storybook", "emu-edit", **OPTIONS)
    with pytest.raises(UsageError, match="the task 'pose' .* did not learn; --task takes local, remove"):
        editor.edit(EditRequest(picture, "show the human pose"))


def test_a_task_does_not_depend_on_its_neighbours(checkpoint: Path, picture: Image.Image):
    editor = wordbrush.load(checkpoint, "emu-edit", **OPTIONS)
    requests = [EditRequest(picture, "make it night", seed=1, task=task) for task in ("global", "remove")]
    together = editor.edit_batch(requests)
    for request, found in zip(requests, together, strict=True):
        alone = editor.edit(request).images[0]
        assert max(abs(a - b) for a, b in zip(alone.tobytes(), found.images[0].tobytes(), strict=True)) <= 1


def test_a_task_that_was_learned_alone_is_used_by_its_name(
    checkpoint: Path, tmp_path: Path, picture: Image.Image
):
    known: Any = TaskEmbedding.from_pretrained(checkpoint / "task_embedding")
    save_vector(known.vector("remove"), "outline", tmp_path / "outline.safetensors")
    plain = wordbrush.load(checkpoint, "emu-edit", **OPTIONS)
    editor = plain.with_settings(task_file=str(tmp_path / "outline.safetensors"))
    assert edited(editor, picture) == edited(editor, picture, task="outline")
    assert edited(editor, picture) == edited(plain, picture, task="remove")
    assert (tmp_path / "outline.safetensors").stat().st_size < 1000


def test_an_editor_that_learned_no_task_too_follows_instructions_alone(
    checkpoint: Path, tmp_path: Path, picture: Image.Image
):
    """InstructPix2Pix's method then computes what Emu Edit's does with the task "any"."""
    with pytest.raises(ModelError, match="has to be told the task"):
        wordbrush.load(checkpoint, **OPTIONS)
    folder = Path(shutil.copytree(checkpoint, tmp_path / "model"))
    known: Any = TaskEmbedding.from_pretrained(folder / "task_embedding")
    grown = known.grown(["any"])
    torch.nn.init.normal_(grown.vectors.weight)
    grown.save_pretrained(folder / "task_embedding")
    plain = wordbrush.load(folder, **OPTIONS, text_scale=3)
    tasked = wordbrush.load(folder, "emu-edit", **OPTIONS, text_scale=3)
    same, other = (edited(tasked, picture, task=task) for task in ("any", "add"))
    assert edited(plain, picture) == same != other
    assert [method.name for method in fitting_methods(folder)] == ["instruct-pix2pix", "emu-edit"]
    assert [method.name for method in fitting_methods(checkpoint)] == ["emu-edit"]


def test_what_does_not_fit_is_one_clear_line(
    checkpoint: Path, tiny_checkpoint: Path, tmp_path: Path, picture: Image.Image
):
    with pytest.raises(ModelError, match="holds no task embeddings"):
        wordbrush.load(tiny_checkpoint, "emu-edit", **OPTIONS)
    editor = wordbrush.load(checkpoint, "emu-edit", **OPTIONS)
    with pytest.raises(UsageError, match="no task 'fly'; one of local"):
        edited(editor, picture, task="fly")
    (tmp_path / "bad").write_text("no tensor")
    with pytest.raises(ModelError, match="holds no task"):
        edited(editor.with_settings(task_file=str(tmp_path / "bad")), picture)
    save_vector(torch.zeros(3), "outline", tmp_path / "short")
    with pytest.raises(ModelError, match="one vector of 32 numbers"):
        edited(editor.with_settings(task_file=str(tmp_path / "short")), picture)
    folder = Path(shutil.copytree(checkpoint, tmp_path / "model"))
    shutil.rmtree(folder / "task_predictor")
    with pytest.raises(UsageError, match="give --task"):
        edited(wordbrush.load(folder, "emu-edit", **OPTIONS), picture)
    (weights,) = (folder / "task_embedding").glob("*.safetensors")
    weights.write_text("no tensor")
    with pytest.raises(ModelError, match="task_embedding cannot be loaded"):
        wordbrush.load(folder, "emu-edit", **OPTIONS)


ONE, TWO = r"task: \w+ \(100%\)", r"task: \w+ \(\d+%\), \w+ \(\d+%\)"


@pytest.mark.parametrize(("given", "said"), [([], TWO), (["--task", "add"], ONE)])
def test_the_command_line_takes_a_task_and_says_it(
    given: list[str], said: str, checkpoint: Path, tmp_path: Path, picture: Image.Image,
    capsys: pytest.CaptureFixture[str],
):  # fmt: skip
    before, after = tmp_path / "in.png", tmp_path / "out.png"
    picture.save(before)
    options = ["--method", "emu-edit", "--model", str(checkpoint), "--steps", "1", "-o", str(after)]
    with pytest.raises(SystemExit) as end:
        main(["edit", str(before), "put a hat on it", *options, *given])
    assert end.value.code == 0 and after.exists()
    assert re.search(said, capsys.readouterr().err)
