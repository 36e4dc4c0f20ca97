import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

os.environ["HF_HUB_OFFLINE"] = "1"  # before the hub's client is imported: a missing name is not looked for

from tests import tiny


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny random InstructPix2Pix checkpoint of native size 32 px."""
    return tiny.save("sd1", tmp_path_factory.mktemp("tiny") / "sd1")


@pytest.fixture
def picture() -> Image.Image:
    """48 x 32 px, smooth with some detail."""
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 255, (4, 6, 3), dtype=np.uint8))
    fine = rng.normal(0, 8, (32, 48, 3))
    smooth = np.asarray(small.resize((48, 32), Image.Resampling.BICUBIC), dtype=float)
    return Image.fromarray((smooth + fine).clip(0, 255).astype(np.uint8))
