"""Translation by checkpoints: the real classes, tiny, with random weights."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
from transformers import (
    M2M100Config,
    M2M100ForConditionalGeneration,
    M2M100Tokenizer,
    MarianConfig,
    MarianMTModel,
    MarianTokenizer,
    NllbTokenizer,
)

from wordbrush.errors import ModelError
from wordbrush.languages import load_translator
from wordbrush.languages.neural import Seq2SeqTranslator
from wordbrush.languages.translation import TranslationError

TEXTS = ["把狗变成熊猫", "make it night and replace the dog with a panda", "quita el perro rojo", "夜にして"]


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, int]]:
    """A sentencepiece model of the test's own sentences, and its vocabulary."""
    base = tmp_path_factory.mktemp("pieces") / "sp"
    sentencepiece.SentencePieceTrainer.train(  # pyright: ignore
        sentence_iterator=iter(TEXTS * 20), model_prefix=str(base), vocab_size=60, model_type="char",
        hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    loaded: Any = sentencepiece.SentencePieceProcessor(model_file=f"{base}.model")  # pyright: ignore
    words = [loaded.id_to_piece(i) for i in range(loaded.get_piece_size())]
    names = ["<s>", "<pad>", "</s>", "<unk>", *(w for w in words if not w.startswith("<"))]
    return Path(f"{base}.model"), {name: i for i, name in enumerate(names)}


def m2m100(size: int) -> M2M100ForConditionalGeneration:
    torch.manual_seed(0)
    return M2M100ForConditionalGeneration(
        M2M100Config(
            vocab_size=size, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
            decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, max_position_embeddings=256,
            bos_token_id=0, pad_token_id=1, eos_token_id=2, decoder_start_token_id=2,
        )
    )  # fmt: skip


@pytest.fixture(scope="module")
def m2m(pieces: tuple[Path, dict[str, int]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("m2m")
    (folder / "v.json").write_text(json.dumps(pieces[1]))
    tokenizer = M2M100Tokenizer(str(folder / "v.json"), str(pieces[0]))
    tokenizer.save_pretrained(folder)
    m2m100(len(tokenizer) + 108).save_pretrained(folder)  # 100 languages, and 8 spare ids
    return folder


@pytest.fixture(scope="module")
def nllb(pieces: tuple[Path, dict[str, int]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nllb")
    tokenizer = NllbTokenizer(vocab=pieces[1], merges=[])
    tokenizer.save_pretrained(folder)
    m2m100(len(tokenizer)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def marian(pieces: tuple[Path, dict[str, int]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("marian")
    vocabulary = pieces[1]
    (folder / "v.json").write_text(json.dumps(vocabulary))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it recommends sacremoses
        tokenizer = MarianTokenizer(str(pieces[0]), str(pieces[0]), str(folder / "v.json"))
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    MarianMTModel(
        MarianConfig(
            vocab_size=len(vocabulary), d_model=16, encoder_layers=1, decoder_layers=1,
            encoder_attention_heads=2,
            decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, max_position_embeddings=256,
            pad_token_id=1, eos_token_id=2, decoder_start_token_id=1, forced_eos_token_id=2,
        )
    ).save_pretrained(folder)  # fmt: skip
    return folder


class Calls:
    """Notes how a model is asked to generate."""

    def __init__(self, translator: Seq2SeqTranslator, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: list[dict[str, Any]] = []
        generate = translator.model.generate

        def note(**given: Any) -> Any:
            self.seen.append(given)
            return generate(**given | {"max_new_tokens": 4})

        monkeypatch.setattr(translator.model, "generate", note)


def loaded(folder: Path) -> Seq2SeqTranslator:
    translator = load_translator(str(folder))
    assert isinstance(translator, Seq2SeqTranslator)
    return translator


@pytest.mark.parametrize(
    ("kind", "source", "english"), [("m2m", "__zh__", "__en__"), ("nllb", "zho_Hans", "eng_Latn")]
)
def test_languages_are_forced(
    kind: str, source: str, english: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
):
    translator = loaded(request.getfixturevalue(kind))
    calls = Calls(translator, monkeypatch)
    found = translator.translate(TEXTS[0])
    tokenizer = translator.tokenizer
    vocabulary = getattr(tokenizer, "lang_token_to_id", None) or tokenizer.get_vocab()
    (call,) = calls.seen
    assert call["forced_bos_token_id"] == vocabulary[english]
    assert vocabulary[source] in call["input_ids"][0].tolist()
    assert call["input_ids"].shape == call["attention_mask"].shape
    assert (found.language, found.source) == ("zh", translator.name)


def test_opus_mt_needs_no_codes(marian: Path, monkeypatch: pytest.MonkeyPatch):
    translator = loaded(marian)
    calls = Calls(translator, monkeypatch)
    assert translator.translate(TEXTS[3]).language == "ja"
    assert "forced_bos_token_id" not in calls.seen[0]


def test_an_instruction_is_translated_once(m2m: Path, monkeypatch: pytest.MonkeyPatch):
    translator = loaded(m2m)
    calls = Calls(translator, monkeypatch)
    first, second = translator.translate(TEXTS[0]), translator.translate(TEXTS[0])
    assert first == second
    assert len(calls.seen) == 1


def test_english_is_not_translated(m2m: Path, monkeypatch: pytest.MonkeyPatch):
    translator = loaded(m2m)
    calls = Calls(translator, monkeypatch)
    assert translator.translate("make it night").source == "as it is"
    assert not calls.seen


def test_a_language_that_the_model_does_not_know(nllb: Path, monkeypatch: pytest.MonkeyPatch):
    translator = loaded(nllb)
    monkeypatch.setattr("wordbrush.languages.neural.detect", lambda text, every: "la")
    with pytest.raises(TranslationError, match="does not know the language"):
        translator.translate("canem remove")


@pytest.mark.parametrize("name", ["facebook/nllb-200-distilled-600M", "/no/such/folder"])
def test_a_checkpoint_that_is_not_here_is_one_clear_line(name: str):
    with pytest.raises(ModelError, match="cannot be used as a translator") as error:
        load_translator(name)
    assert "\n" not in str(error.value)
