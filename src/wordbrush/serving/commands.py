"""The commands that serve. Whatever is heavy is imported inside a command."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wordbrush.command_setup import Setup, edits, say
from wordbrush.editing_commands import run_methods
from wordbrush.errors import MissingExtraError
from wordbrush.types import EditRequest

if TYPE_CHECKING:
    from collections.abc import Callable

    from wordbrush.images import Picture
    from wordbrush.progress import Show
    from wordbrush.types import Editor

serving_app = typer.Typer()


@edits(serving_app)
def ui(
    setup: Setup,
    also: Annotated[
        list[str] | None,
        typer.Option(help="Another model that visitors may choose; may be given more than once."),
    ] = None,
    host: Annotated[str, typer.Option(help="0.0.0.0 lets other computers in.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 7860,
) -> None:
    """Show the studio: a page in the browser that edits pictures by words."""
    try:
        from wordbrush.serving.web import serve
    except ModuleNotFoundError as error:
        raise MissingExtraError("the page", "ui") from error
    from wordbrush.editors import find_method
    from wordbrush.editors.settings import make_settings
    from wordbrush.languages import TABLES
    from wordbrush.languages.tables import TableTranslator
    from wordbrush.models import own_settings
    from wordbrush.recipe import Recipe
    from wordbrush.serving.menu import Menu

    recipe = setup.over(Recipe())
    make_settings(find_method(recipe.method).settings, setup.settings)  # says what is wrong before loading

    def load(model: str, method: str) -> "Editor":
        # nothing is kept: a visitor's picture could be made from it again
        return setup.narrowed(method).load(recipe.model_copy(update={"model": model, "method": method}))

    def defaults(model: str, method: str) -> Any:
        given = own_settings(model, method) | setup.narrowed(method).settings
        return make_settings(find_method(method).settings, given)

    menu = Menu([recipe.model, *(also or [])], load, defaults, first=recipe.method)
    # At once: the first visitor need not wait.
    if setup.translator == TABLES:
        TableTranslator.load().warm_up()
    menu.editor(menu.models[0], recipe.method)
    serve(menu, host=host, port=port)


@edits(serving_app)
def serve(
    setup: Setup,
    host: Annotated[str, typer.Option(help="0.0.0.0 lets other computers in.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes any that is free.")] = 8000,
    api_key: Annotated[
        list[str] | None,
        typer.Option(
            envvar="WORDBRUSH_API_KEY",
            help="A key that lets in; may be given more than once. (default: everybody is let in)",
        ),
    ] = None,
    api_keys_file: Annotated[
        Path | None, typer.Option(help="The same, one a line; # begins a remark.")
    ] = None,
    max_queue: Annotated[
        int, typer.Option(min=1, help="Edits that may wait; of several keys, each may have half of them.")
    ] = 100,
    max_batch: Annotated[int, typer.Option(min=1, help="Results that are made together.")] = 4,
    max_disk: Annotated[
        float, typer.Option(min=0.01, help="GiB for uploads and results; the oldest results go first.")
    ] = 10.0,
    time_limit: Annotated[float, typer.Option(min=0.1, help="Seconds that an edit may run.")] = 300.0,
    keep: Annotated[
        float, typer.Option(min=1, help="Seconds that an edit and its results are kept.")
    ] = 3600.0,
    max_pixels: Annotated[int, typer.Option(min=1, help="Of a picture.")] = 25_000_000,
    max_bytes: Annotated[int, typer.Option(min=1024, help="Of a request.")] = 32 * 2**20,
    max_size: Annotated[int, typer.Option(min=8, help="Of the setting --size in a request.")] = 1024,
    cors_origin: Annotated[
        list[str] | None,
        typer.Option(help="Web pages from there may call, such as https://example.org; may be repeated."),
    ] = None,
    folder: Annotated[
        Path | None, typer.Option(help="Where edits wait and results lie. (default: in the user's cache)")
    ] = None,
    replicas: Annotated[
        int,
        typer.Option(min=1, help="Models that work side by side, by Ray Serve, each in memory of its own."),
    ] = 1,
) -> None:
    """Serve edits over HTTP, as jobs and as OpenAI's clients ask for them."""
    try:
        from wordbrush.serving.http import serve as listen
    except ModuleNotFoundError as error:
        raise MissingExtraError("the service", "serve") from error
    from wordbrush.recipe import Recipe
    from wordbrush.serving.jobs import lock_folder
    from wordbrush.serving.service import Keys, Limits
    from wordbrush.serving.starting import default_folder, make_service, read_keys

    keys = [*(api_key or []), *(read_keys(api_keys_file) if api_keys_file else [])]
    if not keys and host not in ("127.0.0.1", "localhost", "::1"):
        say("warning: whoever reaches this address may edit; --api-key lets in only those who have the key")
    recipe = setup.over(Recipe())
    home = default_folder() if folder is None else folder
    lock = lock_folder(home)
    try:
        make = partial(
            make_service,
            setup.load_arguments(recipe),
            translator=setup.translator,
            safety=setup.safety,
            folder=home,
            keys=Keys(keys),
            limits=Limits(max_bytes=max_bytes, max_pixels=max_pixels, max_size=max_size),
            max_queue=max_queue,
            max_disk=int(max_disk * 2**30),
            max_batch=max_batch,
            time_limit=time_limit,
            keep=keep,
        )
        if replicas == 1:
            listen(make(), host=host, port=port, cors_origins=cors_origin or [])
        else:
            _scaled()(make, replicas, host=host, port=port, cors_origins=cors_origin or [])
    finally:
        lock.close()


def _scaled() -> "Callable[..., None]":
    try:
        from wordbrush.serving.scale import serve_replicas
    except ModuleNotFoundError as error:
        raise MissingExtraError("replicas", "scale") from error
    return serve_replicas


@edits(serving_app)
def mcp(
    setup: Setup,
    folder: Annotated[Path, typer.Argument(help="The only folder that is read and written.")],
    host: Annotated[str, typer.Option(help="For HTTP; 0.0.0.0 lets other computers in.")] = "127.0.0.1",
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Serve HTTP here. (default: standard input/output)")
    ] = None,
) -> None:
    """Serve tools for agents (Model Context Protocol): edit, compare, and sessions with undo and branches."""
    try:
        from wordbrush.serving.mcp import build, serve
    except ModuleNotFoundError as error:
        raise MissingExtraError("the tools", "mcp") from error
    from wordbrush.recipe import Recipe

    recipe = setup.over(Recipe())
    setup = setup.keeping_nothing(recipe.method)  # it would be kept outside of the folder

    def compare(
        request: EditRequest, original: "Picture", methods: str | None, out: Path, show: "Show"
    ) -> None:
        run_methods(setup, request, original, methods, "storybook", out, show)

    tools = build(folder, partial(setup.load, recipe), compare, recipe.model)
    serve(tools, host=host, port=port)
