"""The local writer on a small Llama that has learned a few triplets by heart, through the recipe."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from wordbrush.datagen import config, local_writer, pipeline
from wordbrush.datagen.instructions import Rejected
from wordbrush.datagen.local_writer import LocalWriter, Sampling, SeededSampling
from wordbrush.datagen.progress import Display
from wordbrush.datagen.runners import Build
from wordbrush.datagen.stages import Record
from wordbrush.errors import ModelError, WordbrushError
from wordbrush.training.instruction_writer import Config, main
from wordbrush.triplets import Caption, Triplet, write_triplets

THINGS = ("dog", "red car", "tall tree", "sleeping child", "boat")
CAPTIONS = [Caption(text=f"a {thing} on a beach", url=f"http://x/{thing}") for thing in THINGS]


def choices(caption: Caption) -> list[Triplet]:
    """What the model learned to answer to a caption: two good edits, and one that changes nothing."""
    night = caption.text + " at night"
    return [
        Triplet(caption=caption.text, edit="make it night", output=night, url=caption.url),
        Triplet(
            caption=caption.text, edit="paint it", output=f"a painting of {caption.text}", url=caption.url
        ),
        Triplet(caption=caption.text, edit="keep it", output=caption.text, url=caption.url),
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("writer")
    write_triplets(folder / "rows.jsonl", [row for caption in CAPTIONS for row in choices(caption)])
    small: dict[str, Any] = {"width": 64, "layers": 2, "vocabulary": 300, "max_tokens": 80}
    main(
        Config(
            output=folder, data=[folder / "rows.jsonl"], steps=120, batch_size=15, learning_rate=1e-2,
            warmup_steps=5, **small,
        )
    )  # fmt: skip
    return folder / "model"


def writer(folder: Path, **sampling: Any) -> LocalWriter:
    return LocalWriter.load(folder, device="cpu", sampling=Sampling(**{"max_new_tokens": 64} | sampling))


def test_it_writes_what_was_learned_and_never_what_changes_nothing(folder: Path):
    rejected = 0
    for seed in range(4):
        for caption, row in zip(CAPTIONS, writer(folder, seed=seed).write(CAPTIONS), strict=True):
            rejected += isinstance(row, Rejected)
            assert row in [*choices(caption)[:2], Rejected(caption, "unchanged: both captions are the same")]
    assert rejected <= 3  # a third to the power of four, of 20


def test_another_seed_writes_something_else_and_the_same_seed_the_same(folder: Path):
    seeds = [writer(folder, seed=seed).write(CAPTIONS) for seed in (0, 0, 1, 2, 3)]
    assert seeds[0] == seeds[1]
    assert any(seeds[0] != other for other in seeds[2:])


def test_what_is_written_does_not_depend_on_the_batch(folder: Path):
    together = writer(folder).write(CAPTIONS)
    assert writer(folder).write(CAPTIONS[::-1])[::-1] == together
    assert writer(folder, batch_size=2).write(CAPTIONS) == together
    assert [writer(folder).write([caption])[0] for caption in CAPTIONS] == together


def test_rejected_answers_are_tried_again(folder: Path, monkeypatch: pytest.MonkeyPatch):
    def rejected() -> list[str]:
        every = [outcome for seed in range(6) for outcome in writer(folder, seed=seed).write(CAPTIONS)]
        return [outcome.reason for outcome in every if isinstance(outcome, Rejected)]

    assert len(rejected()) <= 3  # a third to the power of four, of 30
    monkeypatch.setattr(local_writer, "TRIES", 1)
    reasons = rejected()
    assert len(reasons) >= 4 and set(reasons) == {"unchanged: both captions are the same"}


def test_in_the_engine_a_stopped_run_goes_on_to_the_same_units(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(pipeline, "BLOCK", 2)
    (tmp_path / "captions.txt").write_text("".join(f"{caption.text}\n" for caption in CAPTIONS))
    local: dict[str, Any] = {"model": str(folder), "device": "cpu", "max_new_tokens": 64}
    source = {"source": "writer", "captions": str(tmp_path / "captions.txt"), "count": 5, "language": ""}
    settings = config.Config.model_validate({"triplets": source | {"local": local}})

    def run(build: Build, records: Sequence[Record]) -> Iterator[Record]:
        yield from map(build(), records)

    def stopped(build: Build, records: Sequence[Record]) -> Iterator[Record]:
        yield build()(records[1])
        raise WordbrushError("stopped")

    def listed(name: str, runner: Any) -> pipeline.Units:
        (tmp_path / name).mkdir(exist_ok=True)
        return pipeline.list_units(settings, tmp_path / name, runner, Display(every=float("inf")))

    with pytest.raises(WordbrushError, match="stopped"):
        listed("twice", stopped)
    written = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "twice" / "written").iterdir()}
    assert list(written) == ["000001.json"] and len(listed("once", run).units) >= 4
    assert listed("twice", run) == listed("once", run)
    assert (tmp_path / "twice" / "written" / "000001.json").stat().st_mtime_ns == written["000001.json"]


def test_an_answer_that_does_not_end_is_malformed(folder: Path):
    (outcome,) = writer(folder, max_new_tokens=4).write(CAPTIONS[:1])
    assert outcome == Rejected(CAPTIONS[0], "malformed: not an edit and a caption")


def test_unfit_captions_are_rejected_in_their_place(folder: Path):
    written = writer(folder).write([Caption(text="a nude"), CAPTIONS[0], Caption(text="x" * 400)])
    assert [isinstance(outcome, Rejected) for outcome in written] == [True, False, True]


def test_the_checkpoint_is_stock_transformers(folder: Path):
    model = LlamaForCausalLM.from_pretrained(folder)
    assert (
        model.config.model_type == "llama"
        and json.loads((folder / "config.json").read_text())["vocab_size"] == 300
    )


@pytest.mark.parametrize("name", ["no/such-model", "missing-folder"])
def test_what_is_no_model_is_one_clear_line(name: str):
    with pytest.raises(ModelError, match=name) as caught:
        LocalWriter.load(name)
    assert "\n" not in str(caught.value)


def test_draws_follow_the_tempered_distribution():
    logits, captions = torch.tensor([2.0, 1.0, 0.0, -1.0]), [str(i) for i in range(4000)]
    draw = SeededSampling(Sampling(temperature=0.5, frequency_penalty=0), captions, attempt=0, length=3)
    drawn = draw(torch.zeros(4000, 3, dtype=torch.long), logits.expand(4000, -1)).argmax(-1)
    share, expected = torch.bincount(drawn, minlength=4) / 4000, (logits / 0.5).softmax(-1)
    assert (share - expected).abs().max() < 4 * (0.25 / 4000) ** 0.5


def test_without_temperature_the_penalty_grows_with_each_time_a_token_was_written():
    ids = torch.tensor([[7, 7, 7, 1, 2, 1], [7, 7, 7, 3, 3, 3]])  # three of a prompt, which does not count
    draw = SeededSampling(Sampling(temperature=0, frequency_penalty=0.1), ["a", "b"], attempt=0, length=3)
    expected = torch.zeros(2, 8)
    expected[0, 1], expected[0, 2], expected[1, 3] = -0.2, -0.1, -0.3
    assert torch.allclose(draw(ids, torch.zeros(2, 8)), expected)
