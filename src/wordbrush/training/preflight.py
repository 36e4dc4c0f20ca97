"""What a run will need, estimated before it starts: memory, disk and time."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn
from torch.func import functional_call
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.flop_counter import FlopCounterMode

from wordbrush.training.config import LoopConfig
from wordbrush.training.loop import TrainingError, trained_parameters

_OPTIMIZER = {"adamw": 2, "muon": 1}
"""Numbers that the optimiser keeps of each trained weight (Muon two of the few that are no matrices)."""
_HALF = 0.6
"""Bytes of activations under bf16 or fp16 autocast over those in float32, in which norms stay."""
_UTILISATION = 0.35
"""Share of the speed of a large matrix product that training reaches."""
_SPARE = 1.1
"""For the allocator's gaps and for buffers."""


@dataclass(frozen=True)
class Need:
    """What a run takes.

    Attributes:
        memory: Bytes on each process's device at the peak.
        disk: Bytes below the output folder.
        flops: Floating-point operations a step and process.
    """

    memory: int
    disk: int
    flops: float


@dataclass
class _Saved:
    """Bytes that autograd keeps during a forward pass."""

    everywhere: int = 0
    in_blocks: int = 0
    inputs_of_blocks: int = 0
    largest_block: int = 0

    def when_checkpointing(self) -> int:
        """As gradient checkpointing keeps only the inputs of blocks, and all of the one it repeats."""
        return self.everywhere - self.in_blocks + self.inputs_of_blocks + self.largest_block


def estimate(
    model: nn.Module, inputs: dict[str, Any], config: LoopConfig, *, frozen: int, cache: int
) -> Need:
    """What training a U-Net takes, by one forward pass that computes nothing.

    Args:
        model: A U-Net of diffusers, or a module around one; its trained parameters unfrozen.
        inputs: Of its forward pass, on the "meta" device; one process's batch.
        config: The run.
        frozen: Bytes of the networks beside it.
        cache: Bytes of the cache on the disk.
    """
    unet: Any = next(part for part in model.modules() if isinstance(part, UNet2DConditionModel))
    checkpointing: bool = unet.is_gradient_checkpointing
    unet.disable_gradient_checkpointing()  # which hides from autograd what it would keep
    try:
        saved, forward = _forward(model, inputs)
    finally:
        if checkpointing:
            unet.enable_gradient_checkpointing()
    trained = sum(p.numel() for p in trained_parameters(model))
    all_ = sum(p.numel() for p in model.parameters())
    average = trained if config.ema_decay else 0
    kept = all_ + trained * (1 + _OPTIMIZER[config.optimizer]) + average
    activations = saved.when_checkpointing() if checkpointing else saved.everywhere
    if config.mixed_precision != "no":
        activations = int(activations * _HALF) + 2 * all_
    state = all_ + trained * _OPTIMIZER[config.optimizer] + average
    return Need(
        memory=int((4 * kept + frozen + activations) * _SPARE),
        disk=2 * 4 * state + 2 * (4 * all_ + frozen) + cache,  # while the new replaces the old
        flops=forward * (4 if checkpointing else 3) * config.accumulation,
    )


def check(need: Need, config: LoopConfig, device: torch.device) -> str:
    """What the run takes, in a line.

    Raises:
        TrainingError: There is not so much memory, or not so much room on the disk.
    """
    memory, disk = free_memory(device), shutil.disk_usage(_existing(config.output)).free
    if need.memory > memory:
        raise TrainingError(
            f"this needs about {_gib(need.memory)} of memory, and {_gib(memory)} are free on {device}: lower "
            f"--batch-size (now {config.batch_size}; --accumulation makes up for it), or use "
            "--gradient-checkpointing or --lora-rank (--no-preflight tries it all the same)"
        )
    if need.disk > disk:
        raise TrainingError(
            f"this needs about {_gib(need.disk)} of disk, and {_gib(disk)} are free at {config.output}: "
            "choose another --output (--no-preflight tries it all the same)"
        )
    hours = config.steps * need.flops / (_UTILISATION * _speed(device, config.mixed_precision)) / 3600
    return (
        f"about {_gib(need.memory)} of {_gib(memory)} memory, {_gib(need.disk)} of {_gib(disk)} disk, and "
        f"{hours:.1f} hours for {config.steps} steps"
    )


def free_memory(device: torch.device) -> int:
    """Bytes that can still be had on a device; on a CPU, within the limits of the container."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = psutil.virtual_memory().available
    try:
        limit, used = (
            int(Path("/sys/fs/cgroup", name).read_text()) for name in ("memory.max", "memory.current")
        )
        return min(free, limit - used)
    except (OSError, ValueError):  # no limit
        return free


def _forward(model: nn.Module, inputs: dict[str, Any]) -> tuple[_Saved, float]:
    """What autograd keeps, and floating-point operations."""
    saved, counted = _Saved(), set[StorageWeakRef]()
    parameters: dict[str, Tensor] = {
        name: torch.empty_like(p, device="meta", requires_grad=p.requires_grad)
        for name, p in model.named_parameters()
    }
    own = {StorageWeakRef(p.untyped_storage()) for p in parameters.values()}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        reference = StorageWeakRef(storage)
        if reference not in own and reference not in counted:
            counted.add(reference)
            saved.everywhere += storage.nbytes()
        return tensor

    handles: list[Any] = []
    for block in _blocks(model):
        handles += _watch(block, saved)
    counter = FlopCounterMode(display=False)
    try:
        with counter, torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            functional_call(model, parameters, (), inputs)
    finally:
        for handle in handles:
            handle.remove()
    return saved, float(counter.get_total_flops())


def _blocks(model: nn.Module) -> list[nn.Module]:
    """What gradient checkpointing repeats."""
    return [module for module in model.modules() if isinstance(module, ResnetBlock2D | Transformer2DModel)]


def _watch(block: nn.Module, saved: _Saved) -> list[Any]:
    before = 0

    def enter(module: nn.Module, args: tuple[Any, ...]) -> None:
        nonlocal before
        before = saved.everywhere
        saved.inputs_of_blocks += args[0].untyped_storage().nbytes()

    def leave(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        inside = saved.everywhere - before
        saved.in_blocks += inside
        saved.largest_block = max(saved.largest_block, inside)

    return [block.register_forward_pre_hook(enter), block.register_forward_hook(leave)]


def _speed(device: torch.device, precision: str) -> float:
    """Floating-point operations a second of a large matrix product."""
    dtype = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    side = 1024 if device.type == "cpu" else 8192
    matrix = torch.ones(side, side, device=device, dtype=dtype)
    times: list[float] = []
    for _ in range(3):
        started = time.perf_counter()
        float((matrix @ matrix)[0, 0])  # which waits for the device
        times.append(time.perf_counter() - started)
    return 2 * side**3 / min(times)


def _existing(path: Path) -> Path:
    path = path.resolve()
    return next(folder for folder in (path, *path.parents) if folder.exists())


def _gib(count: float) -> str:
    return f"{count / 2**30:.1f} GiB"
