"""Instructions into English by a local checkpoint: NLLB, M2M100 or an Opus-MT (Marian) one."""

from __future__ import annotations

import warnings
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForSeq2SeqLM, AutoTokenizer

from wordbrush.errors import ModelError, one_line
from wordbrush.languages.detection import detect
from wordbrush.languages.translation import Translation, TranslationError
from wordbrush.models import quiet

# NLLB names a language by its ISO 639-3 code and its script.
_NLLB = {
    "ar": "arb_Arab", "bn": "ben_Beng", "cs": "ces_Latn", "da": "dan_Latn", "de": "deu_Latn",
    "el": "ell_Grek", "es": "spa_Latn", "et": "est_Latn", "fa": "pes_Arab", "fi": "fin_Latn",
    "fr": "fra_Latn", "he": "heb_Hebr", "hi": "hin_Deva", "hu": "hun_Latn", "id": "ind_Latn",
    "it": "ita_Latn", "ja": "jpn_Jpan", "ko": "kor_Hang", "lt": "lit_Latn", "ms": "zsm_Latn",
    "nb": "nob_Latn", "nl": "nld_Latn", "no": "nob_Latn", "pl": "pol_Latn", "pt": "por_Latn",
    "ro": "ron_Latn", "ru": "rus_Cyrl", "sv": "swe_Latn", "sw": "swh_Latn", "th": "tha_Thai",
    "tr": "tur_Latn", "uk": "ukr_Cyrl", "ur": "urd_Arab", "vi": "vie_Latn", "zh": "zho_Hans",
}  # fmt: skip
_ENGLISH = ("eng_Latn", "__en__")
_MARIAN_ENGLISH = ">>eng<<"
_MAX_TOKENS = 128
_BEAMS = 4


class Seq2SeqTranslator:
    """A translation model of transformers.

    Args:
        name: What results call it.
        model: `M2M100ForConditionalGeneration` (M2M100, NLLB) or `MarianMTModel` (Opus-MT into English).
        tokenizer: The model's.

    Raises:
        ModelError: The model is neither.
    """

    def __init__(self, name: str, model: Any, tokenizer: Any) -> None:
        self.name, self.model, self.tokenizer = name, model.eval(), tokenizer
        self._vocabulary: dict[str, int] = dict(tokenizer.get_vocab())
        # M2M100 keeps its languages ("__en__") apart from the vocabulary, NLLB ("eng_Latn") within.
        self._languages: dict[str, int] = dict(getattr(tokenizer, "lang_token_to_id", self._vocabulary))
        self._marian = model.config.model_type == "marian"
        self._english = next((code for code in _ENGLISH if code in self._languages), "")
        if not self._marian and not self._english:
            raise ModelError(f"{name} is no NLLB, M2M100 or Opus-MT checkpoint that knows English")
        self._generate = lru_cache(1024)(self._translated)

    @classmethod
    def load(cls, name: str | Path) -> Seq2SeqTranslator:
        """From a folder, or from the hub (once; afterwards from its cache).

        Raises:
            ModelError: There is no such checkpoint, or it is of another kind.
        """
        try:
            with quiet(), warnings.catch_warnings():
                warnings.simplefilter(
                    "ignore"
                )  # Marian's tokenizer recommends a package that it can do without
                config = AutoConfig.from_pretrained(name)
                if not config.is_encoder_decoder:
                    raise ModelError(f"{name} is no translation model but a {config.model_type}")
                tokenizer: Any = AutoTokenizer.from_pretrained(name)
                model: Any = AutoModelForSeq2SeqLM.from_pretrained(name)
        except ModelError:
            raise
        except Exception as error:  # what is wrong with a checkpoint can raise anything
            raise ModelError(f"{name} cannot be used as a translator ({one_line(error)})") from error
        return cls(str(name), model, tokenizer)

    def translate(self, text: str) -> Translation:
        """One instruction; English is given back as it is.

        Raises:
            TranslationError: The model does not know the language.
        """
        language = detect(text, every=True)
        if language == "en":
            return Translation(text, "en", "as it is")
        return Translation(self._generate(text, language), language, self.name)

    @torch.inference_mode()
    def _translated(self, text: str, language: str) -> str:
        text, forced = self._call(text, language)
        given = self.tokenizer(text, return_tensors="pt", truncation=True).to(self.model.device)
        made = self.model.generate(**given, **forced, num_beams=_BEAMS, max_new_tokens=_MAX_TOKENS)
        return " ".join(self.tokenizer.decode(made[0], skip_special_tokens=True).split())

    def _call(self, text: str, language: str) -> tuple[str, dict[str, Any]]:
        """What the model reads, and what it is made to write first."""
        if self._marian:
            return (f"{_MARIAN_ENGLISH} {text}" if _MARIAN_ENGLISH in self._vocabulary else text), {}
        nllb = self._english == "eng_Latn"
        code = _NLLB.get(language, "") if nllb else language
        if (code if nllb else f"__{code}__") not in self._languages:
            raise TranslationError(f"{self.name} does not know the language ({language}): say it in English")
        self.tokenizer.src_lang = code
        return text, {"forced_bos_token_id": self._languages[self._english]}
