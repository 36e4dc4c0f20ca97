"""One training loop for every recipe: accelerate, EMA, cosine schedule, exact resume, atomic checkpoints.

All randomness of a step comes from (seed, number of the batch, process) and every sample from its own index,
so a run that was killed and started again makes the same weights as one that was not (bit-equal on one
process on a CPU in float32).
"""

from __future__ import annotations

import json
import math
import platform
import shutil
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils.environment import parse_flag_from_env
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler

from wordbrush.errors import WordbrushError
from wordbrush.interrupts import hear_interrupt
from wordbrush.training.config import LoopConfig
from wordbrush.training.optimizers import build_optimizer

Batch = Mapping[str, Any]
Averaged = Callable[[], AbstractContextManager[nn.Module]]
"""The model, which inside the context has the weights that would be exported."""
OnStep = Callable[[int, Averaged], None]
"""Called with the number of steps done, on every process."""


class TrainingError(WordbrushError):
    """Training cannot start, or was stopped because its numbers went wrong."""


class Recipe(Protocol):
    """What one training run is made of."""

    model: nn.Module

    def samples(self) -> Dataset[Any]:
        """Map-style: index -> sample; sample i is the same whenever and wherever it is asked for."""
        ...

    def losses(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Scalars to log; "loss" is minimised."""
        ...

    def export(self, model: nn.Module, folder: Path) -> None:
        """Writes the model as a standard checkpoint into an empty folder."""
        ...


class _Upward(Sampler[int]):
    def __init__(self, start: int, stop: int) -> None:
        self.range = range(start, stop)

    def __iter__(self) -> Iterator[int]:
        return iter(self.range)

    def __len__(self) -> int:
        return len(self.range)


def train(recipe: Recipe, config: LoopConfig, *, on_step: OnStep | None = None) -> int:
    """Runs, or goes on with, a recipe until `steps` or `max_minutes`; returns the step it reached.

    Raises:
        TrainingError: a loss or gradient is NaN or infinite (step and samples are named), or the state cannot
            be read.
    """
    accelerator = Accelerator(mixed_precision=config.mixed_precision, cpu=_on_cpu())
    optimizer = build_optimizer(
        config.optimizer, recipe.model, learning_rate=config.learning_rate, weight_decay=config.weight_decay
    )
    schedule = get_scheduler(
        config.schedule if config.schedule == "cosine" else "constant_with_warmup",
        optimizer,
        num_warmup_steps=config.warmup_steps * accelerator.num_processes,
        num_training_steps=config.steps * accelerator.num_processes,
    )
    model, optimizer, schedule = accelerator.prepare(recipe.model, optimizer, schedule)
    ema = EMAModel(trained_parameters(model), decay=config.ema_decay) if config.ema_decay else None
    if ema is not None:
        ema.to(accelerator.device)
        accelerator.register_for_checkpointing(ema)
    averaged = partial(_averaged, accelerator.unwrap_model(model), ema)
    state = config.output / "state"
    step = _resume(accelerator, state)
    batches = _batches(recipe, config, accelerator, step)
    meter = _Meter(config, step, accelerator.num_processes, accelerator.is_main_process)
    saved = started = time.monotonic()
    while step < config.steps:
        hear_interrupt()
        losses = _gradient(recipe, config, accelerator, model, batches, step)
        norm = accelerator.clip_grad_norm_(model.parameters(), config.clip_norm or math.inf)
        if config.mixed_precision != "fp16":  # whose scaler skips such steps by itself
            count = _samples_per_step(config, accelerator)
            _check("norm of the gradient", norm, step, f"{step * count} to {(step + 1) * count - 1}")
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if ema is not None:
            ema.step(trained_parameters(model))
        step += 1
        meter.add(step, losses)
        if on_step is not None:
            on_step(step, averaged)
        now = time.monotonic()
        timed_out, due = _any(
            accelerator,
            config.max_minutes is not None and now - started > 60 * config.max_minutes,
            now - saved > 60 * config.checkpoint_minutes,
        )
        if timed_out or due or step == config.steps:
            # The state comes last: killed between the two, the run repeats some steps and exports again.
            _export(recipe, averaged, config.output, accelerator)
            _save(accelerator, state, step)
            saved = time.monotonic()
        if timed_out:
            break
    return step


def _any(accelerator: Accelerator, *flags: bool) -> list[bool]:
    """Which flags are set in some process: no two clocks agree, and all save and stop after the same step."""
    if accelerator.num_processes == 1:
        return list(flags)
    counts: Any = accelerator.reduce(torch.tensor(flags, device=accelerator.device).float())
    return counts.bool().tolist()


def processes() -> PartialState:
    """This process among those of `accelerate launch`, or of torchrun; without a GPU they talk over gloo."""
    return PartialState(cpu=_on_cpu())


def _on_cpu() -> bool:
    return parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()


def trained_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Those that are not frozen."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def has_state(output: Path) -> bool:
    """Whether a run of this output folder can go on."""
    return bool(_checkpoints(output / "state"))


def _gradient(
    recipe: Recipe,
    config: LoopConfig,
    accelerator: Accelerator,
    model: nn.Module,
    batches: Iterator[Batch],
    step: int,
) -> dict[str, Tensor]:
    """Adds up the gradient of one step; returns the means of the losses, with "loss" among them."""
    sums: dict[str, Tensor] = {}
    for number in range(step * config.accumulation, (step + 1) * config.accumulation):
        batch = next(batches)
        torch.manual_seed(hash((config.seed, number, accelerator.process_index)) & 0x7FFFFFFF)
        last = number + 1 == (step + 1) * config.accumulation
        with nullcontext() if last else accelerator.no_sync(model):
            losses = recipe.losses(model, batch)
            first = (number * accelerator.num_processes + accelerator.process_index) * config.batch_size
            samples = f"{first} to {first + config.batch_size - 1}{_rows(batch)}"
            _check("loss", losses["loss"].detach(), step, samples)
            accelerator.backward(losses["loss"] / config.accumulation)
        for name, value in losses.items():
            sums[name] = sums.get(name, 0.0) + value.detach() / config.accumulation
    return sums


def _check(what: str, value: Any, step: int, samples: str) -> None:
    if not math.isfinite(value):
        raise TrainingError(
            f"the {what} became {float(value)} at step {step} on samples {samples}: lower the learning rate"
        )


def _rows(batch: Batch) -> str:
    """Which rows of the data a batch is of, where it says so."""
    return f" (rows {', '.join(map(str, batch['row'].tolist()))} of the data)" if "row" in batch else ""


def _samples_per_step(config: LoopConfig, accelerator: Accelerator) -> int:
    return config.batch_size * config.accumulation * accelerator.num_processes


def _batches(recipe: Recipe, config: LoopConfig, accelerator: Accelerator, step: int) -> Iterator[Batch]:
    per_step = _samples_per_step(config, accelerator)
    loader: Any = DataLoader(
        recipe.samples(),
        batch_size=config.batch_size,
        sampler=_Upward(step * per_step, config.steps * per_step),
        num_workers=config.workers,
        persistent_workers=config.workers > 0,
    )
    return iter(accelerator.prepare(loader))


def _checkpoints(state: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(state.glob("step-*[0-9]"), key=lambda path: int(path.name.removeprefix("step-")))


def _resume(accelerator: Accelerator, state: Path) -> int:
    found = _checkpoints(state)
    if not found:
        return 0
    try:
        accelerator.load_state(str(found[-1]))
    except Exception as error:
        raise TrainingError(
            f"cannot go on from {found[-1]} ({error}): delete it to use the one before"
        ) from error
    return int(found[-1].name.removeprefix("step-"))


def _save(accelerator: Accelerator, state: Path, step: int) -> None:
    """The new checkpoint appears under its name only when it is whole; then the older ones go."""
    final, partial = state / f"step-{step}", state / f"step-{step}.partial"
    older = _checkpoints(state)
    if accelerator.is_main_process:
        shutil.rmtree(partial, ignore_errors=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(partial))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process and not final.exists():
        partial.replace(final)
        for path in older:
            if path != final:
                shutil.rmtree(path)


@contextmanager
def _averaged(model: nn.Module, ema: EMAModel | None) -> Generator[nn.Module]:
    if ema is not None:
        ema.store(trained_parameters(model))
        ema.copy_to(trained_parameters(model))
    try:
        yield model
    finally:
        if ema is not None:
            ema.restore(trained_parameters(model))


def _export(recipe: Recipe, averaged: Averaged, output: Path, accelerator: Accelerator) -> None:
    if not accelerator.is_main_process:
        return
    fresh, final = output / "model.partial", output / "model"
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    with averaged() as model:
        recipe.export(model, fresh)
    shutil.rmtree(final, ignore_errors=True)
    fresh.replace(final)


class _Meter:
    """Means of the losses and the rate, every `log_steps` steps and after the last one.

    They go to the terminal and to OUTPUT/log.jsonl.
    """

    def __init__(self, config: LoopConfig, step: int, num_processes: int, active: bool) -> None:
        self.log, self.every, self.active = config.output / "log.jsonl", config.log_steps, active
        self.last = config.steps
        self.samples_per_step = config.batch_size * config.accumulation * num_processes
        self.first, self.since = step, time.monotonic()
        self.sums: dict[str, float] = {}
        self.hardware = _hardware(num_processes)
        config.output.mkdir(parents=True, exist_ok=True)
        self.samples, self.minutes = self._logged(step)

    def _logged(self, step: int) -> tuple[float, float]:
        """Samples and minutes up to a step; what a killed run logged beyond it, or half, is dropped."""
        lines = self.log.read_text().splitlines(keepends=True) if self.log.exists() else []
        rows = [(line, json.loads(line)) for line in lines if line.endswith("}\n")]
        kept = [(line, row) for line, row in rows if row["step"] <= step]
        if self.active and len(kept) < len(lines):
            self.log.write_text("".join(line for line, _ in kept))
        last = kept[-1][1] if kept else {"step": 0, "samples": 0, "minutes": 0.0}
        between = (step - last["step"]) * self.samples_per_step  # computed, but not yet logged
        return last["samples"] + between, last["minutes"]

    def add(self, step: int, losses: Mapping[str, Tensor]) -> None:
        for name, value in losses.items():
            self.sums[name] = self.sums.get(name, 0.0) + float(value.detach())
        if self.active and (step % self.every == 0 or step == self.last):
            self._write(step)

    def _write(self, step: int) -> None:
        count, now = step - self.first, time.monotonic()
        self.minutes += (now - self.since) / 60
        row: dict[str, Any] = {name: round(total / count, 5) for name, total in self.sums.items()}
        self.samples += count * self.samples_per_step
        row |= {"step": step, "samples": self.samples, "minutes": round(self.minutes, 2)}
        row["hardware"] = self.hardware
        row["samples_per_second"] = round(count * self.samples_per_step / (now - self.since), 1)
        with self.log.open("a") as log:
            log.write(json.dumps(row) + "\n")
        print(" ".join(f"{key} {value}" for key, value in row.items()), flush=True)
        self.sums, self.first, self.since = {}, step, now


def _hardware(num_processes: int) -> str:
    """What trains, for the log."""
    if torch.cuda.is_available():
        return f"{num_processes} x {torch.cuda.get_device_name()}"
    kind = platform.processor() or platform.machine()
    return f"{num_processes} x {torch.get_num_threads()} threads of a CPU ({kind})"


def move(batch: Batch, model: nn.Module) -> dict[str, Tensor]:
    """The batch's tensors on the model's device."""
    device = next(model.parameters()).device
    return {key: value.to(device) for key, value in batch.items() if isinstance(value, Tensor)}
