"""The recipe of Emu Edit: InstructPix2Pix's, told the task in both ways."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.utils.data import default_collate

import wordbrush
from tests import tiny
from tests.training.edits import SMALL, rows
from wordbrush import EditRequest
from wordbrush.data.shards import write_shards
from wordbrush.training import instruct_pix2pix, task_inversion
from wordbrush.training.emu_edit import Config, EmuEditRecipe, main
from wordbrush.training.loop import TrainingError

KINDS = ("remove", "depth", "remove", "add", "style")
TASKS = ["remove", "add", "style", "depth"]  # in the taxonomy's order


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """data/, of four tasks; bare/, of none; base/, a text-to-image model that predicts v."""
    folder = tmp_path_factory.mktemp("emu")
    made = rows(10)
    tasked = [row.model_copy(update={"task": KINDS[i % 5]}) for i, row in enumerate(made)]
    write_shards(folder / "data", "train", tasked, shard_bytes=4000)
    write_shards(folder / "bare", "train", made)
    tiny.save("sd2", folder / "base", in_channels=4)
    return folder


def settings(folder: Path, output: Path, **changes: Any) -> Config:
    given = {"data": [str(folder / "data")], "init_from": str(folder / "base"), "output": output}
    return Config(**(given | SMALL | {"preflight": False} | changes))


def batch_of(recipe: Any, count: int) -> Any:
    samples = recipe.samples()
    return default_collate([samples[i] for i in range(count)])


def test_every_sample_has_the_task_of_its_row(folder: Path, tmp_path: Path):
    recipe = EmuEditRecipe(settings(folder, tmp_path))
    assert recipe.tasks == TASKS
    samples: Any = recipe.samples()
    found = [samples[i] for i in range(10)]
    assert [TASKS[s["task"]] for s in found] == [KINDS[s["row"] % 5] for s in found]


def test_tasks_are_drawn_by_their_weights(folder: Path, tmp_path: Path):
    weighted = settings(folder, tmp_path, task_weights="remove=0, depth=3")
    samples: Any = EmuEditRecipe(weighted).samples()
    names = [TASKS[samples[i]["task"]] for i in range(100)]
    assert names.count("remove") == 0
    assert names.count("depth") == 60 and names.count("add") == names.count("style") == 20


def test_a_share_of_the_samples_is_told_no_task(folder: Path, tmp_path: Path):
    recipe = EmuEditRecipe(settings(folder, tmp_path, any_share=0.3))
    assert recipe.tasks == [*TASKS, "any"]
    samples: Any = recipe.samples()
    found = [samples[i] for i in range(200)]
    told = [s for s in found if recipe.tasks[s["task"]] != "any"]
    assert 120 < len(told) < 160
    assert all(recipe.tasks[s["task"]] == KINDS[s["row"] % 5] for s in told)
    assert [s["task"] for s in found] == [samples[i]["task"] for i in range(200)]


def test_what_learned_no_task_too_edits_without_and_goes_on(folder: Path, tmp_path: Path):
    main(settings(folder, tmp_path / "a", any_share=0.5))
    model = tmp_path / "a" / "model"
    wordbrush.load(model, device="cpu", dtype="float32", steps=1).edit(
        EditRequest(tiny_picture(), "make it 3")
    )
    again = EmuEditRecipe(settings(folder, tmp_path / "b", init_from=str(model), any_share=0.1))
    assert again.tasks == [*TASKS, "any"]


@pytest.mark.parametrize(
    ("weights", "said"), [("sing=2", "sing"), ("remove=0,depth=0,add=0,style=0", "leaves no row")]
)
def test_weights_that_fit_no_row_are_refused(weights: str, said: str, folder: Path, tmp_path: Path):
    with pytest.raises(TrainingError, match=said):
        EmuEditRecipe(settings(folder, tmp_path, task_weights=weights)).samples()


def test_only_the_tasks_of_the_batch_are_learned(folder: Path, tmp_path: Path):
    recipe = EmuEditRecipe(settings(folder, tmp_path))
    model: Any = recipe.model
    torch.nn.init.normal_(model.tasks.to_time.weight)
    batch = batch_of(recipe, 4)
    recipe.losses(model, batch)["loss"].backward()
    learned = {int(n) for n in model.tasks.vectors.weight.grad.abs().sum(1).nonzero()}
    assert learned == set(batch["task"].tolist())
    assert all(p.grad is not None for p in model.unet.parameters())


def test_a_silent_task_leaves_instruct_pix2pix(folder: Path, tmp_path: Path):
    """With nothing added to the timestep and a token that repeats none, only the token's weight is left."""
    given = settings(folder, tmp_path / "a", zero_terminal_snr=False)
    recipe = EmuEditRecipe(given)
    plain = instruct_pix2pix.InstructPix2PixRecipe(given.model_copy(update={"output": tmp_path / "b"}))
    model: Any = recipe.model
    batch = batch_of(recipe, 3)
    options = {"sample": torch.randn(3, 8, 16, 16), "timestep": torch.tensor([1, 500, 900])}
    text = torch.randn(3, 40, 32)
    token = model.tasks(model.tasks.vectors(batch["task"]))[1]
    with torch.inference_mode():
        with_task = model(**options, encoder_hidden_states=text, class_labels=batch["task"]).sample
        expected = plain.model(**options, encoder_hidden_states=torch.cat([text, token], 1)).sample
    assert torch.allclose(with_task, expected, atol=1e-6)


def test_the_last_step_is_pure_noise(folder: Path, tmp_path: Path):
    recipe = EmuEditRecipe(settings(folder, tmp_path))
    assert float(recipe.noise.alphas_cumprod[-1]) == 0 and float(recipe.draws.timesteps[-1]) > 0
    assert recipe.noise.config["prediction_type"] == "v_prediction"


def test_what_is_trained_edits_and_goes_on_being_trained(folder: Path, tmp_path: Path):
    main(settings(folder, tmp_path / "a"))
    model = tmp_path / "a" / "model"
    assert "--task TASK`, of `remove`, `add`, `style`, `depth`." in (model / "README.md").read_text()
    editor = wordbrush.load(model, "emu-edit", device="cpu", dtype="float32", steps=2)
    picture = tiny_picture()
    results = [
        editor.edit(EditRequest(picture, "make it 3", seed=0, task=t)).images[0] for t in ("add", "depth")
    ]
    assert results[0].size == picture.size and results[0].tobytes() != results[1].tobytes()
    again = EmuEditRecipe(settings(folder, tmp_path / "b", init_from=str(model)))
    weights: Any = wordbrush.load(model, "emu-edit", device="cpu", dtype="float32")
    trained: Any = again.model
    assert torch.equal(trained.tasks.vectors.weight, weights.embedding.vectors.weight)
    assert float(again.noise.alphas_cumprod[-1]) == 0


def tiny_picture() -> Any:
    from PIL import Image

    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 48, 3), dtype=np.uint8))


def test_a_plain_editor_is_trained_under_the_same_noise(folder: Path, tmp_path: Path):
    given = settings(folder, tmp_path / "a")
    shared = given.model_dump(exclude_unset=True) | {"prediction_type": "v_prediction"}
    plain = instruct_pix2pix.Config(**shared, zero_terminal_snr=True)
    one, other = EmuEditRecipe(given), instruct_pix2pix.InstructPix2PixRecipe(plain)
    assert torch.equal(one.noise.alphas_cumprod, other.noise.alphas_cumprod)
    assert torch.equal(one.draws.timesteps, other.draws.timesteps)
    first, second = one.samples()[3], other.samples()[3]
    assert all(torch.equal(first[name], second[name]) for name in ("t", "noise", "moments"))
    with pytest.raises(ValueError, match="--prediction-type v_prediction"):
        instruct_pix2pix.Config(**(shared | {"prediction_type": None}), zero_terminal_snr=True)


def test_the_settings_of_edits_are_those_of_the_editor_that_it_began_as(folder: Path, tmp_path: Path):
    base = Path(shutil.copytree(folder / "base", tmp_path / "base"))
    said = {"instruct-pix2pix": {"text_scale": 2.5}, "turns": {"alpha": 0.1}}
    (base / "wordbrush.json").write_text(json.dumps(said | {"sdedit": {"strength": 0.5}}))
    main(settings(folder, tmp_path / "a", init_from=str(base)))
    model = tmp_path / "a" / "model"
    told = {"emu-edit": {"text_scale": 2.5}, "turns": {"alpha": 0.1}}
    assert json.loads((model / "wordbrush.json").read_text()) == told
    assert asdict(wordbrush.load(model, "emu-edit", device="cpu").settings)["text_scale"] == 2.5
    main(settings(folder, tmp_path / "b", init_from=str(model), any_share=0.5))
    assert json.loads((tmp_path / "b" / "model" / "wordbrush.json").read_text()) == told | said


def test_an_editor_is_taught_a_further_task(folder: Path, tmp_path: Path):
    main(settings(folder, tmp_path / "a"))
    model, new = tmp_path / "a" / "model", [row.model_copy(update={"task": "outline"}) for row in rows(10)]
    write_shards(tmp_path / "new", "train", new, shard_bytes=4000)
    given = settings(folder, tmp_path / "b", init_from=str(model), data=[str(tmp_path / "new")])
    with pytest.raises(TrainingError, match="rows of outline"):
        EmuEditRecipe(given).samples()
    taught = given.model_copy(update={"new_task": ["outline"]})
    recipe = EmuEditRecipe(taught)
    start: Any = recipe.model
    vectors = start.tasks.vectors.weight
    known: Any = EmuEditRecipe(given).model
    assert torch.equal(vectors[:-1], known.tasks.vectors.weight)
    assert torch.allclose(vectors[-1], vectors[:-1].mean(0), atol=1e-6)
    assert {int(recipe.samples()[i]["task"]) for i in range(5)} == {len(TASKS)}
    main(taught)
    editor = wordbrush.load(tmp_path / "b" / "model", "emu-edit", device="cpu", dtype="float32", steps=2)
    assert editor.edit(EditRequest(tiny_picture(), "go", seed=0, task="outline")).images
    for names in (["add"], ["outline", "outline"]):
        with pytest.raises(TrainingError, match="a task of that name"):
            EmuEditRecipe(given.model_copy(update={"new_task": names}))


def test_rows_without_a_task_are_named(folder: Path, tmp_path: Path):
    with pytest.raises(TrainingError, match="rows of no task; known are local"):
        EmuEditRecipe(settings(folder, tmp_path, data=[str(folder / "bare")]))


@pytest.mark.parametrize(
    "change",
    [
        {"min_snr": 5.0},
        {"prediction_type": "epsilon"},
        {"lora_rank": 4},
        {"validation": "x"},
        {"task_weights": "remove"},
        {"task_weights": "remove=-1"},
        {"task_weights": "remove=2", "buckets": True},
    ],
)
def test_settings_that_exclude_each_other_are_refused(change: dict[str, Any], folder: Path, tmp_path: Path):
    with pytest.raises(ValueError, match="--"):
        settings(folder, tmp_path, **change)


def test_a_new_task_is_learned_and_nothing_else_changes(folder: Path, tmp_path: Path):
    main(settings(folder, tmp_path / "a"))
    model, few = tmp_path / "a" / "model", str(folder / "bare")
    given = settings(folder, tmp_path / "b", init_from=str(model), data=[few]).model_dump(
        exclude_unset=True, exclude={"ema_decay"}
    )
    before = {path: path.read_bytes() for path in model.rglob("*.safetensors")}
    config = task_inversion.Config(**given, name="outline")
    recipe = task_inversion.TaskInversionRecipe(config)
    start: Any = recipe.model
    assert [name for name, _ in start.named_parameters()] == ["vector"]
    task_inversion.main(config)
    file = tmp_path / "b" / "model" / "outline.safetensors"
    (learned,) = load_file(file).values()
    assert learned.shape == start.vector.shape and not torch.equal(learned, start.vector)
    assert before == {path: path.read_bytes() for path in model.rglob("*.safetensors")}
    editor = wordbrush.load(model, "emu-edit", device="cpu", dtype="float32", steps=2, task_file=str(file))
    assert editor.edit(EditRequest(tiny_picture(), "make it 3", seed=0, task="outline")).images[0].size == (
        48,
        32,
    )


def test_what_a_run_takes_is_estimated(folder: Path, tmp_path: Path):
    main(settings(folder, tmp_path / "a", preflight=True))
    given = settings(folder, tmp_path / "b", init_from=str(tmp_path / "a" / "model"))
    one = task_inversion.Config(**given.model_dump(exclude_unset=True, exclude={"ema_decay"}), name="outline")
    recipe = task_inversion.TaskInversionRecipe(one)
    whole, vector = EmuEditRecipe(given).need(), recipe.need()
    assert 0 < vector.memory < whole.memory and 0 < vector.flops <= whole.flops
    assert [name for name, _ in recipe.model.named_parameters()] == ["vector"]
    assert not any(p.is_meta for p in recipe.base.unet.parameters())


def test_a_new_task_needs_an_editor_of_tasks_and_a_name_of_its_own(folder: Path, tmp_path: Path):
    given = settings(folder, tmp_path).model_dump(exclude_unset=True, exclude={"ema_decay"})
    with pytest.raises(ValueError, match="holds no task embeddings"):
        task_inversion.Config(**given, name="outline")
