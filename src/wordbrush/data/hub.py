"""Data sets from the hub, and to it."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from wordbrush.data.rows import DataError
from wordbrush.data.shards import find_shards
from wordbrush.errors import UsageError, one_line

KNOWN = {
    "timbrooks/instructpix2pix-clip-filtered": "InstructPix2Pix's 313,010 pairs, filtered by CLIP (63 GB)",
    "fusing/instructpix2pix-1000-samples": "1,000 of InstructPix2Pix's pairs (0.4 GB)",
    "osunlp/MagicBrush": "10,388 edits of photographs, made by hand, with masks",
    "facebook/emu_edit_test_set": "Emu Edit's test set: pictures, instructions and captions of seven tasks",
    "facebook/emu_edit_test_set_generations": "the same, with Emu Edit's own results",
    "bahjat-kawar/tedbench": "TEdBench: 100 pictures, each with the caption of an edit",
}
"""Data sets of edits by their hub id; `get` takes any other id as well."""

_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")

_UPLOADED = ["README.md", "data/*.parquet", "run.json", "triplets.jsonl"]
"""All that `wordbrush data make` and `convert` write."""


def get(name: str, folder: Path | None = None) -> Path:
    """Fetch a data set from the hub, or from the mirror that HF_ENDPOINT names.

    What was fetched before is not fetched again: run again, it goes on with the files that are missing.

    Args:
        name: A hub id, or the part of a known one behind the "/".
        folder: Where it goes; the hub's cache by default.

    Returns:
        The folder with its files.

    Raises:
        UsageError: The name is no hub id.
        DataError: It cannot be fetched.
    """
    repo = next((known for known in KNOWN if name in (known, known.split("/")[1])), name)
    if not _HUB_ID.fullmatch(repo):
        raise UsageError(f"no data set {name!r}: known are {', '.join(KNOWN)}, and any other hub id")
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()
    try:
        return Path(snapshot_download(repo, repo_type="dataset", local_dir=folder))
    except Exception as error:  # the hub's client raises a dozen unrelated kinds
        raise DataError(f"cannot fetch {repo}: {one_line(error)}") from error


def push(folder: Path, repo: str, *, private: bool = False) -> str:
    """Upload a data set that `wordbrush.data.shards` wrote; the repository is made if there is none.

    Args:
        folder: With a README.md and data/*.parquet.
        repo: A hub id.
        private: Whether a repository that is made is for its owner only.

    Returns:
        The address of the upload.

    Raises:
        UsageError: The name is no hub id.
        DataError: The folder holds no such data set, nobody is logged in, or the hub cannot be reached.
    """
    if not _HUB_ID.fullmatch(repo):
        raise UsageError(f"{repo!r} is not a hub id: give OWNER/NAME")
    if not (folder / "README.md").is_file() or not find_shards(folder / "data"):
        raise DataError(f"{folder} has no README.md and data/*.parquet: use `wordbrush data convert` first")
    from huggingface_hub import HfApi
    from huggingface_hub.errors import LocalTokenNotFoundError, OfflineModeIsEnabled

    api = HfApi(token=True)
    try:
        api.create_repo(repo, repo_type="dataset", private=private, exist_ok=True)
        commit = api.upload_folder(
            folder_path=folder, repo_id=repo, repo_type="dataset", allow_patterns=_UPLOADED
        )
        return str(commit)
    except LocalTokenNotFoundError as error:
        raise DataError("nobody is logged in to the hub: run `hf auth login`, or set HF_TOKEN") from error
    except OfflineModeIsEnabled as error:
        raise DataError(f"cannot upload {repo}: HF_HUB_OFFLINE is set") from error
    except Exception as error:  # as above
        raise DataError(f"cannot upload {repo}: {one_line(error)}") from error
