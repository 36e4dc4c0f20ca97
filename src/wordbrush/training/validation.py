"""Held-out edits, looked at and measured while a model is trained."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from torch import nn

from wordbrush.data.blocks import Block, Edit
from wordbrush.diffusion.model import LatentDiffusion
from wordbrush.editors.instruct_pix2pix import InstructPix2Pix
from wordbrush.editors.settings import InstructPix2PixSettings, make_settings
from wordbrush.errors import MissingExtraError
from wordbrush.provenance import atomic_file
from wordbrush.training.crops import Crop
from wordbrush.types import EditRequest

try:
    from torch.utils.tensorboard.writer import SummaryWriter
except ModuleNotFoundError as error:
    raise MissingExtraError("--validation", "train") from error

GRID = "validation.png"
LOG = "validation.jsonl"
_Picture = Image.Image


class Validation:
    """Edits some held-out pictures with the model as it is, and compares with their targets.

    Every look adds a line to OUTPUT/validation.jsonl, and a grid (before, edited, target) and the numbers to
    OUTPUT/tensorboard; the last grid is OUTPUT/validation.png.

    Args:
        blocks: The held-out edits; the first are used.
        count: How many.
        settings: Of the editor, with the size of the pictures' sides in pixels.
        output: Of the run.
    """

    def __init__(
        self, blocks: Sequence[Block], count: int, settings: Mapping[str, Any], output: Path
    ) -> None:
        self.settings = make_settings(InstructPix2PixSettings, {"detail": False} | dict(settings))
        shape = settings["size"], settings["size"]
        self.edits = _first(blocks, count)
        pairs = [Crop()(*edit.pictures(), shape).permute(0, 2, 3, 1).numpy() for edit in self.edits]
        self.pairs = [(Image.fromarray(before), Image.fromarray(after)) for before, after in pairs]
        self.output = output

    def look(self, model: LatentDiffusion, unet: nn.Module, step: int) -> dict[str, Any]:
        """Measures.

        Args:
            model: What the U-Net belongs to.
            unet: As it is now.
            step: How many steps it was trained.

        Returns:
            step; and the mean absolute difference of pixels, in [0, 1]: of the edited picture from the
            target, from the picture before, and of the latter two (which is what doing nothing scores).
        """
        with _at_hand(model):
            edited = self._edit(dataclasses.replace(model, unet=unet))
        row: dict[str, Any] = {"step": step} | self._distances(edited)
        self._write(row, self._grid(edited))
        return row

    def _edit(self, model: LatentDiffusion) -> list[_Picture]:
        requests = [
            EditRequest(image=before, instruction=edit.instruction, seed=seed)
            for seed, ((before, _), edit) in enumerate(zip(self.pairs, self.edits, strict=True))
        ]
        return [result.images[0] for result in InstructPix2Pix(model, self.settings).edit_batch(requests)]

    def _distances(self, edited: Sequence[_Picture]) -> dict[str, float]:
        befores, targets = zip(*self.pairs, strict=True)
        return {
            "L1 to target": _distance(edited, targets),
            "L1 to input": _distance(edited, befores),
            "L1 of input to target": _distance(befores, targets),
        }

    def _write(self, row: dict[str, Any], grid: _Picture) -> None:
        with atomic_file(self.output / LOG, overwrite=True) as log:
            log.write("".join(json.dumps(line) + "\n" for line in [*self._before(row["step"]), row]).encode())
        grid.save(self.output / f".{GRID}", "PNG")
        (self.output / f".{GRID}").replace(self.output / GRID)
        with SummaryWriter(str(self.output / "tensorboard"), purge_step=row["step"]) as board:
            board.add_image("before, edited, target", np.asarray(grid), row["step"], dataformats="HWC")
            for name, value in row.items():
                if name != "step":
                    board.add_scalar(f"validation/{name}", value, row["step"])

    def _before(self, step: int) -> list[dict[str, Any]]:
        """The lines up to a step: a run that was killed does its last steps, and looks, again."""
        path = self.output / LOG
        lines = path.read_text().splitlines() if path.exists() else []
        return [line for line in map(json.loads, lines) if line["step"] < step]

    def _grid(self, edited: Sequence[_Picture]) -> _Picture:
        width, height = self.pairs[0][0].size
        line = height + 14
        grid = Image.new("RGB", (3 * width, line * len(edited)), "white")
        draw = ImageDraw.Draw(grid)
        for number, ((before, target), result, edit) in enumerate(
            zip(self.pairs, edited, self.edits, strict=True)
        ):
            for column, picture in enumerate((before, result, target)):
                grid.paste(picture, (column * width, number * line + 14))
            draw.text((2, number * line + 1), edit.instruction, fill="black")
        return grid


@contextmanager
def _at_hand(model: LatentDiffusion) -> Generator[None]:
    """The frozen networks, which a run on cached latents puts aside, on the model's device."""
    networks = (*model.text_encoders, model.vae)
    homes = [network.device for network in networks]
    for network in networks:
        network.to(model.device)
    yield
    for network, home in zip(networks, homes, strict=True):
        network.to(home)


def _first(blocks: Sequence[Block], count: int) -> list[Edit]:
    found: list[Edit] = []
    for block in blocks:
        found += block.read()[: count - len(found)]
        if len(found) == count:
            break
    return found


def _distance(one: Sequence[_Picture], two: Sequence[_Picture]) -> float:
    pairs = zip(one, two, strict=True)
    values = [np.abs(np.asarray(a, float) - np.asarray(b, float)).mean() / 255 for a, b in pairs]
    return round(float(np.mean(values)), 4)
