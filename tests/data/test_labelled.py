from pathlib import Path

import pytest

from wordbrush.data.labelled import Labelled, of_split, read_labelled, storybook_instruction
from wordbrush.errors import UsageError
from wordbrush.storybook.scenes import Split
from wordbrush.storybook.wording import phrasings


def test_the_test_split_has_phrasings_that_training_never_uses():
    def heads(split: Split) -> set[str]:
        texts = (storybook_instruction(n, split).instruction.lower() for n in range(300))
        return {text for text in texts if text in phrasings("to_depth", split)}

    assert heads("train") and heads("test") and not heads("train") & heads("test")


def test_a_row_stays_in_its_split_wherever_it_stands():
    rows = [Labelled(instruction=f"remove the {n}", task="remove") for n in range(400)]
    kept = of_split(rows, "test")
    assert 20 < len(kept) < 70 and of_split(rows[::-1], "test") == kept[::-1]
    assert len(of_split(rows, "train")) == 400 - len(kept)
    assert bool(of_split([Labelled(instruction=kept[0].instruction.upper() + ".", task="remove")], "test"))


@pytest.mark.parametrize(
    ("line", "why"),
    [("{", "line 2"), ('{"instruction": "a", "task": "paint"}', "'paint' is no task"), ("[]", "line 2")],
)
def test_a_bad_row_is_named(line: str, why: str, tmp_path: Path):
    (tmp_path / "rows.jsonl").write_text('{"instruction": "remove it", "task": "remove"}\n' + line)
    with pytest.raises(UsageError, match=why):
        read_labelled(tmp_path / "rows.jsonl")
