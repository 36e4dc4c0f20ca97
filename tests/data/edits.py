"""Rows to write and read: real pictures, drawn from a seed."""

import io
from typing import Any

import numpy as np
from PIL import Image

from wordbrush.data.rows import Row, encode_png

TASKS = ("local", "add", "remove", "style")


def picture(seed: int, size: tuple[int, int] = (24, 16), mode: str = "RGB") -> Image.Image:
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 255, (3, 4, 3), dtype=np.uint8))
    return coarse.resize(size, Image.Resampling.BICUBIC).convert(mode)


def jpeg(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=100)
    return file.getvalue()


def row(number: int, **changes: Any) -> Row:
    """Row `number`: two of a unit, every fourth with a mask; some values not known."""
    values: dict[str, Any] = {
        "input_image": encode_png(picture(2 * number)),
        "edit_prompt": f"make it {number}",
        "edited_image": encode_png(picture(2 * number + 1)),
        "source_caption": f"a dog, {number // 2}",
        "target_caption": f"a “cat”, {number // 2}" if number % 3 else None,
        "task": TASKS[number % 4],
        "mask": encode_png(picture(number, mode="L")) if number % 4 == 0 else None,
        "unit": f"{number // 2:05d}",
        "turn": number % 2 + 1,
        "seed": 2**40 + number,
        "p2p_threshold": 0.1 + number / 7,
        "guidance_scale": 7.5,
        "clip_sim_0": 0.3,
        "clip_sim_1": 0.1 + 0.01 * number,
        "clip_sim_dir": 1 / (number + 3),
        "clip_sim_image": 0.8,
    }
    return Row(**(values | changes))


def rows(count: int, **changes: Any) -> list[Row]:
    return [row(number, **changes) for number in range(count)]


def bare(number: int) -> Row:
    """Nothing but what every row has."""
    whole = row(number)
    return Row(input_image=whole.input_image, edit_prompt=whole.edit_prompt, edited_image=whole.edited_image)
