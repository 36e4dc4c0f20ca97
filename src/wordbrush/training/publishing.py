"""A trained model's card, and its way to the hub."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PureWindowsPath
from typing import Any, cast

from wordbrush import __version__
from wordbrush.errors import UsageError, one_line
from wordbrush.models import is_hub_id
from wordbrush.training.loop import TrainingError

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")

_CARD = """\
---
library_name: diffusers
pipeline_tag: image-to-image
tags:
- instruct-pix2pix
- image-editing
{base}datasets: {datasets}
---

# {title}

Edits pictures by instructions: InstructPix2Pix (Brooks et al., 2211.09800), trained by Wordbrush {version}.
{use}
{grid}
## Evaluation

{evaluation}

## Training

{budget}

| setting | value |
|---|---|
{settings}"""


def write_card(
    folder: Path,
    *,
    title: str,
    use: str,
    base: str,
    datasets: Sequence[str],
    settings: Mapping[str, Any],
    output: Path,
) -> None:
    """Write the README.md of a model; of a local path it says the last part alone.

    Args:
        folder: Of the model.
        title: The heading.
        use: How to use it.
        base: What it was made from.
        datasets: What it was trained on.
        settings: Of the run.
        output: Of the run: its logs are read.
    """
    shown = _without_paths(settings)
    log, validation = (_last_rows(output / name) for name in ("log.jsonl", "validation.jsonl"))
    text = _CARD.format(
        title=title,
        version=__version__,
        use=use,
        base=f"base_model: {base}\n" if is_hub_id(base) else "",
        datasets=json.dumps([name for name in datasets if is_hub_id(name)]),
        grid="\n![before, edited, target](validation.png)\n" if (folder / "validation.png").exists() else "",
        evaluation=_evaluation(validation[-5:], shown) if validation else "Not evaluated during training.",
        budget=_budget(log[-1]) if log else "Stopped before the first line of its log.",
        settings="".join(f"| {name} | {value} |\n" for name, value in shown.items()),
    )
    (folder / "README.md").write_text(text, encoding="utf-8")


def without_path(name: str) -> str:
    """Of a path of this machine its last part; a hub id, or any other word, as it is."""
    return name if is_hub_id(name) else PureWindowsPath(name).name


def _without_paths(settings: Mapping[str, Any]) -> dict[str, Any]:
    def plain(value: Any) -> Any:
        if isinstance(value, list):
            return ", ".join(map(plain, cast("list[str]", value)))
        return without_path(value) if isinstance(value, str) else value

    return {name: plain(value) for name, value in settings.items()}


def _last_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _evaluation(rows: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]) -> str:
    what = f"{settings['validation_edits']} held-out edits of {settings['validation']}"
    note = "mean absolute differences of pixels, 0 to 1. The last column is what doing nothing scores."
    return f"On {what}, while it was trained: {note}\n\n{_table(rows)}"


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    header = f"| {' | '.join(rows[-1])} |\n|{'---|' * len(rows[-1])}\n"
    return header + "".join(f"| {' | '.join(str(value) for value in row.values())} |\n" for row in rows)


def _budget(row: Mapping[str, Any]) -> str:
    return f"{row['step']} steps, {row['samples']} samples, {row['minutes']:.0f} minutes."


def check_hub(repo: str) -> None:
    """Raise an error unless a model could be uploaded: before the training, not after it.

    Raises:
        UsageError: The name is no hub id.
        TrainingError: The hub cannot be reached, or nobody is logged in.
    """
    if not _HUB_ID.fullmatch(repo):
        raise UsageError(f"--push-to-hub: {repo!r} is no hub id: give OWNER/NAME")
    from huggingface_hub import HfApi, is_offline_mode

    if is_offline_mode():
        raise TrainingError(f"cannot upload to {repo}: HF_HUB_OFFLINE is set; leave --push-to-hub out")
    try:
        HfApi(token=True).whoami()
    except Exception as error:  # the hub's client raises a dozen unrelated kinds
        raise TrainingError(
            f"cannot upload to {repo}: not logged in to the hub (`hf auth login`), or no network; leave "
            f"--push-to-hub out ({one_line(error)})"
        ) from error


def push(folder: Path, repo: str) -> str:
    """Upload a model; the repository is made if there is none. Returns the upload's address.

    Raises:
        TrainingError: It fails; the model stays where it is.
    """
    from huggingface_hub import HfApi

    api = HfApi(token=True)
    try:
        api.create_repo(repo, exist_ok=True)
        return str(api.upload_folder(folder_path=folder, repo_id=repo))
    except Exception as error:  # as above
        raise TrainingError(f"cannot upload {folder} to {repo}: {one_line(error)}") from error
