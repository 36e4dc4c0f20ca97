"""The named recipes of Imagic's tuning. Light: the command line reads it for its flags."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Tuning:
    """How a model is tuned to one picture (Imagic, 2210.09276, section 3.2), both stages by Adam."""

    embedding_steps: int
    """Of stage A, which optimises the caption's embedding; 0 leaves it as it is."""
    embedding_rate: float
    model_steps: int
    """Of stage B, which fine-tunes the U-Net; 0 leaves it as it is."""
    model_rate: float
    lora_rank: int = 0
    """Of adapters that stage B trains; 0: the whole U-Net."""
    batch: int = 1
    """Noised copies of the picture in a step."""
    plateau: float = 0.0
    """A stage ends where 100 steps lowered the loss by less than this part; 0: never."""


PRESETS = {
    # The paper's main recipe; the learning rate of stage B is not stated there: that of its other recipe.
    "imagen": Tuning(100, 1e-3, 1500, 5e-7),
    # The paper's recipe for Stable Diffusion.
    "sd-paper": Tuning(1000, 2e-3, 1500, 5e-7),
    # The defaults of diffusers' community pipeline.
    "diffusers": Tuning(500, 1e-3, 1000, 2e-6),
    # For the embedded models; found on a few training edits. A longer or faster first stage ends further
    # from the caption, so that between the two the picture's layout is lost.
    "storybook": Tuning(30, 1e-2, 150, 2e-4, batch=4),
}
LORA_RATE = 1e-4
"""Of adapters where no other is given: the rates of the presets are for whole U-Nets."""
