"""A first layer for text states that vary in few directions.

The states of a small text tower are nearly alike: of the 192 directions of the storybook CLIP's some 15 hold
nearly all the variance, and what tells one thing from another is in the rest. From white states a U-Net
learns faster what things look like.
"""

from __future__ import annotations

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

_FLOOR = 0.003  # of the mean variance: what varies less is not made as loud as the rest


def whiten_text(unet: UNet2DConditionModel, states: Tensor) -> None:
    """Set the U-Net's projection of text (`encoder_hid_proj`) so that its output is white.

    Args:
        unet: With `encoder_hid_dim_type` "text_proj" and as many channels after it as before.
        states: (N, D) of the text tower, of texts as in training, padding included.

    Raises:
        ValueError: The U-Net has no such projection.
    """
    projection = unet.encoder_hid_proj
    if not isinstance(projection, nn.Linear) or projection.in_features != projection.out_features:
        raise ValueError("the U-Net has no square projection of text states")
    mean = states.double().mean(0)
    centred = states.double() - mean
    variances, directions = torch.linalg.eigh(centred.T @ centred / len(states))
    variances = variances.clamp(min=0) + _FLOOR * variances.mean()
    weight = directions @ variances.rsqrt().diag() @ directions.T
    with torch.no_grad():
        projection.weight.copy_(weight)
        projection.bias.copy_(-weight @ mean)
