"""How people stand: their joints, by a detector and ViTPose (2204.12484), and skeletons drawn of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image, ImageDraw
from torch import Tensor
from transformers import AutoImageProcessor, AutoModelForObjectDetection, VitPoseForPoseEstimation

from wordbrush.errors import ModelError
from wordbrush.models import loading

LIMBS = (
    (5, 7), (7, 9), (6, 8), (8, 10), (5, 6), (5, 11), (6, 12), (11, 12), (11, 13), (13, 15), (12, 14),
    (14, 16), (0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 6),
)  # fmt: skip
"""Pairs of COCO's 17 joints that a bone joins."""
JOINTS = 17
_PERSON = "person"
_PAIR = "+"
_BONE = 1 / 64
"""Width of a bone in short sides of the picture."""


@dataclass(frozen=True, eq=False)
class Person:
    """Somebody's joints, in COCO's order.

    Attributes:
        points: (17, 2), x and y in pixels.
        scores: (17,), in [0, 1].
    """

    points: Tensor
    scores: Tensor


class PoseEstimator:
    """Finds people, and then the joints of each.

    Args:
        detector: An `AutoModelForObjectDetection` with a class "person".
        network: A `VitPoseForPoseEstimation`.
        detector_processor: The detector's.
        processor: The network's.
        threshold: Least score of a person.
    """

    def __init__(
        self, detector: Any, network: Any, detector_processor: Any, processor: Any, threshold: float = 0.5
    ) -> None:
        self.detector, self.network = detector, network
        self.detector_processor, self.processor = detector_processor, processor
        self.threshold = threshold

    @classmethod
    def load(cls, name: str, *, device: torch.device) -> PoseEstimator:
        """Load both.

        Args:
            name: Folders or hub ids: "PekingU/rtdetr_v2_r18vd+usyd-community/vitpose-base-simple".
            device: Where the networks go.

        Raises:
            ModelError: There are no such models, or they find no people or other joints.
        """
        parts = name.split(_PAIR)
        if len(parts) != 2:
            raise ModelError(f"{name} finds no poses: give DETECTOR{_PAIR}POSE")
        with loading(f"{name} to find poses"):
            detector: Any = AutoModelForObjectDetection.from_pretrained(parts[0])
            network: Any = VitPoseForPoseEstimation.from_pretrained(parts[1])
            processors = [AutoImageProcessor.from_pretrained(part) for part in parts]
        if _PERSON not in detector.config.id2label.values():
            raise ModelError(f"{parts[0]} finds no people: it has no class {_PERSON!r}")
        if network.config.num_labels != JOINTS:
            raise ModelError(f"{parts[1]} finds {network.config.num_labels} joints, not COCO's {JOINTS}")
        return cls(*(model.to(device).eval() for model in (detector, network)), *processors)

    @torch.inference_mode()
    def __call__(self, picture: Image.Image) -> list[Person]:
        """The people of a picture, the surest first."""
        picture = picture.convert("RGB")
        boxes = self._people(picture)
        if not len(boxes):
            return []
        boxes[:, 2:] -= boxes[:, :2]  # to left, top, width and height
        listed = [boxes.tolist()]
        given = self.processor(picture, boxes=listed, return_tensors="pt").to(self.network.device)
        found = self.processor.post_process_pose_estimation(self.network(**given), boxes=listed)[0]
        return [Person(person["keypoints"].float(), person["scores"].float()) for person in found]

    def _people(self, picture: Image.Image) -> Tensor:
        """(N, 4) left, top, right, bottom in pixels."""
        given = self.detector_processor(images=picture, return_tensors="pt").to(self.detector.device)
        found = self.detector_processor.post_process_object_detection(
            self.detector(**given), threshold=self.threshold, target_sizes=[(picture.height, picture.width)]
        )[0]
        person = {name: number for number, name in self.detector.config.id2label.items()}[_PERSON]
        theirs = found["labels"] == person
        order = found["scores"][theirs].argsort(descending=True)
        return found["boxes"][theirs][order].float().cpu()


def draw_skeletons(people: Sequence[Person], size: tuple[int, int], threshold: float = 0.3) -> Image.Image:
    """Skeletons on black, a colour for each bone, as models that paint from poses know them.

    Args:
        people: Whoever is to be seen.
        size: Width and height.
        threshold: Least score of a joint that is drawn.
    """
    canvas = Image.new("RGB", size, "black")
    draw = ImageDraw.Draw(canvas)
    width = max(1, round(_BONE * min(size)))
    for person in people:
        seen = (person.scores >= threshold).tolist()
        at = [(float(x), float(y)) for x, y in person.points]
        for number, (one, other) in enumerate(LIMBS):
            if seen[one] and seen[other]:
                hue = round(360 * number / len(LIMBS))
                draw.line((at[one], at[other]), fill=f"hsl({hue}, 100%, 50%)", width=width)
        for (x, y), shown in zip(at, seen, strict=True):
            if shown:
                draw.ellipse((x - width, y - width, x + width, y + width), fill="white")
    return canvas
