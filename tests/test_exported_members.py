import subprocess
import sys

import pytest

import wordbrush


def test_everything_in_all_is_there() -> None:
    names = [name for name in wordbrush.__all__ if name != "__version__"]
    assert set(names) == set(wordbrush._HOME)
    for name in names:
        assert name == "METHODS" or getattr(wordbrush, name).__module__.startswith("wordbrush")
    assert dir(wordbrush) == sorted(wordbrush.__all__)


def test_unknown_name() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = wordbrush.nonsense


def test_import_is_light() -> None:
    """The command line shows its help without torch."""
    code = (
        "import sys, wordbrush; wordbrush.load, wordbrush.METHODS, wordbrush.EditRequest;"
        "print([m for m in ('torch', 'diffusers', 'transformers', 'numpy') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
