from tests.world import render, sprites  # noqa: F401
