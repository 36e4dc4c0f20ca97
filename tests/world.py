"""The storybook world as fixtures, for the tests of all that is made from it."""

import pytest

from wordbrush.storybook.render import Renderer
from wordbrush.storybook.sprites import SpriteLibrary, SpritesError


@pytest.fixture(scope="session")
def sprites() -> SpriteLibrary:
    """Fetched from npm once, then from the cache (`WORDBRUSH_CACHE`)."""
    try:
        return SpriteLibrary.load()
    except SpritesError as error:
        pytest.skip(f"the npm registry gives no sprites: {error}")


@pytest.fixture(scope="session")
def render(sprites: SpriteLibrary) -> Renderer:
    """At 128 px."""
    return Renderer(sprites)
