"""Text2LIVE's losses and views: their values against the stock CLIP, and what must hold of each."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.perception.test_clip import folder  # noqa: F401
from wordbrush.perception import views
from wordbrush.perception.clip import Clip
from wordbrush.perception.clip_losses import (
    TEMPLATES,
    ClipEyes,
    directional_distance,
    opacity_penalty,
    spherical_distance,
    structure_distance,
)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def eyes(folder: Path) -> ClipEyes:  # noqa: F811
    return ClipEyes(Clip.load(folder, device=torch.device("cpu")))


@pytest.fixture
def pixels() -> torch.Tensor:
    return F.interpolate(torch.rand(1, 3, 5, 6, generator=rng()), (40, 48), mode="bilinear")


def test_a_clear_layer_costs_nothing(eyes: ClipEyes, pixels: torch.Tensor):
    assert float(opacity_penalty(torch.zeros(1, 1, 4, 4))) == 0
    assert float(structure_distance(eyes, pixels, pixels.clone())) == 0
    wanted = 0.01 + 0.01 * (2 / (1 + math.exp(-5)) - 1)
    assert float(opacity_penalty(torch.ones(1, 1, 4, 4))) == pytest.approx(wanted)


def test_structure_is_seen_before_the_last_block(eyes: ClipEyes, pixels: torch.Tensor):
    """The tokens that go into the last block, CLS among them; every cosine with itself is 1."""
    seen: list[Any] = []
    layer = eyes.clip.model.vision_model.encoder.layers[-1]
    hook = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    found = eyes.self_similarity(pixels)
    hook.remove()
    tokens = F.normalize(seen[0], dim=-1)
    assert found.shape[1] == tokens.shape[1] == 3 * 4 + 1
    torch.testing.assert_close(found, tokens @ tokens.mT)
    torch.testing.assert_close(found[0].diagonal(), torch.ones(13))


def test_spherical_distance_is_half_the_squared_angle():
    x, y = torch.tensor([[3.0, 0.0], [0.0, 0.1]]), torch.tensor([[0.0, 5.0], [-1.0, 0.0]])
    angles = torch.tensor([math.pi / 2, math.pi, 0, math.pi / 2])
    torch.testing.assert_close(spherical_distance(x, y), (angles**2 / 2).mean())


def test_directional_distance_knows_along_from_against():
    before, direction = torch.randn(3, 5, generator=rng()), torch.randn(1, 5, generator=rng(1))
    for factor, wanted in ((2.0, 0.0), (-0.3, 2.0)):
        found = directional_distance(before, before + factor * direction, direction)
        assert float(found) == pytest.approx(wanted, abs=1e-5)


def test_texts_are_those_of_the_stock_clip(eyes: ClipEyes):
    found = F.normalize(eyes.texts("a dog", TEMPLATES), dim=-1)
    wanted = eyes.clip.embed_texts([template.format("a dog") for template in TEMPLATES])
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)
    assert len(TEMPLATES) == 14


def test_relevance_follows_the_attention_that_matters(eyes: ClipEyes, pixels: torch.Tensor):
    """Against the definition, with the last block's attention perturbed by hand."""
    text = eyes.texts("a dog")
    found = eyes.relevance(pixels, text)
    assert found.shape == (1, 1, 24, 24) and float(found.min()) == 0 and float(found.max()) == 1
    model = eyes.clip.model
    mean, std = (
        torch.tensor(v)[:, None, None] for v in (eyes.clip.preprocess.mean, eyes.clip.preprocess.std)
    )
    prepared = (F.interpolate(pixels, (24, 24), mode="bilinear", antialias=True) - mean) / std
    attention = model.vision_model(prepared, output_attentions=True).attentions[-1]
    block = model.vision_model.encoder.layers[-1]
    changes = torch.zeros_like(attention[0, :, 0])
    step = 1e-2

    def similarity(change: torch.Tensor) -> float:
        """With `change` (heads, T) added to the CLS token's attention in the last block."""

        def add(module: Any, inputs: Any, kwargs: Any, output: Any) -> Any:
            x = inputs[0] if inputs else kwargs["hidden_states"]
            value = module.v_proj(x).unflatten(-1, (module.num_heads, -1))[0]
            extra = torch.einsum("ht,thd->hd", change, value).flatten()
            out = output[0].clone()
            out[0, 0] += module.out_proj.weight @ extra
            return (out, *output[1:])

        hook = block.self_attn.register_forward_hook(add, with_kwargs=True)
        with torch.no_grad():
            picture = model.get_image_features(prepared).pooler_output
        hook.remove()
        return float(F.cosine_similarity(picture.double(), text.double()))

    gradient = torch.zeros_like(changes)
    for head in range(changes.shape[0]):
        for token in range(changes.shape[1]):
            up, down = changes.clone(), changes.clone()
            up[head, token], down[head, token] = step, -step
            gradient[head, token] = (similarity(up) - similarity(down)) / (2 * step)
    grid = (gradient * attention[0, :, 0]).clamp(min=0).mean(0)[1:].view(1, 1, 3, 3)
    grid = F.interpolate(grid, 24, mode="bilinear")
    wanted = (grid - grid.min()) / (grid.max() - grid.min())
    torch.testing.assert_close(found, wanted, atol=0.03, rtol=0)


def test_gradients_reach_the_pixels(eyes: ClipEyes, pixels: torch.Tensor):
    pixels.requires_grad_()
    seen = eyes.embed(eyes.views(pixels, 4, rng()))
    (gradient,) = torch.autograd.grad(spherical_distance(seen, eyes.texts("a dog")), pixels)
    assert gradient.abs().sum() > 0 and gradient.isfinite().all()


def test_views_are_whole_patches_in_the_pictures_shape(eyes: ClipEyes):
    for size, wanted in (((40, 40), (24, 24)), ((40, 52), (24, 32)), ((40, 400), (8, 32))):
        assert eyes.views(torch.rand(1, 3, *size), 2, rng()).shape[-2:] == wanted


def test_the_first_view_is_of_the_whole(monkeypatch: pytest.MonkeyPatch, pixels: torch.Tensor):
    for name in ("_AFFINE", "_PERSPECTIVE", "_JITTER", "_GREY"):
        monkeypatch.setattr(views, name, 0.0)
    found = views.random_views(pixels, 40, (40, 48), rng())
    assert any(torch.allclose(found[0], whole[0], atol=1e-5) for whole in (pixels, pixels.flip(-1)))
    assert not torch.allclose(found[1], found[0], atol=0.01)
    assert found.min() >= pixels.min() - 1e-6 and found.max() <= pixels.max() + 1e-6  # crops show no white


def test_views_are_drawn_from_the_generator_alone(pixels: torch.Tensor):
    one, two = (views.random_views(pixels, 6, (24, 24), rng(5)) for _ in range(2))
    assert torch.equal(one, two)
    assert not torch.equal(one, views.random_views(pixels, 6, (24, 24), rng(6)))
    assert one.min() >= 0 and one.max() <= 1


def test_a_turned_picture_keeps_its_shapes():
    """A disc stays a disc, of the same area, in a picture that is wider than high."""
    y, x = torch.meshgrid(torch.arange(64) - 31.5, torch.arange(96) - 47.5, indexing="ij")
    disc = ((x**2 + y**2) < 15**2).float()
    maps = views._affine(50, (64, 96), rng())
    grid = views._project(maps, (64, 96))
    turned = F.grid_sample(disc.expand(50, 1, -1, -1), grid, align_corners=False)[:, 0]
    torch.testing.assert_close(turned.sum((1, 2)), disc.sum().expand(50), rtol=0.01, atol=0)
    second = (turned * x**2).sum((1, 2)) / turned.sum((1, 2)) - (
        (turned * x).sum((1, 2)) / turned.sum((1, 2))
    ) ** 2
    torch.testing.assert_close(second, torch.full((50,), 15.0**2 / 4), rtol=0.02, atol=0)


def test_homographies_take_corners_to_corners():
    source, target = torch.rand(7, 4, 2, generator=rng()), torch.rand(7, 4, 2, generator=rng(1))
    corners = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
    source, target = corners + 0.2 * source, corners + 0.2 * target
    mapped = torch.cat([source, torch.ones(7, 4, 1)], -1) @ views._homographies(source, target).mT
    torch.testing.assert_close(mapped[..., :2] / mapped[..., 2:], target, atol=1e-4, rtol=0)


def test_colours_change_but_grey_stays_grey():
    grey = torch.rand(20, 1, 4, 4, generator=rng()).mul(0.6).add(0.2).expand(-1, 3, -1, -1)
    changed = views.random_colours(grey, rng(), jitter=1.0)
    torch.testing.assert_close(changed, changed.mean(1, keepdim=True).expand_as(changed), atol=2e-3, rtol=0)
    assert (changed - grey).abs().amax((1, 2, 3)).min() > 1e-3
    colourful = torch.rand(20, 3, 4, 4, generator=rng())
    assert torch.allclose(views.random_colours(colourful, rng(), jitter=0.0), colourful, atol=1e-5)
    without = views.random_colours(colourful, rng(), jitter=0.0, grey=1.0)
    assert (without.amax(1) - without.amin(1)).max() < 1e-6


def test_a_crop_is_most_of_the_picture_and_all_channels_go_along():
    stack = torch.rand(1, 1, 60, 80).expand(-1, 4, -1, -1)
    for seed in range(30):
        crop = views.random_crop(stack, rng(seed))
        assert 0.66 * 60 <= crop.shape[-2] <= 72 and 0.66 * 80 <= crop.shape[-1] <= 96
        assert torch.equal(crop[:, 0], crop[:, 3])
