"""The configuration: what it refuses, what of it decides the rows, and that the documentation is of it."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from wordbrush.datagen.config import (
    Config,
    Engine,
    FileTriplets,
    LocalModel,
    StorybookTriplets,
    WrittenTriplets,
    identity,
    read_config,
)
from wordbrush.datagen.endpoint_client import EndpointSettings
from wordbrush.datagen.filters import PREDICATES, Thresholds
from wordbrush.datagen.grounded import GroundedSettings
from wordbrush.datagen.painting import PairSettings
from wordbrush.errors import UsageError

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples/data"
DOCUMENTATION = (ROOT / "docs/data-engine.md").read_text()
TABLES: dict[str, tuple[type[BaseModel], ...]] = {
    "": (Config,),
    "[triplets]": (FileTriplets, StorybookTriplets, WrittenTriplets),
    "[triplets.endpoint]": (EndpointSettings,),
    "[triplets.local]": (LocalModel,),
    "[pairs]": (PairSettings,),
    "[grounded]": (GroundedSettings,),
    "[filter]": (Thresholds,),
    "[engine]": (Engine,),
}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed = ", "cannot read the configuration"),
        ('[triplets]\nsource = "file"', r"triplets\.path: Field required"),
        ('[triplets]\nsource = "storybook"\ncount = 0', r"triplets\.count: Input should be greater"),
        ('[triplets]\nsource = "storybook"\ncount = 2\noperations = ["fly"]', "operations are some of"),
        ('[triplets]\nsource = "writer"\ncaptions = "storybook"\ncount = 3', "either .triplets.endpoint. or"),
        (
            '[triplets]\nsource = "writer"\ncaptions = "storybook"\ncount = 3\nmin_chars = 9\nmax_chars = 8\n'
            "[triplets.local]",
            "min_chars is more than max_chars",
        ),
        ('[triplets]\nsource = "storybook"\ncount = 2\n[pairs]\nstep = 3', r"pairs\.step: Extra inputs"),
        ("[pairs]\nsteps = 3", "triplets: Field required"),
    ],
)
def test_a_wrong_configuration_is_one_line_that_names_the_setting(tmp_path: Path, text: str, message: str):
    (tmp_path / "c.toml").write_text(text)
    with pytest.raises(UsageError, match=message) as caught:
        read_config(tmp_path / "c.toml")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["storybook", "paper"])
def test_the_examples_are_read(name: str):
    assert read_config(EXAMPLES / f"{name}.toml").filter.keep >= 1


def test_how_an_endpoint_is_asked_decides_no_row():
    def asks(**endpoint: Any) -> dict[str, Any]:
        source = {
            "source": "writer",
            "captions": "storybook",
            "count": 9,
            "endpoint": {"model": "m"} | endpoint,
        }
        return identity(Config.model_validate({"triplets": source}))

    slowly: dict[str, Any] = {"concurrency": 1, "requests_per_minute": 9, "timeout": 5, "input_price": 3}
    assert asks(base_url="http://other/v1", patience=60, journal="answers.jsonl", **slowly) == asks()
    for change in ({"model": "n"}, {"num_examples": 3}, {"options": {"temperature": 0}}, {"seed": 1}):
        assert asks(**change) != asks()


def documented() -> dict[str, dict[str, str]]:
    """Table -> setting -> its default, as the documentation has them."""
    found: dict[str, dict[str, str]] = {"": {}}
    table = ""
    for line in DOCUMENTATION.split("## Settings")[1].split("\n## ")[0].splitlines():
        if head := re.match(r"`(\[[\w.]+\])`", line):
            table = head[1]
            found[table] = {}
        elif row := re.match(r"\| ((?:`\w+`(?:, )?)+) \| (.*?) \|", line):
            found[table] |= dict.fromkeys(re.findall(r"\w+", row[1]), row[2].strip("`"))
    return found


def test_the_documentation_has_every_setting_and_its_default():
    found = documented()
    assert list(found) == list(TABLES)
    for table, models in TABLES.items():
        fields = {name: field for model in models for name, field in model.model_fields.items()}
        tables = {"triplets", "pairs", "grounded", "filter", "engine", "endpoint", "local", *PREDICATES}
        assert set(found[table]) == set(fields) - tables
        for name, default in found[table].items():
            value = fields[name].get_default(call_default_factory=True)
            if isinstance(value, (int, float, str)) and not fields[name].is_required():
                assert default == json.dumps(value), name


def test_the_documentation_has_the_thresholds_of_the_example():
    ours = read_config(EXAMPLES / "storybook.toml").filter
    for name in PREDICATES:
        row = re.search(rf"^\| `{name}`: .*? \| (.*?) \| (.*?) \|$", DOCUMENTATION, re.MULTILINE)
        assert row is not None
        assert (float(row[1]), float(row[2])) == (getattr(Thresholds(), name), getattr(ours, name))
