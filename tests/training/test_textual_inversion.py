"""Textual inversion: only the word's embeddings move, the right way, and diffusers opens the file."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from torch.utils.data import default_collate

import wordbrush
from tests import tiny
from wordbrush import EditRequest, ImageError, UsageError
from wordbrush.editors.textual_inversion import read_concept
from wordbrush.models import quiet
from wordbrush.training import textual_inversion
from wordbrush.training.textual_inversion import Concept, Config, TextualInversionRecipe, spoken

WORD = "<my-dog>"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save("sd1", tmp_path_factory.mktemp("sd1"), in_channels=4)


@pytest.fixture
def pictures(tmp_path: Path, picture: Image.Image) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(3):
        picture.rotate(30 * number).save(folder / f"{number}.png")
    return folder


def config(checkpoint: Path, pictures: Path, **changes: Any) -> Config:
    given: dict[str, Any] = {
        "output": pictures.parent / "out", "pictures": [pictures], "word": WORD, "init_word": "dog",
        "model": str(checkpoint), "kind": "plain", "num_vectors": 2, "steps": 4, "batch_size": 2,
        "log_steps": 2,
    }  # fmt: skip
    return Config(**(given | changes))


def learned(settings: Config) -> torch.Tensor:
    word, vectors = read_concept(settings.output / "model")
    assert word == settings.word
    return vectors


def test_a_run_in_pieces_learns_the_same_to_the_bit(checkpoint: Path, pictures: Path):
    whole = config(checkpoint, pictures)
    textual_inversion.main(whole)
    pieces = config(checkpoint, pictures, output=pictures.parent / "pieces", max_minutes=0)
    for _ in range(4):
        textual_inversion.main(pieces)
    assert torch.equal(learned(whole), learned(pieces))
    assert learned(whole).shape == (2, 32)
    textual_inversion.main(other := config(checkpoint, pictures, output=pictures.parent / "b", seed=1))
    assert not torch.equal(learned(whole), learned(other))


def test_only_the_word_moves_and_the_loss_falls(checkpoint: Path, pictures: Path):
    recipe = TextualInversionRecipe(settings := config(checkpoint, pictures, learning_rate=0.05))
    frozen = {
        (i, name): value.clone()
        for i, network in enumerate(recipe.base.networks)
        for name, value in network.state_dict().items()
    }
    samples = recipe.samples()
    batch = default_collate([samples[index] for index in range(64)])
    concept: Any = recipe.model
    start = concept.vectors.detach().clone()
    optimizer = torch.optim.Adam(recipe.model.parameters(), lr=settings.learning_rate)
    losses: list[float] = []
    for _ in range(12):
        loss = recipe.losses(recipe.model, batch)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 1e-4
    assert (concept.vectors - start).abs().min() > 1e-3
    for i, network in enumerate(recipe.base.networks):
        assert all(torch.equal(frozen[i, name], value) for name, value in network.state_dict().items())
        assert all(p.grad is None for p in network.parameters())


def test_the_gradient_is_that_of_the_embedding_table(checkpoint: Path, pictures: Path):
    recipe = TextualInversionRecipe(config(checkpoint, pictures))
    encoder, concept = recipe.base.text_encoders[0], recipe.model
    tokens = recipe.samples()[0]["tokens"][None]
    with spoken(encoder, concept):
        encoder(tokens).last_hidden_state.square().sum().backward()
    weight = encoder.get_input_embeddings().weight.requires_grad_()
    encoder(tokens).last_hidden_state.square().sum().backward()
    torch.testing.assert_close(
        next(concept.parameters()).grad, weight.grad[recipe.first : recipe.first + 2], atol=1e-5, rtol=1e-4
    )


def test_it_starts_from_the_known_word(checkpoint: Path, pictures: Path):
    recipe = TextualInversionRecipe(config(checkpoint, pictures))
    tokenizer, encoder = recipe.base.tokenizers[0], recipe.base.text_encoders[0]
    rows = encoder.get_input_embeddings().weight[tokenizer("dog", add_special_tokens=False).input_ids]
    concept: Any = recipe.model
    torch.testing.assert_close(concept.vectors.detach(), rows.mean(0).expand(2, -1))


def test_samples_are_of_their_index_alone(checkpoint: Path, pictures: Path):
    recipe = TextualInversionRecipe(config(checkpoint, pictures))
    one, two = recipe.samples(), recipe.samples()
    _ = one[3]
    for name, value in one[7].items():
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(two[7][name]))
    drawn = [one[index] for index in range(60)]
    assert len({int(sample["tokens"].sum()) for sample in drawn}) == 3  # captions
    assert len({float(sample["latents"].sum()) for sample in drawn}) == 6  # pictures and mirror images


def test_the_word_works_in_diffusers_and_here(checkpoint: Path, pictures: Path, picture: Image.Image):
    settings = config(checkpoint, pictures)
    textual_inversion.main(settings)
    with quiet():
        pipe: Any = StableDiffusionPipeline.from_pretrained(checkpoint, safety_checker=None)
        pipe.load_textual_inversion(str(settings.output / "model"))
    ids = pipe.tokenizer.convert_tokens_to_ids([WORD, f"{WORD}_1"])
    assert torch.equal(pipe.text_encoder.get_input_embeddings().weight[ids], learned(settings))
    editor = wordbrush.load(checkpoint, "sdedit", device="cpu", steps=2, concept=[settings.output / "model"])
    assert (
        editor.edit(EditRequest(picture, target_caption=f"a {WORD}", seed=0)).images[0].size == picture.size
    )


def test_a_word_in_the_middle_of_others():
    concept = Concept(10, torch.full((2, 3), 7.0))
    ids, embeds = torch.tensor([[1, 10, 11, 12, 9]]), torch.zeros(1, 5, 3)
    assert concept(ids, embeds)[0, :, 0].tolist() == [0, 7, 7, 0, 0]


@pytest.mark.parametrize(
    ("changes", "hint"),
    [
        ({"word": "my dog"}, "without spaces"),
        ({"word": "x"}, "already"),
        ({"init_word": " "}, "init-word"),
        ({"num_vectors": 32, "kind": "object"}, "num-vectors"),
        ({"size": 33}, "multiple"),
    ],
)
def test_bad_settings_are_one_clear_line(checkpoint: Path, pictures: Path, changes: Any, hint: str):
    with pytest.raises(UsageError, match=hint):
        TextualInversionRecipe(config(checkpoint, pictures, **changes)).samples()


def test_bad_pictures_and_models(checkpoint: Path, pictures: Path, tmp_path: Path, tiny_checkpoint: Path):
    (empty := tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="no pictures"):
        TextualInversionRecipe(config(checkpoint, empty))
    (pictures / "note.txt").write_text("no picture")
    with pytest.raises(ImageError, match="note"):
        TextualInversionRecipe(config(checkpoint, pictures))
    with pytest.raises(UsageError, match="text-to-image"):
        TextualInversionRecipe(config(tiny_checkpoint, pictures))
    with pytest.raises(UsageError, match="one text encoder"):
        TextualInversionRecipe(config(tiny.save("sdxl", tmp_path / "xl", in_channels=4), pictures))


def test_another_run_in_the_same_folder_is_refused(checkpoint: Path, pictures: Path):
    textual_inversion.main(config(checkpoint, pictures))
    with pytest.raises(UsageError, match="--word"):
        textual_inversion.main(config(checkpoint, pictures, word="<other>"))
