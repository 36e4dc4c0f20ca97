"""Putting a service together from what the command line says."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wordbrush.controls import keep_nothing
from wordbrush.diffusion.inversion_cache import default_folder as inversions
from wordbrush.editors import find_method, settings_for
from wordbrush.errors import UsageError
from wordbrush.languages import OFF, TABLES, load_translator
from wordbrush.models import public_name, resolve
from wordbrush.safety import Safety
from wordbrush.serving.jobs import JobTable
from wordbrush.serving.service import Keys, Limits, Service
from wordbrush.serving.worker import Worker, WorkerOptions

_LOAD = ("model", "method", "device", "dtype", "offload", "lora", "concept", "config")


def make_service(
    load: Mapping[str, Any],
    *,
    translator: str = TABLES,
    safety: Safety | None = None,
    folder: Path,
    keys: Keys | None = None,
    limits: Limits | None = None,
    max_queue: int = 100,
    max_disk: int | None = None,
    max_batch: int = 4,
    time_limit: float = 300.0,
    keep: float = 3600.0,
) -> Service:
    """A service that is not started yet.

    Args:
        load: the keywords of `wordbrush.load`, "model" and "method" among them.
        translator: what turns instructions into English: see `load_translator`; "off" leaves them.
        safety: what is done to results before anybody gets them; None for nothing.
        folder: of the jobs.
        keys: who is let in.
        limits: of one request.
        max_queue: edits that may wait; where there are several keys, each may have half of them.
        max_disk: bytes of the disk for uploads and results; None for no limit.
        max_batch: results that are made together.
        time_limit: seconds that an edit may run.
        keep: seconds that an edit is kept once it has ended.

    Raises:
        ModelError: there is no such model, or no such translator.
        UsageError: an unknown method, or a bad setting.
    """
    model, method = load["model"], find_method(load["method"])
    resolve(model)
    # What a method keeps for later edits would be made from strangers' pictures.
    given = keep_nothing(method.settings) | {name: value for name, value in load.items() if name not in _LOAD}
    defaults = settings_for(model, method, given)
    keys, limits = keys or Keys(), limits or Limits()
    max_each = (max_queue + 1) // 2 if len(keys) > 1 else None
    table = JobTable(folder, max_queue=max_queue, max_each=max_each, max_disk=max_disk)
    options = WorkerOptions(
        folder,
        model_name=public_name(model),
        load={**load, **given},
        safety=safety or Safety(),
        max_batch=max_batch,
        max_pixels=limits.max_made,
        time_limit=time_limit,
    )
    worker = Worker(options, table, keep=keep)
    needs_english = translator != OFF and "instruction" in method.needs
    hears = load_translator(translator) if needs_english else None
    return Service(method, defaults, table, worker, limits, keys, hears)


def default_folder() -> Path:
    """`service` in `WORDBRUSH_CACHE`, else in the user's cache folder."""
    return inversions().with_name("service")


def read_keys(path: Path) -> list[str]:
    """The keys of a file, one a line; empty lines and those that begin with # are left out.

    Raises:
        UsageError: it cannot be read, or holds no key.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {path}: it should hold a key a line") from error
    keys = [line for line in lines if line and not line.startswith("#")]
    if not keys:
        raise UsageError(f"{path} holds no key")
    return keys
