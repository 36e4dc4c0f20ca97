from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from tests import tiny
from tests.attention.sampling import FAMILIES, TOKENIZER, TOKENS, distance, model, probabilities, sample
from wordbrush.attention.alignment import refine_mapper, replace_mapper
from wordbrush.attention.control import AttentionControl, AttentionSite, attention_sites
from wordbrush.attention.edits import (
    Refine,
    Replace,
    Reweight,
    SelfInjection,
    Window,
    below_threshold,
    in_window,
    instruct_pix2pix_pairs,
    prompt_to_prompt,
    word_factors,
    word_windows,
)
from wordbrush.diffusion.sampling import Progress
from wordbrush.errors import UsageError

PAIR = ["a red cat", "a blue dog"]
METHODS: list[Literal["replace", "refine"]] = ["replace", "refine"]
SELF = AttentionSite("attn1", "self", "up", 0, (4, 4))
CROSS = AttentionSite("attn2", "cross", "up", 0, (4, 4))
ALWAYS: Window = 1.0


def close(one: Tensor, other: Tensor) -> bool:
    """Within float error: a few steps amplify that of one prediction, which is 1e-6."""
    return distance(one, other) < 2e-5 * float(other.std())


def on_steps(active: Any, num_steps: int, group: int = 0) -> list[int]:
    return [step for step in range(num_steps) if active(Progress(step, num_steps))[group]]


def windows(*prompts: str, steps: Any = ALWAYS) -> Tensor:
    return word_windows(TOKENIZER, [prompts], steps)


# --- When -----------------------------------------------------------------------------------------------


def test_the_window_of_self_attention() -> None:
    assert on_steps(in_window(0.4), 50) == list(range(20))
    assert on_steps(in_window((0.25, 0.5)), 10) == [2, 3, 4]
    assert on_steps(in_window(0.0), 10) == []
    assert on_steps(in_window(1.0), 3) == [0, 1, 2]


def test_the_threshold_of_pairs() -> None:
    """On while p > i / 99 of 100 steps."""
    active = below_threshold([0.0, 0.1, 0.5, 1.0])
    assert [len(on_steps(active, 100, group)) for group in range(4)] == [0, 10, 50, 99]
    assert on_steps(active, 100, 1) == list(range(10))
    assert on_steps(below_threshold(0.5), 1) == [0]


@pytest.mark.parametrize("num_steps", [1, 7, 20, 50])
def test_word_windows_are_those_of_the_official_table(num_steps: int) -> None:
    """That has num_steps + 1 rows, which are 1 from int(start * rows) to int(end * rows)."""
    by_word: dict[str, Window] = {"default_": 0.8, "cat": (0.3, 0.55), "owl": 0.1}
    groups = [["a dog", "a cat", "an owl"], ["a cat", "an owl", "a dog"]]
    edit = Refine(word_windows(TOKENIZER, groups, by_word), torch.zeros(2, 2, TOKENS, dtype=torch.int64))
    rows = num_steps + 1
    table = torch.zeros(rows, 2, 2, TOKENS, dtype=torch.bool)
    table[: int(0.8 * rows)] = True
    for group, member, tokens, start, end in [
        (0, 0, slice(2, 5), 0.3, 0.55),
        (0, 1, slice(3, 6), 0.0, 0.1),
        (1, 0, slice(3, 6), 0.0, 0.1),
    ]:
        table[:, group, member, tokens] = False
        table[int(start * rows) : int(end * rows), group, member, tokens] = True
    for step in range(num_steps):
        assert torch.equal(edit.alpha(Progress(step, num_steps)), table[step])


def test_word_windows_by_hand() -> None:
    edit = Replace(windows(*PAIR, steps=0.8), torch.eye(TOKENS)[None, None])
    assert [step for step in range(50) if edit.alpha(Progress(step, 50)).all()] == list(range(40))
    only = windows("a dog", "a cat", steps={"cat": (0.0, 0.4)})
    assert only[0, 0, 1].tolist() == [0.0, 1.0]  # no default_: all steps
    assert only[0, 0, 2:5].tolist() == [[0.0, 0.4]] * 3


def test_senseless_requests() -> None:
    for window in (1.1, (-0.1, 0.5), (0.6, 0.4)):
        with pytest.raises(UsageError, match="must lie in 0 <= start <= end <= 1"):
            prompt_to_prompt(TOKENIZER, PAIR, self_steps=window)
        with pytest.raises(UsageError, match="must lie in 0 <= start <= end <= 1"):
            prompt_to_prompt(TOKENIZER, PAIR, cross_steps={"dog": window})
    with pytest.raises(UsageError, match="the word 'red' is not in 'a blue dog'"):
        prompt_to_prompt(TOKENIZER, PAIR, cross_steps={"red": 0.5})
    with pytest.raises(UsageError, match="the word 'owl' is not in 'a blue dog'"):
        prompt_to_prompt(TOKENIZER, PAIR, equalizer={"owl": 2.0})
    for prompts, members in ((PAIR * 2, 3), (PAIR, 1), ([], None)):
        with pytest.raises(UsageError, match="do not make groups of"):
            prompt_to_prompt(TOKENIZER, prompts, members=members)
    with pytest.raises(UsageError, match="use the attention_edit refine"):
        prompt_to_prompt(TOKENIZER, ["a cat", "a red cat"], method="replace")
    with pytest.raises(UsageError, match="3 prompts do not make groups of 2"):
        sample(model("sd1"), [*PAIR, "an owl"], instruct_pix2pix_pairs(0.5))


# --- What, on bare tokens and probabilities ----------------------------------------------------------------


def test_self_injection_copies_within_groups_that_are_on() -> None:
    tokens = torch.randn(2, 6, 16, 8)
    edit = SelfInjection(members=2, active=below_threshold([0.9, 0.1, 0.6]))
    found = edit.share(tokens.clone(), Progress(5, 11))
    expected = tokens.clone()
    expected[:, 1], expected[:, 5] = tokens[:, 0], tokens[:, 4]
    assert torch.equal(found, expected)


def test_self_injection_of_the_conditional_branch() -> None:
    tokens = torch.randn(3, 6, 16, 8)
    edit = SelfInjection(members=3, active=in_window(0.5), conditional_only=True)
    expected = tokens.clone()
    expected[2, 1:3], expected[2, 4:6] = tokens[2, :1], tokens[2, 3:4]
    assert torch.equal(edit.share(tokens.clone(), Progress(0, 2)), expected)
    assert torch.equal(edit.share(tokens.clone(), Progress(1, 2)), tokens)


class CopiedProbabilities:
    """As the papers have it: what is copied is the attention itself."""

    def __init__(self, like: SelfInjection) -> None:
        self.like, self.wants = like, like.wants

    def __call__(self, probs: Tensor, site: AttentionSite, progress: Progress) -> Tensor:
        return self.like.share(probs, progress)


@pytest.mark.parametrize("conditional_only", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_sharing_queries_and_keys_is_copying_attention(family: str, conditional_only: bool) -> None:
    which, prompts = model(family), [*PAIR, "an owl", "a bear"]
    shared = SelfInjection(members=2, active=below_threshold([0.3, 0.8]), conditional_only=conditional_only)
    found = sample(which, prompts, AttentionControl([shared]))
    assert close(found, sample(which, prompts, AttentionControl([CopiedProbabilities(shared)])))
    assert distance(found[1::2], sample(which, prompts)[1::2]) > 1e-3


def test_the_layers_of_both_published_ways() -> None:
    """InstructPix2Pix: self-attention, every size. Prompt-to-Prompt: up to 16x16, all cross-attention."""
    with torch.device("meta"):
        unet = tiny.unet(
            block_out_channels=(16, 16, 16),
            down_block_types=("CrossAttnDownBlock2D",) * 3,
            up_block_types=("CrossAttnUpBlock2D",) * 3,
        )

    def wanted(control: AttentionControl) -> dict[str, set[int]]:
        found: dict[str, set[int]] = {}
        for site in attention_sites(unet, (64, 64)):
            if any(edit.wants(site) for edit in control.edits):
                found.setdefault(site.kind, set()).add(site.size[0])
        return found

    assert wanted(instruct_pix2pix_pairs(0.5)) == {"self": {64, 32, 16}}
    assert wanted(prompt_to_prompt(TOKENIZER, PAIR)) == {"self": {16}, "cross": {64, 32, 16}}
    assert wanted(prompt_to_prompt(TOKENIZER, PAIR, max_self_queries=32**2))["self"] == {32, 16}


def test_replace_is_the_mapped_source_in_the_window() -> None:
    """M* <- alpha (M @ mapper) + (1 - alpha) M*, in the conditional branch, for several groups and edits."""
    mapper = probabilities(2, 2, TOKENS, TOKENS, seed=1)
    window = torch.rand(2, 2, TOKENS, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    edit, probs = Replace(window.sort(-1).values, mapper), probabilities(2, 6, 3, 16, TOKENS)
    progress = Progress(4, 10)
    alpha = edit.alpha(progress).float()
    assert 0.1 < alpha.mean() < 0.9
    expected = probs.clone()
    for group in range(2):
        for member in (1, 2):
            at, a = 3 * group + member, alpha[group, member - 1]
            mapped = torch.einsum("hqk,kl->hql", probs[1, 3 * group], mapper[group, member - 1])
            expected[1, at] = a * mapped + (1 - a) * probs[1, at]
    assert torch.allclose(edit(probs.clone(), CROSS, progress), expected, atol=1e-6)


def test_refine_takes_the_columns_that_the_source_has() -> None:
    prompts = ["a cat", "a red cat"]
    edit = Refine(windows(*prompts), refine_mapper(TOKENIZER, *prompts)[None, None])
    probs = probabilities(2, 2, 3, 16, TOKENS)
    found = edit(probs.clone(), CROSS, Progress(0, 1))
    assert torch.equal(found[0], probs[0])
    source, own, new = probs[1, 0], probs[1, 1], found[1, 1]
    assert torch.equal(found[1, 0], source)
    assert torch.equal(new[..., :2], source[..., :2])  # start, a
    assert torch.equal(new[..., 2:5], own[..., 2:5])  # r e d
    assert torch.equal(new[..., 5:9], source[..., 2:6])  # c a t end
    assert torch.equal(new[..., 9:], source[..., 9:])  # padding


def test_reweight_scales_words_behind_another_edit() -> None:
    """Equalizer * Edit(M): the official chain of controllers."""
    window = windows(*PAIR, steps={"default_": 0.5})
    replace = Replace(window, replace_mapper(TOKENIZER, "a red cat", "a tan cow")[None, None])
    factors = word_factors(TOKENIZER, [PAIR], {"dog": -2.0})
    probs, early, late = probabilities(2, 2, 3, 16, TOKENS), Progress(0, 10), Progress(9, 10)
    base = replace(probs.clone(), CROSS, early)
    found = Reweight(window, factors)(base.clone(), CROSS, early)
    dog = slice(6, 9)
    assert torch.equal(found[1, 1, ..., dog], -2.0 * base[1, 1, ..., dog])
    found[1, 1, ..., dog] = base[1, 1, ..., dog]
    assert torch.equal(found, base)
    assert torch.equal(Reweight(window, factors)(probs.clone(), CROSS, late), probs)


@pytest.mark.parametrize("method", METHODS)
def test_an_equalizer_of_ones_is_pure_injection(method: Literal["replace", "refine"]) -> None:
    """And between equal prompts that is the source's attention."""
    probs = probabilities(2, 2, 3, 16, TOKENS)
    for prompts in (["a cat", "a cat"], ["a cat", "a dog"]):
        plain = prompt_to_prompt(TOKENIZER, prompts, method=method, cross_steps=ALWAYS)
        ones = prompt_to_prompt(TOKENIZER, prompts, method=method, cross_steps=ALWAYS, equalizer={"a": 1.0})
        assert len(ones.edits) == len(plain.edits) + 1
        found: list[Tensor] = []
        for control in (plain, ones):
            out = probs.clone()
            for edit in control.edits[1:]:
                out = edit(out, CROSS, Progress(0, 1))
            found.append(out)
        assert torch.equal(found[0], found[1])
        if prompts[0] == prompts[1]:
            assert torch.allclose(found[0][1, 1], probs[1, 0], rtol=0, atol=1e-7)
        assert distance(found[0][1, 1], probs[1, 1]) > 0.01


def test_one_group_stands_for_all() -> None:
    """A batch of many samples of one pair needs the tensors of one."""
    probs = probabilities(2, 6, 3, 16, TOKENS)
    for method in METHODS:
        options: dict[str, Any] = {"method": method, "cross_steps": ALWAYS, "equalizer": {"dog": 3.0}}
        one = prompt_to_prompt(TOKENIZER, PAIR, **options)
        many = prompt_to_prompt(TOKENIZER, PAIR * 3, members=2, **options)
        for edit, other in zip(one.edits[1:], many.edits[1:], strict=True):
            changed = edit(probs.clone(), CROSS, Progress(0, 1))
            assert torch.equal(changed, other(probs.clone(), CROSS, Progress(0, 1)))
            assert not torch.equal(changed, probs)


# --- What it does to pictures ---------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_identical_captions_make_identical_pairs(family: str) -> None:
    """For every p, and also with a sampler that adds noise as it goes."""
    which, prompts = model(family), ["a red cat"] * 8
    control = instruct_pix2pix_pairs([0.0, 0.3, 0.7, 1.0])
    found = sample(which, prompts, control, scheduler="euler-a", ancestral_seed=3)
    plain = sample(which, prompts[:1], scheduler="euler-a", ancestral_seed=3)
    assert close(found, plain.expand_as(found))


@pytest.mark.parametrize("family", FAMILIES)
def test_pairs_have_thresholds_of_their_own(family: str) -> None:
    """p = 0 is plain sampling; the source is never touched; a pair does not depend on those beside it."""
    which, prompts = model(family), [*PAIR, "an owl", "a bear", *PAIR]
    found = sample(which, prompts, instruct_pix2pix_pairs([0.0, 0.5, 1.0]), seeds=(0, 1, 0))
    plain = sample(which, prompts, seeds=(0, 1, 0))
    assert close(found[0::2], plain[0::2])
    assert close(found[1], plain[1])
    for edit in (3, 5):
        assert distance(found[edit], plain[edit]) > 1e-2
    assert close(found[2:4], sample(which, prompts[2:4], instruct_pix2pix_pairs(0.5), seeds=(1,)))
    assert close(found[4:], sample(which, PAIR, instruct_pix2pix_pairs([1.0])))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", METHODS)
def test_prompt_to_prompt(family: str, method: Literal["replace", "refine"]) -> None:
    """Alpha 0 is plain sampling, equal prompts make equal pictures; else edits change, but not the source."""
    which, prompts = model(family), ["a red cat", "a red cat", "a red dog"]
    plain = sample(which, prompts)

    def controlled(**options: Any) -> Tensor:
        return sample(which, prompts, prompt_to_prompt(TOKENIZER, prompts, method=method, **options))

    assert close(controlled(cross_steps=0.0, self_steps=0.0, equalizer={"red": 5.0}), plain)
    found = controlled()
    assert close(found[:2], plain[:2])
    assert distance(found[2], plain[2]) > 1e-2
    ones = controlled(equalizer={"red": 1.0, "dog": 1.0})
    assert close(ones, found)
    weighted = controlled(equalizer={"red": 3.0})
    assert close(weighted[0], plain[0])
    assert distance(weighted[1], plain[1]) > 1e-2


def test_groups_of_prompts_do_not_touch_each_other() -> None:
    which, first, second = model("storybook"), ["a cat", "a red cat", "cat"], ["an owl", "owl", "an owl hat"]
    options: dict[str, Any] = {"cross_steps": {"default_": 0.5, "owl": 1.0}, "self_steps": 1.0}
    both = prompt_to_prompt(TOKENIZER, [*first, *second], members=3, **options)
    found = sample(which, [*first, *second], both, seeds=(0, 1))
    assert close(found[3:], sample(which, second, prompt_to_prompt(TOKENIZER, second, **options), seeds=(1,)))
    options["cross_steps"] = 0.5
    assert close(found[:3], sample(which, first, prompt_to_prompt(TOKENIZER, first, **options)))


def test_a_word_can_have_steps_of_its_own() -> None:
    which = model("sd1")

    def edited(steps: Any) -> Tensor:
        prompts = ["a red cat", "a red dog"]
        control = prompt_to_prompt(TOKENIZER, prompts, method="replace", cross_steps=steps, self_steps=0.0)
        return sample(which, prompts, control)[1]

    assert close(edited({"dog": 1.0}), edited(1.0))
    assert close(edited({"default_": 0.0, "dog": 0.0}), edited(0.0))
    assert distance(edited({"dog": 0.0}), edited(1.0)) > 1e-3
    assert distance(edited({"dog": 0.0}), edited(0.0)) > 1e-3
