"""The samplers' names. A sampler is a diffusers scheduler under `denoise`. Imports no torch."""

from typing import Any

_UNCLIPPED = {"clip_sample": False}
"""Latents leave [-1, 1]; these classes would clip them where a checkpoint's configuration does not say."""

SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", _UNCLIPPED),
    "ddpm": ("DDPMScheduler", _UNCLIPPED),
    "dpm++": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}),
    "dpm++-karras": (
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "dpmsolver++", "use_karras_sigmas": True},
    ),
    "dpm++-sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler-a": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True}),
    "unipc": ("UniPCMultistepScheduler", {}),
}
"""Name -> its diffusers class and what is set in the checkpoint's scheduler configuration."""
