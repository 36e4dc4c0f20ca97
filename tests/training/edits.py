"""Small data sets of edits for the tests of training."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from wordbrush.data.rows import Row, encode_png
from wordbrush.data.shards import write_shards


def picture(seed: int, size: tuple[int, int] = (40, 36)) -> Image.Image:
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 255, (4, 5, 3), dtype=np.uint8))
    return small.resize(size, Image.Resampling.BICUBIC)


def rows(count: int = 10, *sizes: tuple[int, int]) -> list[Row]:
    """Rows with instructions of their own; their pictures have the given sizes in turn."""
    sizes = sizes or ((40, 36),)
    return [
        Row(
            input_image=encode_png(picture(2 * i, sizes[i % len(sizes)])),
            edit_prompt=f"make it {i}",
            edited_image=encode_png(picture(2 * i + 1, sizes[i % len(sizes)])),
        )
        for i in range(count)
    ]


def data(folder: Path, *sizes: tuple[int, int], count: int = 10) -> Path:
    """Parquet in several files."""
    write_shards(folder, "train", rows(count, *sizes), shard_bytes=4000)
    return folder


SMALL: dict[str, Any] = {
    "steps": 3, "batch_size": 2, "learning_rate": 1e-3, "optimizer": "adamw", "warmup_steps": 1,
    "log_steps": 1, "ema_decay": 0.9, "size": 32,
}  # fmt: skip
