import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import CLIPConfig, CLIPModel, CLIPVisionConfig
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from tests import tiny
from tests.world import render, sprites  # noqa: F401
from wordbrush.errors import ModelError
from wordbrush.images import from_pil
from wordbrush.models import resolve
from wordbrush.perception.clip import Clip, directional_similarity, pair_similarities, similarity
from wordbrush.storybook.render import Renderer
from wordbrush.storybook.scenes import draw_scene, scene_rng
from wordbrush.storybook.wording import caption
from wordbrush.training.clip import preprocessor_config

CPU = torch.device("cpu")
MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]


@pytest.fixture(scope="module")
def storybook() -> Clip:
    return Clip.load("storybook", device=CPU)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny CLIP in the layout of OpenAI's checkpoints on the hub."""
    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=37, num_attention_heads=4, num_hidden_layers=2, image_size=24,
        patch_size=8, projection_dim=16,
    )  # fmt: skip
    towers: Any = {"text_config": tiny.text_config().to_dict(), "vision_config": vision.to_dict()}
    path = tmp_path_factory.mktemp("clip")
    CLIPModel(CLIPConfig(**towers, projection_dim=16)).save_pretrained(path)
    tiny.tokenizer().save_pretrained(path)
    config = {"resample": 3, "image_mean": MEAN, "image_std": STD, "size": {"shortest_edge": 24},
              "do_center_crop": True}  # fmt: skip
    (path / "preprocessor_config.json").write_text(json.dumps(config))
    return path


def embeds(count: int, seed: int) -> torch.Tensor:
    return F.normalize(torch.randn(count, 7, generator=torch.Generator().manual_seed(seed)), dim=-1)


def pictures(count: int, size: tuple[int, int] = (40, 30)) -> list[Image.Image]:
    noise = torch.rand(count, 4, 5, 3, generator=torch.Generator().manual_seed(0)).mul(255).byte().numpy()
    return [Image.fromarray(array).resize(size, Image.Resampling.BICUBIC) for array in noise]


def test_embeddings_are_those_of_the_stock_model(folder: Path):
    """Prepared as InstructPix2Pix's metrics/clip_similarity.py: stretched, bicubic, without antialiasing."""
    clip = Clip.load(folder, device=CPU)
    model: Any = CLIPModel.from_pretrained(folder).eval()
    unit = (torch.cat([from_pil(p) for p in pictures(3)]) + 1) / 2
    unit = F.interpolate(unit, size=24, mode="bicubic", align_corners=False)
    pixels = (unit - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    texts = ["a dog", "make it night", "x" * 99]
    tokens = tiny.tokenizer()(texts, padding=True, truncation=True, return_tensors="pt")
    with torch.no_grad():
        wanted = model(pixel_values=pixels, **tokens)
    torch.testing.assert_close(clip.embed_images(pictures(3)), wanted.image_embeds, atol=1e-5, rtol=0)
    torch.testing.assert_close(clip.embed_texts(texts), wanted.text_embeds, atol=1e-5, rtol=0)


def test_storybook_pictures_are_prepared_as_in_its_training(storybook: Clip):
    """By training/clip.py: the mean of areas of 0..255, then (x / 255 - 0.5) / 0.25."""
    for size in ((128, 128), (100, 70)):
        picture = pictures(1, size)[0]
        pixels = from_pil(picture)
        area = F.interpolate((pixels + 1) * 127.5, size=64, mode="area")
        torch.testing.assert_close(storybook.preprocess(pixels), (area / 255 - 0.5) / 0.25, atol=1e-5, rtol=0)


def test_the_stock_processor_reads_the_storybooks_config(storybook: Clip):
    processor = CLIPImageProcessorPil.from_pretrained(resolve("storybook"), subfolder="text_encoder")
    picture = pictures(1, (128, 128))[0]
    stock = processor(picture, return_tensors="pt").pixel_values
    rounding = 1 / 255 / 0.25  # Pillow rounds to whole bytes, after each of the two axes
    torch.testing.assert_close(storybook.preprocess(from_pil(picture)), stock, atol=1.01 * rounding, rtol=0)


def test_what_training_exports_is_what_is_embedded():
    embedded = resolve("storybook") / "text_encoder" / "preprocessor_config.json"
    assert json.loads(embedded.read_text()) == preprocessor_config(64)


def test_embeddings_are_unit_vectors_of_each_input_alone(storybook: Clip):
    many = pictures(40)
    together = storybook.embed_images(many)
    assert together.shape == (40, 192) and together.dtype == torch.float32
    torch.testing.assert_close(together.norm(dim=-1), torch.ones(40))
    for number in (0, 33, 39):
        torch.testing.assert_close(
            storybook.embed_images([many[number]])[0], together[number], atol=1e-5, rtol=0
        )
    pixels = torch.cat([from_pil(p) for p in many[:3]])
    torch.testing.assert_close(storybook.embed_pixels(pixels), together[:3], atol=1e-5, rtol=0)
    texts = [f"a dog and {number} cats" for number in range(40)]
    written = storybook.embed_texts(texts)
    torch.testing.assert_close(storybook.embed_texts(texts[39:])[0], written[39], atol=1e-5, rtol=0)
    assert storybook.embed_images([]).shape == storybook.embed_texts([]).shape == (0, 192)


def test_modes_and_sizes_of_pictures_do_not_matter(storybook: Clip):
    grey = Image.linear_gradient("L")
    same = [grey, grey.convert("RGB"), grey.convert("RGBA")]
    one, *others = storybook.embed_images(same)
    assert all(torch.equal(one, other) for other in others)
    assert storybook.embed_images([*pictures(1), *pictures(1, (7, 90))]).shape == (2, 192)


def test_renders_fit_their_captions(storybook: Clip, render: Renderer):  # noqa: F811
    scenes = [draw_scene(scene_rng("test", number), "test") for number in range(16)]
    images = storybook.embed_images([render(scene).image for scene in scenes])
    texts = storybook.embed_texts([caption(scene) for scene in scenes])
    right = (images @ texts.T).argmax(-1) == torch.arange(16)
    assert right.float().mean() > 0.7  # by chance 0.06
    assert similarity(images, texts).mean() > similarity(images, texts.roll(1, 0)).mean() + 0.2


def test_similarity_is_a_cosine():
    a, b = embeds(9, 0), embeds(9, 1)
    torch.testing.assert_close(similarity(a, b), (a * b).sum(-1))
    torch.testing.assert_close(similarity(a, a), torch.ones(9))
    torch.testing.assert_close(similarity(a, -a), -torch.ones(9))
    assert similarity(a.repeat(100, 1), a.repeat(100, 1)).max() <= 1


def test_direction_follows_the_change_alone():
    i0, i1, t0, t1 = (embeds(9, seed) for seed in range(4))
    found = directional_similarity(i0, i1, t0, t1)
    assert found.shape == (9,) and found.abs().max() <= 1
    torch.testing.assert_close(directional_similarity(t0, t1, t0, t1), torch.ones(9))
    torch.testing.assert_close(directional_similarity(i1, i0, t0, t1), -found)
    torch.testing.assert_close(directional_similarity(i1, i0, t1, t0), found)
    torch.testing.assert_close(
        directional_similarity(i0 + 5, i1 + 5, t0 - 3, t1 - 3), found, atol=1e-5, rtol=0
    )
    assert directional_similarity(i0, i0, t0, t1).abs().max() == 0
    assert directional_similarity(i0, i1, t0, t0).abs().max() == 0


def test_the_four_scores_of_a_pair():
    i0, i1, t0, t1 = (embeds(9, seed) for seed in range(4))
    found = pair_similarities(i0, i1, t0, t1)
    wanted = {
        "clip_sim_0": similarity(i0, t0),
        "clip_sim_1": similarity(i1, t1),
        "clip_sim_dir": directional_similarity(i0, i1, t0, t1),
        "clip_sim_image": similarity(i0, i1),
    }
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_what_is_no_whole_clip_is_one_line(folder: Path, tiny_checkpoint: Path, tmp_path: Path):
    def changed(name: str, file: str, text: str | None) -> Path:
        shutil.copytree(folder, tmp_path / name)
        (tmp_path / name / file).unlink()
        if text is not None:
            (tmp_path / name / file).write_text(text)
        return tmp_path / name

    (tmp_path / "empty").mkdir()
    config = "preprocessor_config.json"
    for source, hint in (
        (tiny_checkpoint, "CLIP"),  # its text encoder has no eyes
        (tmp_path / "empty", "empty"),
        (tmp_path / "none", "none"),
        ("none", "none"),
        (changed("a", config, None), "cannot load"),
        (changed("b", config, "{"), "cannot load"),
        (changed("c", config, '{"resample": 99, "image_mean": [0], "image_std": [1]}'), config),
        (changed("d", config, '{"resample": 3}'), config),
        (changed("e", "model.safetensors", "junk"), "cannot load"),
        (changed("f", "tokenizer.json", None), "f"),
    ):
        with pytest.raises(ModelError, match=hint) as caught:
            Clip.load(source, device=CPU)
        assert "\n" not in str(caught.value)
