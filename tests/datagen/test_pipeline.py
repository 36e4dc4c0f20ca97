"""The data engine as a whole: what comes out, and that it does not matter when or how often it was killed."""

import io
import json
import multiprocessing
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from filelock import FileLock
from rich.console import Console

from tests.datagen.engine import configure, save_models, save_sentence_encoder, to_toml, triplets
from tests.datagen.test_endpoint import Server, chat, edits, server  # noqa: F401
from wordbrush.cli import main
from wordbrush.data.rows import SCORES, decode
from wordbrush.data.sources import open_parts, read_rows
from wordbrush.datagen import pipeline
from wordbrush.datagen.config import Config, StorybookTriplets, identity
from wordbrush.datagen.draws import read_draws
from wordbrush.datagen.endpoint import Usage
from wordbrush.datagen.endpoint_client import EndpointError
from wordbrush.datagen.filters import PREDICATES, Funnel, Thresholds
from wordbrush.datagen.painting import Draw, Painter, draw_samples
from wordbrush.datagen.pairs import PairGenerator
from wordbrush.datagen.pipeline import list_units, make, storybook_triplets
from wordbrush.datagen.progress import Display
from wordbrush.datagen.runners import Build, Runners, Workers, choose_runners
from wordbrush.datagen.stages import FilterPairs, MakeUnit, Record
from wordbrush.errors import UsageError, WordbrushError
from wordbrush.triplets import Triplet, read_triplets, write_triplets

QUIET = Display(Console(file=io.StringIO()), every=float("inf"))
FORK = multiprocessing.get_context("fork")  # a process that need not import torch anew


@pytest.fixture(autouse=True)
def forkable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokenizers that were used before a fork complain on standard error unless told how to run."""
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return save_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, models: dict[str, str]) -> Config:
    """24 units from a file."""
    path = tmp_path_factory.mktemp("triplets") / "triplets.jsonl"
    write_triplets(path, triplets())
    return configure(models, {"source": "file", "path": path})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, config: Config) -> Path:
    """The data set of an unbroken run."""
    folder = tmp_path_factory.mktemp("unbroken") / "set"
    make(config, folder, choose_runners(config, ray=False), QUIET)
    return folder


def files(folder: Path) -> dict[str, bytes]:
    """All that lies in a folder; the card without its title."""
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return found | {"README.md": found["README.md"].replace(f"# {folder.name}".encode(), b"#")}


def work(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.work")


def units_done(folder: Path) -> int:
    """Counted by os.walk, which lets the folder vanish meanwhile, as it does when the run ends."""
    return sum(name.endswith(".jsonl") for *_, names in os.walk(work(folder) / "units") for name in names)


def toml(config: Config, path: Path, **engine: Any) -> Path:
    values = config.model_dump(mode="json")
    path.write_text(to_toml(values | {"engine": values["engine"] | engine}))
    return path


def test_a_run_makes_a_data_set_that_loads(made: Path, config: Config):
    from datasets import load_dataset

    about = json.loads((made / "run.json").read_text())
    rows: Any = load_dataset(str(made), split="train")
    assert len(rows) == about["rows"] == Funnel(**about["pairs"]).kept > 12
    assert about["pairs"]["drawn"] == 24 * 3 and about["triplets"] == {"kept": 24}
    assert rows["unit"] == sorted(rows["unit"])
    assert rows[0]["input_image"].size == (32, 32)
    assert min(rows["clip_sim_dir"]) >= 0
    assert read_triplets(made / "triplets.jsonl") == triplets()
    draws = read_draws(made / "draws.arrow")
    assert Counter(draws["unit"]) == dict.fromkeys((f"{n:07d}" for n in range(24)), 3)
    kept = [i for i, fate in enumerate(draws["fate"]) if fate == "kept"]
    assert sorted(zip(rows["unit"], rows["seed"], rows["clip_sim_dir"], strict=True)) == sorted(
        (draws["unit"][i], draws["seed"][i], draws["clip_sim_dir"][i]) for i in kept
    )
    assert draws["fate"].count("clip_sim_dir") == about["pairs"]["failed"]["clip_sim_dir"] > 0
    assert not work(made).exists()


def test_a_row_says_how_it_was_made(made: Path, config: Config):
    generator = PairGenerator(Painter.load(config.pairs))
    for row in list(read_rows(open_parts(made)))[::5]:
        assert row.source_caption and row.target_caption and row.unit and row.seed is not None
        assert row.p2p_threshold is not None and row.guidance_scale is not None
        draw = Draw(row.seed, row.p2p_threshold, row.guidance_scale)
        assert draw in draw_samples(config.pairs, config.seed, row.unit)
        again = generator(row.source_caption, row.target_caption, [draw])[0].astype(int)
        stored = np.stack([decode(row.input_image), decode(row.edited_image)]).astype(int)
        assert np.abs(again - stored).max() <= 1


def test_a_finished_run_is_left_as_it_is(made: Path, config: Config):
    before = {path: path.stat().st_mtime_ns for path in made.rglob("*")}
    work(made).mkdir()  # as if killed while the work was thrown away

    def never(build: Build, records: Sequence[Record]) -> Iterator[Record]:
        raise AssertionError

    make(config, made, Runners(never, never), QUIET)
    assert {path: path.stat().st_mtime_ns for path in made.rglob("*")} == before
    assert not work(made).exists()


def test_rows_do_not_depend_on_the_order_of_the_work(made: Path, config: Config, tmp_path: Path):
    def shuffled(build: Build, records: Sequence[Record]) -> Iterator[Record]:
        stage, order = build(), list(records)
        random.Random(0).shuffle(order)
        stage(order[-1])  # by a worker that was killed before it could say so
        yield from map(stage, order)

    make(config, tmp_path / "set", Runners(shuffled, shuffled), QUIET)
    assert files(tmp_path / "set") == files(made)


def test_what_is_in_the_ledger_is_not_made_again(config: Config, tmp_path: Path):
    stage = MakeUnit(config, tmp_path)
    unit: Record = {
        "unit": "0000007",
        "caption": "a dog",
        "edit": "snow",
        "output": "a dog in snow",
        "task": "",
        "label": "",
    }
    told = stage(dict(unit))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert stage(dict(unit)) == told and len(before) >= 2
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_a_unit_whose_rows_are_lost_is_made_again(made: Path, config: Config, tmp_path: Path):
    folder = tmp_path / "set"
    with pytest.raises(KeyboardInterrupt):
        make(config, folder, choose_runners(config, ray=False), Stops(QUIET.console, every=1e9))
    rows = sorted(work(folder).rglob("*.rows"))
    assert units_done(folder) == 24 and rows
    rows[0].unlink()
    rows[1].write_bytes(rows[1].read_bytes()[:100])
    with pytest.raises(WordbrushError, match=f"{rows[1].name}: damaged; delete it, and run again"):
        make(config, folder, choose_runners(config, ray=False), QUIET)
    rows[1].unlink()
    make(config, folder, choose_runners(config, ray=False), QUIET)
    assert files(folder) == files(made)


class Stops(Display):
    """Ends a run when all its units are made."""

    def stage(self, name: str, total: int, done: int, unit: str) -> Any:
        if name == "shards":
            raise KeyboardInterrupt
        return super().stage(name, total, done, unit)


def test_another_seed_gives_other_pictures(made: Path, config: Config, tmp_path: Path):
    other = config.model_copy(update={"seed": 1})
    make(other, tmp_path / "set", choose_runners(other, ray=False), QUIET)
    one, two = ({row.input_image for row in read_rows(open_parts(path))} for path in (made, tmp_path / "set"))
    assert not one & two


def test_an_unfiltered_set_is_filtered_later_as_if_it_had_been_at_once(
    made: Path, config: Config, tmp_path: Path
):
    low = config.model_copy(update={"filter": Thresholds(**dict.fromkeys(PREDICATES, -1.0), keep=3)})
    make(low, tmp_path / "all", choose_runners(low, ray=False), QUIET)
    asked = toml(config, tmp_path / "run.toml")
    for options, kept in (([], 24), (["--units", "5"], 5)):
        part = tmp_path / f"kept {kept}"
        with pytest.raises(SystemExit) as ended:
            main(["data", "convert", str(tmp_path / "all"), str(part), "--filter", str(asked), *options])
        assert ended.value.code == 0
        expected = [row for row in read_rows(open_parts(made)) if row.unit and int(row.unit) < kept]
        assert list(read_rows(open_parts(part))) == expected
    assert 0 < len(list(read_rows(open_parts(made)))) < len(list(read_rows(open_parts(tmp_path / "all"))))


def start(config: Config, folder: Path, display: Display = QUIET) -> Any:
    """A run in a process of its own."""
    process = FORK.Process(target=make, args=(config, folder, choose_runners(config, ray=False), display))
    process.start()
    return process


def test_a_run_that_is_killed_again_and_again_ends_in_the_same_bytes(
    made: Path, config: Config, tmp_path: Path
):
    folder, rng, kills = tmp_path / "set", random.Random(0), 0
    while not folder.exists() or work(folder).exists():
        process, target = start(config, folder), units_done(folder) + rng.choice((0, 1, 2))
        while process.is_alive() and units_done(folder) < target:
            time.sleep(0.002)
        process.join(rng.uniform(0, 0.1))
        process.kill()
        process.join()
        assert process.exitcode in (0, -signal.SIGKILL)
        kills += process.exitcode == -signal.SIGKILL
        assert kills < 100
    assert kills >= 3  # how many there are is a matter of the machine's speed
    assert files(folder) == files(made)


class Killed(Display):
    """Kills the process when so much of a stage is done."""

    def __init__(self, stage: str, after: int) -> None:
        super().__init__(Console(file=io.StringIO()), every=float("inf"))
        self.at, self.left = stage, after

    @contextmanager
    def stage(self, name: str, total: int, done: int, unit: str) -> Generator[Callable[[str], None]]:
        def advance(note: str) -> None:
            if name == self.at:
                self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            inner(note)

        with super().stage(name, total, done, unit) as inner:
            yield advance


def test_a_run_with_a_writer_can_be_killed_in_every_stage(
    models: dict[str, str],
    tmp_path: Path,
    server: Server,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(pipeline, "BLOCK", 2)
    config = configure(models, asking(server, tmp_path))
    make(config, tmp_path / "unbroken", choose_runners(config, ray=False), QUIET)
    folder = tmp_path / "set"
    for stage in ("instructions", "repetitions", "pairs", "shards"):
        for after in (1, 2):
            process = start(config, folder, Killed(stage, after))
            process.join()
            assert process.exitcode == -signal.SIGKILL and not folder.exists(), (stage, after)
    process = start(config, folder)
    process.join()
    assert process.exitcode == 0
    assert files(folder) == files(tmp_path / "unbroken")


@pytest.fixture
def small_disk(tmp_path: Path) -> Generator[Callable[[str], Path]]:
    """mount(size): a disk of that size; called again, the same disk with another size."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(size: str) -> Path:
        options = ["-o", f"remount,size={size}" if place.is_mount() else f"size={size}"]
        found = subprocess.run(["mount", "-t", "tmpfs", *options, "tmpfs", place], capture_output=True)
        if found.returncode:
            pytest.skip(f"cannot mount a small disk: {found.stderr.decode().strip()}")
        return place

    yield mount
    if place.is_mount():
        subprocess.run(["umount", place], check=True)


def command_line(words: Sequence[str], output: Path, limit: int | None) -> None:
    """In a process of its own: files of at most `limit` bytes."""
    os.dup2(os.open(output, os.O_CREAT | os.O_WRONLY | os.O_TRUNC), 2)
    sys.stderr = os.fdopen(2, "w", buffering=1)
    if limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    main(words)


def run_command(words: Sequence[str], output: Path, limit: int | None = None) -> tuple[int, str]:
    """Exit code, and what it said on standard error besides its progress."""
    process = FORK.Process(target=command_line, args=(words, output, limit))
    process.start()
    process.join()
    assert process.exitcode is not None
    said = [line for line in output.read_text().splitlines() if not line.startswith("pairs: ")]
    return process.exitcode, "\n".join(said)


def test_a_full_disk_stops_it_with_one_line_and_nothing_corrupt(
    made: Path, config: Config, tmp_path: Path, small_disk: Callable[[str], Path]
):
    folder = small_disk("300k") / "set"
    words = ["data", "make", str(toml(config, tmp_path / "config.toml")), "-o", str(folder)]
    for size in ("300k", "450k", "600k"):
        small_disk(size)
        code, said = run_command(words, tmp_path / "said")
        assert code == 1 and said.startswith("wordbrush: ") and "\n" not in said
        assert "No space left on device" in said
        assert not folder.exists() and not list(folder.parent.rglob("*.tmp"))
    assert units_done(folder) > 0
    small_disk("64m")
    assert run_command(words, tmp_path / "said")[0] == 0
    assert files(folder) == files(made)


def test_a_shard_that_cannot_be_written_leaves_the_units_as_they_are(
    made: Path, config: Config, tmp_path: Path
):
    folder = tmp_path / "set"
    words = ["data", "make", str(toml(config, tmp_path / "config.toml")), "-o", str(folder)]
    code, said = run_command(words, tmp_path / "said", limit=40_000)  # a unit has room, the shard has not
    assert code == 1 and "\n" not in said and "train-00000.parquet: cannot be written" in said
    assert units_done(folder) == 24 and not folder.exists()
    assert run_command(words, tmp_path / "said")[0] == 0
    assert files(folder) == files(made)


def test_only_one_process_works_in_a_folder(config: Config, tmp_path: Path):
    work(tmp_path / "set").mkdir()
    with (
        FileLock(work(tmp_path / "set") / "lock"),
        pytest.raises(UsageError, match="another process is working in"),
    ):
        make(config, tmp_path / "set", choose_runners(config, ray=False), QUIET)


def test_a_folder_of_something_else_is_refused(made: Path, config: Config, tmp_path: Path):
    runners = choose_runners(config, ray=False)
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "letter.txt").write_text("dear")
    for folder in (tmp_path / "set", tmp_path / "set" / "letter.txt"):
        with pytest.raises(UsageError, match="is not of this command"):
            make(config, folder, runners, QUIET)
        assert not work(folder).exists()
    other = config.model_copy(update={"pairs": config.pairs.model_copy(update={"steps": 5})})
    with pytest.raises(UsageError, match=r"another pairs\.steps: choose another folder"):
        make(other, made, runners, QUIET)
    make(
        config.model_copy(update={"engine": config.engine.model_copy(update={"workers": 7})}),
        made,
        runners,
        QUIET,
    )


def test_other_contents_of_the_same_file_are_noticed(made: Path, config: Config, tmp_path: Path):
    path = tmp_path / "triplets.jsonl"
    write_triplets(path, triplets())
    here = config.model_copy(update={"triplets": config.triplets.model_copy(update={"path": path})})

    def stop(build: Build, records: Sequence[Record]) -> Iterator[Record]:
        raise WordbrushError("enough")

    for wanted in ("enough", "another contents"):
        with pytest.raises(WordbrushError, match=wanted):
            make(here, tmp_path / "set", Runners(stop, stop), QUIET)
        write_triplets(path, triplets()[1:])


def test_a_worker_has_a_gpu_where_there_are_gpus_and_else_its_threads():
    for device, gpus, count in (
        ("auto", 3, 3),
        ("auto", 0, 4),
        ("cpu", 3, 4),
        ("cuda", 2, 2),
        ("cuda", 0, 1),
    ):
        assert Workers(None, 2, device).counted(gpus, 8) == count
        assert Workers(5, 2, device).counted(gpus, 8) == 5
    assert Workers(None, 9, "cpu").counted(0, 8) == 1


def test_when_nothing_passes_it_says_so(config: Config, tmp_path: Path):
    strict = config.model_copy(
        update={
            "filter": Thresholds(clip_sim_dir=0.999),
            "triplets": config.triplets.model_copy(update={"count": 2}),
        }
    )
    with pytest.raises(
        WordbrushError, match=r"no pair .*: 6 at clip_sim_dir; .*clip_sim_dir .*best .* lower"
    ):
        make(strict, tmp_path / "set", choose_runners(strict, ray=False), QUIET)


def record(sim_dir: Sequence[float], pictures: Sequence[int]) -> Record:
    """Pairs with these scores; equal numbers are equal pictures."""
    one = {n: np.random.default_rng(n).integers(0, 255, (2, 16, 16, 3), dtype=np.uint8) for n in pictures}
    columns = {name: [0.9] * len(sim_dir) for name in SCORES} | {"clip_sim_dir": list(sim_dir)}
    drawn = {name: list(range(len(sim_dir))) for name in ("seed", "p2p_threshold", "guidance_scale")}
    return {"unit": "0000001"} | columns | drawn | {"pixels": np.stack([one[n] for n in pictures])}


def test_the_filter_keeps_the_best_and_of_those_alike_only_one():
    found = FilterPairs(Thresholds(keep=3))(record([0.3, 0.1, 0.5, 0.9, 0.4, 0.6], [0, 1, 2, 3, 3, 3]))
    assert found["seed"] == [3, 2, 0] and found["clip_sim_dir"] == [0.9, 0.5, 0.3]
    assert len(found["pixels"]) == 3
    funnel = Funnel.from_json(found["funnel"])
    assert found["draws"]["fate"] == ["kept", "clip_sim_dir", "kept", "kept", "surplus", "surplus"]
    assert found["draws"]["clip_sim_dir"] == [0.3, 0.1, 0.5, 0.9, 0.4, 0.6]
    assert (funnel.drawn, funnel.failed["clip_sim_dir"], funnel.surplus, funnel.kept) == (6, 1, 2, 3)
    nothing = FilterPairs(Thresholds())(record([0.1, 0.0], [0, 1]))
    assert len(nothing["pixels"]) == 0 and Funnel.from_json(nothing["funnel"]).kept == 0


def test_triplets_are_checked(config: Config, models: dict[str, str], tmp_path: Path):
    rows = [
        *triplets()[:3],
        Triplet(caption="a bird", edit="keep it", output="A bird."),
        Triplet(caption="a nude", edit="make it night", output="a nude at night"),
        triplets()[0],
    ]
    write_triplets(tmp_path / "some.jsonl", rows)
    config = configure(models, {"source": "file", "path": tmp_path / "some.jsonl"})
    found = make(config, tmp_path / "set", choose_runners(config, ray=False), QUIET)
    assert found.triplets == {
        "kept": 3,
        "unchanged: both captions are the same": 1,
        "unsafe: nude": 1,
        "duplicate: the same texts": 1,
    }


def test_what_means_the_same_is_a_repetition_to_a_sentence_encoder(models: dict[str, str], tmp_path: Path):
    rows = [
        Triplet(caption="a dog in the park", edit="make it night", output="a dog in the park at night"),
        Triplet(caption="in the park a dog", edit="night make it", output="at night in the park a dog"),
        Triplet(caption="a dog in the park", edit="make it a cat", output="a cat in the park"),
    ]
    write_triplets(tmp_path / "triplets.jsonl", rows)
    source = {"source": "file", "path": str(tmp_path / "triplets.jsonl"), "likeness": 0.999}
    encoder = save_sentence_encoder(tmp_path / "encoder")
    runners = choose_runners(configure(models, source), ray=False).instructions
    for number, (name, kept) in enumerate(((None, [0, 1, 2]), (encoder, [0, 2]))):
        config = configure(models, source | {"sentence_encoder": name})
        (tmp_path / str(number)).mkdir()
        units = list_units(config, tmp_path / str(number), runners, QUIET)
        assert [unit.edit for unit in units.units] == [rows[i].edit for i in kept]
        assert (encoder in identity(config)["contents"]) == (name == encoder)
    assert units.triplets["duplicate: nearly the same texts"] == 1


def test_the_storybook_gives_triplets_of_its_own():
    settings = StorybookTriplets(source="storybook", count=40, operations=("time", "replace"))
    drawn = list(storybook_triplets(settings))
    assert drawn == list(storybook_triplets(settings)) and len(drawn) == 40
    assert {triplet.task for triplet in drawn} == {"local", "global"}
    assert drawn[:7] == list(storybook_triplets(settings.model_copy(update={"count": 7})))


WITH_DOGS = ("child", "violin", "red car", "boat", "cup", "tree")


def asking(server: Server, folder: Path, **endpoint: Any) -> dict[str, Any]:  # noqa: F811
    """Triplets of six captions, by an endpoint."""
    (folder / "captions.txt").write_text("".join(f"a {name} with a dog\n" for name in WITH_DOGS))
    return {
        "source": "writer",
        "captions": str(folder / "captions.txt"),
        "count": 6,
        "language": "",
        "endpoint": {"model": "m", "base_url": server.url} | endpoint,
    }


def test_a_writer_goes_on_where_it_was(
    models: dict[str, str],
    tmp_path: Path,
    server: Server,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(pipeline, "BLOCK", 4)
    config = configure(models, asking(server, tmp_path, input_price=10, output_price=20))
    runners = choose_runners(config, ray=False)

    def killed(build: Build, records: Sequence[Record]) -> Iterator[Record]:
        yield build()(records[0])
        raise WordbrushError("killed")

    with pytest.raises(WordbrushError, match="killed"):
        make(config, tmp_path / "set", Runners(killed, runners.pairs), QUIET)
    made = make(config, tmp_path / "set", runners, QUIET)
    assert set(server.counts().values()) == {1} and len(server.requests) == 6  # no caption was asked twice
    assert made.captions == {"kept": 6} and made.triplets == {"kept": 6}
    assert made.usage == Usage(600, 120, pytest.approx((600 * 10 + 120 * 20) / 1e6))
    assert "endpoint: 600 tokens read, 120 written, cost 0.01" in made.as_text().splitlines()
    about = json.loads((tmp_path / "set" / "run.json").read_text())
    assert about["usage"] == {"input_tokens": 600, "output_tokens": 120, "cost": made.usage.cost}
    assert [row.edit for row in read_triplets(tmp_path / "set" / "triplets.jsonl")] == ["make it a cat"] * 6


def test_after_a_server_that_was_set_up_wrongly_is_mended_the_same_command_goes_on(
    models: dict[str, str],
    tmp_path: Path,
    server: Server,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(pipeline, "BLOCK", 4)
    config, folder = configure(models, asking(server, tmp_path)), tmp_path / "set"
    runners = choose_runners(config, ray=False)
    server.answer = lambda _: (400, {}, '{"error": {"message": "no guided decoding"}}')
    with pytest.raises(EndpointError, match="no guided decoding"):
        make(config, folder, runners, QUIET)
    assert not list(work(folder).rglob("0*.json")) and not (work(folder) / "units.json").exists()
    assert not (work(folder) / "written" / "journal.jsonl").read_bytes()
    server.answer = edits
    assert make(config, folder, runners, QUIET).triplets == {"kept": 6}


def test_without_triplets_it_says_where_they_went_and_keeps_no_empty_list(
    models: dict[str, str],
    tmp_path: Path,
    server: Server,  # noqa: F811
):
    config = configure(models, asking(server, tmp_path))
    server.answer = lambda _: chat("I am sorry")
    for _ in range(2):
        with pytest.raises(
            UsageError, match=r"captions: 6 kept; triplets: 0 kept, 6 malformed: not the JSON"
        ):
            list_units(config, tmp_path, choose_runners(config, ray=False).instructions, QUIET)
        assert not (tmp_path / "units.json").exists() and len(server.requests) == 6 * 4


def test_runs_may_share_a_journal_and_one_goes_on_with_it_elsewhere(
    models: dict[str, str],
    tmp_path: Path,
    server: Server,  # noqa: F811
):
    shared, told = asking(server, tmp_path, journal=str(tmp_path / "answers" / "all.jsonl")), io.StringIO()
    found = []
    for name, pairs in (("one", {}), ("two", {"samples": 5})):
        config = configure(models, shared, pairs=pairs)
        (tmp_path / name).mkdir()
        run = choose_runners(config, ray=False).instructions
        found.append(list_units(config, tmp_path / name, run, Display(Console(file=told), every=0)))
    assert len(server.requests) == 6 and found[0] == found[1]
    assert found[1].usage == Usage(600, 120, 0.0) and "; 600 tokens read, 120 written" in told.getvalue()
    assert not list(tmp_path.rglob("journal.jsonl"))
    assert identity(config) == identity(configure(models, asking(server, tmp_path), pairs=pairs))


def test_a_dry_run_tells_what_it_takes_and_leaves_nothing(
    made: Path, config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = toml(config, tmp_path / "config.toml", price_per_hour=3600.0)
    with pytest.raises(SystemExit) as exit_:
        main(["data", "make", str(path), "-o", str(tmp_path / "set"), "--dry-run"])
    said = capsys.readouterr().out
    assert exit_.value.code == 0 and list(tmp_path.iterdir()) == [path]
    assert "units   24, of 3 pairs each" in said and "Measured" in said
    assert all(f"\n{name} " in said for name in ("rows", "time", "memory", "disk", "cost"))


def test_an_estimate_is_of_the_right_size(made: Path, config: Config):
    from wordbrush.datagen.estimate import estimate

    found = estimate(config)
    stored = [row.size for row in read_rows(open_parts(made))]
    assert found.units == 24 and (found.measured, found.funnel.drawn) == (8, 24)
    assert found.rows == pytest.approx(len(stored), rel=0.5)
    assert found.disk_bytes == pytest.approx(2 * sum(stored), rel=0.5)
    assert found.hours == pytest.approx(24 * found.unit_seconds / 3600)


def test_without_a_terminal_there_are_lines():
    told = io.StringIO()
    with Display(Console(file=told, width=20), every=0).stage("pairs", 10, 4, "units") as advance:
        advance("2 kept")
        advance("3 kept")
    first, second = told.getvalue().splitlines()
    assert first.startswith("pairs: 5 of 10 units, ") and first.endswith("left; 2 kept")
    assert second.startswith("pairs: 6 of 10 units, ")


def engine(config: Config, folder: Path, *words: str, **options: Any) -> subprocess.Popen[Any]:
    """`wordbrush data make` with two workers, in a process group of its own."""
    path = toml(config, folder.with_name(f"{folder.name}.toml"), workers=2)
    command = [sys.executable, "-m", "wordbrush", "data", "make", str(path), "-o", str(folder), *words]
    return subprocess.Popen(command, start_new_session=True, **options)


def wait_until(condition: Callable[[], Any], process: subprocess.Popen[bytes]) -> Any:
    end = time.monotonic() + 900
    while not (found := condition()):
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.005)
    return found


def slowed(config: Config) -> Config:
    """With so much to do in a unit that a kill comes in between."""
    return config.model_copy(update={"pairs": config.pairs.model_copy(update={"samples": 12, "steps": 8})})


@pytest.fixture(scope="module")
def slowly_made(tmp_path_factory: pytest.TempPathFactory, config: Config) -> Path:
    folder = tmp_path_factory.mktemp("slow") / "set"
    make(slowed(config), folder, choose_runners(config, ray=False), QUIET)
    return folder


@pytest.mark.long
def test_a_killed_worker_is_replaced_and_workers_end_with_a_killed_driver(
    slowly_made: Path, config: Config, tmp_path: Path
):
    folder = tmp_path / "set"
    process = engine(slowed(config), folder)
    driver = psutil.Process(process.pid)

    def workers() -> list[psutil.Process]:
        return [child for child in driver.children() if "spawn_main" in " ".join(child.cmdline())]

    wait_until(lambda: units_done(folder) >= 2 and len(workers()) == 2, process)
    workers()[0].kill()
    done = units_done(folder)
    wait_until(lambda: units_done(folder) >= done + 3 and len(workers()) == 2, process)
    left = workers()
    process.kill()
    process.wait()
    assert not psutil.wait_procs(left, timeout=60)[1]
    assert 5 <= units_done(folder) < 24 and not folder.exists()
    assert engine(slowed(config), folder).wait() == 0
    assert files(folder) == files(slowly_made)


@pytest.mark.long
def test_two_workers_are_killed_at_random_and_so_is_their_driver(
    slowly_made: Path, config: Config, tmp_path: Path
):
    folder, rng, killed = tmp_path / "set", random.Random(1), Counter[str]()
    while not folder.exists() or work(folder).exists():
        process = engine(slowed(config), folder)
        while process.poll() is None:
            target = units_done(folder) + rng.choice((1, 2, 3))
            while process.poll() is None and units_done(folder) < target:
                time.sleep(0.005)
            time.sleep(rng.uniform(0, 0.3))
            if process.poll() is None:
                driver = psutil.Process(process.pid)
                family = [*driver.children(), driver]
                victim = rng.choice(family)
                killed["driver" if victim.pid == process.pid else "child"] += 1
                victim.kill()
        assert process.returncode in (
            0,
            1,
            -signal.SIGKILL,
        )  # 1: two workers in a row before anything was done
        assert killed.total() < 100
    assert min(killed["driver"], killed["child"]) >= 1 and killed.total() >= 5
    assert files(folder) == files(slowly_made)


@pytest.mark.long
def test_on_a_ray_cluster_a_killed_worker_is_replaced(slowly_made: Path, config: Config, tmp_path: Path):
    pytest.importorskip("ray")
    folder = tmp_path / "set"
    process = engine(slowed(config), folder, "--ray")
    driver = psutil.Process(process.pid)

    def actors() -> list[psutil.Process]:
        found = driver.children(recursive=True)
        return [child for child in found if "_Actor" in " ".join(child.cmdline())]

    wait_until(lambda: units_done(folder) >= 2 and len(actors()) >= 2, process)
    actors()[0].kill()
    assert units_done(folder) < 24
    assert process.wait() == 0
    assert files(folder) == files(slowly_made)


@pytest.mark.long
def test_on_ray_too_a_failure_is_one_line(config: Config, tmp_path: Path):
    pytest.importorskip("ray")
    lost = {"pairs": config.pairs.model_copy(update={"model": str(tmp_path / "lost")})}
    process = engine(
        config.model_copy(update=lost), tmp_path / "set", "--ray", stderr=subprocess.PIPE, text=True
    )
    _, said = process.communicate()
    *before, last = said.splitlines()
    assert process.returncode == 1 and last.startswith("wordbrush: no model ")
    assert all("core_worker.cc" in line for line in before)  # Ray's own, which no setting silences


@pytest.mark.long
def test_a_killed_driver_of_ray_goes_on(slowly_made: Path, config: Config, tmp_path: Path):
    pytest.importorskip("ray")
    folder = tmp_path / "set"
    process = engine(slowed(config), folder, "--ray")
    wait_until(lambda: units_done(folder) >= 3, process)
    process.kill()
    process.wait()
    assert not folder.exists()
    assert engine(slowed(config), folder, "--ray").wait() == 0
    assert files(folder) == files(slowly_made)
