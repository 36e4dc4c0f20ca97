"""What a run takes, against what is kept."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef

from tests import tiny
from wordbrush.training.config import LoopConfig
from wordbrush.training.loop import TrainingError
from wordbrush.training.preflight import Need, check, estimate, free_memory


def inputs(count: int, device: str) -> dict[str, Any]:
    return {
        "sample": torch.zeros(count, 8, 16, 16, device=device),
        "timestep": torch.zeros(count, dtype=torch.long, device=device),
        "encoder_hidden_states": torch.zeros(count, 40, 32, device=device),
    }


def bytes_kept(unet: nn.Module, count: int) -> int:
    """By a true forward pass on the CPU."""
    own = {StorageWeakRef(p.untyped_storage()) for p in unet.parameters()}
    kept: dict[StorageWeakRef, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if StorageWeakRef(storage) not in own:
            kept[StorageWeakRef(storage)] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = unet(**inputs(count, "cpu")).sample
    assert output.requires_grad
    return sum(kept.values())


def need(unet: nn.Module, count: int, **changes: Any) -> Any:
    given: dict[str, Any] = {"output": Path("x"), "steps": 1, "batch_size": count, "learning_rate": 1.0}
    return estimate(unet, inputs(count, "meta"), LoopConfig(**(given | changes)), frozen=0, cache=0)


@pytest.fixture(scope="module")
def unet() -> Any:
    unet = tiny.unet()
    unet.set_attn_processor(AttnProcessor())
    return unet


def test_memory_is_what_autograd_keeps_and_what_the_weights_need(unet: Any):
    weights = sum(p.nbytes for p in unet.parameters())
    for count in (2, 8):
        expected = 1.1 * (4 * weights + bytes_kept(unet, count))  # weights, gradient, two moments
        assert need(unet, count).memory == pytest.approx(expected, rel=0.1)
    assert need(unet, 2, optimizer="muon").memory < need(unet, 2).memory < need(unet, 2, ema_decay=0.9).memory


def test_checkpointing_and_half_precision_and_frozen_weights_need_less(unet: Any):
    plain = need(unet, 8)
    assert need(unet, 8, mixed_precision="bf16").memory < plain.memory
    frozen: Any = tiny.unet()
    frozen.enable_gradient_checkpointing()
    checkpointing = need(frozen, 8)
    assert checkpointing.memory < 0.6 * plain.memory and frozen.is_gradient_checkpointing
    assert checkpointing.flops == pytest.approx(plain.flops * 4 / 3)
    frozen.disable_gradient_checkpointing()
    frozen.requires_grad_(False)
    frozen.conv_in.requires_grad_(True)
    assert need(frozen, 2).memory < need(unet, 2).memory


def test_operations_grow_with_the_batch(unet: Any):
    assert need(unet, 8).flops == pytest.approx(4 * need(unet, 2).flops, rel=0.02)
    assert need(unet, 2, accumulation=3).flops == 3 * need(unet, 2).flops


def test_what_the_disk_cannot_hold_is_refused(tmp_path: Path):
    config = LoopConfig(output=tmp_path / "new" / "run", steps=1, batch_size=1, learning_rate=1.0)
    line = check(Need(memory=0, disk=2**20, flops=1e9), config, torch.device("cpu"))
    assert "hours for 1 steps" in line
    with pytest.raises(TrainingError, match=r"GiB of disk, and .* GiB are free at .*new/run: choose another"):
        check(Need(memory=0, disk=2**60, flops=1e9), config, torch.device("cpu"))


def test_free_memory_is_a_part_of_what_the_machine_has():
    assert 0 < free_memory(torch.device("cpu")) < 2**50
