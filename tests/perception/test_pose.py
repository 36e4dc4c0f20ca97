"""Poses by stock classes at tiny sizes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    VitPoseBackboneConfig,
    VitPoseConfig,
    VitPoseForPoseEstimation,
    YolosConfig,
    YolosForObjectDetection,
)
from transformers.models.vitpose.image_processing_pil_vitpose import VitPoseImageProcessorPil
from transformers.models.yolos.image_processing_pil_yolos import YolosImageProcessorPil

from wordbrush.errors import ModelError
from wordbrush.perception.pose import JOINTS, LIMBS, Person, PoseEstimator, draw_skeletons

CPU = torch.device("cpu")
PICTURE = Image.radial_gradient("L").resize((96, 64))


def save_detector(folder: Path, names: list[str]) -> Path:
    torch.manual_seed(0)
    config = YolosConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        image_size=[32, 48], patch_size=16, num_detection_tokens=5, id2label=dict(enumerate(names)),
        label2id={name: number for number, name in enumerate(names)},
    )  # fmt: skip
    YolosForObjectDetection(config).save_pretrained(folder)
    YolosImageProcessorPil(size={"height": 32, "width": 48}).save_pretrained(folder)
    return folder


def save_network(folder: Path, joints: int = JOINTS) -> Path:
    torch.manual_seed(0)
    backbone = VitPoseBackboneConfig(
        image_size=[32, 32], patch_size=[8, 8], hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        out_indices=[1],
    )  # fmt: skip
    config = VitPoseConfig(backbone_config=backbone, num_labels=joints)
    VitPoseForPoseEstimation(config).save_pretrained(folder)
    VitPoseImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("pose")
    return f"{save_detector(folder / 'people', ['person', 'dog'])}+{save_network(folder / 'joints')}"


def test_whoever_is_found_has_joints_in_the_picture(models: str):
    find = PoseEstimator.load(models, device=CPU)
    find.threshold = 0.0
    people = find(PICTURE)
    assert people  # random weights see somebody somewhere
    for person in people:
        assert person.points.shape == (JOINTS, 2) and person.scores.shape == (JOINTS,)
        assert torch.isfinite(person.points).all()
    find.threshold = 1.0
    assert find(PICTURE) == []


def test_another_class_is_nobody(models: str):
    find = PoseEstimator.load(models, device=CPU)
    find.threshold = 0.0
    find.detector.config.id2label = {0: "dog", 1: "person"}
    others = find(PICTURE)
    find.detector.config.id2label = {0: "person", 1: "dog"}
    assert len(others) + len(find(PICTURE)) == find.detector.config.num_detection_tokens


def test_every_bone_between_seen_joints_is_drawn_in_its_colour():
    points = torch.from_numpy(np.random.default_rng(0).uniform(20, 236, (JOINTS, 2)))
    whole = np.asarray(draw_skeletons([Person(points, torch.ones(JOINTS))], (256, 256)))
    colours = {tuple(pixel) for pixel in whole.reshape(-1, 3)}
    assert len(colours) == len(LIMBS) + 2  # and the joints, and the ground
    scores = torch.ones(JOINTS)
    scores[9] = 0.1
    hidden = np.asarray(draw_skeletons([Person(points, scores)], (256, 256)))
    assert len({tuple(pixel) for pixel in hidden.reshape(-1, 3)}) == len(LIMBS) + 1
    assert not np.asarray(draw_skeletons([], (8, 4))).any()


def test_models_that_cannot_do_it_are_named(tmp_path: Path, models: str):
    with pytest.raises(ModelError, match=r"DETECTOR\+POSE"):
        PoseEstimator.load(str(tmp_path), device=CPU)
    dogs = save_detector(tmp_path / "dogs", ["cat", "dog"])
    with pytest.raises(ModelError, match="no class 'person'"):
        PoseEstimator.load(f"{dogs}+{models.split('+')[1]}", device=CPU)
    hand = save_network(tmp_path / "hand", 21)
    with pytest.raises(ModelError, match="finds 21 joints"):
        PoseEstimator.load(f"{models.split('+')[0]}+{hand}", device=CPU)
    with pytest.raises(ModelError):
        PoseEstimator.load(f"{tmp_path / 'none'}+{hand}", device=CPU)
