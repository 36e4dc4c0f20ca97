"""The service under load: what many clients at once find, and what batching gains.

    python -m benchmarks.service                                  # the embedded editor at one step
    python -m benchmarks.service --requests 600 --json service.json

`wordbrush serve` runs at its defaults, its model in a process of its own, and the clients in another. Each
asks for an edit, follows it over /events, fetches the result and asks for the next; where the queue is full
it comes again when it is told to. Meanwhile /healthz is asked 20 times a second, and memory is looked at:
the medians of the second, third and last quarter of that time.

Then 8 clients at a service that batches and at one that does not, round by round; the ratio is the median of
those within a round.
"""

import argparse
import io
import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from PIL import Image

from tests.serving.clients import Command, wait_for
from tests.serving.load import flood, under_load

MODEL = "storybook"
PICTURE = Path("examples/picture.png")
BATCHES = (1, 4)
"""--max-batch of the services that take turns; the second is the default."""


def main() -> None:
    options = parse()
    report: dict[str, Any] = {}
    if options.requests:
        with serving() as service:
            load = under_load(service, picture(), options.requests, options.clients, steps=options.steps)
        report["load"] = load.summary()
        print_load(options, report["load"])
    if options.rounds:
        report["batching"] = batching(options)
        print_batching(options, report["batching"])
    if options.json:
        Path(options.json).write_text(json.dumps(report, indent=2) + "\n")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--requests", type=int, default=2000, help="under load; 0 leaves it out")
    parser.add_argument("--clients", type=int, default=200, help="that send them")
    parser.add_argument("--rounds", type=int, default=5, help="of batching; 0 leaves it out")
    parser.add_argument("--edits", type=int, default=48, help="in a round")
    parser.add_argument("--steps", default="1")
    parser.add_argument("--json", help="write the figures to this file")
    return parser.parse_args()


@contextmanager
def serving(*flags: str) -> Iterator[Command]:
    """A service that has made its first edits."""
    with TemporaryDirectory() as folder:
        service = Command(MODEL, Path(folder), *flags)
        try:
            wait_for(lambda: service.client.get("/readyz").is_success)
            flood(str(service.client.base_url), picture(), 8, 8, steps="1")
            yield service
        finally:
            service.stop()


def picture() -> bytes:
    """The example at the model's own size: the model is to be the work, not the clients' pictures."""
    file = io.BytesIO()
    Image.open(PICTURE).resize((128, 128)).save(file, "PNG")
    return file.getvalue()


def batching(options: argparse.Namespace) -> dict[str, Any]:
    """Edits a second of 8 clients, for each `--max-batch`."""
    rates: dict[int, list[float]] = {batch: [] for batch in BATCHES}
    with ExitStack() as stack:
        services = {batch: stack.enter_context(serving("--max-batch", str(batch))) for batch in BATCHES}
        for _ in range(options.rounds):
            for batch, service in services.items():
                found = flood(str(service.client.base_url), picture(), options.edits, 8, steps=options.steps)
                rates[batch].append(options.edits / found.seconds)
    single, batched = rates.values()
    ratio = median(ours / theirs for ours, theirs in zip(batched, single, strict=True))
    return {"edits_per_second": rates, "ratio": ratio}


def print_load(options: argparse.Namespace, load: dict[str, Any]) -> None:
    healthy, ill = (1000 * load[name] for name in ("healthz_median", "healthz_p99"))
    print(f"{options.requests} edits of {options.steps} steps by {options.clients} clients")
    print(f"  ended            {load['ends']}, {load['refused']} refusals waited out")
    print(f"  throughput       {load['edits_per_second']:.1f} edits/s in {load['seconds']:.0f} s")
    print(f"  to the result    {load['wait_median']:.1f} s median, {load['wait_p99']:.1f} s p99")
    print(f"  /healthz         {healthy:.0f} ms median, {ill:.0f} ms p99")
    print(f"  server, MiB      {load['server_mib']}")
    print(f"  model, MiB       {load['worker_mib']}", flush=True)


def print_batching(options: argparse.Namespace, found: dict[str, Any]) -> None:
    print(f"8 clients, {options.edits} edits of {options.steps} steps, median of {options.rounds} rounds")
    for batch, rates in found["edits_per_second"].items():
        print(f"  --max-batch {batch}    {median(rates):.2f} edits/s")
    print(f"  ratio            {found['ratio']:.2f}")


if __name__ == "__main__":
    main()
