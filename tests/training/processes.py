"""Two processes over gloo, started as by `accelerate launch`."""

import os
import subprocess
import sys
from pathlib import Path


def run_two(script: Path, *arguments: str) -> None:
    """Runs a script twice at once, on the CPU; fails as it does."""
    root = str(Path(__file__).parents[2])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    launched = subprocess.run(
        [sys.executable, *launch, script, *arguments],
        capture_output=True, text=True, timeout=200,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "ACCELERATE_USE_CPU": "true"},
    )  # fmt: skip
    assert launched.returncode == 0, launched.stderr[-3000:]
