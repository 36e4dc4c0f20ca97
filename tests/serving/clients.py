"""The client's side of a service: one in a process of its own, and its answers. Nothing heavy."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx


def wait_for(condition: Callable[[], Any], seconds: float = 120) -> Any:
    """What the condition gives, once that is true."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.05)
    return value


def ended(client: httpx.Client, edit_id: str) -> dict[str, Any]:
    """An edit's status once it has ended."""

    def status() -> Any:
        found = client.get(f"/v1/edits/{edit_id}").json()
        return found if found["status"] in ("done", "failed", "cancelled") else None

    return wait_for(status)


def events(text: str) -> list[tuple[str, dict[str, Any]]]:
    """Server-sent events as (event, data)."""
    blocks = [
        dict(line.split(": ", 1) for line in block.splitlines()) for block in text.split("\n\n") if block
    ]
    return [(block["event"], json.loads(block["data"])) for block in blocks if "event" in block]


class Command:
    """`wordbrush serve` in a process of its own, of its own process group."""

    def __init__(self, checkpoint: Path | str, folder: Path, *flags: str) -> None:
        words = ["serve", "--model", str(checkpoint), "--port", "0", "--folder", str(folder), *flags]
        words += ["--device", "cpu", "--dtype", "float32"]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "wordbrush", *words],
            stdout=subprocess.PIPE, text=True, start_new_session=True,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
        )  # fmt: skip
        assert self.process.stdout
        line = self.process.stdout.readline()
        assert line.startswith("Wordbrush is at http://"), line
        self.client = httpx.Client(base_url=line.split()[3], timeout=60)

    def kill(self) -> None:
        """End it and its model's process as a power cut would."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self._close()

    def stop(self, seconds: float = 60) -> int:
        """Ask it to end; returns its exit status."""
        self.process.terminate()
        self.process.wait(seconds)
        return self._close()

    def _close(self) -> int:
        self.client.close()
        code = self.process.wait(60)
        assert self.process.stdout
        self.process.stdout.close()
        return code
