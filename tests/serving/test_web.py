"""The page's server and its knobs."""

from pathlib import Path

import pytest

import wordbrush
from tests.serving import studios
from wordbrush.cli import main
from wordbrush.editors import METHODS, Method
from wordbrush.editors.settings import InstructPix2PixSettings
from wordbrush.languages.tables import TableTranslator
from wordbrush.serving import web
from wordbrush.serving.knobs import offered, read_knobs, shown
from wordbrush.serving.menu import Menu


def test_a_taken_port_is_one_clear_line_and_only_this_computer_is_let_in(tiny_checkpoint: Path):
    with studios.running(tiny_checkpoint) as (url, _):
        assert url.startswith("http://127.0.0.1:")
        port = int(url.rstrip("/").rpartition(":")[2])
        with pytest.raises(wordbrush.WordbrushError, match="another --port"):
            web.serve(studios.menu(tiny_checkpoint), port=port)


@pytest.mark.parametrize("method", METHODS.values(), ids=lambda method: method.name)
def test_knobs_show_settings_and_give_them_back(method: Method):
    settings = method.settings()
    read = read_knobs(method, shown(method, settings))
    assert read == {control.name: getattr(settings, control.name) for control in offered(method)}
    assert not any(control.local for control in offered(method))


def test_what_a_visitor_may_choose_is_on_the_menu(tiny_checkpoint: Path):
    menu = studios.menu(tiny_checkpoint, steps=2)
    assert menu.models == [tiny_checkpoint.name]
    assert menu.defaults(menu.models[0], "instruct-pix2pix") == InstructPix2PixSettings(steps=2)
    for wrong in ((str(tiny_checkpoint), "instruct-pix2pix"), (menu.models[0], "sdedit")):
        with pytest.raises(wordbrush.UsageError):
            menu.editor(*wrong)


def test_the_command_loads_what_the_first_visitor_would_wait_for(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
):
    warmed: list[TableTranslator] = []
    menus: list[Menu] = []
    monkeypatch.setattr(TableTranslator, "warm_up", lambda translator: warmed.append(translator))
    monkeypatch.setattr(web, "serve", lambda menu, **_: menus.append(menu))
    for flags in ([], ["--translator", "off"]):
        with pytest.raises(SystemExit, match="0"):
            main(["ui", "--model", str(tiny_checkpoint), *flags])
    assert len(warmed) == 1
    assert all(menu.models == [tiny_checkpoint.name] for menu in menus)
