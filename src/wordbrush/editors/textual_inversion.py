"""Learned words: textual inversion (Gal et al., 2208.01618), in diffusers' format.

A learned word stands for one or more token embeddings. To everything that reads prompts it is one word, of as
many tokens: the tokenizer itself puts them in its place.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken
from tokenizers.normalizers import Replace
from tokenizers.normalizers import Sequence as InOrder
from torch import Tensor

from wordbrush.diffusion.model import LatentDiffusion
from wordbrush.errors import ModelError, UsageError, one_line

FILE_NAME = "learned_embeds.safetensors"
_FIRST_PIECE = 0xE000  # Unicode's private use area, of 6400 characters: no prompt has them
_MOST_PIECES = 6400


def add_concepts(model: LatentDiffusion, files: Sequence[str | Path]) -> None:
    """Teach a loaded model the words of files; see `read_concept` and `add_word`."""
    for file in files:
        word, vectors = read_concept(file)
        try:
            first = add_word(model, word, len(vectors))
            set_vectors(model, first, vectors)
        except UsageError as error:
            raise UsageError(f"{file}: {error}") from error


def read_concept(file: str | Path) -> tuple[str, Tensor]:
    """The word and its embeddings (n, D) in a file, or in the `learned_embeds.safetensors` of a folder.

    Besides safetensors, PyTorch's own files are read, without running code in them.

    Raises:
        ModelError: there is no such file, or it does not hold one word with its embeddings.
    """
    path = Path(file).expanduser()
    path = path / FILE_NAME if path.is_dir() else path
    try:
        held: Any = (
            load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
        )
    except Exception as error:  # the readers raise whatever a damaged file provokes
        raise ModelError(f"cannot read the learned word in {path}: {one_line(error)}") from error
    ((word, vectors),) = held.items() if isinstance(held, dict) and len(held) == 1 else ((None, None),)
    if not isinstance(vectors, Tensor) or vectors.ndim not in (1, 2) or not vectors.numel():
        raise ModelError(
            f"{path} does not hold one learned word and its embeddings, as diffusers writes them"
        )
    return str(word), vectors.float().reshape(-1, vectors.shape[-1])


def save_concept(file: Path, word: str, vectors: Tensor) -> None:
    """Write a word and its embeddings (n, D) as `pipeline.load_textual_inversion` of diffusers reads them."""
    save_file({word: vectors.detach().float().cpu().contiguous()}, file)


def add_word(model: LatentDiffusion, word: str, count: int) -> int:
    """Make a word stand for `count` new tokens, whose embeddings are still to be set; the first one's id.

    Raises:
        UsageError: the model has two text encoders, or the word is none, or known already.
    """
    if len(model.tokenizers) != 1:
        raise UsageError("learned words need a model with one text encoder: Stable Diffusion 1 or 2, not XL")
    tokenizer, encoder = model.tokenizers[0], model.text_encoders[0]
    _check_word(tokenizer, word)
    used = len(tokenizer.get_added_vocab())
    if not word.isprintable() or used + count > _MOST_PIECES:
        raise UsageError(f"the word {word!r} cannot be used: choose printable characters, and fewer vectors")
    pieces = [chr(_FIRST_PIECE + used + k) for k in range(count)]
    tokenizer.add_tokens([AddedToken(piece, normalized=True) for piece in pieces])
    backend = tokenizer.backend_tokenizer
    # Behind what the tokenizer does to all text: CLIP's makes it lower case, so words have no case either.
    normalizer = backend.normalizer
    backend.normalizer = InOrder([normalizer, Replace(normalizer.normalize_str(word), "".join(pieces))])
    first: int = tokenizer.convert_tokens_to_ids(pieces[0])
    rows = max(encoder.get_input_embeddings().num_embeddings, first + count)
    encoder.resize_token_embeddings(rows, mean_resizing=False)
    encoder.requires_grad_(False)
    return first


def set_vectors(model: LatentDiffusion, first: int, vectors: Tensor) -> None:
    """Set the embeddings (n, D) of the tokens from `first` on.

    Raises:
        UsageError: they are of another width than the model's.
    """
    weight: Tensor = model.text_encoders[0].get_input_embeddings().weight
    if vectors.shape[1] != weight.shape[1]:
        raise UsageError(
            f"the learned word has embeddings of width {vectors.shape[1]}, but this model's text encoder of "
            f"{weight.shape[1]}: it was learned with another kind of model"
        )
    weight.data[first : first + len(vectors)] = vectors.to(weight)


def _check_word(tokenizer: Any, word: str) -> None:
    if not word or word.split() != [word]:
        raise UsageError(f"a learned word is one word without spaces, such as '<my-dog>', not {word!r}")
    known = tokenizer.get_vocab()
    if word in known or word.lower() + "</w>" in known:
        raise UsageError(f"the model knows the word {word!r} already: choose one such as '<{word}>'")
    learned = set(tokenizer.get_added_vocab().values()) - set(tokenizer.all_special_ids)
    if learned & set(tokenizer(word).input_ids):
        raise UsageError(f"the word {word!r} is, or contains, one that was learned already")
