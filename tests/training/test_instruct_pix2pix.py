"""The recipe of InstructPix2Pix, against diffusers' formula and against itself."""

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate.state import AcceleratorState
from diffusers import DDPMScheduler, StableDiffusionInstructPix2PixPipeline
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.data import default_collate
from typer.testing import CliRunner

import wordbrush
from tests import tiny
from tests.data.hub_server import REPO, Hub
from tests.training.edits import SMALL, data, picture, rows
from tests.training.processes import run_two
from wordbrush.cli import app
from wordbrush.data.webdataset import write_tars
from wordbrush.errors import UsageError
from wordbrush.models import quiet
from wordbrush.training.instruct_pix2pix import Config, InstructPix2PixRecipe, main
from wordbrush.training.loop import TrainingError, train
from wordbrush.training.publishing import write_card

WEIGHTS = "model/unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """data/, wide/ (of two aspects), tars/; text-to-image models: base/ (predicts epsilon), base-v/."""
    folder = tmp_path_factory.mktemp("instruct")
    data(folder / "data")
    data(folder / "wide", (40, 36), (64, 30))
    write_tars(folder / "tars", "train", rows(3, (30, 64)))
    tiny.save("sd1", folder / "base", in_channels=4)
    tiny.save("sd2", folder / "base-v", in_channels=4)
    (folder / "base-v" / "wordbrush.json").write_text('{"instruct-pix2pix": {"text_scale": 3.0}}')
    return folder


def settings(folder: Path, output: Path, **changes: Any) -> Config:
    given = {"data": [str(folder / "data")], "init_from": str(folder / "base"), "output": output}
    return Config(**(given | SMALL | {"preflight": False} | changes))


def batch_of(recipe: InstructPix2PixRecipe, count: int) -> Any:
    samples = recipe.samples()
    return default_collate([samples[i] for i in range(count)])


def stated_formula(
    base: Path, batch: Any, *, rate: float, prediction_type: str | None
) -> tuple[nn.Module, Tensor, Any, Tensor, Tensor]:
    """Diffusers' train_instruct_pix2pix.py, with stock classes; its random numbers are given."""
    with quiet():
        parts = StableDiffusionInstructPix2PixPipeline.from_pretrained(base).components
    unet, vae, text_encoder = (copy.deepcopy(parts[name]) for name in ("unet", "vae", "text_encoder"))
    new_conv_in = nn.Conv2d(8, unet.conv_in.out_channels, unet.conv_in.kernel_size, padding=1)
    with torch.no_grad():
        new_conv_in.weight.zero_()
        new_conv_in.weight[:, :4].copy_(unet.conv_in.weight)
        # The one exception: their script forgets this line and leaves the new bias as it was initialised.
        new_conv_in.bias.copy_(unet.conv_in.bias)
    unet.conv_in = new_conv_in
    unet.register_to_config(in_channels=8)

    kind = prediction_type or parts["scheduler"].config.prediction_type
    scheduler = DDPMScheduler.from_config(parts["scheduler"].config, prediction_type=kind)
    original, edited = (batch["pixels"][:, i].float() / 127.5 - 1 for i in (0, 1))

    def ids(texts: list[str]) -> Tensor:
        window = parts["tokenizer"].model_max_length
        options = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
        return parts["tokenizer"](texts, max_length=window, **options).input_ids

    with torch.no_grad():
        posterior = vae.encode(edited).latent_dist
        latents = (posterior.mean + posterior.std * batch["posterior"]) * vae.config.scaling_factor
        encoder_hidden_states = text_encoder(ids(batch["instruction"]))[0]
        original_image_embeds = vae.encode(original).latent_dist.mode()
        null_conditioning = text_encoder(ids([""]))[0]
    noise, timesteps, random_p = batch["noise"], batch["t"], batch["u"]
    noisy_latents = scheduler.add_noise(latents, noise, timesteps)
    prompt_mask = (random_p < 2 * rate).reshape(-1, 1, 1)
    encoder_hidden_states = torch.where(prompt_mask, null_conditioning, encoder_hidden_states)
    image_mask = 1 - ((random_p >= rate).float() * (random_p < 3 * rate).float())
    original_image_embeds = image_mask.reshape(-1, 1, 1, 1) * original_image_embeds
    concatenated_noisy_latents = torch.cat([noisy_latents, original_image_embeds], dim=1)
    if scheduler.config.prediction_type == "epsilon":
        target = noise
    else:
        target = scheduler.get_velocity(latents, noise, timesteps)
    model_pred = unet(concatenated_noisy_latents, timesteps, encoder_hidden_states).sample
    return (
        unet,
        F.mse_loss(model_pred.float(), target.float(), reduction="mean"),
        scheduler,
        model_pred,
        target,
    )


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    ("base", "kind"), [("base", None), ("base-v", None), ("base", "v_prediction"), ("base-v", "epsilon")]
)
def test_loss_and_gradients_are_those_of_diffusers_script(
    folder: Path, tmp_path: Path, base: str, kind: str | None
):
    config = settings(
        folder, tmp_path, init_from=str(folder / base), target="sample", resize_to=36,
        dropout=0.2, prediction_type=kind,
    )  # fmt: skip
    recipe = InstructPix2PixRecipe(config)
    batch = batch_of(recipe, 10)
    u = batch["u"]
    kinds = [u < 0.2, (u >= 0.2) & (u < 0.4), (u >= 0.4) & (u < 0.6), u >= 0.6]
    assert all(kind.any() for kind in kinds)  # every kind of dropout is there
    loss = recipe.losses(recipe.model, batch)["loss"]
    theirs, expected, *_ = stated_formula(folder / base, batch, rate=0.2, prediction_type=kind)
    assert abs(loss.item() - expected.item()) < 1e-5
    found, wanted = gradients(recipe.model, loss), gradients(theirs, expected)
    assert found.keys() == wanted.keys() and len(found) > 50
    assert all(torch.allclose(found[name], wanted[name], atol=1e-5) for name in found)
    assert max(float(gradient.abs().max()) for gradient in wanted.values()) > 1e-2
    recipe.export(recipe.model, tmp_path)
    stored = json.loads((tmp_path / "scheduler" / "scheduler_config.json").read_text())
    assert stored["prediction_type"] == (kind or ("epsilon" if base == "base" else "v_prediction"))


def test_timesteps_are_drawn_by_their_min_snr_weights(folder: Path, tmp_path: Path):
    options: dict[str, Any] = {"init_from": str(folder / "base-v"), "min_snr": 5, "timestep_shift": 1}
    recipe = InstructPix2PixRecipe(settings(folder, tmp_path, **options))
    alpha = recipe.noise.alphas_cumprod
    snr = alpha / (1 - alpha)
    weights = snr.clamp(max=5) / (snr + 1)  # diffusers: for v-prediction
    drawn = torch.stack([recipe.draws.noise(sample, (8, 8))["t"] for sample in range(4000)])
    shares = torch.histc(drawn.float(), bins=10, min=0, max=1000) / 4000
    expected = weights.reshape(10, 100).sum(1) / weights.sum()
    assert expected.max() > 3 * expected.min()
    assert torch.allclose(shares, expected, atol=0.03)


def test_the_first_prediction_is_the_text_to_image_models(folder: Path, tmp_path: Path):
    recipe = InstructPix2PixRecipe(settings(folder, tmp_path))
    base = tiny.pipeline(in_channels=4).unet
    latents, text = torch.randn(2, 4, 16, 16), torch.randn(2, 5, 32)
    with torch.no_grad():
        widened = recipe.model(torch.cat([latents, torch.randn(2, 4, 16, 16)], 1), 7, text).sample
        assert torch.allclose(widened, base(latents, 7, text).sample, atol=1e-5)


MODES: dict[str, dict[str, Any]] = {
    "streamed, accumulated, in buckets": {
        "data": ["wide", "tars"],
        "accumulation": 2,
        "buckets": True,
        "resize_to": 36,
        "flip": 0.5,
    },  # fmt: skip
    "cached": {"flip": 0.5, "target": "sample", "gradient_checkpointing": True},
    "adapters": {"lora_rank": 2, "init_from": "editor"},
}


@pytest.mark.parametrize("mode", MODES)
def test_a_run_in_pieces_makes_the_same_weights_to_the_bit(
    folder: Path, tiny_checkpoint: Path, tmp_path: Path, mode: str
):
    changes = {"data": ["wide"]} | MODES[mode]
    changes["data"] = [str(folder / name) for name in changes["data"]]
    if "init_from" in changes:
        changes["init_from"] = str(tiny_checkpoint)
    main(settings(folder, tmp_path / "whole", **changes))
    for _ in range(3):
        main(settings(folder, tmp_path / "pieces", max_minutes=0, **changes))
    name = "model/pytorch_lora_weights.safetensors" if mode == "adapters" else WEIGHTS
    whole, pieces = load_file(tmp_path / "whole" / name), load_file(tmp_path / "pieces" / name)
    assert all(torch.equal(whole[key], pieces[key]) for key in whole)
    log = [json.loads(line) for line in (tmp_path / "pieces" / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in log] == [1, 2, 3]


def first_gradient(config: Config) -> list[Tensor]:
    """Of all trained weights, as the optimiser gets it in the first step."""
    found: list[Tensor] = []

    def keep(optimizer: Any, args: Any, kwargs: Any) -> None:
        found.extend(p.grad.clone() for group in optimizer.param_groups for p in group["params"])

    handle = register_optimizer_step_pre_hook(keep)
    try:
        train(InstructPix2PixRecipe(config), config.model_copy(update={"steps": 1, "clip_norm": 0.0}))
    finally:
        handle.remove()
    return found


_PROCESS = """
import sys, torch
from pathlib import Path
from wordbrush.training.loop import processes
from tests.training.test_instruct_pix2pix import first_gradient, settings
folder, output = Path(sys.argv[1]), Path(sys.argv[2])
found = first_gradient(settings(folder, output, resize_to=36, batch_size=2))
torch.save(found, output / f"gradient-{processes().process_index}.pt")
"""


def test_accumulation_and_two_processes_make_the_gradient_of_one_large_batch(folder: Path, tmp_path: Path):
    (tmp_path / "run.py").write_text(_PROCESS)
    (tmp_path / "two").mkdir()
    run_two(tmp_path / "run.py", str(folder), str(tmp_path / "two"))
    two = [torch.load(tmp_path / "two" / f"gradient-{rank}.pt", weights_only=True) for rank in (0, 1)]
    one = first_gradient(settings(folder, tmp_path / "one", resize_to=36, batch_size=4))
    parts = first_gradient(settings(folder, tmp_path / "parts", resize_to=36, batch_size=2, accumulation=2))
    assert len(one) > 50 and max(float(gradient.abs().max()) for gradient in one) > 1e-2
    for other in (*two, parts):
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(one, other, strict=True))
    assert not (tmp_path / "two" / "state" / "step-2").exists()


def test_half_precision_makes_about_the_same_gradient(folder: Path, tmp_path: Path):
    def gradient(precision: str) -> Tensor:
        AcceleratorState._reset_state()  # it holds one precision for the life of a process
        found = first_gradient(settings(folder, tmp_path / precision, mixed_precision=precision))
        AcceleratorState._reset_state()
        return torch.cat([part.flatten() for part in found])

    whole, half = gradient("no"), gradient("bf16")
    assert not torch.equal(whole, half)
    assert float((whole - half).norm() / whole.norm()) < 0.05


def test_numbers_that_went_wrong_stop_it_with_step_and_rows_named(folder: Path, tmp_path: Path):
    config = settings(folder, tmp_path)
    recipe = InstructPix2PixRecipe(config)
    with torch.no_grad():
        next(recipe.model.parameters()).fill_(float("nan"))
    samples: Any = recipe.samples()
    rows = ", ".join(str(samples[i]["row"]) for i in (0, 1))
    with pytest.raises(TrainingError, match=rf"loss became nan at step 0 on samples 0 to 1 \(rows {rows} of"):
        train(recipe, config)
    assert not (tmp_path / "model").exists()


def test_an_infinite_gradient_stops_it_too(folder: Path, tmp_path: Path):
    config = settings(folder, tmp_path)
    recipe = InstructPix2PixRecipe(config)
    next(recipe.model.parameters()).register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(
        TrainingError, match="norm of the gradient became (nan|inf) at step 0 on samples 0 to 1"
    ):
        train(recipe, config)


@pytest.fixture(scope="module")
def trained(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a whole run with all that is looked at and written."""
    output = tmp_path_factory.mktemp("trained") / "my-editor"
    main(run_with_looks(folder, output).model_copy(update={"preflight": True}))
    return output


def run_with_looks(folder: Path, output: Path) -> Config:
    return settings(
        folder, output, init_from=str(folder / "base-v"), validation=str(folder / "wide"), validation_steps=2,
        validation_edits=2, log_steps=2,
    )  # fmt: skip


def test_the_model_opens_everywhere_and_starts_another_run(trained: Path, folder: Path, tmp_path: Path):
    with quiet():
        pipeline = StableDiffusionInstructPix2PixPipeline.from_pretrained(trained / "model")
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline("make it so", image=picture(0, (32, 32)), num_inference_steps=2).images[0].size == (
        32,
        32,
    )
    assert pipeline.scheduler.config.prediction_type == "v_prediction"
    request = wordbrush.EditRequest(image=picture(0), instruction="make it so", seed=0)
    editor = wordbrush.load(str(trained / "model"), steps=2, device="cpu")
    assert editor.edit(request).images[0].size == (40, 36)
    assert editor.settings.text_scale == 3  # as the checkpoint says that it was made from
    again = InstructPix2PixRecipe(settings(folder, tmp_path, init_from=str(trained / "model" / "unet")))
    weights = load_file(trained / WEIGHTS)
    assert all(torch.equal(value, weights[name]) for name, value in again.model.state_dict().items())


def test_held_out_edits_are_looked_at(trained: Path):
    rows = [json.loads(line) for line in (trained / "validation.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 3]
    assert all(0 < row["L1 to target"] < 1 for row in rows)
    board = EventAccumulator(str(trained / "tensorboard")).Reload()
    images = board.Images("before, edited, target")
    assert [image.step for image in images] == [2, 3] and images[0].width == 3 * 32
    assert [event.step for event in board.Scalars("validation/L1 to target")] == [2, 3]


def test_a_look_that_is_taken_again_counts_once(trained: Path, folder: Path, tmp_path: Path):
    """As by a run that was killed after the look and before its state was kept."""
    output = Path(shutil.copytree(trained, tmp_path / "my-editor"))
    (output / "state" / "step-3").rename(output / "state" / "step-1")
    main(run_with_looks(folder, output))
    rows = [json.loads(line) for line in (output / "validation.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 3]
    board = EventAccumulator(str(output / "tensorboard")).Reload()
    assert [image.step for image in board.Images("before, edited, target")] == [2, 3]
    card = (output / "model" / "README.md").read_text()
    assert card.count("\n| 2 | 0.") == card.count("\n| 3 | 0.") == 1


def test_the_card_says_what_it_is(trained: Path, folder: Path):
    card = (trained / "model" / "README.md").read_text()
    known = ModelCard.load(trained / "model" / "README.md").data
    assert known.pipeline_tag == "image-to-image" and known.base_model is None and known.datasets == []
    assert (
        "On 2 held-out edits of wide" in card
        and "| data | data |" in card
        and "| init_from | base-v |" in card
    )
    assert str(folder) not in card
    assert "# my-editor" in card and "| L1 to target |" in card and "| steps | 3 |" in card
    assert "3 steps, 6 samples" in card and (trained / "model" / "validation.png").exists()
    assert wordbrush.__version__ in card


def test_a_card_names_the_hubs_models_and_data_sets_alone(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(folder.parent)
    local = f"{folder.name}/data"  # which looks like a hub id
    given = {"settings": {"data": ["owner/edits", local], "resume": None}, "output": tmp_path}
    write_card(tmp_path, title="x", use="", base="owner/model", datasets=["owner/edits", local], **given)
    known = ModelCard.load(tmp_path / "README.md")
    assert known.data.base_model == "owner/model" and known.data.datasets == ["owner/edits"]
    assert "| data | owner/edits, data |" in known.text and "Not evaluated during training" in known.text


def test_a_finished_model_is_uploaded(
    trained: Path,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    output = Path(shutil.copytree(trained, tmp_path / "my-editor"))
    hub = Hub({})
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    main(run_with_looks(folder, output).model_copy(update={"push_to_hub": REPO}))
    hub.close()
    files = {str(path.relative_to(output / "model")): path for path in (output / "model").rglob("*.*")}
    assert hub.uploaded == {name: path.read_bytes() for name, path in files.items() if path.is_file()}
    assert "unet/diffusion_pytorch_model.safetensors" in hub.uploaded and "README.md" in hub.uploaded
    assert hub.url in capsys.readouterr().out and hub.tokens == {"Bearer hf_secret"}


def test_adapters_are_used_by_edit(tiny_checkpoint: Path, folder: Path, tmp_path: Path):
    changes = {"init_from": str(tiny_checkpoint), "lora_rank": 4, "learning_rate": 0.1, "ema_decay": 0.0}
    main(settings(folder, tmp_path, **changes))
    files = {path.name for path in (tmp_path / "model").iterdir()}
    assert files == {"pytorch_lora_weights.safetensors", "README.md"}
    request = wordbrush.EditRequest(image=picture(0), instruction="make it so", seed=0)
    options: dict[str, Any] = {"steps": 2, "device": "cpu", "dtype": "float32"}
    plain = wordbrush.load(str(tiny_checkpoint), **options).edit(request).images[0]
    adapted = (
        wordbrush.load(str(tiny_checkpoint), lora=[tmp_path / "model"], **options).edit(request).images[0]
    )
    assert np.abs(np.asarray(plain, float) - np.asarray(adapted, float)).max() > 2
    with pytest.raises(UsageError, match="LoRA starts from an editor"):
        InstructPix2PixRecipe(settings(folder, tmp_path, lora_rank=4))


def test_the_paper_preset_is_the_papers(tmp_path: Path):
    config = Config(preset="paper", data=["a/b"], init_from="c/d", output=tmp_path)
    stated = {
        "steps": 10_000, "learning_rate": 1e-4, "schedule": "constant", "optimizer": "adamw",
        "warmup_steps": 0, "weight_decay": 0.01, "ema_decay": 0.9999, "size": 256, "resize_to": 288,
        "flip": 0.5, "dropout": 0.05, "target": "sample", "min_snr": 0.0, "clip_norm": 0.0,
        "timestep_shift": 1.0, "prediction_type": None,
    }  # fmt: skip
    assert {name: getattr(config, name) for name in stated} == stated
    assert config.batch_size * config.accumulation * 8 == 1024
    given = Config(preset="paper", data=["a/b"], init_from="c/d", output=tmp_path, steps=22_000)
    assert given.steps == 22_000 and given.flip == 0.5


def test_a_run_does_not_go_on_as_another(folder: Path, tmp_path: Path):
    with pytest.raises(UsageError, match="nothing to resume"):
        main(settings(folder, tmp_path, resume=True))
    main(settings(folder, tmp_path, max_minutes=0))
    with pytest.raises(UsageError, match="holds the state of a run"):
        main(settings(folder, tmp_path, resume=False))
    with pytest.raises(UsageError, match="holds a run with --batch-size 2, not 1"):
        main(settings(folder, tmp_path, batch_size=1))
    main(settings(folder, tmp_path, resume=True, log_steps=2))
    assert (tmp_path / "state" / "step-3").is_dir()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"preflight": True, "batch_size": 10**6},
            "GiB of memory, and .* are free on cpu: lower --batch-size",
        ),
        ({"size": 30}, "--size 30: this model needs a multiple of 4"),
        ({"resize_to": 16}, "smaller than the crop"),
        ({"cache": True, "resize_to": 40}, "--cache needs crops that are not random"),
        ({"clip": Path("x")}, "--autoencoder and --clip go together"),
        ({"push_to_hub": "somebody/model"}, "HF_HUB_OFFLINE is set"),
        ({"push_to_hub": "no id"}, "is no hub id"),
    ],
)
def test_what_cannot_be_is_refused_at_once(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], message: str
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises((UsageError, TrainingError), match=message):
        main(settings(folder, tmp_path, **changes))
    assert not (tmp_path / "state").exists()


def test_its_settings_are_flags(tmp_path: Path):
    result = CliRunner().invoke(app, ["train", "instruct-pix2pix", "--help"], env={"COLUMNS": "200"})
    flags = ("--data", "--init-from", "--no-resume", "--preset", "--lora-rank", "--push-to-hub", "--min-snr")
    assert result.exit_code == 0 and all(flag in result.output for flag in flags)
    given = ["train", "instruct-pix2pix", "--output", str(tmp_path), "--data", "x", "--init-from", "y"]
    assert "optimiser steps of the whole run" in result.output  # though the default is its own
    for flag, value in {"--steps": "0", "--batch-size": "0", "--ema-decay": "1.5", "--seed": "-1"}.items():
        refused = CliRunner().invoke(app, [*given, flag, value])
        assert refused.exit_code and flag in str(refused.exception)
    wrong = CliRunner().invoke(app, [*given, "--preset", "huge"])
    assert wrong.exit_code and "preset" in f"{wrong} {wrong.output}"
