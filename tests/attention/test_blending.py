from typing import Any

import pytest
import torch
from torch import Tensor

from tests.attention.sampling import TOKENIZER, TOKENS, distance, model, randn, sample
from wordbrush.attention.blending import LocalBlend, MaskBlend, from_source, from_trajectory, word_mask
from wordbrush.attention.control import AttentionControl, AttentionSite, AttentionStore
from wordbrush.attention.edits import prompt_to_prompt
from wordbrush.diffusion.sampling import Progress
from wordbrush.errors import UsageError

PROMPTS = ["a cat", "a dog"]
T = torch.tensor(0)


def stored(maps: Tensor, level: int = 2, step: int = 9) -> AttentionStore:
    """A store in step `step` of 10 that saw maps (prompts, h, w, tokens)."""
    store, probs = AttentionStore(), maps.flatten(1, 2)[:, None]
    site = AttentionSite("attn2", "cross", "up", level, (maps.shape[1], maps.shape[2]))
    store(torch.stack([torch.zeros_like(probs), probs]), site, Progress(step, 10))
    return store


def spots(*where: tuple[int, int, int, int], value: float = 1.0) -> Tensor:
    """(2, 8, 8, TOKENS) maps of 0.1, but for `value` at (prompt, y, x, token)."""
    maps = torch.full((2, 8, 8, TOKENS), 0.1)
    for place in where:
        maps[place] = value
    return maps


def square(top: int, bottom: int, left: int, right: int) -> Tensor:
    """(32, 32): 1 in these rows and columns of an 8x8 map, enlarged."""
    mask = torch.zeros(32, 32, dtype=torch.bool)
    mask[4 * top : 4 * bottom, 4 * left : 4 * right] = True
    return mask


CAT, DOG = word_mask(TOKENIZER, PROMPTS, [["cat"], ["dog"]])[0]


def test_tokens_of_words() -> None:
    words = word_mask(
        TOKENIZER, ["a cat", "a dog", "an owl", "owl hat"], [["cat", "a"], [], ["owl"], ["hat"]]
    )
    assert words.shape == (1, 4, TOKENS)
    assert words[0].nonzero().tolist() == [[0, i] for i in (1, 2, 3, 4)] + [[2, i] for i in (3, 4, 5)] + [
        [3, i] for i in (4, 5, 6)
    ]
    assert word_mask(TOKENIZER, PROMPTS * 2, [["cat"], ["dog"]] * 2, members=2).shape == (2, 2, TOKENS)
    with pytest.raises(UsageError, match="the word 'dog' is not in 'a cat'"):
        word_mask(TOKENIZER, PROMPTS, [["dog"], ["dog"]])


def test_the_mask_by_hand() -> None:
    """A word of three tokens, one with a spot: 1.2 around it, 0.3 elsewhere: 0.25 of the maximum."""
    words = torch.stack([CAT, DOG])[None]
    store = stored(spots((0, 2, 2, 2), (1, 6, 5, 3)))
    mask = LocalBlend(store, words).mask((32, 32))
    assert mask.shape == (2, 1, 32, 32)
    source = square(1, 4, 1, 4)
    assert torch.equal(mask[0, 0], source)
    assert torch.equal(mask[1, 0], source | square(5, 8, 4, 7))
    assert LocalBlend(store, words, threshold=0.2).mask((32, 32)).all()
    assert not LocalBlend(store, words, threshold=1.0).mask((32, 32)).any()


def test_subtracted_words_are_not_dilated() -> None:
    words = torch.stack([CAT, DOG])[None]
    subtract = word_mask(TOKENIZER, PROMPTS, [[], ["a"]])
    store = stored(spots((0, 2, 2, 2), (1, 6, 5, 3), (1, 2, 2, 1)))
    mask = LocalBlend(store, words, subtract).mask((32, 32))
    assert torch.equal(mask[0, 0], square(1, 4, 1, 4))
    assert torch.equal(mask[1, 0], (square(1, 4, 1, 4) & ~square(2, 3, 2, 3)) | square(5, 8, 4, 7))
    strict = LocalBlend(store, words, subtract, subtract_threshold=1.0).mask((32, 32))
    assert torch.equal(strict[1, 0], square(1, 4, 1, 4) | square(5, 8, 4, 7))


def test_blending_takes_the_source_outside_of_the_mask() -> None:
    """For each group its own, and one group's words for all."""
    maps = torch.cat([spots((0, 2, 2, 2)), spots((0, 6, 5, 2))])
    words = word_mask(TOKENIZER, PROMPTS, [["cat"], []])
    latents = randn(4, 3, 32, 32)
    found = LocalBlend(stored(maps), words)(latents, T, 9)
    for group, mask in enumerate([square(1, 4, 1, 4), square(5, 8, 4, 7)]):
        source, edit = latents[2 * group], latents[2 * group + 1]
        assert torch.equal(found[2 * group], source)
        assert torch.equal(found[2 * group + 1], torch.where(mask, edit, source))


def test_blending_begins_after_a_part_of_the_steps() -> None:
    latents, words = randn(2, 3, 32, 32), torch.zeros(1, 2, TOKENS)
    for step in range(10):
        found = LocalBlend(stored(spots(), step=step), words, start=0.2)(latents, T, step)
        assert torch.equal(found[1], latents[1] if step < 2 else latents[0])


def test_maps_of_another_size_are_not_taken() -> None:
    with pytest.raises(UsageError, match=r"attention of levels \[1\] only, not of 2"):
        LocalBlend(stored(spots(), level=1), torch.stack([CAT, DOG])[None])(randn(2, 3, 32, 32), T, 9)
    with pytest.raises(UsageError, match="levels"):
        LocalBlend(AttentionStore(), torch.stack([CAT, DOG])[None])(randn(2, 3, 32, 32), T, 9)


def blended(words: list[list[str]], seen: list[Tensor], **options: Any) -> tuple[Tensor, LocalBlend]:
    """A run of Prompt-to-Prompt on three levels, and its blend; `seen` takes the latents of each step."""
    store = AttentionStore()
    control = prompt_to_prompt(TOKENIZER, PROMPTS, method="replace", store=store)
    blend = LocalBlend(store, word_mask(TOKENIZER, PROMPTS, words), **options)
    which = model("storybook")
    return sample(which, PROMPTS, control, after_step=[blend], on_step=lambda _, x: seen.append(x)), blend


def test_an_empty_mask_leaves_the_source() -> None:
    """From the step on in which blending starts, and with it all that follows."""
    seen: list[Tensor] = []
    found, _ = blended([[], []], seen, start=0.7)
    assert [distance(x[0], x[1]) > 1e-3 for x in seen] == [True, True, False]
    assert torch.equal(found[1], found[0])


def test_a_full_mask_leaves_the_edit() -> None:
    unmasked = sample(model("storybook"), PROMPTS, prompt_to_prompt(TOKENIZER, PROMPTS, method="replace"))
    found, _ = blended([["cat"], ["dog"]], [], threshold=-1.0, start=0.0)
    assert distance(found, unmasked) < 2e-5 * float(unmasked.std())


def test_blending_by_the_maps_of_a_run() -> None:
    """On latents of 16x16 by the maps of 4x4: outside of the last mask, around the maxima, is the source."""
    found, blend = blended([["cat"], ["dog"]], [], threshold=0.999, start=0.0)
    assert blend.store.maps().shape == (2, 4, 4, TOKENS)
    mask = blend.mask((16, 16))[1].expand_as(found[1])
    assert 0 < mask.float().mean() < 1
    different = found[0] != found[1]
    assert not different[~mask].any()
    assert different[mask].float().mean() > 0.9


def test_a_mask_between_two_runs() -> None:
    """0 is the earlier run, 1 the present one, to the bit; in between they mix."""
    which, earlier = model("sd1"), list[Tensor]()
    other = sample(which, ["an owl"], on_step=lambda _, x: earlier.append(x))
    plain = sample(which, ["a cat"])

    def masked(mask: Tensor) -> Tensor:
        return sample(which, ["a cat"], after_step=[MaskBlend(mask, from_trajectory(earlier))])

    ones = torch.ones(1, 1, 16, 16)
    assert torch.equal(masked(ones), plain)
    assert torch.equal(masked(0 * ones), other)
    left = ones.clone()
    left[..., 8:] = 0.0
    found = masked(left)
    assert torch.equal(found[..., 8:], other[..., 8:])
    assert distance(found[..., :8], other[..., :8]) > 1e-2
    one, two = randn(2, 4, 16, 16), randn(2, 4, 16, 16, seed=1)
    mixed = MaskBlend(0.25 * ones, from_trajectory([one]))(two, T, 0)
    assert torch.allclose(mixed, 0.25 * two + 0.75 * one, atol=1e-6)


def test_a_mask_around_the_source() -> None:
    latents = randn(6, 4, 8, 8)
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., :4, :] = 1.0
    found = MaskBlend(mask, from_source(3))(latents, T, 0)
    for i in range(6):
        assert torch.equal(found[i, :, :4], latents[i, :, :4])
        assert torch.equal(found[i, :, 4:], latents[i - i % 3, :, 4:])


def test_a_store_alone_changes_nothing() -> None:
    which = model("storybook")
    plain = sample(which, PROMPTS)
    assert distance(sample(which, PROMPTS, AttentionControl([AttentionStore()])), plain) < 2e-5 * plain.std()
