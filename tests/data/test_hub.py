"""Fetching and uploading over real HTTP, against a small server."""

import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import DatasetCard

from tests.data.edits import rows
from tests.data.hub_server import REPO, Client, Hub
from wordbrush.data.hub import KNOWN, get, push
from wordbrush.data.rows import DataError
from wordbrush.data.shards import write_card, write_shards
from wordbrush.data.staging import stage
from wordbrush.errors import UsageError

CHUNK = 10 << 20  # what the hub's client writes at once


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    shard = random.Random(0).randbytes(CHUNK * 5 // 2)
    server = Hub({"README.md": b"# Edits", "data/train-00000.parquet": shard})
    yield server
    server.close()


@pytest.fixture(scope="module")
def data(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    client = Client(hub, str(tmp_path_factory.mktemp("home")), HF_HUB_OFFLINE="0")
    yield client
    client.close()


@pytest.fixture(scope="module")
def offline(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    client = Client(hub, str(tmp_path_factory.mktemp("home")), HF_HUB_OFFLINE="1", HF_TOKEN="hf_secret")
    yield client
    client.close()


def test_a_broken_download_goes_on(hub: Hub, data: Client, tmp_path: Path):
    words = ("get", REPO, "--out", str(tmp_path / "edits"))
    hub.faults = [CHUNK + 100, 0]
    code, out, err = data(*words)
    assert (code, out, hub.faults) == (1, "", [])
    assert err.splitlines()[-1].startswith(f"wordbrush: cannot fetch {REPO}: ")
    assert hub.ranges == [None, f"bytes={CHUNK}-"]  # within the file

    hub.asked.clear()
    assert data(*words) == (0, f"{tmp_path / 'edits'}\n", "")
    for name, content in hub.files.items():
        assert (tmp_path / "edits" / name).read_bytes() == content
    assert not [line for line in hub.asked if line.endswith("README.md")]  # with the files that were missing

    hub.asked.clear()
    assert data(*words)[0] == 0
    assert not [line for line in hub.asked if "/resolve/" in line]


def test_what_cannot_be_fetched_is_one_line(data: Client, offline: Client):
    for client, repo in ((data, "owner/none"), (offline, REPO)):
        code, out, err = client("get", repo)
        assert (code, out) == (1, "")
        assert err.startswith(f"wordbrush: cannot fetch {repo}: ") and err.count("\n") == 1


def test_an_upload_sends_the_card_and_the_shards(hub: Hub, data: Client, offline: Client, tmp_path: Path):
    folder = tmp_path / "edits"
    write_shards(folder, "train", rows(4))
    write_card(folder, ["train"], "Edits")
    (folder / "run.json").write_text("{}")
    (folder / "private.txt").write_text("mine")
    for client, hint in ((data, "hf auth login"), (offline, "HF_HUB_OFFLINE")):
        code, out, err = client("push", str(folder), REPO)
        assert (code, out) == (1, "")
        assert hint in err and err.count("\n") == 1 and not hub.uploaded

    code, out, err = data("push", str(folder), REPO, HF_TOKEN="hf_secret")
    assert (code, err) == (0, "")
    assert out.startswith(f"{hub.url}/datasets/{REPO}") and "hf_secret" not in out
    names = ("README.md", "data/train-00000.parquet", "run.json")
    assert hub.uploaded == {name: (folder / name).read_bytes() for name in names}
    assert "Bearer hf_secret" in hub.tokens


def test_an_upload_takes_the_place_of_a_larger_one(hub: Hub, data: Client, tmp_path: Path):
    for name, count in (("large", 6), ("small", 2)):
        write_shards(tmp_path / name, "train", rows(count), shard_bytes=1 if name == "large" else 1 << 20)
        write_card(tmp_path / name, ["train"], name)
    (tmp_path / "large/triplets.jsonl").write_text("{}\n")
    hub.uploaded["notes.txt"] = b"mine"
    assert data("push", str(tmp_path / "large"), REPO, HF_TOKEN="hf_secret")[0] == 0
    assert "data/train-00005.parquet" in hub.uploaded and "triplets.jsonl" in hub.uploaded

    words = "push", str(tmp_path / "small"), REPO, "--license", "cc-by-4.0"
    assert data(*words, HF_TOKEN="hf_secret")[0] == 0
    assert set(hub.uploaded) == {"README.md", "data/train-00000.parquet", "notes.txt"}
    shard = tmp_path / "small/data/train-00000.parquet"
    assert hub.uploaded["data/train-00000.parquet"] == shard.read_bytes()
    uploaded = DatasetCard(hub.uploaded["README.md"].decode())
    own = DatasetCard.load(tmp_path / "small/README.md")
    assert uploaded.data.to_dict() == own.data.to_dict() | {"license": "cc-by-4.0"}
    assert uploaded.text == own.text


def test_no_path_of_this_machine_is_uploaded(tmp_path: Path):
    write_shards(tmp_path / "edits", "train", rows(1))
    write_card(tmp_path / "edits", ["train"], "Edits")
    triplets = {"path": "/home/me/secret/rows.jsonl", "count": 3, "sentence_encoder": "owner/encoder"}
    pairs = {"model": "../secret/sd/model", "clip": "secret/clip/model", "scheduler": "euler-a"}
    grounded = {"grounder": "secret/dino+facebook/sam-vit-base", "depth": r"C:\secret\depth"}
    contents = dict.fromkeys(
        (triplets["path"], pairs["model"], pairs["clip"], "secret/dino", "storybook"), "1f"
    )
    made_from = {"triplets": triplets, "pairs": pairs, "grounded": grounded, "contents": contents}
    (tmp_path / "edits/run.json").write_text(json.dumps({"made_from": made_from, "rows": 1}))
    stage(tmp_path / "edits", tmp_path / "staged")
    text = (tmp_path / "staged/run.json").read_text()
    assert "secret" not in text
    found = json.loads(text)["made_from"]
    assert found["triplets"] == triplets | {"path": "rows.jsonl"}
    assert found["pairs"] == {"model": "model", "clip": "model (2)", "scheduler": "euler-a"}
    assert found["grounded"] == {"grounder": "dino+facebook/sam-vit-base", "depth": "depth"}
    assert list(found["contents"]) == ["rows.jsonl", "model", "model (2)", "dino", "storybook"]

    (tmp_path / "edits/run.json").write_text("[]")
    with pytest.raises(DataError, match=r"run\.json is damaged"):
        stage(tmp_path / "edits", tmp_path / "again")


def test_the_list_says_what_is_for_evaluation_only(data: Client):
    code, out, _ = data("get")
    marked = [line.split(":")[0] for line in out.splitlines() if line.endswith("evaluation only")]
    assert code == 0 and marked == ["facebook/emu_edit_test_set", "bahjat-kawar/tedbench"]


def test_names_are_checked_before_anything_is_asked(tmp_path: Path):
    for wrong in ("nowhere", "a/b/c", "../..", "https://huggingface.co/a/b"):
        with pytest.raises(UsageError, match="MagicBrush"):
            get(wrong)
        with pytest.raises(UsageError, match="OWNER/NAME"):
            push(tmp_path, wrong)
    with pytest.raises(DataError, match="convert"):
        push(tmp_path, "a/b")
    assert all(known.count("/") == 1 for known in KNOWN)
