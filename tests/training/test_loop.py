"""The loop on a real (small) convolutional network: exact resume, kills, bad numbers, moving averages."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import Dataset

from tests.training.processes import run_two
from wordbrush.training.config import LoopConfig
from wordbrush.training.loop import Averaged, Batch, TrainingError, train


class Noise(Dataset[dict[str, Any]]):
    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"x": torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(index))}


class Denoise:
    """Learns to take noise away again; call number `nan_at` has a loss that is not a number."""

    def __init__(self, *, slow: float = 0.0, nan_at: int | None = None) -> None:
        torch.manual_seed(0)
        self.model: nn.Module = nn.Conv2d(3, 3, 3, padding=1)
        self.slow, self.nan_at, self.calls = slow, nan_at, 0

    def samples(self) -> Dataset[dict[str, Any]]:
        return Noise()

    def losses(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        time.sleep(self.slow)
        self.calls += 1
        x = batch["x"]
        loss = (model(x + 0.1 * torch.randn_like(x)) - x).square().mean()
        return {"loss": loss * float("nan") if self.calls == self.nan_at else loss}

    def export(self, model: nn.Module, folder: Path) -> None:
        save_file(dict(model.state_dict()), folder / "model.safetensors")


def settings(output: Path, **changes: Any) -> LoopConfig:
    given: dict[str, Any] = {
        "steps": 6,
        "batch_size": 4,
        "learning_rate": 1e-2,
        "warmup_steps": 2,
        "log_steps": 2,
    }
    return LoopConfig(output=output, **(given | changes))


def weights(output: Path) -> dict[str, Tensor]:
    return load_file(output / "model" / "model.safetensors")


def same(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("ema", [None, 0.9])
def test_a_run_in_pieces_makes_the_same_weights_to_the_bit(tmp_path: Path, ema: float | None):
    train(Denoise(), settings(tmp_path / "whole", ema_decay=ema))
    reached = [
        train(Denoise(), settings(tmp_path / "pieces", ema_decay=ema, max_minutes=0)) for _ in range(6)
    ]
    assert reached == [1, 2, 3, 4, 5, 6]
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "pieces"))


def test_what_is_exported_is_the_moving_average(tmp_path: Path):
    seen: list[dict[str, Tensor]] = []
    recipe = Denoise()

    def keep(step: int, averaged: Averaged) -> None:
        seen.append({name: value.clone() for name, value in recipe.model.state_dict().items()})

    train(recipe, settings(tmp_path, ema_decay=0.3), on_step=keep)
    expected = seen[0]
    for number, after in enumerate(seen[1:], 1):
        decay = min(0.3, (1 + number) / (10 + number))
        expected = {name: decay * expected[name] + (1 - decay) * after[name] for name in after}
    assert all(torch.allclose(value, weights(tmp_path)[name], atol=1e-7) for name, value in expected.items())
    assert not same(weights(tmp_path), seen[-1])


def test_the_log_ends_with_the_last_step(tmp_path: Path):
    train(Denoise(), settings(tmp_path, steps=5))
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [(row["step"], row["samples"]) for row in rows] == [(2, 8), (4, 16), (5, 20)]


def test_another_seed_makes_other_weights(tmp_path: Path):
    train(Denoise(), settings(tmp_path / "a"))
    train(Denoise(), settings(tmp_path / "b", seed=1))
    assert not same(weights(tmp_path / "a"), weights(tmp_path / "b"))


def test_a_finished_run_stays_as_it_is(tmp_path: Path):
    train(Denoise(), settings(tmp_path))
    before = weights(tmp_path)
    assert train(Denoise(), settings(tmp_path)) == 6
    assert same(before, weights(tmp_path))


def test_it_learns_and_logs(tmp_path: Path):
    train(Denoise(), settings(tmp_path, steps=60, log_steps=20))
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [20, 40, 60] and rows[-1]["samples"] == 240
    assert rows[-1]["loss"] < 0.7 * rows[0]["loss"]


def test_nan_stops_the_run_and_names_the_step(tmp_path: Path):
    with pytest.raises(TrainingError, match="step 3"):
        train(Denoise(nan_at=4), settings(tmp_path))
    assert not (tmp_path / "model").exists()


def test_a_damaged_state_is_one_clear_error(tmp_path: Path):
    train(Denoise(), settings(tmp_path, max_minutes=0))
    for path in (tmp_path / "state" / "step-1").iterdir():
        path.write_bytes(b"not a checkpoint")
    with pytest.raises(TrainingError, match="step-1"):
        train(Denoise(), settings(tmp_path))


def test_an_unfinished_checkpoint_is_ignored(tmp_path: Path):
    (tmp_path / "state" / "step-5.partial").mkdir(parents=True)
    assert train(Denoise(), settings(tmp_path)) == 6


def test_an_export_that_failed_is_made_by_the_next_run(tmp_path: Path):
    class Broken(Denoise):
        def export(self, model: nn.Module, folder: Path) -> None:
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        train(Broken(), settings(tmp_path))
    assert train(Denoise(), settings(tmp_path)) == 6
    assert weights(tmp_path)


def test_the_log_of_a_killed_run_counts_no_step_twice(tmp_path: Path):
    train(Denoise(), settings(tmp_path, max_minutes=0))
    row = {"loss": 1.0, "step": 4, "samples": 16, "minutes": 0.1}
    (tmp_path / "log.jsonl").write_text(json.dumps(row) + '\n{"loss": 0.')  # too far; and half a line
    train(Denoise(), settings(tmp_path))
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [(row["step"], row["samples"]) for row in rows] == [(2, 8), (4, 16), (6, 24)]


_RUN = """
import sys
from pathlib import Path
from tests.training.test_loop import Denoise, settings
from wordbrush.training.loop import train
train(Denoise(slow=float(sys.argv[2])), settings(Path(sys.argv[1]), steps=40, checkpoint_minutes=0.0005))
"""


def start(output: Path, *, slow: float = 0.0) -> subprocess.Popen[bytes]:
    """A run in a process of its own: what tests set in this one (threads, kernels) would change bits."""
    return subprocess.Popen([sys.executable, "-c", _RUN, str(output), str(slow)])


def test_killed_at_any_moment_it_goes_on_to_the_same_weights(tmp_path: Path):
    assert start(tmp_path / "whole").wait() == 0
    state = tmp_path / "killed" / "state"
    for wait in (0.0, 0.13):  # after the first checkpoint that this process writes
        before = set(state.glob("step-*"))
        process = start(tmp_path / "killed", slow=0.05)
        while process.poll() is None and not set(state.glob("step-*")) - before:
            time.sleep(0.01)
        time.sleep(wait)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert start(tmp_path / "killed").wait() == 0
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "killed"))


_CLOCKS = """
import sys
from pathlib import Path
from tests.training.test_loop import Denoise, settings
from wordbrush.training.loop import processes, train
late = processes().process_index == 0
reached = train(Denoise(), settings(Path(sys.argv[1]), max_minutes=0 if late else 10, steps=40))
assert reached == 1, reached
"""


def test_processes_stop_after_the_same_step_whatever_their_clocks_say(tmp_path: Path):
    (tmp_path / "run.py").write_text(_CLOCKS)
    run_two(tmp_path / "run.py", str(tmp_path / "two"))
    assert (tmp_path / "two" / "state" / "step-1").is_dir()
