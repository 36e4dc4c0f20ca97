"""AdamW and Muon, by name."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from wordbrush.errors import MissingExtraError

try:
    from pytorch_optimizer import Muon
    from pytorch_optimizer.optimizer.utils.matrix import zero_power_via_gram_newton_schulz
except ModuleNotFoundError as error:
    raise MissingExtraError("training", "train") from error

OptimizerName = Literal["adamw", "muon"]


class Float32Muon(Muon):
    """Muon that orthogonalises in the gradient's own precision: bfloat16 is slow on many CPUs."""

    @staticmethod
    def _orthogonalize(group: Any, updates: list[Tensor]) -> list[Tensor]:
        """Matrices of one shape at once: most are small, and each call costs more than its arithmetic."""
        steps, weights = group["ns_steps"], group["ns_coeffs"]
        alike: dict[torch.Size, list[int]] = {}
        for place, update in enumerate(updates):
            alike.setdefault(update.reshape(len(update), -1).shape, []).append(place)
        found = list(updates)
        for shape, places in alike.items():
            stacked = torch.stack([updates[place].reshape(shape) for place in places])
            result = zero_power_via_gram_newton_schulz(stacked, steps, weights=weights, dtype=stacked.dtype)
            for place, matrix in zip(places, result, strict=True):
                found[place] = matrix
        return found


def build_optimizer(
    name: OptimizerName, model: nn.Module, *, learning_rate: float, weight_decay: float
) -> torch.optim.Optimizer:
    """The optimiser of a model's trainable parameters.

    adamw: 1711.05101. muon: orthogonalised momentum for matrices and convolutions (Jordan 2024), with the
    step sizes of 2502.16982, at which one learning rate suits both; AdamW for biases and gains.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    rate: dict[str, Any] = {"lr": learning_rate, "weight_decay": weight_decay}
    if name == "adamw":
        return torch.optim.AdamW(trained, **rate)
    matrices = {"params": [p for p in trained if p.ndim > 1], "use_muon": True, "use_adjusted_lr": True}
    others = {"params": [p for p in trained if p.ndim < 2], "use_muon": False, "betas": (0.9, 0.999)}
    return Float32Muon([matrices | rate, others | rate])
