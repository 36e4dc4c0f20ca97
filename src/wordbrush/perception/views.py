"""Random views of a picture for a loss that looks through CLIP: crops, warps and changes of colour.

Without them a picture that is optimised for CLIP's liking turns into noise that CLIP likes. The distributions
are those of Text2LIVE (Bar-Tal et al., 2204.02491, official code). All of it is differentiable, and all of a
view's geometry is one resampling.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

_CROP, _AFFINE, _PERSPECTIVE, _JITTER, _GREY = 0.6, 0.8, 0.5, 0.7, 0.15
"""Least part of a side, and the probabilities of the other changes."""
_ANGLE, _SHIFT, _DISTORTION, _COLOUR = math.radians(15), 0.1, 0.4, 0.1
_LUMA = (0.299, 0.587, 0.114)
_YIQ = ((0.299, 0.587, 0.114), (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112))


def random_views(pixels: Tensor, count: int, size: tuple[int, int], rng: torch.Generator) -> Tensor:
    """Views of one picture, the first of the whole of it; what lies outside of a view is white.

    Args:
        pixels: (1, 3, H, W) in [0, 1].
        count: How many views.
        size: Height and width of a view.
        rng: On the CPU.

    Returns:
        (count, 3, *size) in [0, 1].
    """
    scale, centre = _crops(count, rng)
    to_crop = _flip(count, rng) @ _affine(count, size, rng) @ _perspective(count, rng)
    place = _project(to_crop, size)
    outside = (place.abs() > 1).any(-1)[:, None].to(pixels.device)
    grid = (centre[:, None, None] + scale[:, None, None, None] * place).to(pixels)
    source = pixels.expand(count, -1, -1, -1)
    views = F.grid_sample(source, grid, padding_mode="border", align_corners=False)
    return random_colours(views.masked_fill(outside, 1.0), rng, jitter=_JITTER, grey=_GREY)


def random_colours(pixels: Tensor, rng: torch.Generator, *, jitter: float, grey: float = 0.0) -> Tensor:
    """Brightness, contrast, saturation and hue changed by up to a tenth; some pictures made grey.

    Args:
        pixels: (B, 3, H, W) in [0, 1].
        rng: On the CPU.
        jitter: Probability of a change of colour, for each picture.
        grey: Probability of no colour.
    """
    changed = torch.rand(len(pixels), generator=rng) < jitter
    amount = _uniform((len(pixels), 4), -_COLOUR, _COLOUR, rng) * changed[:, None]
    brightness, contrast, saturation, hue = amount.to(pixels)[..., None, None, None].unbind(1)
    pixels = (pixels * (1 + brightness)).clamp(0, 1)
    mean = _luma(pixels).mean((2, 3), keepdim=True)
    pixels = (mean + (pixels - mean) * (1 + contrast)).clamp(0, 1)
    luma = _luma(pixels)
    pixels = (luma + (pixels - luma) * (1 + saturation)).clamp(0, 1)
    pixels = torch.einsum("ncd,ndhw->nchw", _hue_rotations(hue.flatten()), pixels).clamp(0, 1)
    without = torch.rand(len(pixels), generator=rng) < grey
    return torch.where(without.to(pixels.device)[:, None, None, None], _luma(pixels), pixels)


def random_crop(pixels: Tensor, rng: torch.Generator) -> Tensor:
    """Mirrored or not, scaled by 0.8 to 1.2, cut to at least 0.85 of a side: what a generator trains on.

    Args:
        pixels: (B, C, H, W), all cut alike.
        rng: On the CPU.
    """
    flip, scale, part, top, left = torch.rand(5, generator=rng).tolist()
    sides = [max(1, int(side * (0.8 + 0.4 * scale))) for side in pixels.shape[-2:]]
    scaled = F.interpolate(pixels, sides, mode="bilinear", antialias=True, align_corners=False)
    height, width = (max(1, int(side * (0.85 + 0.15 * part))) for side in sides)
    y, x = round(top * (sides[0] - height)), round(left * (sides[1] - width))
    crop = scaled[..., y : y + height, x : x + width]
    return crop.flip(-1) if flip < 0.5 else crop


def _crops(count: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Sizes (count,) and centres (count, 2), of pictures from -1 to 1."""
    scale = _uniform((count,), _CROP, 1.0, rng)
    scale[0] = 1.0
    return scale, _uniform((count, 2), -1.0, 1.0, rng) * (1 - scale)[:, None]


# Each of these maps the places of a view to the places that they show: (count, 3, 3), homogeneous (x, y, 1).


def _flip(count: int, rng: torch.Generator) -> Tensor:
    maps = torch.eye(3).repeat(count, 1, 1)
    maps[:, 0, 0] = 1 - 2 * (torch.rand(count, generator=rng) < 0.5).float()
    return maps


def _affine(count: int, size: tuple[int, int], rng: torch.Generator) -> Tensor:
    """Turned by up to 15 degrees and shifted by up to a tenth of a side."""
    changed = torch.rand(count, generator=rng) < _AFFINE
    angle = _uniform((count,), -_ANGLE, _ANGLE, rng) * changed
    shift = _uniform((count, 2), -2 * _SHIFT, 2 * _SHIFT, rng) * changed[:, None]
    ratio = size[1] / size[0]
    maps = torch.eye(3).repeat(count, 1, 1)
    maps[:, 0, 0] = maps[:, 1, 1] = angle.cos()
    maps[:, 0, 1], maps[:, 1, 0] = angle.sin() / ratio, -angle.sin() * ratio
    maps[:, :2, 2] = -(maps[:, :2, :2] @ shift[..., None])[..., 0]
    return maps


def _perspective(count: int, rng: torch.Generator) -> Tensor:
    """The corners moved inwards by up to a fifth of a side."""
    changed = torch.rand(count, generator=rng) < _PERSPECTIVE
    corners = torch.tensor([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]])
    inwards = _uniform((count, 4, 2), 0.0, _DISTORTION, rng) * changed[:, None, None]
    return _homographies(corners * (1 - inwards), corners.expand(count, -1, -1))


def _homographies(source: Tensor, target: Tensor) -> Tensor:
    """The maps (count, 3, 3) that take four points to four points, both (count, 4, 2)."""
    x, y = source.double().unbind(-1)
    one, zero = torch.ones_like(x), torch.zeros_like(x)
    u, v = target.double().unbind(-1)
    rows = [
        torch.stack([x, y, one, zero, zero, zero, -u * x, -u * y], -1),
        torch.stack([zero, zero, zero, x, y, one, -v * x, -v * y], -1),
    ]
    solved = torch.linalg.solve(torch.cat(rows, 1), torch.cat([u, v], 1))
    return torch.cat([solved, one[:, :1]], 1).unflatten(1, (3, 3)).float()


def _project(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Where the pixels of views lie: (count, *size, 2), x before y."""
    y, x = (torch.arange(side) * 2 / side + 1 / side - 1 for side in size)
    points = torch.stack([*torch.meshgrid(x, y, indexing="xy"), torch.ones(size)], -1)
    mapped = torch.einsum("nij,hwj->nhwi", maps, points)
    return mapped[..., :2] / mapped[..., 2:]


def _hue_rotations(turns: Tensor) -> Tensor:
    """(B, 3, 3) of RGB: rotations of the plane of colour differences (YIQ) by parts of a turn."""
    to_yiq = turns.new_tensor(_YIQ)
    cos, sin = (2 * math.pi * turns).cos(), (2 * math.pi * turns).sin()
    rotation = torch.eye(3).to(turns).repeat(len(turns), 1, 1)
    rotation[:, 1, 1] = rotation[:, 2, 2] = cos
    rotation[:, 1, 2], rotation[:, 2, 1] = -sin, sin
    return torch.linalg.inv(to_yiq) @ rotation @ to_yiq


def _luma(pixels: Tensor) -> Tensor:
    return torch.einsum("c,nchw->nhw", pixels.new_tensor(_LUMA), pixels)[:, None].expand_as(pixels)


def _uniform(shape: tuple[int, ...], low: float, high: float, rng: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(shape, generator=rng)
