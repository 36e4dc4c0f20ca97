import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import wordbrush
from wordbrush.batch import Batch, BatchReport
from wordbrush.errors import OutputError, UsageError
from wordbrush.images import open_image
from wordbrush.provenance import atomic_file
from wordbrush.types import Editor

MADE_WITH = {"model": "tiny"}


@pytest.fixture(scope="module")
def editor(tiny_checkpoint: Path) -> Editor:
    return wordbrush.load(tiny_checkpoint, steps=1, dtype="float32")


@pytest.fixture
def folder(tmp_path: Path, picture: Image.Image) -> Path:
    picture.save(tmp_path / "in.png")
    return tmp_path


def write_jobs(folder: Path, *rows: dict[str, Any] | str) -> Path:
    path = folder / "jobs.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def results(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]


def test_a_row_whose_picture_has_changed_is_made_again(folder: Path, editor: Editor):
    jobs = write_jobs(folder, {"image": "in.png", "instruction": "a", "seed": 3})
    run(jobs, editor)
    assert run(jobs, editor) == BatchReport(done=0, failed=0, skipped=1)
    Image.new("RGB", (48, 32), "red").save(folder / "in.png")
    assert run(jobs, editor) == BatchReport(done=1, failed=0, skipped=0)
    (folder / "in.png").unlink()
    assert run(jobs, editor) == BatchReport(done=0, failed=0, skipped=1)


def test_what_a_killed_run_left_half_written_is_cleared_away(folder: Path, editor: Editor):
    jobs = write_jobs(folder, {"image": "in.png", "instruction": "a", "seed": 3})
    run(jobs, editor)
    with atomic_file(folder / "out" / "half.png") as file:
        left = Path(file.name)
        shutil.copy(jobs, kept := folder / "out" / left.name.replace("wordbrush-", "wordbrush-0"))
    assert kept.exists()
    run(jobs, editor)
    assert not kept.exists()


def run(jobs: Path, editor: Editor, **made_with: Any) -> BatchReport:
    return Batch(jobs, jobs.parent / "out", made_with=MADE_WITH | made_with).run(lambda: editor)


def test_rows_become_pictures_and_lines(folder: Path, editor: Editor):
    row = {"image": "in.png", "instruction": "a", "seed": 3}
    jobs = write_jobs(folder, row, row | {"num_variations": 2})
    assert run(jobs, editor) == BatchReport(done=2, failed=0, skipped=0)
    out = folder / "out"
    assert [entry["outputs"] for entry in results(out)] == [["000000.png"], ["000001.png", "000001-2.png"]]
    assert results(out)[1]["seeds"] == [3, 4]
    assert open_image(out / "000001.png").image.size == (48, 32)
    assert sorted(path.name for path in out.iterdir()) == [
        "000000.png",
        "000001-2.png",
        "000001.png",
        "results.jsonl",
    ]


def test_failed_rows_are_reported_and_tried_again(folder: Path, editor: Editor):
    good = {"image": "in.png", "instruction": "a", "seed": 0}
    jobs = write_jobs(
        folder,
        good | {"image": "missing.png"},
        "not json",
        good | {"sede": 1},
        good | {"instruction": " "},
        good | {"mask": "missing.png"},
        good,
    )
    assert run(jobs, editor) == BatchReport(done=1, failed=5, skipped=0)
    entries = results(folder / "out")
    assert [entry["status"] for entry in entries] == ["failed"] * 5 + ["done"]
    for entry, word in zip(
        entries, ("missing.png", "row", "sede", "instruction", "missing.png"), strict=False
    ):
        assert word in entry["error"]
        assert "\n" not in entry["error"]
    Image.new("RGB", (9, 9)).save(folder / "missing.png")
    assert run(jobs, editor) == BatchReport(done=1, failed=4, skipped=1)  # the mask is there, of another size
    assert sorted(entry["row"] for entry in results(folder / "out")) == [0, 1, 2, 3, 4, 5]


def test_a_half_line_and_a_deleted_picture_are_done_again(folder: Path, editor: Editor):
    row = {"image": "in.png", "instruction": "a", "seed": 0}
    jobs = write_jobs(folder, row, row, row)
    run(jobs, editor)
    log = folder / "out" / "results.jsonl"
    log.write_bytes(log.read_bytes()[:-20])
    (folder / "out" / "000000.png").unlink()
    assert run(jobs, editor) == BatchReport(done=2, failed=0, skipped=1)
    assert sorted(entry["row"] for entry in results(folder / "out")) == [0, 1, 2]


def test_nothing_is_loaded_when_all_is_done(folder: Path, editor: Editor):
    jobs = write_jobs(folder, {"image": "in.png", "instruction": "a"})
    run(jobs, editor)
    batch = Batch(jobs, folder / "out", made_with=MADE_WITH)
    assert batch.run(lambda: pytest.fail("loaded")) == BatchReport(done=0, failed=0, skipped=1)


def test_rows_can_be_added_but_not_changed(folder: Path, editor: Editor):
    row = {"image": "in.png", "instruction": "a"}
    run(write_jobs(folder, row), editor)
    jobs = write_jobs(folder, row, row)
    assert run(jobs, editor).skipped == 1
    with pytest.raises(UsageError, match="other settings"):
        run(jobs, editor, steps=2)
    with pytest.raises(UsageError, match="other jobs"):
        run(write_jobs(folder, row | {"seed": 1}), editor)


def test_a_folder_of_other_pictures_is_left_alone(folder: Path, editor: Editor):
    (folder / "out").mkdir()
    (folder / "out" / "000000.png").write_bytes(b"precious")
    with pytest.raises(UsageError, match="choose another folder"):
        run(write_jobs(folder, {"image": "in.png", "instruction": "a"}), editor)
    assert (folder / "out" / "000000.png").read_bytes() == b"precious"
    (folder / "out" / "results.jsonl").write_text('{"score": 1}\n')
    with pytest.raises(UsageError, match="not the record"):
        run(write_jobs(folder, {"image": "in.png", "instruction": "a"}), editor)
    assert (folder / "out" / "results.jsonl").read_text() == '{"score": 1}\n'


def test_an_unusable_job_file_or_folder_is_refused(folder: Path, editor: Editor):
    with pytest.raises(UsageError, match="cannot read"):
        run(folder / "none.jsonl", editor)
    with pytest.raises(UsageError, match="no rows"):
        run(write_jobs(folder), editor)
    (folder / "out").write_text("a file")
    with pytest.raises(OutputError, match="cannot make"):
        run(write_jobs(folder, "{}"), editor)


PROGRAM = """
import sys, time
from pathlib import Path
from PIL import ImageOps
from wordbrush.batch import Batch
from wordbrush.types import EditResult

class Inverter:
    def edit(self, request, *, on_step=None):
        time.sleep(0.1)
        return EditResult([ImageOps.invert(request.image)], [request.seed], {"method": "invert"})

jobs = Path(sys.argv[1])
print(Batch(jobs, jobs.parent / "out", made_with={}).run(Inverter))
"""


def test_killed_and_run_again_it_loses_and_repeats_nothing(tmp_path: Path):
    num = 30
    Image.new("RGB", (48, 32), "red").save(tmp_path / "in.png")
    jobs = write_jobs(tmp_path, *({"image": "in.png", "instruction": "a", "seed": k} for k in range(num)))
    out = tmp_path / "out"
    command = [sys.executable, "-c", PROGRAM, str(jobs)]
    process = subprocess.Popen(command)
    log = out / "results.jsonl"
    try:
        while not (log.exists() and log.read_bytes().count(b"\n") >= 3):
            assert process.poll() is None, "it ended before it could be killed"
            time.sleep(0.01)
    finally:
        process.kill()
    assert process.wait() == (-signal.SIGKILL if sys.platform != "win32" else 1)

    lines = log.read_bytes().split(b"\n")[:-1]
    before = {entry["row"]: entry for entry in map(json.loads, lines)}
    times = {row: (out / f"{row:06d}.png").stat().st_mtime_ns for row in before}
    assert 3 <= len(before) < num

    again = subprocess.run(command, capture_output=True, text=True, check=True)
    report = BatchReport(done=num - len(before), failed=0, skipped=len(before))
    assert again.stdout.strip() == str(report)
    after = results(out)
    assert sorted(entry["row"] for entry in after) == list(range(num))
    assert all(entry == before[entry["row"]] for entry in after if entry["row"] in before)
    assert all((out / f"{row:06d}.png").stat().st_mtime_ns == stamp for row, stamp in times.items())
    assert all(
        open_image(out / f"{row:06d}.png").image.getpixel((0, 0)) == (0, 255, 255) for row in range(num)
    )
    names = {path.name for path in out.iterdir()}
    assert names == {f"{row:06d}.png" for row in range(num)} | {"results.jsonl"}
