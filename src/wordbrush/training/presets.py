"""Named sets of InstructPix2Pix's settings; what is given besides them wins."""

from __future__ import annotations

from typing import Any

PRESETS: dict[str, dict[str, Any]] = {
    # The settings' own defaults suit the storybook: some hours on two CPU cores.
    "laptop": {},
    # Section 3.2 and appendix A.2 of 2211.09800, and what its code (train.yaml) adds. On 8 processes a step
    # has 1024 samples. The code resizes to 256 alone, and its released model is of step 22,000:
    # --resize-to 256 --steps 22000.
    "paper": {
        "steps": 10_000,
        "batch_size": 32,
        "workers": 2,
        "accumulation": 4,
        "learning_rate": 1e-4,
        "schedule": "constant",
        "optimizer": "adamw",
        "warmup_steps": 0,
        "weight_decay": 0.01,
        "clip_norm": 0.0,
        "ema_decay": 0.9999,
        "size": 256,
        "resize_to": 288,
        "flip": 0.5,
        "target": "sample",
        "dropout": 0.05,
        "min_snr": 0.0,
        "timestep_shift": 1.0,
    },
}
