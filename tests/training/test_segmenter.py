import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import default_collate

from wordbrush.errors import ModelError
from wordbrush.perception.grounding import load_grounder
from wordbrush.storybook.render import Renderer
from wordbrush.storybook.scenes import draw_scene, scene_rng
from wordbrush.storybook.sprites import SpriteLibrary
from wordbrush.storybook.wording import noun
from wordbrush.training.clip import Config as ClipConfig
from wordbrush.training.clip import build_clip, preprocessor_config, train_tokenizer
from wordbrush.training.segmenter import Config, NamedThings, SegmenterRecipe, intersection_over_union, main

TEXTS = {"source_caption": "a dog on a beach", "target_caption": "a red car", "instruction": "add a cat"}


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny CLIP as `wordbrush train clip` leaves it."""
    folder = tmp_path_factory.mktemp("clip")
    tokenizer = train_tokenizer([TEXTS])
    config = ClipConfig(
        output=folder, data=[], image_size=32, text_width=32, text_layers=1, vision_width=32, vision_layers=2
    )
    torch.manual_seed(0)
    build_clip(config, len(tokenizer)).save_pretrained(folder / "text_encoder")
    look = folder / "text_encoder" / "preprocessor_config.json"
    look.write_text(json.dumps(preprocessor_config(32)))
    tokenizer.save_pretrained(folder / "tokenizer")
    return folder


@pytest.fixture(scope="module")
def samples(clip: Path, render: Renderer) -> NamedThings:
    recipe = SegmenterRecipe(Config(output=clip, clip=clip, width=16))
    return NamedThings(render, recipe.tokenizer, recipe.side)


def test_a_mask_is_that_of_all_items_that_the_name_names(samples: NamedThings, render: Renderer):
    empty = 0
    for index in range(40):
        scene, found = draw_scene(scene_rng("train", index)), samples[index]["mask"] > 0.5
        masks = render(scene).masks
        by_name: dict[str, list[int]] = {}
        for number, item in enumerate(scene.items):
            for name in {f"any {item.thing}", noun(item, sized=False)}:
                by_name.setdefault(name, []).append(number)
        unions = [masks[numbers].any(0) for numbers in by_name.values()]
        sizes = [
            Image.fromarray(union).convert("L").resize((32, 32), Image.Resampling.BOX) for union in unions
        ]
        expected = [torch.from_numpy(np.array(size)) > 127 for size in sizes]
        assert not found.any() or any(torch.equal(found, one) for one in expected)
        empty += not found.any()
    assert 0 < empty < 20


def test_clip_stays_frozen_and_the_decoder_learns(clip: Path, samples: NamedThings, tmp_path: Path):
    recipe = SegmenterRecipe(Config(output=tmp_path, clip=clip, width=16))
    batch = default_collate([samples[index] for index in range(8)])
    recipe.losses(recipe.model, batch)["loss"].backward()
    learned = {name for name, p in recipe.model.named_parameters() if p.grad is not None and p.grad.any()}
    assert learned and all(name.startswith("decoder.") for name in learned)


def test_what_it_writes_is_a_grounder(
    clip: Path, sprites: SpriteLibrary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(SpriteLibrary, "load", lambda: sprites)
    main(Config(output=tmp_path, clip=clip, width=16, steps=2, batch_size=2))
    grounder: Any = load_grounder(str(tmp_path / "model"), device=torch.device("cpu"))
    picture = Image.fromarray(np.full((40, 48, 3), 128, np.uint8))
    (found,) = grounder.locate([picture], ["dog"])
    assert found.mask.shape == (40, 48) and 0 <= found.score <= 1


def test_a_missing_clip_is_one_line(tmp_path: Path):
    with pytest.raises(ModelError, match="cannot load the CLIP") as caught:
        SegmenterRecipe(Config(output=tmp_path, clip=tmp_path / "none"))
    assert "\n" not in str(caught.value)


def test_intersection_over_union():
    true = torch.zeros(3, 4, 4, dtype=torch.bool)
    true[0, :2], true[1, 0, 0] = True, True
    found = true.clone()
    found[0, 2:], found[2] = True, True
    assert intersection_over_union(found, true).item() == pytest.approx((0.5 + 1) / 2)
