"""Numbers about pictures, and how sure a mean is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from torch import Tensor

from wordbrush.errors import MissingExtraError

_RESAMPLES = 1000
MAX_PSNR = 99.0
"""dB; stands for equal pictures."""


def l1(one: Tensor, other: Tensor) -> list[float]:
    """The mean absolute difference of (B, 3, H, W) in [-1, 1], in fractions of the full range: 0 to 1."""
    return ((one - other).abs().mean((1, 2, 3)) / 2).tolist()


def l2(one: Tensor, other: Tensor) -> list[float]:
    """The mean squared difference of (B, 3, H, W) in [-1, 1], of values in [0, 1]: 0 to 1."""
    return ((one - other).square().mean((1, 2, 3)) / 4).tolist()


def ssim(one: Tensor, other: Tensor) -> list[float]:
    """Structural similarity of (B, 3, H, W) in [-1, 1] under a Gaussian window of 11 pixels: -1 to 1 (equal).

    Raises:
        WordbrushError: The extra `evaluate` is not installed.
    """
    try:
        from torchmetrics.functional.image import structural_similarity_index_measure
    except ModuleNotFoundError as error:
        raise MissingExtraError("SSIM", "evaluate") from error
    found = structural_similarity_index_measure(one, other, data_range=2.0, reduction="none")
    assert isinstance(found, Tensor)  # a tuple only where more is asked for
    return found.reshape(-1).tolist()


def psnr(one: Tensor, other: Tensor, mask: Tensor | None = None) -> list[float]:
    """Peak signal to noise ratio in dB of (B, 3, H, W) in [-1, 1], at most `MAX_PSNR`.

    Args:
        one: Pictures.
        other: Pictures.
        mask: (B, H, W) bool, the pixels that count; at least one in each picture.
    """
    squared = (one - other).square().mean(1) / 4
    if mask is not None:
        errors = ((squared * mask).sum((1, 2)) / mask.sum((1, 2))).tolist()
    else:
        errors = squared.mean((1, 2)).tolist()
    return [min(MAX_PSNR, -10 * math.log10(error)) if error else MAX_PSNR for error in errors]


def resamples(count: int) -> np.ndarray[Any, np.dtype[np.intp]]:
    """Indices (1000, count) of bootstrap samples, seeded: equal counts give equal samples."""
    return np.random.default_rng(0).integers(count, size=(_RESAMPLES, count))


@dataclass(frozen=True)
class Mean:
    """A mean with its bootstrap 95 % interval over `n` samples."""

    value: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, samples: Sequence[float]) -> Mean | None:
        """None without samples; the resampling is seeded, so equal samples give equal intervals."""
        if not samples:
            return None
        values = np.asarray(samples, dtype=float)
        low, high = np.percentile(values[resamples(len(values))].mean(1), (2.5, 97.5))
        mean, low, high = (round(float(x), 4) for x in (values.mean(), low, high))
        return cls(mean, low, high, len(values))

    def shown(self, digits: int = 3, *, signed: bool = False) -> str:
        """The mean, and half of its interval."""
        sign = "+" if signed else ""
        return f"{self.value:{sign}.{digits}f} ± {(self.high - self.low) / 2:.{digits}f}"

    def as_json(self) -> dict[str, float]:
        """The fields."""
        return asdict(self)
