"""The task predictor learns its rows and tells all tasks' probabilities; a sentence encoder can stand in."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import default_collate
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, BertConfig, BertModel

from wordbrush.data.labelled import Labelled, storybook_instruction
from wordbrush.editors.task_predictor import NumberPredictor, answers, load_task_predictor
from wordbrush.errors import ModelError
from wordbrush.tasks import TASKS
from wordbrush.training.task_predictor import (
    NAMES,
    Config,
    Instructions,
    TaskPredictorRecipe,
    main,
    mistype,
    train_tokenizer,
)

SMALL: dict[str, Any] = {"width": 32, "layers": 1, "vocabulary": 320, "max_tokens": 24, "warmup_steps": 2}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A predictor that learned four easily told tasks for a few seconds."""
    folder = tmp_path_factory.mktemp("predictor")
    words = {"remove": "remove", "add": "add", "depth": "depth", "segmentation": "map"}
    rows = [{"instruction": f"{word} {n}", "task": task} for task, word in words.items() for n in range(9)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given: dict[str, Any] = {"steps": 300, "batch_size": 16, "learning_rate": 5e-3, "log_steps": 100}
    main(Config(output=folder, data=[folder / "rows.jsonl"], storybook=0, **(SMALL | given | {"width": 64})))
    return folder / "model"


def test_what_was_learned_is_predicted_with_probabilities_of_all_tasks(trained: Path):
    predictor = load_task_predictor(trained)
    found = predictor.predict(["remove 3", "depth 7", "map 8", "Add 5"])
    assert [p.task for p in found] == ["remove", "depth", "segmentation", "add"]
    for prediction in found:
        assert {name for name, _ in prediction.ranked} == set(TASKS)
        shares = [share for _, share in prediction.ranked]
        assert sum(shares) == pytest.approx(1, abs=1e-5) and shares == sorted(shares, reverse=True)


def test_a_prediction_does_not_depend_on_its_neighbours(trained: Path):
    predictor = load_task_predictor(trained)
    several = predictor.predict(["remove 3", "show the depth of everything in here please"])
    alone = [
        predictor.predict([text])[0] for text in ("remove 3", "show the depth of everything in here please")
    ]
    for one, other in zip(several, alone, strict=True):
        assert dict(one.ranked) == pytest.approx(dict(other.ranked), abs=1e-5)


def test_probabilities_are_those_of_the_models_own_answers(trained: Path):
    """Scored all at once, a number is as likely as when the model is asked for it token by token."""
    model: Any = AutoModelForSeq2SeqLM.from_pretrained(trained).eval()
    tokenizer: Any = AutoTokenizer.from_pretrained(trained)
    scores = NumberPredictor(model, tokenizer)._scores(["remove 3"])[0]  # pyright: ignore[reportPrivateUsage]
    given = tokenizer("remove 3", return_tensors="pt")
    for number in (1, 12):
        labels = answers(tokenizer, 16)[number]
        labels = labels[labels >= 0][None]
        with torch.inference_mode():
            loss = model(**given, labels=labels).loss * labels.shape[1]
        assert scores[number].item() == pytest.approx(-loss.item(), abs=1e-4)


def test_numbers_are_told_apart_by_their_end():
    tokenizer = train_tokenizer([storybook_instruction(n) for n in range(50)], 320)
    rows = answers(tokenizer, 16)
    assert len({tuple(row.tolist()) for row in rows}) == 16
    assert all(tokenizer.eos_token_id in row.tolist() for row in rows)


def test_the_loss_falls_to_zero_only_where_every_token_is_right(tmp_path: Path):
    recipe = TaskPredictorRecipe(Config(output=tmp_path, **SMALL))
    batch = default_collate([recipe.samples()[n] for n in range(6)])
    losses = recipe.losses(recipe.model, batch)
    assert losses["loss"] > 1 and 0 <= losses["accuracy"] <= 1
    losses["loss"].backward()
    assert all(p.grad is not None for p in recipe.model.parameters())


def test_samples_repeat_and_mix_the_storybook_with_the_rows():
    rows = [Labelled(instruction="paint a moustache on her", task="add")]
    tokenizer = train_tokenizer([storybook_instruction(n) for n in range(50)], 400)
    drawn = Instructions(rows, 0.5, tokenizer, 32)
    again = Instructions(rows, 0.5, tokenizer, 32)
    texts = [tokenizer.decode(drawn[n]["tokens"], skip_special_tokens=True) for n in range(60)]
    assert all((drawn[n]["tokens"] == again[n]["tokens"]).all() for n in range(10))
    assert 15 < sum("moust" in text or "oustache" in text for text in texts) < 45
    assert {NAMES[drawn[n]["task"]] for n in range(200)} >= {"local", "remove", "detect", "depth", "text"}


def test_slips_keep_the_words_readable():
    texts = {mistype(np.random.default_rng(n), "Remove the small dog.") for n in range(300)}
    assert {"remove the small dog", "Remove the small dog."} <= texts and len(texts) > 20
    assert all(abs(len(text) - 20) <= 1 for text in texts)


def test_a_sentence_encoder_serves_as_it_is(tmp_path: Path):
    tokenizer = train_tokenizer([storybook_instruction(n) for n in range(50)], 400)
    config = BertConfig(vocab_size=400, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                        intermediate_size=16)  # fmt: skip
    torch.manual_seed(0)
    BertModel(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    predictor = load_task_predictor(tmp_path)
    known = {name: task.examples[0] for name, task in TASKS.items()}
    assert [p.task for p in predictor.predict(list(known.values()))] == list(known)


def test_other_models_are_refused_in_one_line(tmp_path: Path, trained: Path):
    with pytest.raises(ModelError, match="cannot load .* as a task predictor"):
        load_task_predictor(tmp_path)
    config = json.loads((trained / "config.json").read_text())
    del config["task_names"]
    for file in trained.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="train task-predictor"):
        load_task_predictor(tmp_path)
