"""The repository as a whole."""

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_tracked_files_stay_small_enough_to_travel():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a clone")
    files = [ROOT / name for name in listed.stdout.split("\0") if name]
    assert sum(path.stat().st_size for path in files if path.is_file()) < 60 * 2**20
