"""The page, over HTTP, as a browser's script would use it."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image

import wordbrush
from tests import tiny
from wordbrush.controls import controls
from wordbrush.editors import find_method
from wordbrush.provenance import read_provenance
from wordbrush.serving import web


@pytest.fixture(scope="module")
def url(tiny_checkpoint: Path) -> Iterator[str]:
    page = web.build(wordbrush.load(tiny_checkpoint, steps=2, dtype="float32"))
    _, address, _ = web.launch(page, host="127.0.0.1", port=None)
    yield address
    page.close(verbose=False)


@pytest.fixture(scope="module")
def client(url: str, tmp_path_factory: pytest.TempPathFactory) -> Client:
    return Client(url, verbose=False, download_files=str(tmp_path_factory.mktemp("downloads")))


@pytest.fixture
def values(tmp_path: Path, picture: Image.Image) -> dict[str, Any]:
    """What `edit` is called with."""
    picture.save(tmp_path / "in.png")
    return {"picture": handle_file(str(tmp_path / "in.png")), "instruction": "make it night", "seed": "3"}


def test_every_setting_has_a_control(client: Client):
    endpoint = client.view_api(return_format="dict", print_info=False)["named_endpoints"]["/edit"]
    names = [parameter["parameter_name"] for parameter in endpoint["parameters"]]
    settings = [control.name for control in controls(wordbrush.InstructPix2PixSettings)]
    assert names == ["picture", "instruction", "seed", *settings]


def test_a_method_by_description_asks_for_its_captions(tmp_path: Path, values: dict[str, Any]):
    tiny.pipeline(in_channels=4).save_pretrained(tmp_path / "model")
    editor = wordbrush.load(tmp_path / "model", "sdedit", steps=2, dtype="float32")
    page = web.build(editor, find_method("sdedit").needs)
    _, address, _ = web.launch(page, host="127.0.0.1", port=None)
    try:
        client = Client(address, verbose=False)
        asked = {"picture": values["picture"], "target_caption": "a panda", "seed": "1"}
        *_, line = client.predict(**asked, api_name="/edit")
    finally:
        page.close(verbose=False)
    assert line.startswith("Seed 1,")


def test_edit_gives_both_pictures_and_a_file_with_its_record(client: Client, values: dict[str, Any]):
    (before, after), file, line = client.predict(**values, text_scale=5, detail="off", api_name="/edit")
    assert Image.open(before).size == Image.open(after).size == (48, 32)
    settings = read_provenance(file)["settings"]
    assert (settings["seed"], settings["text_scale"], settings["detail"]) == (3, 5, False)
    assert (settings["steps"], settings["size"], settings["scheduler"]) == (2, None, None)
    assert line.startswith("Seed 3,")


def test_an_emptied_seed_is_drawn(client: Client, values: dict[str, Any]):
    *_, file, _ = client.predict(**values | {"seed": ""}, api_name="/edit")
    assert read_provenance(file)["settings"]["seed"] >= 0


def test_warnings_are_shown(client: Client, values: dict[str, Any]):
    *_, line = client.predict(**values | {"instruction": "word " * 60}, api_name="/edit")
    assert "dropped" in line


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"instruction": " "}, "needs instruction"),
        ({"seed": "many"}, "whole number"),
        ({"size": "abc"}, "size"),
        ({"scheduler": "magic"}, "euler-a"),
        ({"picture": None}, "picture first"),
    ],
)
def test_mistakes_are_explained(client: Client, values: dict[str, Any], wrong: dict[str, Any], words: str):
    with pytest.raises(AppError, match=words):
        client.predict(**values | wrong, api_name="/edit")


def test_cancel_stops_the_edit(client: Client, values: dict[str, Any]):
    job = client.submit(**values, steps=80, size="128", api_name="/edit")
    while not (job.done() or job.status().progress_data):
        time.sleep(0.05)
    client.predict(api_name="/cancel")
    *_, line = job.result(timeout=120)
    assert line == "Cancelled."


def test_a_taken_port_is_one_clear_line(url: str, tiny_checkpoint: Path):
    port = int(url.rstrip("/").rpartition(":")[2])
    with pytest.raises(wordbrush.WordbrushError, match="another --port"):
        web.serve(wordbrush.load(tiny_checkpoint), port=port)


def test_only_this_computer_is_let_in_by_default(url: str):
    assert url.startswith("http://127.0.0.1:")
