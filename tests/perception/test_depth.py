"""Depth by a stock class at a tiny size."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config
from transformers.models.dpt.image_processing_pil_dpt import DPTImageProcessorPil

from wordbrush.errors import ModelError
from wordbrush.perception.depth import DepthEstimator, depth_distances

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    backbone = Dinov2Config(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14,
        out_features=["stage1", "stage2"], reshape_hidden_states=False, apply_layernorm=True,
    )  # fmt: skip
    config = DepthAnythingConfig(
        backbone_config=backbone, patch_size=14, reassemble_hidden_size=16, reassemble_factors=[2, 1],
        neck_hidden_sizes=[8, 8], fusion_hidden_size=8, head_hidden_size=8,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("depth")
    DepthAnythingForDepthEstimation(config).save_pretrained(folder)
    DPTImageProcessorPil(size={"height": 28, "width": 28}).save_pretrained(folder)
    return folder


def test_maps_are_of_the_pictures_size_and_fill_the_range(model: Path):
    pictures = [Image.radial_gradient("L").resize((40, 30)), Image.linear_gradient("L").resize((40, 30))]
    estimate = DepthEstimator.load(str(model), device=CPU)
    maps = estimate(pictures)
    assert maps.shape == (2, 30, 40)
    assert torch.equal(maps.amin((1, 2)), torch.zeros(2)) and torch.equal(maps.amax((1, 2)), torch.ones(2))
    torch.testing.assert_close(maps[1:], estimate(pictures[1:]))


def test_distances():
    one = torch.from_numpy(np.random.default_rng(0).random((3, 5, 6), dtype=np.float32))
    assert torch.equal(depth_distances(one, one), torch.zeros(3))
    torch.testing.assert_close(depth_distances(one, one + 0.25), torch.full((3,), 0.25))


def test_another_model_is_one_line(tmp_path: Path):
    with pytest.raises(ModelError, match="cannot load .* to tell depth") as caught:
        DepthEstimator.load(str(tmp_path), device=CPU)
    assert "\n" not in str(caught.value)
