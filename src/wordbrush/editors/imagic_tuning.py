"""Imagic's tuning of a model to one picture (Kawar et al., 2210.09276, section 3.2), stages A and B.

All randomness of a step comes from the seed, the stage and the number of the step, so a run that was stopped
and goes on finds the same weights as one that was not.
"""

from __future__ import annotations

import math
import pickle
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import AttnProcessor
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import Tensor, nn

from wordbrush.diffusion.inversion_cache import inversion_key, model_digest
from wordbrush.diffusion.loss import diffusion_target
from wordbrush.diffusion.model import LatentDiffusion, TextEmbeds
from wordbrush.editors.imagic_presets import Tuning
from wordbrush.editors.tuned_picture import (
    Subject,
    TunedPicture,
    TunedRecord,
    add_adapters,
    is_tuned,
    model_signature,
    picture_digest,
    put_weights,
    text_signature,
    twin,
)
from wordbrush.errors import ModelError, UsageError, WordbrushError, one_line
from wordbrush.interrupts import held_interrupts
from wordbrush.outputs import make_folder
from wordbrush.provenance import atomic_file

_STATE = "state.pt"
_STAGES = ("embedding", "model")
_CHECK_STEPS = 50
_CHECK_NOISES = 8
_SAVE_SECONDS = 30.0
_SAVE_SHARE = 0.05
"""Of the time that may go into saving."""


@dataclass(eq=False)
class _Run:
    """Where a run stands; all of it lies in the state file."""

    key: str
    text: list[Tensor]
    """float32: tokens, and for SDXL the pooled embedding."""
    stage: int = 0
    step: int = 0
    weights: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    """Trained in stage B."""
    optimizer: dict[str, Any] | None = None
    losses: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in _STAGES})


def tune(
    model: LatentDiffusion,
    subject: Subject,
    tuning: Tuning,
    *,
    seed: int = 0,
    gradient_checkpointing: bool = False,
    folder: Path | None = None,
    on_step: Callable[[int], None] | None = None,
) -> TunedPicture:
    """Optimise the caption's embedding, then fine-tune the U-Net under it, each to denoise the picture.

    It may be called in inference mode, which it leaves for its own time. The model stays as it is.

    Args:
        model: a text-to-image model.
        subject: the picture and its caption.
        tuning: steps, rates and the like.
        seed: of the noises, and of the adapters.
        gradient_checkpointing: less memory, a third more computing.
        folder: where the result goes, and on the way the state that a run goes on from; a finished run is
            only read. None: nothing is kept.
        on_step: called with the number of steps done, of `embedding_steps + model_steps`; an exception raised
            in it stops the run, whose state is kept. A stage that stops early skips numbers.

    Raises:
        UsageError: the folder holds another run.
        ModelError: what the folder holds is damaged.
        WordbrushError: the loss became infinite or no number.
        OutputError: the folder cannot be written.
    """
    with torch.inference_mode(False), torch.enable_grad():
        return _Tuner(model, subject, tuning, seed, gradient_checkpointing, folder, on_step).run()


def run_key(model: LatentDiffusion, subject: Subject, tuning: Tuning, seed: int = 0) -> str:
    """All that a tuned picture depends on, in 64 digits."""
    inputs = [subject.latents, subject.text.tokens]
    return inversion_key(model_digest(model), inputs, {"tuning": asdict(tuning), "seed": seed})


class _Tuner:
    def __init__(
        self,
        model: LatentDiffusion,
        subject: Subject,
        tuning: Tuning,
        seed: int,
        gradient_checkpointing: bool,
        folder: Path | None,
        on_step: Callable[[int], None] | None,
    ) -> None:
        self.model, self.subject, self.tuning, self.seed = model, subject, tuning, seed
        self.gradient_checkpointing, self.folder, self.on_step = gradient_checkpointing, folder, on_step
        self.key = run_key(model, subject, tuning, seed)
        # What was made in inference mode cannot have a part in a gradient.
        self.latents = subject.latents.clone()
        self.time_ids = None if subject.time_ids is None else subject.time_ids.clone()
        self.noise: Any = DDPMScheduler.from_config(model.scheduler.config)
        self.saved, self.save_seconds = time.monotonic(), 0.0

    def run(self) -> TunedPicture:
        """Both stages, as far as they were not done before."""
        if self.folder is not None and is_tuned(self.folder):
            tuned = TunedPicture.load(self.folder)
            _check_key(tuned.record.run, self.key, self.folder)
            return tuned
        if self.folder is not None:
            make_folder(self.folder)
        run = self._resume()
        if run.stage == 0:
            self._optimise_embedding(run)
            run.stage, run.step, run.optimizer = 1, 0, None
        if self.tuning.model_steps:
            self._fine_tune(run)
        return self._finish(run)

    def _optimise_embedding(self, run: _Run) -> None:
        """Stage A: the frozen U-Net says which text describes the picture."""
        unet = self._prepare(twin(self.model.unet, self.model.device))
        text = [nn.Parameter(part) for part in run.text]

        def note() -> None:
            run.text = [part.detach() for part in text]

        rate, steps = self.tuning.embedding_rate, self.tuning.embedding_steps
        self._optimise(run, unet, text, text, rate, steps, note)

    def _fine_tune(self, run: _Run) -> None:
        """Stage B: under that text, the U-Net learns the picture."""
        unet = self._trainable()
        put_weights(unet, run.weights)
        trained = {name: p for name, p in unet.named_parameters() if p.requires_grad}

        def note() -> None:
            run.weights = {name: parameter.detach() for name, parameter in trained.items()}

        rate, steps = self.tuning.model_rate, self.tuning.model_steps
        self._optimise(run, unet, run.text, list(trained.values()), rate, steps, note)

    def _trainable(self) -> UNet2DConditionModel:
        unet = twin(self.model.unet, self.model.device)
        if self.tuning.lora_rank:
            add_adapters(unet, self.tuning.lora_rank, seed=self.seed)
        else:
            for parameter in unet.parameters():  # half precision would swallow such small steps
                parameter.data = parameter.data.to(torch.float32, copy=True)
                parameter.requires_grad_(True)
        return self._prepare(unet)

    def _prepare(self, unet: UNet2DConditionModel) -> UNet2DConditionModel:
        if self.gradient_checkpointing:
            unet.enable_gradient_checkpointing()
        if self.model.device.type == "cpu":  # where plain attention's backward pass is faster than the fused
            unet.set_attn_processor(AttnProcessor())
        return unet

    def _optimise(
        self,
        run: _Run,
        unet: UNet2DConditionModel,
        text: Sequence[Tensor],
        parameters: Sequence[nn.Parameter],
        rate: float,
        steps: int,
        note: Callable[[], None],
    ) -> None:
        """Adam from where the run stands; `note` puts the parameters into the run."""
        optimizer = torch.optim.Adam(parameters, lr=rate)
        if run.optimizer is not None:
            optimizer.load_state_dict(run.optimizer)
        losses = run.losses[_STAGES[run.stage]]

        def snapshot() -> None:
            note()
            run.optimizer = optimizer.state_dict()

        def advance() -> bool:
            due = run.step % _CHECK_STEPS == 0 or run.step >= steps
            if due and len(losses) <= math.ceil(run.step / _CHECK_STEPS):  # else it stands in the state
                losses.append(self._check(unet, text))
                _check_finite(losses[-1], run)
            if run.step >= steps or (due and _flat(losses, self.tuning.plateau)):
                return False
            optimizer.zero_grad()
            self._loss(unet, text, *self._draw(run)).backward()
            optimizer.step()
            run.step += 1
            return True

        while self._interruptible(advance, run, snapshot):
            self._report(run, snapshot)
        snapshot()

    def _interruptible(self, advance: Callable[[], bool], run: _Run, snapshot: Callable[[], None]) -> bool:
        """Advances by a step; a Ctrl-C in it is heard after it, when the state is whole and can be kept."""
        try:
            with held_interrupts():
                return advance()
        except KeyboardInterrupt:
            self._save(run, snapshot)
            raise

    def _draw(self, run: _Run) -> tuple[Tensor, Tensor]:
        """Timesteps (B,) and noises (B, C, h, w) of a step."""
        number = hash((self.seed, run.stage, run.step)) & 0x7FFFFFFF
        generator = torch.Generator().manual_seed(number)
        count = self.tuning.batch
        t = torch.randint(len(self.noise.alphas_cumprod), (count,), generator=generator)
        return t, torch.randn((count, *self.latents.shape[1:]), generator=generator)

    @torch.no_grad()
    def _check(self, unet: UNet2DConditionModel, text: Sequence[Tensor]) -> float:
        """The loss at evenly spread timesteps and noises that are the same each time."""
        count = len(self.noise.alphas_cumprod)
        generator = torch.Generator().manual_seed(self.seed)
        noises = torch.randn((_CHECK_NOISES, *self.latents.shape[1:]), generator=generator)
        ts = torch.arange(_CHECK_NOISES) * count // _CHECK_NOISES + count // (2 * _CHECK_NOISES)
        found = [
            self._loss(unet, text, t, noise) for t, noise in zip(ts.split(1), noises.split(1), strict=True)
        ]
        return round(float(torch.stack(found).mean()), 6)

    def _loss(self, unet: Any, text: Sequence[Tensor], t: Tensor, noise: Tensor) -> Tensor:
        """The mean squared error of predictions for the noised picture."""
        device, dtype = self.model.device, self.model.dtype
        t, noise, latents = t.to(device), noise.to(device), self.latents.expand(len(t), -1, -1, -1)
        noisy = self.noise.add_noise(latents, noise, t)
        tokens, *pooled = (part.expand(len(t), *part.shape[1:]).to(dtype) for part in text)
        added = {"text_embeds": pooled[0], "time_ids": self._ids(len(t))} if pooled else None
        # In half precision: bfloat16, which needs no scaling of the loss.
        with torch.autocast(device.type, torch.bfloat16, enabled=dtype != torch.float32):
            found = unet(noisy.to(dtype), t, tokens, added_cond_kwargs=added).sample
        return F.mse_loss(found.float(), diffusion_target(self.noise, latents, noise, t))

    def _ids(self, count: int) -> Tensor:
        assert self.time_ids is not None
        return self.time_ids.expand(count, -1)

    def _report(self, run: _Run, snapshot: Callable[[], None]) -> None:
        """Tells how far it is; keeps the state now and then, and where the telling stops the run."""
        if time.monotonic() - self.saved > max(_SAVE_SECONDS, self.save_seconds / _SAVE_SHARE):
            self._save(run, snapshot)
        if self.on_step is None:
            return
        try:
            self.on_step(run.step + (self.tuning.embedding_steps if run.stage else 0))
        except BaseException:
            self._save(run, snapshot)
            raise

    def _save(self, run: _Run, snapshot: Callable[[], None]) -> None:
        if self.folder is None:
            return
        started = time.monotonic()
        snapshot()
        with atomic_file(self.folder / _STATE, overwrite=True) as file:
            torch.save(vars(run), file)
        self.saved = time.monotonic()
        self.save_seconds = self.saved - started

    def _resume(self) -> _Run:
        path = None if self.folder is None else self.folder / _STATE
        if path is None or not path.exists():
            text = [part.float().clone() for part in _parts(self.subject.text)]
            return _Run(self.key, text)
        try:
            run = _Run(**torch.load(path, map_location="cpu", weights_only=True))
            run.text = [part.to(self.model.device) for part in run.text]
        except (OSError, RuntimeError, EOFError, TypeError, pickle.UnpicklingError) as error:
            raise ModelError(
                f"cannot go on from {path}: delete it to start again ({one_line(error)})"
            ) from error
        _check_key(run.key, self.key, path.parent)
        return run

    def _finish(self, run: _Run) -> TunedPicture:
        record = TunedRecord(
            caption=self.subject.caption,
            picture=picture_digest(self.subject.picture),
            run=self.key,
            model=model_signature(self.model),
            target=text_signature(self.subject.text),
            size=self.subject.size,
            tuning=self.tuning,
            losses=run.losses,
        )
        # Adapters stay in float32; a whole U-Net is kept, and used, in the model's own precision.
        dtype = torch.float32 if self.tuning.lora_rank else self.model.dtype
        weights = {name: weight.to("cpu", dtype) for name, weight in run.weights.items()}
        text = TextEmbeds(*(part.cpu() for part in run.text))
        tuned = TunedPicture(record, text, weights)
        if self.folder is not None:
            tuned.save(self.folder)
            (self.folder / _STATE).unlink(missing_ok=True)
        return tuned


def _parts(text: TextEmbeds) -> Iterator[Tensor]:
    yield text.tokens
    if text.pooled is not None:
        yield text.pooled


def _flat(losses: Sequence[float], plateau: float) -> bool:
    """Whether the last two checks gained less than that part."""
    return plateau > 0 and len(losses) > 2 and losses[-3] - losses[-1] < plateau * losses[-3]


def _check_finite(loss: float, run: _Run) -> None:
    if not math.isfinite(loss):
        what = "embedding_rate" if run.stage == 0 else "model_rate"
        raise WordbrushError(f"the tuning's loss became {loss} at step {run.step}: lower {what}")


def _check_key(found: str, wanted: str, folder: Path) -> None:
    if found != wanted:
        raise UsageError(
            f"{folder} holds another tuning run (other picture, target, model or settings): "
            "choose another folder, or delete it"
        )
