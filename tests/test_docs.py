"""What the pages promise: links lead somewhere, commands and flags exist, snippets compile, names exist."""

import ast
import importlib
import re
import runpy
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

import wordbrush.cli
from wordbrush.tasks import TASKS

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?<!`)\[[^\]]*\]\(([^)\s]+)\)")
SPAN = re.compile(r"`(wordbrush [^`]+)`")


TABLES = runpy.run_path(str(ROOT / "docs" / "tables.py"))


def blocks(page: Path, language: str) -> Iterator[str]:
    return (text for kind, text in FENCE.findall(page.read_text(encoding="utf-8")) if kind == language)


def commands() -> Iterator[tuple[str, str]]:
    """Every command line of the pages: those in plain blocks, and the inline ones."""
    for page in PAGES:
        lines = [line for block in blocks(page, "") for line in block.replace("\\\n", " ").splitlines()]
        lines += SPAN.findall(FENCE.sub("", page.read_text(encoding="utf-8")))
        for line in lines:
            if re.match(r"(\$ |\.venv/bin/)?wordbrush ", line):
                yield page.name, line


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path):
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    for target in LINK.findall(text) + re.findall(r'(?:src|href)="([^"]+)"', text):
        if re.match(r"https?:|mailto:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists(), f"{page.name} links to {target}"
        assert not anchor or anchor in anchors(file), f"{page.name} links to {target}"


def test_there_are_commands_to_check():
    assert len(list(commands())) > 10


@pytest.mark.parametrize(("page", "line"), sorted(set(commands())))
def test_commands_and_flags_exist(page: str, line: str):
    words = shlex.split(re.sub(r"[\[\]]", "", line).replace(" ...", "").replace("...", ""), comments=True)[1:]
    command: Any = get_command(wordbrush.cli.app)
    context: Any = command.context_class(command, info_name="wordbrush")
    while hasattr(command, "commands") and words and not words[0].startswith("-"):
        name, *words = words
        assert name in command.commands, f"no command {name!r} in {line!r}"
        command = command.commands[name]
        context = command.context_class(command, info_name=name, parent=context)
    if not hasattr(command, "commands"):
        command.make_parser(context).parse_args(words)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_snippets_compile_and_import_what_exists(page: Path):
    for block in blocks(page, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("wordbrush"):
                module = importlib.import_module(node.module)
                assert all(hasattr(module, alias.name) for alias in node.names), ast.unparse(node)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_dotted_names_exist(page: Path):
    text = page.read_text(encoding="utf-8")
    for name in set(re.findall(r"`(wordbrush(?:\.\w+)+)`", text)) - {"wordbrush.json"}:
        module, _, attribute = name.rpartition(".")
        assert hasattr(importlib.import_module(module), attribute), f"{page.name} names {name}"


def test_the_readme_shows_the_table_of_a_command():
    tables = TABLES["blocks"]((ROOT / "README.md").read_text(encoding="utf-8"))
    table = tables["out/evaluate-storybook/table.md"]
    rows = [line.split(" | ") for line in table.splitlines() if line.startswith("| ")]
    assert len(rows) > 10 and {len(row) for row in rows} == {4}
    for row in rows[2:]:
        assert int(row[1]) > 0 and all(re.match(r"\d+\.\d % \(\d+\.\d - \d+\.\d\)", cell) for cell in row[2:])
    assert "`wordbrush evaluate storybook --num " in table


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_tables_are_whole(page: Path):
    for table in TABLES["blocks"](page.read_text(encoding="utf-8")).values():
        assert re.match(r"\| |### .+\n\n\| ", table) and table.endswith("\n")


def test_the_page_of_tasks_lists_them():
    page = (ROOT / "docs" / "tasks.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `(\w+)` \| ([\w-]+) \| (.+?) \|", page, re.MULTILINE)
    assert listed == [(name, task.group, task.description) for name, task in TASKS.items()]


def test_a_page_gets_the_tables_and_pictures_that_there_are(tmp_path: Path):
    page, table = tmp_path / "page.md", tmp_path / "table.md"
    block = "<!-- table: {} -->\n{}<!-- end of table -->\n"
    page.write_text(
        "# Page\n" + block.format("table.md", "") + "between\n" + block.format("none.md", "| old |\n")
    )
    for text in (
        "| a |\n| --- |\n| \\\\1 |\n",
        "| b |\n",
    ):  # nothing in it is taken for a group of the pattern
        table.write_text(text)
        for _ in range(2):
            assert TABLES["refresh"](page, tmp_path) == [
                "page.md: table.md", "page.md: no none.md, its table stays as it is"
            ]  # fmt: skip
            assert TABLES["blocks"](page.read_text()) == {"table.md": text, "none.md": "| old |\n"}
    assert page.read_text().startswith("# Page\n<!--") and "between\n" in page.read_text()
    (tmp_path / "new.svg").write_text("<svg/>")
    page.write_text(
        "".join(f"<!-- picture: {name}.svg -->\n![A]({name}-copy.svg)\n" for name in ("new", "none"))
    )
    said = ["page.md: new.svg", "page.md: no none.svg, its picture stays as it is"]
    assert TABLES["refresh"](page, tmp_path) == said and (tmp_path / "new-copy.svg").read_text() == "<svg/>"
    page.write_text(
        "    <!-- table: table.md -->\n    <!-- picture: new.svg -->\n    ![A](b.svg)\n"
    )  # examples
    assert not TABLES["refresh"](page, tmp_path)
    page.write_text("<!-- table: table.md -->\n")
    with pytest.raises(ValueError, match="other half"):
        TABLES["refresh"](page, tmp_path)
