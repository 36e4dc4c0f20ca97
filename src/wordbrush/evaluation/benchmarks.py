"""Benchmarks of the field: a card for each, with the protocol by which it is measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wordbrush.data.hub import get
from wordbrush.data.rows import DataError
from wordbrush.errors import UsageError
from wordbrush.evaluation.benchmark_data import (
    BenchmarkEdit,
    load_emu_edit,
    load_magicbrush,
    load_tedbench,
)
from wordbrush.models import PINNED


@dataclass(frozen=True)
class Benchmark:
    """A card.

    Attributes:
        name: On the command line.
        title: Its name and paper.
        hub_id: Where the hub has it.
        licence: As far as its owners state one.
        access: How to get what the hub does not have, or that it needs nothing else.
        known_bad: What is known to be wrong with it, and what is done about that.
        protocol: What is measured, against what.
        load: Folder and split -> edits.
        splits: The names of its splits, the default one first.
        columns: Measure -> its name in the papers' tables.
        against_target: Whether results are compared with the true result, not with the picture before.
        clip: The CLIP that measures.
        dino: The vision transformer that measures; None where the protocol has none.
        truncate: Whether captions are cut to CLIP's window.
        settings: Of the editor, where its method has them.
    """

    name: str
    title: str
    hub_id: str
    licence: str
    access: str
    known_bad: str
    protocol: str
    load: Callable[[Path, str], list[BenchmarkEdit]]
    splits: tuple[str, ...]
    columns: Mapping[str, str]
    against_target: bool = False
    clip: str = "openai/clip-vit-base-patch32"
    dino: str | None = "facebook/dino-vits16"
    truncate: bool = True
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def card(self) -> dict[str, Any]:
        """What a report says about it."""
        names = ("name", "title", "hub_id", "licence", "access", "known_bad", "protocol")
        models = {name: PINNED[name] for name in (self.clip, self.dino) if name}
        return {name: getattr(self, name) for name in names} | {"metric_models": models}

    def open(self, source: str | None, split: str | None) -> tuple[Path, list[BenchmarkEdit]]:
        """Its folder and its edits.

        Args:
            source: A folder, or a hub id; the benchmark's own if not given.
            split: One of `splits`; the first if not given.

        Raises:
            UsageError: There is no such split.
            DataError: It is not there and cannot be fetched, or is not laid out as it should be.
        """
        chosen = split or self.splits[0]
        if chosen not in self.splits:
            raise UsageError(f"{self.name} has no split {chosen!r}: one of {', '.join(self.splits)}")
        folder = Path(source or "").expanduser()
        if not source or not folder.exists():
            try:
                folder = get(source or self.hub_id)
            except DataError as error:
                raise DataError(f"{error}. To get {self.name}: {self.access}") from error
        return folder, self.load(folder, chosen)


BENCHMARKS = {
    benchmark.name: benchmark
    for benchmark in (
        Benchmark(
            name="magicbrush",
            title="MagicBrush (Zhang et al., 2306.10012)",
            hub_id="osunlp/MagicBrush",
            licence="CC BY 4.0; its owners ask that the test set is not put online unpacked, nor trained on",
            access=(
                "the hub has train and dev (no captions, so no CLIP-T); the test set (535 sessions, 1,053 "
                "turns) is an archive linked from github.com/OSU-NLP-Group/MagicBrush, password MagicBrush: "
                "unpack it and give its folder, with edit_sessions.json in it, by --data"
            ),
            known_bad="none left out",
            protocol=(
                "As image_eval.py: results against the true pictures, resized to their size (bicubic); L1 "
                "and L2 on [0, 1]; CLIP-I, and CLIP-T with the local captions, by ViT-B/32 as OpenAI's code "
                "prepares pictures; DINO by ViT-S/16; means over pairs; 100 steps, as InstructPix2Pix has it"
            ),
            load=load_magicbrush,
            splits=("dev", "test"),
            columns={
                "l1": "L1",
                "l2": "L2",
                "clip_sim_image": "CLIP-I",
                "dino_sim": "DINO",
                "clip_sim_1": "CLIP-T",
            },
            against_target=True,
            truncate=False,
            settings={"steps": 100},
        ),
        Benchmark(
            name="emu-edit",
            title="Emu Edit test set (Sheynin et al., 2311.10089)",
            hub_id="facebook/emu_edit_test_set",
            licence="CC BY-NC 4.0",
            access="from the hub, 2 GB: `wordbrush data get facebook/emu_edit_test_set`",
            known_bad=(
                "Rows with an empty caption or two equal ones say nothing about a direction: results are "
                "given with and without them. The set with Emu Edit's own results names the splits the other "
                "way round."
            ),
            protocol=(
                "Results against the pictures before: CLIPdir, CLIPim, L1, DINO; CLIPout with the caption "
                "after. The paper does not name its CLIP and DINO: numbers by ViT-B/32 and ViT-S/16 do not "
                "compare with its tables"
            ),
            load=load_emu_edit,
            splits=("test", "validation"),
            columns={
                "clip_sim_dir": "CLIPdir",
                "clip_sim_image": "CLIPim",
                "clip_sim_1": "CLIPout",
                "l1": "L1",
                "dino_sim": "DINO",
            },  # fmt: skip
        ),
        Benchmark(
            name="tedbench",
            title="TEdBench (Kawar et al., Imagic, 2210.09276)",
            hub_id="bahjat-kawar/tedbench",
            licence="not stated on the hub; see the pictures' sources",
            access="from the hub, 0.1 GB: `wordbrush data get bahjat-kawar/tedbench`",
            known_bad="none left out",
            protocol=(
                "No instruction, only the caption after: for methods that need no more. The paper asked "
                "people; here are its curve's two measures, CLIP similarity to the caption and a perceptual "
                "distance to the picture before (EfficientNet's, and LPIPS where it is asked for)"
            ),
            load=load_tedbench,
            splits=("val",),
            columns={
                "clip_sim_1": "CLIP",
                "clip_sim_image": "CLIP image",
                "lpips": "LPIPS",
                "efficientnet_lite0_distance": "EfficientNet-Lite0",
            },  # fmt: skip
            clip="openai/clip-vit-large-patch14",
            dino=None,
        ),
    )
}
"""By name."""


def find_benchmark(name: str) -> Benchmark:
    """The benchmark of that name, or a `UsageError` that names them all."""
    if name not in BENCHMARKS:
        raise UsageError(f"no benchmark {name!r}: one of {', '.join(BENCHMARKS)}")
    return BENCHMARKS[name]
