"""Data sets from the hub, and to it."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from wordbrush.data.rows import DataError
from wordbrush.data.staging import UPLOADED, stage
from wordbrush.errors import UsageError, one_line

KNOWN = {
    "timbrooks/instructpix2pix-clip-filtered": "InstructPix2Pix's 313,010 pairs, filtered by CLIP (63 GB)",
    "fusing/instructpix2pix-1000-samples": "1,000 of InstructPix2Pix's pairs (0.4 GB)",
    "osunlp/MagicBrush": "10,388 edits of photographs, made by hand, with masks",
    "facebook/emu_edit_test_set": "Emu Edit's test set: pictures and texts of seven tasks; evaluation only",
    "facebook/emu_edit_test_set_generations": "the same pictures and texts, with Emu Edit's own results",
    "bahjat-kawar/tedbench": "TEdBench: 100 pictures, each with the caption of an edit; evaluation only",
}
"""Data sets of edits by their hub id; `get` takes any other id as well.

Those for evaluation only have no pictures after the edit: nothing but `wordbrush evaluate benchmark` reads
them."""

_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")


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


def push(folder: Path, repo: str, *, private: bool = False, license: str | None = None) -> str:
    """Upload a data set that `wordbrush.data.shards` wrote; the repository is made if there is none.

    What an earlier upload left of a card, shards, run.json and triplets.jsonl goes. The hub's client makes
    several commits of a large set; where it broke off, the same call goes on.

    Args:
        folder: With a README.md and data/*.parquet.
        repo: A hub id.
        private: Whether a repository that is made is for its owner only.
        license: Goes into the uploaded card, as the hub names it: apache-2.0, cc-by-4.0, ...

    Returns:
        The address of the upload.

    Raises:
        UsageError: The name is no hub id.
        DataError: The folder holds no such data set, nobody is logged in, or the hub cannot be reached.
    """
    if not _HUB_ID.fullmatch(repo):
        raise UsageError(f"{repo!r} is not a hub id: give OWNER/NAME")
    with TemporaryDirectory() as staged:
        stage(folder, Path(staged), license)
        return _upload(Path(staged), repo, private)


def _upload(folder: Path, repo: str, private: bool) -> str:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import LocalTokenNotFoundError, OfflineModeIsEnabled

    api = HfApi(token=True)
    try:
        api.create_repo(repo, repo_type="dataset", private=private, exist_ok=True)
        commit = api.upload_folder(
            folder_path=folder, repo_id=repo, repo_type="dataset", delete_patterns=UPLOADED
        )
        return str(commit)
    except LocalTokenNotFoundError as error:
        raise DataError("nobody is logged in to the hub: run `hf auth login`, or set HF_TOKEN") from error
    except OfflineModeIsEnabled as error:
        raise DataError(f"cannot upload {repo}: HF_HUB_OFFLINE is set") from error
    except Exception as error:  # as above
        raise DataError(f"cannot upload {repo}: {one_line(error)}") from error
