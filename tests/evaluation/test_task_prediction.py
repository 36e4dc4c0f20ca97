import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from typer.testing import CliRunner

from wordbrush.cli import app
from wordbrush.editors.task_predictor import Prediction
from wordbrush.errors import WordbrushError
from wordbrush.evaluation.task_prediction import I2EBENCH, Question, ask, read_i2ebench, to_markdown
from wordbrush.tasks import TASKS


class FirstWord:
    """Says `remove` where the word is in the instruction, else `add`; the other one second."""

    def predict(self, instructions: Sequence[str]) -> list[Prediction]:
        return [self._one("remove" in text) for text in instructions]

    def _one(self, gone: bool) -> Prediction:
        first, second = ("remove", "add") if gone else ("add", "remove")
        return Prediction(((first, 0.7), (second, 0.2), ("style", 0.1)))


def question(text: str, *right: str) -> Question:
    return Question(text, frozenset(right), right[0])


def test_first_and_second_guesses_are_counted():
    asked = [
        question("remove it", "remove"),
        question("erase it", "remove"),
        question("add a dog", "add", "local"),
    ]
    asked += [question("make it night", "global")]
    found = ask(FirstWord(), asked)
    shares = {name: (s["top_1"]["value"], s["top_2"]["value"]) for name, s in found["groups"].items()}
    assert shares == {"all": (0.5, 0.75), "remove": (0.5, 1), "add": (1, 1), "global": (0, 0)}
    assert found["confusion"]["remove"] == {"remove": 1, "add": 1}
    table = to_markdown("A title", found)
    assert "| remove | 2 | 50.0 % | 100.0 % |" in table and table.startswith("### A title")


def test_i2ebench_is_read_once_each_and_its_dimensions_are_tasks(tmp_path: Path):
    assert frozenset().union(*I2EBENCH.values()) <= set(TASKS)
    (tmp_path / "Deblurring").mkdir()
    rows = {str(k): {"image": "1.png", "ori_exp": "Deblur it.", "div_exp": f"Sharpen {k}"} for k in range(3)}
    (tmp_path / "Deblurring" / "Deblurring.json").write_text(json.dumps(rows))
    found = read_i2ebench(tmp_path)
    assert [q.instruction for q in found] == ["Deblur it.", "Sharpen 0", "Sharpen 1", "Sharpen 2"]
    assert {q.right for q in found} == {frozenset({"color"})}
    (tmp_path / "Deblurring" / "Deblurring.json").write_text("[1")
    with pytest.raises(WordbrushError, match="no file of I2EBench"):
        read_i2ebench(tmp_path)
    with pytest.raises(WordbrushError, match="EditData"):
        read_i2ebench(tmp_path / "Deblurring")


def test_the_command_asks_everything(tmp_path: Path):
    from wordbrush.training.task_predictor import Config, TaskPredictorRecipe

    recipe = TaskPredictorRecipe(Config(output=tmp_path, width=32, layers=1, vocabulary=320))
    recipe.export(recipe.model, tmp_path / "model")
    rows = [{"instruction": f"remove the {n}", "task": "remove"} for n in range(40)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["evaluate", "task-predictor", "--model", str(tmp_path / "model"), "--num", "20"]
    words += ["-o", str(tmp_path / "out")]
    told = CliRunner().invoke(app, [*words, "--data", str(tmp_path / "rows.jsonl"), "--json"])
    assert told.exit_code == 0, told.output
    table = (tmp_path / "out" / "table.md").read_text()
    assert table.count("### ") == 2 and "| all | 20 |" in table
    assert (tmp_path / "out" / "results.json").read_text() == told.stdout
    found = json.loads(told.stdout)
    assert [part["groups"]["all"]["top_1"]["n"] for part in found.values()][0] == 20
    assert set(found) == {
        "The storybook's instructions, in phrasings that training never uses",
        "Held-out instructions of rows.jsonl",
    }
