"""Where is the thing that words name? Found by a detector and a segmenter, or by a segmenter that reads.

Emu Edit's data engine finds objects by Grounding DINO (2303.05499) and SAM (2304.02643); CLIPSeg (2112.10003)
does both at once, and is small.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoProcessor, CLIPSegForImageSegmentation
from transformers import AutoModelForZeroShotObjectDetection as Detector

from wordbrush import images
from wordbrush.errors import ModelError
from wordbrush.models import loading, resolve

Mask = np.ndarray[Any, np.dtype[np.bool_]]

_PAIR = "+"
_BATCH = 16


@dataclass(frozen=True, eq=False)
class Located:
    """Where a thing is.

    Attributes:
        mask: (H, W), true on the thing; nowhere where it was not found.
        score: In [0, 1], how sure it is that the thing is there.
    """

    mask: Mask
    score: float

    @property
    def found(self) -> bool:
        """Whether the mask has a pixel."""
        return bool(self.mask.any())


class Grounder(Protocol):
    """Finds things in pictures by their names."""

    def locate(self, pictures: Sequence[Image.Image], names: Sequence[str]) -> list[Located]:
        """The thing of each name in the picture at its place."""
        ...


def load_grounder(name: str, *, device: torch.device) -> Grounder:
    """Load what finds things.

    Args:
        name: Folder or hub id of a CLIPSeg, such as "CIDAS/clipseg-rd64-refined"; or a detector and a
            segmenter, "IDEA-Research/grounding-dino-base+facebook/sam-vit-base".
        device: Where the networks go.

    Raises:
        ModelError: There is no such model, or it is of another kind.
    """
    parts = name.split(_PAIR)
    with loading(f"{name} to find things"):
        if len(parts) == 2:
            networks = Detector.from_pretrained(parts[0]), AutoModel.from_pretrained(parts[1])
            processors = [AutoProcessor.from_pretrained(part) for part in parts]
            return DetectAndSegment(*(network.to(device).eval() for network in networks), *processors)
        path = resolve(name)
        if AutoConfig.from_pretrained(path).model_type != "clipseg":
            raise ModelError(f"{name} finds nothing by its name: give a CLIPSeg, or DETECTOR{_PAIR}SEGMENTER")
        model: Any = CLIPSegForImageSegmentation.from_pretrained(path)
        return ReadAndSegment(model.to(device).eval(), AutoProcessor.from_pretrained(path))


class DetectAndSegment:
    """Grounding DINO's boxes, and SAM's masks of what is in them.

    Args:
        detector: A `GroundingDinoForObjectDetection`.
        segmenter: A `SamModel`.
        detector_processor: The detector's.
        segmenter_processor: The segmenter's.
        threshold: Least score of a box; the model's own default.
    """

    def __init__(
        self, detector: Any, segmenter: Any, detector_processor: Any, segmenter_processor: Any,
        threshold: float = 0.25,
    ) -> None:  # fmt: skip
        self.detector, self.segmenter = detector, segmenter
        self.detector_processor, self.segmenter_processor = detector_processor, segmenter_processor
        self.threshold = threshold

    @torch.inference_mode()
    def locate(self, pictures: Sequence[Image.Image], names: Sequence[str]) -> list[Located]:
        """One picture at a time; the mask is that of all boxes together."""
        return [self._locate(picture, name) for picture, name in zip(pictures, names, strict=True)]

    def _locate(self, picture: Image.Image, name: str) -> Located:
        picture = picture.convert("RGB")
        boxes, scores = self._boxes(picture, name)
        if not len(boxes):
            return Located(np.zeros((picture.height, picture.width), dtype=np.bool_), 0.0)
        given = self.segmenter_processor(
            images=picture, input_boxes=[boxes.tolist()], return_tensors="pt"
        ).to(self.segmenter.device)
        outputs = self.segmenter(**given, multimask_output=False)
        masks = self.segmenter_processor.image_processor.post_process_masks(
            outputs.pred_masks.cpu(), given["original_sizes"].cpu(), given["reshaped_input_sizes"].cpu()
        )[0]
        return Located(masks.flatten(0, 1).any(0).numpy(), float(scores.max()))

    def _boxes(self, picture: Image.Image, name: str) -> tuple[Tensor, Tensor]:
        """(N, 4) left, top, right, bottom in pixels, and (N,) scores."""
        phrase = f"{name.lower().strip().rstrip('.')}."  # the form in which the detector was trained
        given = self.detector_processor(images=picture, text=phrase, return_tensors="pt").to(
            self.detector.device
        )
        found = self.detector_processor.post_process_grounded_object_detection(
            self.detector(**given), given["input_ids"], threshold=self.threshold,
            text_threshold=self.threshold, target_sizes=[(picture.height, picture.width)],
        )[0]  # fmt: skip
        return found["boxes"].cpu(), found["scores"].cpu()


class ReadAndSegment:
    """CLIPSeg: a mask for a text.

    Args:
        model: A `CLIPSegForImageSegmentation`.
        processor: Its own.
        threshold: Least probability of a pixel of the thing.
    """

    def __init__(self, model: Any, processor: Any, threshold: float = 0.5) -> None:
        self.model, self.processor, self.threshold = model, processor, threshold

    @torch.inference_mode()
    def locate(self, pictures: Sequence[Image.Image], names: Sequence[str]) -> list[Located]:
        """The score is that of the surest pixel."""
        found: list[Located] = []
        for start in range(0, len(pictures), _BATCH):
            some = [picture.convert("RGB") for picture in pictures[start : start + _BATCH]]
            given = self.processor(
                text=list(names[start : start + _BATCH]), images=some, padding=True, truncation=True,
                return_tensors="pt",
            ).to(self.model.device)  # fmt: skip
            logits = self.model(**given).logits.float().cpu().view(len(some), 1, *self._side())
            found += [self._located(row, picture) for row, picture in zip(logits, some, strict=True)]
        return found

    def _side(self) -> tuple[int, int]:
        side = int(self.model.config.vision_config.image_size)
        return side, side

    def _located(self, logits: Tensor, picture: Image.Image) -> Located:
        size = (picture.height, picture.width)
        likely = F.interpolate(logits[None], size, mode="bilinear", align_corners=False)[0, 0].sigmoid()
        return Located((likely > self.threshold).numpy(), float(likely.max()))


def three_masks(mask: Mask, *, dilation: float, blur: float) -> dict[str, Tensor]:
    """The masks that Emu Edit tries for one thing (2311.10089), as (H, W) in [0, 1].

    Args:
        mask: Of the thing; not empty.
        dilation: By how much the second grows, in short sides of the picture; the paper states no number.
        blur: Standard deviation of its edge, likewise.

    Returns:
        "precise": as it is; "dilated": grown, with a soft edge; "box": its bounding box.
    """
    precise = torch.from_numpy(mask).float()
    short = min(mask.shape)
    radius = max(1, round(dilation * short))
    grown = F.max_pool2d(precise[None, None], 2 * radius + 1, stride=1, padding=radius)
    box = torch.zeros_like(precise)
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    box[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = 1.0
    dilated = images.blur(grown, blur * short)[0, 0] if blur else grown[0, 0]
    return {"precise": precise, "dilated": dilated.clamp(0, 1), "box": box}
