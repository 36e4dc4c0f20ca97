"""Guidance as pure functions of noise predictions."""

from torch import Tensor


def classifier_free_guidance(noise: Tensor, text_scale: float) -> Tensor:
    """Guide by text alone: classifier-free guidance (2207.12598).

    Args:
        noise: (2, B, C, h, w), predicted without and with the text.
        text_scale: 1 is the conditional prediction, more exaggerates it.

    Returns:
        (B, C, h, w): uncond + text_scale (cond - uncond).
    """
    uncond, cond = noise
    return uncond + text_scale * (cond - uncond)


def dual_guidance(noise: Tensor, *, text_scale: float, image_scale: float) -> Tensor:
    """Guide by instruction and by picture: InstructPix2Pix (2211.09800), eq. 3.

    Args:
        noise: (3, B, C, h, w), predicted with (no image, no text), (image, no text), (image, text).
        text_scale: s_T of the paper, >= 0.
        image_scale: s_I of the paper, >= 0.

    Returns:
        (B, C, h, w): uncond + s_I (image - uncond) + s_T (full - image).
    """
    uncond, image, full = noise
    return uncond + image_scale * (image - uncond) + text_scale * (full - image)


def dual_guidance_weights(text_scale: float, image_scale: float) -> tuple[float, float, float]:
    """What `dual_guidance` weighs its three predictions with; one of weight 0 need not be predicted."""
    return 1.0 - image_scale, image_scale - text_scale, text_scale


def rescale_guidance(guided: Tensor, reference: Tensor, strength: float) -> Tensor:
    """Pull the contrast of `guided` towards that of `reference`: Lin et al. (2305.08891), eq. 14-16.

    Args:
        guided: (B, C, h, w) guided noise.
        reference: (B, C, h, w) fully conditional noise.
        strength: 0 leaves `guided` as it is, 1 gives it the reference's standard deviation.
    """
    dims = tuple(range(1, guided.ndim))
    ratio = reference.std(dims, keepdim=True) / guided.std(dims, keepdim=True)
    return guided * (1.0 - strength + strength * ratio)


def in_interval(step: int, num_steps: int, start: float, end: float) -> bool:
    """Whether guidance is on in this step (Kynkäänniemi et al., 2404.07724); fractions of the steps."""
    return start <= step / num_steps < end
