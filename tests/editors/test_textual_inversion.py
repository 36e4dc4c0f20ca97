"""Learned words: diffusers reads ours as we read its, and a word is one word to everything."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from safetensors.torch import save_file

import wordbrush
from tests import tiny
from wordbrush import EditRequest, ModelError, UsageError
from wordbrush.attention.alignment import find_word, word_tokens
from wordbrush.diffusion.model import LatentDiffusion
from wordbrush.editors.textual_inversion import add_concepts, read_concept, save_concept
from wordbrush.models import quiet

CPU = torch.device("cpu")
WORD = "<my-dog>"


def vectors(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 32, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save("sd1", tmp_path_factory.mktemp("sd1"), in_channels=4)


def concept(folder: Path, count: int = 2, word: str = WORD, seed: int = 0) -> Path:
    file = folder / f"{word}-{count}-{seed}.safetensors".replace("<", "").replace(">", "")
    save_concept(file, word, vectors(count, seed))
    return file


def load(checkpoint: Path, *files: Path) -> LatentDiffusion:
    model = LatentDiffusion.load(checkpoint, device=CPU, dtype=torch.float32)
    add_concepts(model, files)
    return model


@torch.no_grad()
@pytest.mark.parametrize("family", ["sd1", "sd2"])
@pytest.mark.parametrize("count", [1, 3])
def test_prompts_are_encoded_as_in_diffusers(family: str, count: int, tmp_path: Path):
    file, checkpoint = concept(tmp_path, count), tiny.save(family, tmp_path / family, in_channels=4)
    with quiet():
        pipe: Any = StableDiffusionPipeline.from_pretrained(checkpoint, safety_checker=None)
        pipe.load_textual_inversion(str(file))
    for prompt in (f"a {WORD} at night", f"{WORD}, and a {WORD}", "a dog"):
        expected, _ = pipe.encode_prompt(prompt, CPU, 1, False)
        found = load(checkpoint, file).encode_text([prompt]).tokens
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


@torch.no_grad()
def test_two_words_and_the_prompts_without_them(checkpoint: Path, tmp_path: Path):
    plain = load(checkpoint)
    both = load(checkpoint, concept(tmp_path), concept(tmp_path, 3, "<sky>", 1))
    for prompt in ("a dog", "", "x" * 99):
        assert torch.equal(both.encode_text([prompt]).tokens, plain.encode_text([prompt]).tokens)
    encoded = both.encode_text([f"a {WORD}", "a <sky>", f"<sky> {WORD}", "a dog"]).tokens
    assert all(not torch.allclose(a, b) for i, a in enumerate(encoded) for b in encoded[:i])
    assert torch.equal(both.encode_text(["a <My-Dog>"]).tokens[0], encoded[0])  # CLIP's texts have no case
    weight = both.text_encoders[0].get_input_embeddings().weight
    assert not weight.requires_grad and torch.equal(weight[-5:], torch.cat([vectors(2), vectors(3, 1)]))


def test_it_is_one_word_of_several_tokens(checkpoint: Path, tmp_path: Path):
    tokenizer = load(checkpoint, concept(tmp_path, 3)).tokenizers[0]
    prompt = f"a {WORD}, x"
    assert word_tokens(tokenizer, prompt) == [[1], [2, 3, 4, 5], [6]]
    assert find_word(tokenizer, prompt, WORD) == [2, 3, 4]


def test_what_does_not_fit_is_dropped_in_whole_words(checkpoint: Path, tmp_path: Path):
    model = load(checkpoint, concept(tmp_path, 3))
    assert model.dropped_words(f"a {WORD} " + "y " * 35) == "y"
    assert model.dropped_words(f"a {WORD} " + "y " * 34) == ""


@pytest.mark.parametrize(
    ("method", "extra"),
    [
        ("instruct-pix2pix", {}),
        ("sdedit", {}),
        ("prompt-to-prompt", {"keep_inversion": False, "null_text_steps": 0, "blend_words": WORD}),
        ("diffedit", {"keep_inversion": False, "strength": 1.0}),
        ("imagic", {"keep_tuned": False, "embedding_steps": 1, "model_steps": 0}),
    ],
)
def test_every_method_takes_the_word(
    checkpoint: Path, tmp_path: Path, picture: Image.Image, method: str, extra: Any, tiny_checkpoint: Path
):
    model = tiny_checkpoint if method == "instruct-pix2pix" else checkpoint
    prompt = f"a {WORD}"
    request = EditRequest(
        picture,
        instruction=prompt,
        source_caption="a dog",
        target_caption=prompt,
        mask=Image.new("L", picture.size, 255),  # DiffEdit might find that nothing is to change
        seed=0,
    )
    results = [
        wordbrush.load(
            model, method, device="cpu", dtype="float32", steps=2, size=32, concept=[file], **extra
        ).edit(request)
        for file in (concept(tmp_path), concept(tmp_path, seed=1))
    ]
    one, two = (np.asarray(result.images[0]) for result in results)
    assert not np.array_equal(one, two)
    assert results[0].settings["concept"] == [str(concept(tmp_path))]


def test_files_of_diffusers_in_every_form(tmp_path: Path):
    wanted = vectors(2)
    torch.save({WORD: wanted}, tmp_path / "learned_embeds.bin")
    torch.save({WORD: wanted[0]}, tmp_path / "one.pt")
    save_concept(tmp_path / "learned_embeds.safetensors", WORD, wanted)
    for source, expected in (
        ("learned_embeds.bin", wanted),
        ("one.pt", wanted[:1]),
        ("learned_embeds.safetensors", wanted),
        (".", wanted),
    ):
        word, found = read_concept(tmp_path / source)
        assert word == WORD and torch.equal(found, expected)


def test_bad_files_are_one_clear_line(checkpoint: Path, tmp_path: Path):
    class Evil:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "executed",))

    save_file({"a": vectors(1), "b": vectors(1)}, tmp_path / "two.safetensors")
    save_file({WORD: torch.zeros(2, 16)}, tmp_path / "narrow.safetensors")
    (tmp_path / "junk.safetensors").write_bytes(b"junk")
    torch.save({WORD: Evil()}, tmp_path / "evil.bin")
    for name, kind, hint in (
        ("none.safetensors", ModelError, "none"),
        ("two.safetensors", ModelError, "one learned word"),
        ("junk.safetensors", ModelError, "junk"),
        ("evil.bin", ModelError, "evil"),
        ("narrow.safetensors", UsageError, "narrow.*width 16"),
    ):
        with pytest.raises(kind, match=hint) as caught:
            load(checkpoint, tmp_path / name)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("word", ["x", "my dog", ""])
def test_words_that_cannot_be_learned(checkpoint: Path, tmp_path: Path, word: str):
    with pytest.raises(UsageError, match="word"):
        load(checkpoint, concept(tmp_path, word=word))


def test_a_word_is_learned_once_and_by_one_text_encoder(checkpoint: Path, tmp_path: Path):
    with pytest.raises(UsageError, match="already"):
        load(checkpoint, concept(tmp_path), concept(tmp_path, seed=1))
    with pytest.raises(UsageError, match="not XL"):
        load(tiny.save("sdxl", tmp_path / "xl"), concept(tmp_path))
