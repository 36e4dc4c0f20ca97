"""Text2LIVE's edit layer: the network that paints it, and what can be seen with it (2204.02491)."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_SKIP = 4
# From decorrelated colours to RGB: the square root of the colour covariance of natural pictures, its first
# column divided by 1.6 for more saturation, scaled to a greatest column norm of 1.
_COLOURS = torch.tensor([[0.26, 0.09, 0.02], [0.27, 0.00, -0.05], [0.27, -0.09, 0.03]]) / torch.tensor(
    [1.6, 1.0, 1.0]
)


class LayerGenerator(nn.Module):
    """A U-Net from a picture to colours and opacity.

    Convolutions padded by reflection, batch normalisation over the picture at hand, thin skip connections.

    Args:
        width: channels at all scales; 128 in the paper.
        scales: how often the sides are halved; 7 in the paper, for a short side of 512.
    """

    colours: Tensor

    def __init__(self, width: int, scales: int) -> None:
        super().__init__()
        self.body = _Level(3, width, scales)
        self.head = nn.Conv2d(width, 4, 1)
        self.register_buffer("colours", _COLOURS / _COLOURS.norm(dim=0).max(), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> (B, 4, H, W) in (0, 1): red, green, blue, opacity."""
        colours, alpha = self.head(self.body(pixels)).split([3, 1], dim=1)
        colours = torch.einsum("nchw,dc->ndhw", colours, self.colours)
        return torch.sigmoid(torch.cat([colours, alpha], dim=1))


class _Level(nn.Module):
    """One scale, with all coarser ones inside."""

    def __init__(self, channels: int, width: int, scales: int, *, first: bool = True) -> None:
        super().__init__()
        self.skip = _block(channels, _SKIP, 1)
        self.down = nn.Sequential(_block(channels, width, 3, stride=2), _block(width, width, 3))
        self.deeper = _Level(width, width, scales - 1, first=False) if scales > 1 else nn.Identity()
        self.up = nn.Sequential(
            _norm(_SKIP + width),
            _block(_SKIP + width, width, 3),
            nn.Sequential(nn.Conv2d(width, width, 1), nn.LeakyReLU(0.2))
            if first
            else _block(width, width, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        low = F.interpolate(self.deeper(self.down(x)), scale_factor=2, mode="bilinear", align_corners=False)
        return self.up(torch.cat([self.skip(x), low[..., : x.shape[-2], : x.shape[-1]]], dim=1))


def _block(channels: int, width: int, kernel: int, stride: int = 1) -> nn.Sequential:
    padding: dict[str, Any] = {"padding": kernel // 2, "padding_mode": "reflect"}
    return nn.Sequential(
        nn.Conv2d(channels, width, kernel, stride, **padding), _norm(width), nn.LeakyReLU(0.2)
    )


def _norm(width: int) -> nn.Module:
    return nn.BatchNorm2d(width, track_running_stats=False)


def num_scales(height: int, width: int) -> int:
    """As many halvings as leave a side of at least 4 pixels: 7 at 512."""
    return max(1, int(math.log2(min(height, width))) - 2)


def composite(layer: Tensor, below: Tensor) -> Tensor:
    """The layer (B, 4, H, W) over a picture (B, 3, H, W), or over a colour (3, 1, 1)."""
    colours, alpha = layer.split([3, 1], dim=1)
    return alpha * colours + (1 - alpha) * below
