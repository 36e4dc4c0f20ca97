import pytest
import torch

from tests import tiny
from wordbrush.training.text_to_image import build_unet
from wordbrush.training.whitening import whiten_text


def test_what_comes_out_is_white():
    unet = build_unet([32], latent_channels=4, text_width=8)
    rotation = torch.linalg.qr(torch.randn(8, 8)).Q
    states = (torch.randn(5000, 8) * torch.linspace(0.5, 3, 8) + 7) @ rotation
    whiten_text(unet, states)
    with torch.no_grad():
        white = unet.encoder_hid_proj(states)
    assert torch.allclose(white.mean(0), torch.zeros(8), atol=1e-3)
    assert torch.allclose(white.T.cov(), torch.eye(8), atol=0.05)


def test_directions_without_variance_stay_quiet():
    unet = build_unet([32], latent_channels=4, text_width=8)
    states = torch.randn(5000, 8) * torch.tensor([1.0] * 7 + [0.0])
    whiten_text(unet, states)
    with torch.no_grad():
        assert unet.encoder_hid_proj(states + torch.eye(8)[7] * 1e-3).std(0).max() < 1.01


def test_a_unet_without_a_projection_is_refused():
    with pytest.raises(ValueError, match="no square projection"):
        whiten_text(tiny.unet(), torch.randn(10, 32))
