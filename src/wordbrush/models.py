"""A model's name -> where its checkpoint lies on disk."""

import contextlib
import json
import logging
import re
from collections.abc import Generator
from importlib.resources import files
from pathlib import Path
from typing import Any

from wordbrush.errors import ModelError, one_line

EMBEDDED = {"storybook": "trained on the captioned storybook world, 128 px; a few seconds on any computer"}
"""Models inside the package: name -> description."""

PINNED = {
    "openai/clip-vit-large-patch14": "32bd64288804d66eefd0ccbe215aa642df71cc41",
    "openai/clip-vit-base-patch32": "3d74acf9a28c67741b2f4f2ea7635f0aaf6f0268",
    "facebook/dino-vits16": "abe3b354cb6a9b6f146096b14a4a9d7eecbcb4bd",
}
"""The models that measure: hub id -> the commit that is used, so that numbers of any two days compare."""

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def resolve(model: str | Path) -> Path:
    """The folder or single file of a model; a hub id is downloaded once and then used without a network.

    Args:
        model: an embedded name, a folder, a single file, or a hub id ("owner/name").

    Raises:
        ModelError: there is no such model, or it is not cached and cannot be downloaded.
    """
    name = str(model)
    if name in EMBEDDED:
        return _existing(Path(str(files("wordbrush"))) / "assets" / name, name)
    path = Path(model).expanduser()
    if name and path.exists():
        return path
    if isinstance(model, Path) or not _HUB_ID.fullmatch(name):
        known = ", ".join(EMBEDDED)
        raise ModelError(f"no model {name!r}: not an embedded one ({known}), a folder, a file or a hub id")
    return _download(name)


def is_hub_id(model: str | Path) -> bool:
    """Whether a name can only be that of a repository of the hub: "owner/name", and there is no such path."""
    return isinstance(model, str) and bool(_HUB_ID.fullmatch(model)) and not Path(model).expanduser().exists()


def public_name(model: str | Path) -> str:
    """What strangers may know of a model: an embedded name or a hub id, of a path its last part alone."""
    return str(model) if is_hub_id(model) else Path(model).name


def own_settings(model: str | Path, method: str) -> dict[str, Any]:
    """A method's settings by the `wordbrush.json` in the folder of a checkpoint; {} where it says nothing.

    Raises:
        ModelError: the file is damaged.
    """
    folder = resolve(model) if str(model) in EMBEDDED else Path(model).expanduser()
    path = folder / "wordbrush.json"
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text())[method])
    except KeyError:
        return {}
    except (ValueError, TypeError) as error:
        raise ModelError(f"{path} is damaged: it should say method -> settings") from error


def is_here(model: str) -> bool:
    """Whether `resolve` finds a model without a network."""
    from huggingface_hub import try_to_load_from_cache

    if model in EMBEDDED or (model and Path(model).expanduser().exists()):
        return True
    return bool(_HUB_ID.fullmatch(model)) and isinstance(
        try_to_load_from_cache(model, "model_index.json"), str
    )


@contextlib.contextmanager
def quiet() -> Generator[None]:
    """Silence the progress bars and remarks of diffusers and transformers; errors still raise."""
    import diffusers.utils.logging as d
    import transformers.utils.logging as t

    levels, bars = (
        (d.get_verbosity(), t.get_verbosity()),
        (d.is_progress_bar_enabled(), t.is_progress_bar_enabled()),
    )
    for module in (d, t):
        module.set_verbosity(logging.CRITICAL)
        module.disable_progress_bar()
    try:
        yield
    finally:
        for module, level, bar in zip((d, t), levels, bars, strict=True):
            module.set_verbosity(level)
            if bar:
                module.enable_progress_bar()


@contextlib.contextmanager
def loading(what: str) -> Generator[None]:
    """`quiet`; and what goes wrong becomes one line.

    Args:
        what: Is loaded, by its name, for the message.

    Raises:
        ModelError: The body raised something else: what is wrong with a checkpoint can raise anything.
    """
    try:
        with quiet():
            yield
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(f"cannot load {what}: {one_line(error)}") from error


def _existing(path: Path, name: str) -> Path:
    if not path.exists():
        raise ModelError(f"the embedded model {name!r} is not in this installation ({path})")
    return path


def _download(name: str) -> Path:
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

    try:
        with quiet():
            return Path(DiffusionPipeline.download(name, safety_checker=None))
    except Exception as error:  # the hub's client raises a dozen unrelated kinds
        raise ModelError(
            f"no model {name!r}: no such folder or file, not in the hub's cache, and not downloaded "
            f"({type(error).__name__}: no network, or no such repository)"
        ) from error
