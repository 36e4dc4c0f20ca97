"""What conditions a noise prediction, and the U-Net widened to take an image."""

from dataclasses import dataclass

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn


@dataclass(frozen=True)
class Conditioning:
    """One guidance branch."""

    text: Tensor
    """(B, L, D) token embeddings."""
    image: Tensor | None = None
    """(B, C, h, w) source latents, unscaled; zeros are the null image."""
    task: Tensor | None = None
    """(B, time_embed_dim), added to the embedding of the timestep."""
    pooled: Tensor | None = None
    """(B, P) pooled text embeddings (SDXL)."""
    time_ids: Tensor | None = None
    """(B, 6) original size, crop and target size in pixels (SDXL)."""


def widen_input(unet: UNet2DConditionModel, extra_channels: int) -> UNet2DConditionModel:
    """Let `unet` take `extra_channels` more input channels, in place; it computes the same until trained.

    The new weights are zero (InstructPix2Pix, section 3.2), and weights and bias of the old ones are copied.
    """
    old = unet.conv_in
    new = nn.Conv2d(old.in_channels + extra_channels, old.out_channels, 3, padding=1)
    new.to(old.weight.device, old.weight.dtype)
    with torch.no_grad():
        new.weight.zero_()
        new.weight[:, : old.in_channels] = old.weight
        assert new.bias is not None and old.bias is not None
        new.bias.copy_(old.bias)
    unet.conv_in = new
    unet.register_to_config(in_channels=new.in_channels)
    return unet


def narrow_input(unet: UNet2DConditionModel, channels: int) -> UNet2DConditionModel:
    """Take all but the first input channels from `unet`, in place; it computes as if the others were zero."""
    old = unet.conv_in
    new = nn.Conv2d(channels, old.out_channels, 3, padding=1).to(old.weight.device, old.weight.dtype)
    new.load_state_dict({**old.state_dict(), "weight": old.weight[:, :channels]})
    unet.conv_in = new
    unet.register_to_config(in_channels=channels)
    return unet
