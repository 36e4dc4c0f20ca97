"""The storybook world as fixtures, for the tests of all that is made from it."""

import pytest

from wordbrush.storybook import dataset
from wordbrush.storybook.render import Renderer
from wordbrush.storybook.sprites import SpriteLibrary, SpritesError


@pytest.fixture(scope="session")
def sprites() -> SpriteLibrary:
    """Fetched from npm once, then from the cache (`WORDBRUSH_CACHE`)."""
    try:
        return SpriteLibrary.load()
    except SpritesError as error:
        pytest.skip(f"the npm registry gives no sprites: {error}")


def make_small_shards(patch: pytest.MonkeyPatch, sprites: SpriteLibrary, count: int) -> None:
    """Shards of `count` edits, rendered in this process and without photographs, which are large to fetch."""
    patch.setattr(dataset, "SHARD", count)
    patch.setattr(dataset, "_in_processes", lambda work, numbers, processes: map(work, numbers))
    patch.setattr(dataset, "_renderer", lambda kind, split, size: Renderer(sprites, size=size))


@pytest.fixture(scope="session")
def render(sprites: SpriteLibrary) -> Renderer:
    """At 128 px."""
    return Renderer(sprites)
