"""Pairs a minute: InstructPix2Pix's way of making them against the data engine, on the same weights.

    python benchmarks/data_engine.py                                  # the storybook, as its example says
    python benchmarks/data_engine.py my.toml --units 12 --json engine.json

    original         generate_img_dataset.py's loop: a pair is painted, decoded, scored and stored before the
                     next begins, and each step computes all of the U-Net; in float32, as it computes on a CPU
    original tuned   the same in the dtype that Wordbrush chooses, with its allocator
    wordbrush        the stages and workers of `wordbrush data make`
    few steps        the same with another solver (--few): a gain of another kind, so apart, with the share of
                     pairs that pass the filter beside it

Every arm is a process of its own, since the allocator is set once a process. Figures are of all pairs drawn;
loading and the first units of every worker do not count. The arms take turns, round by round; rates are the
medians of the rounds, ratios those within a round. At the end: where the time of one worker goes.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

ARMS = ("original", "original tuned", "wordbrush", "few steps", "profile")


def main() -> None:
    options = parse()
    if options.arm:
        print(json.dumps(run_arm(options)))
        return
    rounds = [{arm: start(arm) for arm in ARMS[:-1]} for _ in range(options.rounds)]
    report = {"rounds": rounds, "profile": start(ARMS[-1])}
    print_rates(rounds, options)
    print_profile(report["profile"])
    if options.json:
        Path(options.json).write_text(json.dumps(report, indent=2) + "\n")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("config", nargs="?", default="examples/data/storybook.toml")
    parser.add_argument("--units", type=int, default=8, help="that are timed, for each arm")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--solver", default="euler-a:50", help="SCHEDULER:STEPS of all arms but one")
    parser.add_argument("--few", default="dpm++:12", help="SCHEDULER:STEPS of that one")
    parser.add_argument("--json", help="write the figures to this file")
    parser.add_argument("--arm", choices=ARMS, help=argparse.SUPPRESS)
    return parser.parse_args()


def start(arm: str) -> dict[str, Any]:
    """An arm in a process of its own."""
    command = [sys.executable, __file__, *sys.argv[1:], "--arm", arm]
    found = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if found.returncode:
        raise SystemExit(f"{arm} ended early")
    return json.loads(found.stdout.splitlines()[-1])


def run_arm(options: argparse.Namespace) -> dict[str, Any]:
    config = configure(options)
    with TemporaryDirectory() as folder:
        records = list_records(config, Path(folder))
        if options.arm == "profile":
            return profile(config, records[: options.units + 1], Path(folder))
        arm = original if options.arm.startswith("original") else engine
        return arm(config, records, options, Path(folder))


def configure(options: argparse.Namespace) -> Any:
    from wordbrush.datagen.config import read_config

    config = read_config(Path(options.config))
    scheduler, _, steps = (options.few if options.arm == "few steps" else options.solver).partition(":")
    changes: dict[str, Any] = {"scheduler": scheduler, "steps": int(steps)}
    if options.arm.startswith("original"):
        changes |= {"batch_size": 1}
    if options.arm == "original":
        changes |= {"dtype": "float32"}
    return config.model_copy(update={"pairs": config.pairs.model_copy(update=changes)})


def list_records(config: Any, folder: Path) -> list[dict[str, Any]]:
    from wordbrush.datagen.pipeline import list_units
    from wordbrush.datagen.progress import Display
    from wordbrush.datagen.runners import choose_runners

    runner = choose_runners(config, ray=False).instructions
    return [unit.model_dump() for unit in list_units(config, folder, runner, Display()).units]


def original(
    config: Any, records: list[dict[str, Any]], options: argparse.Namespace, folder: Path
) -> dict[str, Any]:
    """One pair after the other, with all threads of the machine."""
    import torch

    from wordbrush.datagen import painting
    from wordbrush.datagen.painting import Painter, draw_samples
    from wordbrush.datagen.pairs import PairGenerator, score_pairs
    from wordbrush.diffusion.runtime import prepare_process, resolve_device
    from wordbrush.perception.clip import Clip

    if options.arm == "original tuned":
        prepare_process()
    painting.remembered_text = nullcontext
    model = load_plain(config)
    generator = PairGenerator(Painter(model, config.pairs))
    clip = Clip.load(config.pairs.clip, device=resolve_device(config.pairs.device))
    torch.set_num_threads(os.cpu_count() or 1)

    def pairs() -> Iterator[bool]:
        for record in records:
            for draw in draw_samples(config.pairs, config.seed, record["unit"]):
                captions = record["caption"], record["output"]
                pixels = generator(*captions, [draw])
                yield store_if_good(config, folder, pixels, score_pairs(clip, pixels, *captions))

    stream = pairs()
    next(stream)
    begin = time.perf_counter()
    passed = list(islice(stream, options.units * config.pairs.samples))
    return rates(len(passed), sum(passed), time.perf_counter() - begin)


def load_plain(config: Any) -> Any:
    """The model, without what `Painter.load` does to the process."""
    from wordbrush.diffusion.model import LatentDiffusion
    from wordbrush.diffusion.runtime import resolve_device, resolve_dtype

    device = resolve_device(config.pairs.device)
    dtype = resolve_dtype(config.pairs.dtype, device)
    return LatentDiffusion.load(config.pairs.model, device=device, dtype=dtype, unet="text_to_image")


def store_if_good(config: Any, folder: Path, pixels: Any, scores: dict[str, Any]) -> bool:
    from PIL import Image

    from wordbrush.data.rows import Similarities

    (found,) = Similarities.from_columns({name: column.tolist() for name, column in scores.items()})
    good = config.filter.failure(found) is None
    if good:
        for name, picture in zip(("0", "1"), pixels[0], strict=True):
            Image.fromarray(picture).save(folder / f"{name}.jpg", quality=100)
    return good


def engine(
    config: Any, records: list[dict[str, Any]], options: argparse.Namespace, folder: Path
) -> dict[str, Any]:
    """The real workers; timed from when all of them have made a unit."""
    from wordbrush.datagen.runners import Workers, choose_runners
    from wordbrush.datagen.stages import MakeUnit

    warm = 2 * Workers.of(config).here
    run = choose_runners(config, ray=False).pairs
    results = run(partial(MakeUnit, config, folder), records[: warm + options.units])
    for _ in range(warm):
        next(results)
    begin = time.perf_counter()
    funnels = [json.loads(record["funnel"]) for record in results]
    drawn = sum(funnel["drawn"] for funnel in funnels)
    failed = sum(sum(funnel["failed"].values()) for funnel in funnels)
    return rates(drawn, drawn - failed, time.perf_counter() - begin)


def rates(drawn: int, passed: int, seconds: float) -> dict[str, Any]:
    minutes = seconds / 60
    return {
        "pairs": drawn,
        "pass_rate": passed / drawn,
        "pairs_per_minute": drawn / minutes,
        "good_pairs_per_minute": passed / minutes,
    }


class Stopwatch:
    """Seconds in functions, by label; of nested ones only the outer counts."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self._inside = False

    def watch(self, owner: Any, name: str, label: str) -> None:
        function: Callable[..., Any] = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            if self._inside:
                return function(*args, **kwargs)
            self._inside, begin = True, time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self._inside = False
                self.seconds[label] += time.perf_counter() - begin

        setattr(owner, name, timed)


def profile(config: Any, records: list[dict[str, Any]], folder: Path) -> dict[str, float]:
    """Shares of one worker's time."""
    from wordbrush.datagen import stages
    from wordbrush.datagen.runners import Workers, begin
    from wordbrush.datagen.stages import MakeUnit

    unit: Any = begin(Workers.of(config), partial(MakeUnit, config, folder))
    unit(records[-1])
    watch = Stopwatch()
    make, _, store = unit.stages
    model = make.painter.model
    watch.watch(model.unet, "forward", "U-Net, with shared attention")
    for encoder in model.text_encoders:
        watch.watch(encoder, "forward", "text encoder")
    watch.watch(model.vae, "decode", "decoder")
    watch.watch(stages, "score_pairs", "CLIP scores")
    watch.watch(stages, "select", "filter")
    watch.watch(stages, "_distinct", "filter")
    watch.watch(stages, "encode_png", "PNG")
    watch.watch(store.ledger, "store", "ledger")
    start = time.perf_counter()
    for record in records[:-1]:
        unit(record)
    total = time.perf_counter() - start
    parts = dict(watch.seconds) | {"the rest (sampler, noise, guidance)": total - watch.seconds.total()}
    return {name: seconds / total for name, seconds in sorted(parts.items(), key=lambda item: -item[1])}


def print_rates(rounds: list[dict[str, Any]], options: argparse.Namespace) -> None:
    print(f"{options.config}: {options.solver}, and few steps: {options.few}; {len(rounds)} rounds")
    print(f"  {'':16}{'pairs/min':>10}{'ratio':>8}{'pass rate':>11}{'good/min':>10}")
    for arm in ARMS[:-1]:
        rate, pass_rate, good = (
            median(each[arm][name] for each in rounds)
            for name in ("pairs_per_minute", "pass_rate", "good_pairs_per_minute")
        )
        print(f"  {arm:16}{rate:10.1f}{ratio(rounds, arm, 'original'):8.2f}{pass_rate:11.2f}{good:10.1f}")
    tuned = ratio(rounds, "wordbrush", "original tuned")
    print(f"  at equal steps {tuned:.2f} times the tuned original")


def ratio(rounds: list[dict[str, Any]], arm: str, other: str) -> float:
    """The median over the rounds of how many times as fast."""
    return median(each[arm]["pairs_per_minute"] / each[other]["pairs_per_minute"] for each in rounds)


def print_profile(shares: dict[str, float]) -> None:
    print("one worker's time")
    for name, share in shares.items():
        print(f"  {share:6.1%}  {name}")


if __name__ == "__main__":
    main()
