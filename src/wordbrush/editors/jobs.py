"""What every editor does with a request before and after the work: checks, seeds, and the record."""

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image
from torch import Tensor

from wordbrush import __version__, images
from wordbrush.editors import Method
from wordbrush.editors.settings import record_of
from wordbrush.errors import UsageError
from wordbrush.types import MAX_VARIATIONS, EditRequest

EMPTY_MASK = "the mask is empty, so nothing was edited"
PROMPTS = ("instruction", "source_caption", "target_caption")


@dataclass(frozen=True, eq=False)
class Job:
    """A request, checked and at its working size."""

    request: EditRequest
    rgb: Image.Image
    alpha: Image.Image | None
    fit: images.Fit
    mask: Tensor | None
    """(1, 3, H, W) in [-1, 1], as `fit.pixels`."""
    seeds: list[int]


def prepare_job(method: Method, request: EditRequest, fit: Callable[[Image.Image], images.Fit]) -> Job:
    """Check a request; `fit` brings its picture and mask to the working size.

    Raises:
        UsageError: it lacks what the method needs, or has a senseless seed or number of variations.
        ImageError: a picture that cannot be read, or a mask of another size than its picture.
    """
    method.check(request)
    if not 1 <= request.num_variations <= MAX_VARIATIONS:
        raise UsageError(f"num_variations is {request.num_variations}: 1 to {MAX_VARIATIONS} can be made")
    first = secrets.randbelow(2**31) if request.seed is None else request.seed
    if not 0 <= first < 2**63 - request.num_variations:
        raise UsageError(f"seed is {first}: it must be at least 0 and below 2**63")
    rgb, alpha = images.normalise(request.image)
    fitted = fit(rgb)
    mask = None if request.mask is None else _fit_mask(request.mask, rgb, fit)
    return Job(request, rgb, alpha, fitted, mask, [first + k for k in range(request.num_variations)])


def describe_job(method: Method, job: Job, settings: Any, model: Mapping[str, Any]) -> dict[str, Any]:
    """What reproduces a job's result: JSON values, `model` says which one it was."""
    request = job.request
    record: dict[str, Any] = {"wordbrush": __version__, "method": method.name, **model}
    record |= {name: getattr(request, name) for name in PROMPTS if getattr(request, name)}
    record |= {"negative_prompt": request.negative_prompt}
    record |= {"seed": job.seeds[0], "num_variations": len(job.seeds)}
    return record | record_of(settings)


def remarks(job: Job) -> list[str]:
    """What is odd about a request, for the warnings of its result."""
    return [EMPTY_MASK] if job.mask is not None and bool((job.mask <= -1).all()) else []


def describe_model(
    model: object, *, lora: Sequence[Any], concept: Sequence[Any], config: object, device: str, dtype: Any
) -> dict[str, Any]:
    """What a result's record says about the model."""
    return {
        "model": str(model),
        "lora": [str(path) for path in lora],
        "concept": [str(path) for path in concept],
        "config": None if config is None else str(config),
        "device": device,
        "dtype": str(dtype).removeprefix("torch."),
    }


def _fit_mask(mask: Image.Image, rgb: Image.Image, fit: Callable[[Image.Image], images.Fit]) -> Tensor:
    white = images.normalise(mask)[0]
    images.check_mask(white.size, rgb.size)
    return fit(white).pixels
