import random
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from transformers import CLIPTokenizer

from tests import tiny
from wordbrush.attention.alignment import (
    align,
    find_word,
    find_words,
    refine_mapper,
    replace_mapper,
    word_tokens,
)
from wordbrush.errors import UsageError
from wordbrush.models import resolve

LETTERS = tiny.tokenizer()
L = tiny.WINDOW


@pytest.fixture(scope="module")
def subwords() -> Any:
    """A byte-pair tokenizer with another window."""
    return CLIPTokenizer.from_pretrained(resolve("storybook") / "tokenizer")


def tokens_of(tokenizer: Any, prompt: str, places: Sequence[int]) -> str:
    ids = tokenizer(prompt).input_ids
    return "".join(tokenizer.convert_ids_to_tokens(ids[place]).replace("</w>", "") for place in places)


def test_words_of_one_token_a_letter() -> None:
    assert word_tokens(LETTERS, "a cat") == [[1], [2, 3, 4]]
    assert word_tokens(LETTERS, " two  Cats ") == [[1, 2, 3], [4, 5, 6, 7]]
    assert word_tokens(LETTERS, "") == []


def test_words_of_subwords(subwords: Any) -> None:
    prompt = "A hot-air  balloon, over the sea at night."
    words = word_tokens(subwords, prompt)
    assert [tokens_of(subwords, prompt, places) for places in words] == prompt.lower().split()
    assert max(map(len, words)) > 1
    assert [place for places in words for place in places] == list(range(1, 1 + sum(map(len, words))))


def test_what_the_window_cuts_off_has_no_tokens() -> None:
    prompt = f"{'a' * 36} bcdef"
    assert word_tokens(LETTERS, prompt) == [list(range(1, 37)), [37, 38]]
    assert word_tokens(LETTERS, prompt + " g")[2] == []


def test_finding_words(subwords: Any) -> None:
    prompt = "A cat, a catfish and a black CAT"
    assert tokens_of(subwords, prompt, find_word(subwords, prompt, "cat")) == "catcat"
    assert tokens_of(subwords, prompt, find_word(subwords, prompt, "a black cat")) == "ablackcat"
    assert tokens_of(subwords, prompt, find_word(subwords, prompt, "cat,")) == "cat,"
    assert find_word(subwords, prompt, "at") == []
    assert find_words(LETTERS, ["a cat", "a dog"], "dog") == [[], [2, 3, 4]]
    for word in ("bird", ""):
        with pytest.raises(UsageError, match=f"^the word '{word}' is not in 'a cat' nor in 'a dog'$"):
            find_words(LETTERS, ["a cat", "a dog", "a cat"], word)


def alignments(x: int, y: int) -> Iterator[tuple[str, ...]]:
    """All ways to align sequences of x and y items, as moves from their ends."""
    if x == y == 0:
        yield ()
    for move, (i, j) in {"left": (0, 1), "up": (1, 0), "diagonal": (1, 1)}.items():
        if i <= x and j <= y:
            yield from ((move, *rest) for rest in alignments(x - i, y - j))


def read(moves: Sequence[str], source: str, target: str) -> tuple[int, list[int]]:
    """The score of an alignment, and where it finds each item of the target."""
    i, j, score, places = len(source), len(target), 0, [-1] * len(target)
    for move in moves:
        i, j = i - (move != "left"), j - (move != "up")
        if move == "diagonal":
            score += 1 if source[i] == target[j] else -1
            places[j] = i
    return score, places


def test_alignment_is_the_best_of_all_and_of_equals_the_first() -> None:
    """Moves in the order left, up, diagonal, compared from the ends."""
    rng = random.Random(0)
    order = ["left", "up", "diagonal"]
    for _ in range(150):
        source, target = ("".join(rng.choices("abc", k=rng.randrange(6))) for _ in range(2))
        ways = list(alignments(len(source), len(target)))
        most = max(read(moves, source, target)[0] for moves in ways)
        best = [moves for moves in ways if read(moves, source, target)[0] == most]
        first = min(best, key=lambda moves: [order.index(move) for move in moves])
        assert align(source, target) == read(first, source, target)[1]


def test_alignment_by_hand() -> None:
    assert align("abcd", "abxcd") == [0, 1, -1, 2, 3]
    assert align("abcd", "ad") == [0, 3]
    assert align("ab", "xy") == [-1, -1]
    assert align("a", "aa") == [0, -1]  # left before diagonal, from the end
    assert align("aa", "a") == [0]  # up before diagonal


def test_refine_by_hand() -> None:
    """Start a end pad ... against start a b end pad ...: the new token is -1, the padding keeps its place."""
    mapper = refine_mapper(LETTERS, "a", "a b")
    assert mapper.tolist() == [0, 1, -1, 2, *range(4, L)]
    assert refine_mapper(LETTERS, "a b", "a").tolist() == [0, 1, 3, *range(3, L)]
    assert mapper.dtype == torch.int64


@pytest.mark.parametrize("prompt", ["", "a cat", "a" * 60])
def test_mappers_of_a_prompt_to_itself_change_nothing(prompt: str) -> None:
    assert refine_mapper(LETTERS, prompt, prompt).tolist() == list(range(L))
    assert torch.equal(replace_mapper(LETTERS, prompt, prompt), torch.eye(L))


def test_replace_of_as_many_tokens_is_one_to_one() -> None:
    assert torch.equal(replace_mapper(LETTERS, "a cat sat", "a dog sat"), torch.eye(L))


def test_replace_of_more_tokens_by_hand() -> None:
    """Start a c a t s end -> start a o x s end: three tokens share what they have with two."""
    mapper = replace_mapper(LETTERS, "a cat s", "a ox s")
    expected = torch.zeros(L, L)
    expected[0, 0] = expected[1, 1] = 1.0
    expected[2:5, 2:4] = 1 / 2
    # Behind the last swap the tokens keep their positions, as far as the longer prompt leaves any.
    expected[range(4, L - 1), range(4, L - 1)] = 1.0
    assert torch.equal(mapper, expected)


def test_two_replacements_by_hand() -> None:
    """Start o x a c a t end -> start c o w a o x end: between the swaps the shift is followed."""
    mapper = replace_mapper(LETTERS, "ox a cat", "cow a ox")
    expected = torch.zeros(L, L)
    expected[0, 0] = expected[3, 4] = 1.0
    expected[1:3, 1:4] = 1 / 3
    expected[4:7, 5:7] = 1 / 2
    expected[range(7, L), range(7, L)] = 1.0
    assert torch.equal(mapper, expected)


def test_replace_within_the_window() -> None:
    """Words behind the window count, but have no tokens to swap."""
    long = "a" * 37
    assert torch.equal(replace_mapper(LETTERS, f"{long} b c", f"{long} b d"), torch.eye(L))


def test_replace_needs_as_many_words() -> None:
    with pytest.raises(UsageError, match="'a cat' has 2 and 'a red cat' has 3: use the attention_edit"):
        replace_mapper(LETTERS, "a cat", "a red cat")


def test_both_tokenizers_of_sdxl_give_the_same_places() -> None:
    """They differ in their padding only, which stands behind the text."""
    other = tiny.tokenizer()
    other.pad_token = "!"
    for mapper in (refine_mapper, replace_mapper):
        assert torch.equal(mapper(LETTERS, "a cat", "a dog"), mapper(other, "a cat", "a dog"))
    assert word_tokens(other, "a cat") == word_tokens(LETTERS, "a cat")
