"""Which tokens of one prompt correspond to which of another, and which tokens a word is.

Tokenizers are CLIP's, of any context length: start token, text, end token, padding. SDXL's two encoders share
their token positions, so that either tokenizer will do. Prompts are cut off where the encoder cuts them.
"""

import re
from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from wordbrush.errors import UsageError

_GAP, _MATCH, _MISMATCH = 0, 1, -1


def word_tokens(tokenizer: Any, prompt: str) -> list[list[int]]:
    """The token positions of each word of a prompt; words are what spaces separate."""
    offsets = _offsets(tokenizer, prompt)
    return [_covered(offsets, [match.span()]) for match in re.finditer(r"\S+", prompt)]


def find_word(tokenizer: Any, prompt: str, word: str) -> list[int]:
    """The token positions of a word or phrase, at all its places in a prompt; empty where it has none.

    Punctuation around it may stay away ("cat" is found in "a cat, asleep"), and case does not matter.
    """
    pattern = rf"(?<!\w){re.escape(word)}(?!\w)"
    spans = [match.span() for match in re.finditer(pattern, prompt, re.IGNORECASE)]
    return _covered(_offsets(tokenizer, prompt), spans)


def find_words(tokenizer: Any, prompts: Sequence[str], word: str) -> list[list[int]]:
    """`find_word` in each prompt.

    Raises:
        UsageError: none of the prompts has the word.
    """
    found = [find_word(tokenizer, prompt, word) for prompt in prompts]
    if not any(found):
        raise UsageError(f"the word {word!r} is not in {' nor in '.join(map(repr, dict.fromkeys(prompts)))}")
    return found


def align(source: Sequence[Hashable], target: Sequence[Hashable]) -> list[int]:
    """Needleman-Wunsch alignment of two sequences: for each item of `target` its place in `source`, or -1.

    Gap 0, match 1, mismatch -1. Of equally good alignments the one that, from the end, leaves an item of the
    target alone before one of the source, as the official Prompt-to-Prompt does.
    """
    moves = _fill(source, target)
    places = [-1] * len(target)
    i, j = len(source), len(target)
    while i and j:
        if moves[i][j] == "left":
            j -= 1
        elif moves[i][j] == "up":
            i -= 1
        else:
            i, j = i - 1, j - 1
            places[j] = i
    return places


def refine_mapper(tokenizer: Any, source: str, target: str) -> Tensor:
    """(tokens,) int64: for each token of the target the source's token that it continues, -1 for a new one.

    The padding behind the target takes the same positions of the source.
    """
    places = align(_token_ids(tokenizer, source), _token_ids(tokenizer, target))
    return torch.tensor([*places, *range(len(places), tokenizer.model_max_length)])


def replace_mapper(tokenizer: Any, source: str, target: str) -> Tensor:
    """(source tokens, target tokens): attention to the target's tokens = attention to the source's @ mapper.

    Swapped words pass on their attention token by token, or, where their numbers of tokens differ, shared out
    evenly; the tokens before the last swap are matched in order, those behind it keep their positions (as in
    the official Prompt-to-Prompt, also where the swap has shifted them).

    Raises:
        UsageError: the prompts have different numbers of words.
    """
    swaps = _swaps(tokenizer, source, target)
    length: int = tokenizer.model_max_length
    mapper = torch.zeros(length, length)
    i = j = 0
    for old, new in swaps:
        while i < old[0]:
            mapper[i, j] = 1.0
            i, j = i + 1, j + 1
        if len(old) == len(new):
            mapper[old, new] = 1.0
        else:
            mapper[torch.tensor(old)[:, None], torch.tensor(new)] = 1.0 / len(new)
        i, j = i + len(old), j + len(new)
    rest = torch.arange(j, length - max(0, i - j))
    mapper[rest, rest] = 1.0
    return mapper


def _swaps(tokenizer: Any, source: str, target: str) -> list[tuple[list[int], list[int]]]:
    """Tokens of the words that differ, but for those that were cut off."""
    before, after = source.split(), target.split()
    if len(before) != len(after):
        raise UsageError(
            f"replacing words needs prompts with equally many words, but {source!r} has {len(before)} and "
            f"{target!r} has {len(after)}: use the attention_edit refine"
        )
    tokens = zip(word_tokens(tokenizer, source), word_tokens(tokenizer, target), strict=True)
    changed = [pair for pair, old, new in zip(tokens, before, after, strict=True) if old != new]
    return [(old, new) for old, new in changed if old and new]


def _fill(source: Sequence[Hashable], target: Sequence[Hashable]) -> list[list[str]]:
    """The best last move of every pair of prefixes, by dynamic programming."""
    scores = [[_GAP * j for j in range(len(target) + 1)]]
    moves = [["left"] * (len(target) + 1)]
    for i, item in enumerate(source, 1):
        scores.append([_GAP * i])
        moves.append(["up"])
        for j, other in enumerate(target, 1):
            choices = {
                "left": scores[i][j - 1] + _GAP,
                "up": scores[i - 1][j] + _GAP,
                "diagonal": scores[i - 1][j - 1] + (_MATCH if item == other else _MISMATCH),
            }
            best = max(choices, key=lambda move: choices[move])  # the first of equals
            scores[i].append(choices[best])
            moves[i].append(best)
    return moves


def _token_ids(tokenizer: Any, prompt: str) -> list[int]:
    return tokenizer(prompt, truncation=True, max_length=tokenizer.model_max_length).input_ids


def _offsets(tokenizer: Any, prompt: str) -> list[tuple[int, int]]:
    """The span of characters of each token; start and end token have an empty one at 0."""
    length: int = tokenizer.model_max_length
    return tokenizer(prompt, truncation=True, max_length=length, return_offsets_mapping=True).offset_mapping


def _covered(offsets: Sequence[tuple[int, int]], spans: Sequence[tuple[int, int]]) -> list[int]:
    """Positions of the tokens that lie, at least in part, in one of the spans of characters."""
    return [
        place
        for place, (start, end) in enumerate(offsets)
        if any(start < last and end > first for first, last in spans)
    ]
