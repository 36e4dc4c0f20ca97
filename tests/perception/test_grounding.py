"""Things are found by stock classes at tiny sizes; and the three masks of what was found."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    BertConfig,
    BertTokenizer,
    CLIPSegConfig,
    CLIPSegForImageSegmentation,
    CLIPSegProcessor,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    GroundingDinoProcessor,
    SamConfig,
    SamModel,
    SamProcessor,
    SwinConfig,
)
from transformers.models.grounding_dino.image_processing_pil_grounding_dino import (
    GroundingDinoImageProcessorPil,
)
from transformers.models.sam.image_processing_pil_sam import SamImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from tests import tiny
from wordbrush.errors import ModelError
from wordbrush.perception.grounding import DetectAndSegment, ReadAndSegment, load_grounder, three_masks

CPU = torch.device("cpu")
PICTURES = [
    Image.radial_gradient("L").resize(size).convert(mode)
    for size, mode in (((40, 30), "RGB"), ((24, 36), "L"))
]
NAMES = ["dog", "red car"]


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny CLIPSeg."""
    torch.manual_seed(0)
    tower: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 37,
        "num_attention_heads": 4,
        "num_hidden_layers": 3,
    }
    vision = tower | {"image_size": 32, "patch_size": 8}
    config = CLIPSegConfig(
        text_config=tiny.text_config().to_dict(), vision_config=vision, projection_dim=16,
        extract_layers=[0, 1, 2], reduce_dim=16, decoder_num_attention_heads=2,
        decoder_intermediate_size=20, conditional_layer=0,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("clipseg")
    CLIPSegForImageSegmentation(config).save_pretrained(folder)
    CLIPSegProcessor(
        ViTImageProcessorPil(size={"height": 32, "width": 32}), tiny.tokenizer()
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A tiny Grounding DINO and a tiny SAM."""
    torch.manual_seed(0)
    detector, segmenter = tmp_path_factory.mktemp("dino"), tmp_path_factory.mktemp("sam")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", ".", "?", "dog", "red", "car"]
    (detector / "vocab.txt").write_text("\n".join(words))
    stages: dict[str, Any] = {"depths": [1, 1, 1, 1], "num_heads": [1, 1, 1, 1], "out_indices": [2, 3, 4]}
    swin = SwinConfig(image_size=32, embed_dim=8, window_size=2, **stages)
    bert = BertConfig(vocab_size=len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                      intermediate_size=16)  # fmt: skip
    dino = GroundingDinoConfig(
        backbone_config=swin, text_config=bert, num_queries=6, encoder_layers=1, encoder_ffn_dim=16,
        encoder_attention_heads=2, decoder_layers=2, decoder_ffn_dim=16, decoder_attention_heads=2,
        d_model=32, num_feature_levels=3, encoder_n_points=2, decoder_n_points=2, max_text_len=16,
    )  # fmt: skip
    GroundingDinoForObjectDetection(dino).save_pretrained(detector)
    tokenizer = BertTokenizer(vocab=str(detector / "vocab.txt"))
    sizes: dict[str, Any] = {"size": {"shortest_edge": 32, "longest_edge": 48}}
    GroundingDinoProcessor(GroundingDinoImageProcessorPil(**sizes), tokenizer).save_pretrained(detector)
    sam = SamConfig(
        vision_config={"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 64,
                       "patch_size": 16, "mlp_dim": 16, "output_channels": 16, "window_size": 2,
                       "global_attn_indexes": [0], "num_pos_feats": 8},
        prompt_encoder_config={"hidden_size": 16, "image_size": 64, "patch_size": 16,
                               "image_embedding_size": 4},
        mask_decoder_config={"hidden_size": 16, "mlp_dim": 16, "num_hidden_layers": 1,
                             "num_attention_heads": 2, "iou_head_hidden_dim": 16},
    )  # fmt: skip
    SamModel(sam).save_pretrained(segmenter)
    size: dict[str, Any] = {"size": {"longest_edge": 64}, "pad_size": {"height": 64, "width": 64}}
    SamProcessor(SamImageProcessorPil(**size)).save_pretrained(segmenter)
    return detector, segmenter


def test_a_reading_segmenter_gives_what_the_stock_model_says(reader: Path):
    grounder = load_grounder(str(reader), device=CPU)
    assert isinstance(grounder, ReadAndSegment)
    together = grounder.locate(PICTURES, NAMES)
    for picture, name, found in zip(PICTURES, NAMES, together, strict=True):
        given = grounder.processor(
            text=[name], images=[picture.convert("RGB")], padding=True, return_tensors="pt"
        )
        with torch.no_grad():
            likely = grounder.model(**given).logits.sigmoid()
        assert found.mask.shape == (picture.height, picture.width)
        assert found.score == pytest.approx(float(likely.max()), abs=0.02)  # enlarged between its pixels
        assert found.found == bool((likely > 0.5).any())


def test_a_detectors_boxes_become_masks(pair: tuple[Path, Path]):
    grounder = load_grounder("+".join(map(str, pair)), device=CPU)
    assert isinstance(grounder, DetectAndSegment)
    grounder.threshold = 0.0
    for picture, found in zip(PICTURES, grounder.locate(PICTURES, NAMES), strict=True):
        assert found.mask.shape == (picture.height, picture.width) and 0 < found.score <= 1
    grounder.threshold = 1.0
    nothing = grounder.locate(PICTURES, NAMES)
    assert [(found.found, found.score) for found in nothing] == [(False, 0.0)] * 2


def test_other_models_are_refused_in_one_line(tmp_path: Path, reader: Path, tiny_checkpoint: Path):
    for name in (str(tiny_checkpoint / "text_encoder"), f"{reader}+{tmp_path}", str(tmp_path / "none")):
        with pytest.raises(ModelError) as caught:
            load_grounder(name, device=CPU)
        assert "\n" not in str(caught.value)


def test_the_three_masks_hold_one_another():
    mask = np.zeros((40, 60), dtype=np.bool_)
    mask[10:20, 20:30] = True
    mask[15:18, 30:45] = True
    masks = three_masks(mask, dilation=0.05, blur=0.02)
    assert list(masks) == ["precise", "dilated", "box"]
    assert torch.equal(masks["precise"], torch.from_numpy(mask).float())
    assert masks["box"].sum() == 10 * 25 and (masks["box"] >= masks["precise"]).all()
    soft = masks["dilated"]
    assert soft.min() == 0 and soft.max() == pytest.approx(1) and ((soft > 0) & (soft < 1)).any()
    assert (soft[11:19, 21:29] > 0.9).all() and soft[15, 46] > 0.5  # grown by 2
    hard = three_masks(mask, dilation=0.05, blur=0)["dilated"]
    assert set(hard.unique().tolist()) == {0, 1} and (hard >= masks["precise"]).all()
