"""The recipe of the instruction writer: what it learns from, its loss, from scratch and by LoRA."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import default_collate
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from wordbrush.cli import app
from wordbrush.datagen.checks import row_flaw
from wordbrush.datagen.instructions import Rejected
from wordbrush.datagen.local_writer import LocalWriter, Sampling
from wordbrush.errors import UsageError
from wordbrush.training.instruction_writer import (
    Config,
    InstructionWriterRecipe,
    TokenisedTriplets,
    draw_from,
    held_out,
    main,
    read_rows,
    storybook_triplet,
    train_tokenizer,
)
from wordbrush.training.loop import TrainingError
from wordbrush.triplets import Caption, Triplet, completion, prompt, write_triplets

SMALL: dict[str, Any] = {"width": 64, "layers": 2, "vocabulary": 300, "max_tokens": 96, "warmup_steps": 5}
ROWS = [
    Triplet(caption="a dog on a beach", edit="make it night", output="a dog on a beach at night"),
    Triplet(caption="a red car", edit="Paint it blue.", output="a blue car"),
    Triplet(
        caption="Möwe über dem Meer, 1890", edit="add a ship", output="Möwe über dem Meer mit Schiff, 1890"
    ),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("data") / "rows.jsonl"
    write_triplets(file, ROWS)
    return file


@pytest.fixture(scope="module")
def recipe(data: Path) -> InstructionWriterRecipe:
    return InstructionWriterRecipe(Config(output=data.parent, data=[data], **SMALL))


def test_storybook_triplets_repeat_and_are_flawless():
    rows = [storybook_triplet(i) for i in range(100)]
    assert rows == [storybook_triplet(i) for i in range(100)] and len(set(rows)) > 95
    assert not any(map(row_flaw, rows))


def numbered(count: int) -> list[Triplet]:
    return [
        Triplet(caption=f"a dog {n}", edit=f"make it {n + 1}", output=f"a dog {n + 1}") for n in range(count)
    ]


def test_each_pass_takes_every_row_of_the_files_once(data: Path, tmp_path: Path):
    more = numbered(9)
    write_triplets(tmp_path / "more.jsonl", more)
    rows = read_rows([data, tmp_path / "more.jsonl"])
    draw = draw_from(rows, seed=0)
    passes = [[draw(i) for i in range(start, start + 12)] for start in (0, 12, 24)]
    assert all(len(found) == len(set(found)) and {*found} == {*ROWS, *more} for found in passes)
    assert len({tuple(found) for found in passes}) == 3
    assert [draw_from(rows, seed=0)(i) for i in reversed(range(36))] == sum(passes, [])[::-1]
    assert [draw_from(rows, seed=1)(i) for i in range(12)] != passes[0]


def test_a_twentieth_of_the_rows_is_held_out():
    rows = numbered(700)
    for count, expected in ((19, 0), (20, 1), (29, 1), (700, 35)):
        train, rest = held_out(rows[:count], seed=0)
        assert len(rest) == expected and not {*train} & {*rest} and {*train, *rest} == {*rows[:count]}
    assert held_out(rows, seed=0) == held_out(rows, seed=0) != held_out(rows, seed=1)


def test_passes_say_how_many_steps_there_are(tmp_path: Path):
    write_triplets(tmp_path / "rows.jsonl", numbered(100))
    files: dict[str, Any] = {"data": [tmp_path / "rows.jsonl"]} | SMALL | {"warmup_steps": 50}

    def steps(**settings: Any) -> tuple[int, int]:
        config = InstructionWriterRecipe(Config(output=tmp_path, **settings)).config
        return config.steps, config.warmup_steps

    assert steps(**files) == (5, 0)  # of three passes over 95 rows
    assert steps(**files, epochs=20, batch_size=8, accumulation=2) == (119, 11)
    assert steps(**files, epochs=80, batch_size=8) == (950, 50)
    assert steps(**files, steps=7) == (7, 50) and steps(**files, steps=6000) == (6000, 50)
    assert steps(**SMALL, epochs=1) == (6000, 5)  # the storybook never ends


def test_files_without_rows_are_refused(tmp_path: Path):
    write_triplets(tmp_path / "none.jsonl", [])
    with pytest.raises(TrainingError, match="no rows"):
        read_rows([tmp_path / "none.jsonl"])
    with pytest.raises(UsageError, match=r"missing\.jsonl"):
        read_rows([tmp_path / "missing.jsonl"])


def test_any_text_can_be_written_with_the_tokenizer(tmp_path: Path):
    train_tokenizer((storybook_triplet(i) for i in range(50)), 600).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert len(tokenizer) == 600 and tokenizer.padding_side == "left"
    for text in [completion(ROWS[2]), prompt(ROWS[0].caption), "日本 !? naïve  two spaces\n\n", ""]:
        assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_a_sample_is_prompt_and_completion(recipe: InstructionWriterRecipe):
    for index in range(9):
        sample, row = recipe.samples()[index], recipe.draw(index)
        tokens, start, end = sample["tokens"], sample["start"], sample["end"]
        assert recipe.tokenizer.decode(tokens[:start]) == prompt(row.caption)
        assert recipe.tokenizer.decode(tokens[start:end]) == completion(row)
        assert len(tokens) == 96 and (tokens[end:] == recipe.tokenizer.pad_token_id).all()


def test_the_loss_is_that_of_the_completions_alone(recipe: InstructionWriterRecipe):
    samples = [recipe.samples()[index] for index in range(6)]
    errors = torch.tensor([])
    for sample in samples:
        tokens = sample["tokens"][: sample["end"]]
        logits = recipe.model(input_ids=tokens[None]).logits[0, sample["start"] - 1 : -1]
        errors = torch.cat([errors, F.cross_entropy(logits, tokens[sample["start"] :], reduction="none")])
    losses = recipe.losses(recipe.model, default_collate(samples))
    assert torch.allclose(losses["loss"], errors.mean(), atol=1e-5)


def test_new_weights_come_from_the_seed(data: Path, recipe: InstructionWriterRecipe):
    def first(seed: int) -> torch.Tensor:
        config = Config(output=data.parent, data=[data], seed=seed, **SMALL)
        return next(InstructionWriterRecipe(config).model.parameters())

    assert torch.equal(first(0), next(recipe.model.parameters()))
    assert not torch.equal(first(0), first(1))


def written(folder: Path, **sampling: float) -> list[Triplet | Rejected]:
    """What the model of a folder makes of the captions of `ROWS`."""
    settings: dict[str, Any] = {"max_new_tokens": 80} | sampling
    writer = LocalWriter.load(folder, device="cpu", sampling=Sampling(**settings))
    return writer.write([Caption(text=row.caption) for row in ROWS])


@pytest.fixture(scope="module")
def base(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model that knows `ROWS` by heart, trained in two runs."""
    folder = tmp_path_factory.mktemp("base")
    config = Config(output=folder, data=[data], steps=100, batch_size=6, learning_rate=1e-2, **SMALL)
    main(config.model_copy(update={"max_minutes": 0}))
    main(config)
    return folder / "model"


def test_from_scratch_it_writes_the_triplets_back(base: Path):
    assert written(base) == ROWS


def test_the_loss_of_held_out_rows_is_written_down_after_each_pass(tmp_path: Path):
    write_triplets(tmp_path / "rows.jsonl", numbered(44))
    config = Config(output=tmp_path, data=[tmp_path / "rows.jsonl"], batch_size=8, **SMALL)
    main(config)
    log = [json.loads(line) for line in (tmp_path / "validation.jsonl").read_text().splitlines()]
    assert [(row["step"], row["passes"]) for row in log] == [(6, 1.14), (11, 2.1), (16, 3.05)]
    recipe = InstructionWriterRecipe(config)
    trained = AutoModelForCausalLM.from_pretrained(tmp_path / "model").train()
    samples = TokenisedTriplets(lambda i: recipe.held_out[i], recipe.tokenizer, 96)
    assert len(recipe.held_out) == 2
    with torch.no_grad():
        expected = recipe.losses(trained, default_collate([samples[0], samples[1]]))
    assert recipe.measure(trained) == {name: pytest.approx(float(x)) for name, x in expected.items()}
    assert log[-1]["loss"] == pytest.approx(float(expected["loss"]), abs=1e-4) and trained.training


def test_without_files_nothing_is_held_out(tmp_path: Path):
    main(Config(output=tmp_path, steps=1, batch_size=2, **SMALL))
    assert not (tmp_path / "validation.jsonl").exists() and (tmp_path / "model").exists()


def test_lora_teaches_a_given_model_other_triplets_and_leaves_its_weights_alone(base: Path, tmp_path: Path):
    def digest() -> str:
        return hashlib.sha256((base / "model.safetensors").read_bytes()).hexdigest()

    before = digest()
    others = [
        row.model_copy(update={"edit": "add a dog", "output": row.caption + " with a dog"}) for row in ROWS
    ]
    write_triplets(tmp_path / "others.jsonl", others)
    main(
        Config(
            output=tmp_path, model=str(base), data=[tmp_path / "others.jsonl"], steps=80, batch_size=6,
            learning_rate=1e-2, warmup_steps=5, max_tokens=96,
        )
    )  # fmt: skip
    assert (tmp_path / "model" / "adapter_model.safetensors").exists()
    assert not (tmp_path / "model" / "model.safetensors").exists()
    assert written(tmp_path / "model", temperature=0, frequency_penalty=0) == others
    assert digest() == before


def test_its_settings_are_flags():
    result = CliRunner().invoke(app, ["train", "instruction-writer", "--help"], env={"COLUMNS": "200"})
    assert result.exit_code == 0 and all(f in result.output for f in ("--model", "--data", "--epochs"))
