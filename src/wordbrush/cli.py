"""The command line. Whatever is heavy is imported inside a command, so that `--help` is instant."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer

import wordbrush
from wordbrush.command_setup import debugging, later, say
from wordbrush.datagen.commands import data_app
from wordbrush.editing_commands import editing_app
from wordbrush.errors import UsageError, WordbrushError
from wordbrush.evaluation.commands import evaluate_app
from wordbrush.interrupts import noted_interrupts
from wordbrush.serving.commands import serving_app
from wordbrush.training import RECIPES

_CANCELLED = 130  # what a shell reports for a command that Ctrl-C ended

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line, then exit: 0, 2 for a wrong use, 130 after Ctrl-C, 1 for any other failure.

    Args:
        arguments: the words behind the program's name; those of the process by default.
    """
    with noted_interrupts() as interrupted:
        code, message = _run(arguments)
        if interrupted() and code:
            code, message = _CANCELLED, "cancelled"
    if message:
        say(message)
    sys.exit(code)


def _run(arguments: Sequence[str] | None) -> tuple[int, str]:
    """The exit code, and the error's message."""
    try:
        code = app(args=arguments, prog_name="wordbrush", standalone_mode=False)
    except WordbrushError as error:
        return 2 if isinstance(error, UsageError) else 1, str(error)
    except typer.TyperException as error:
        return error.exit_code, error.format_message()
    except KeyboardInterrupt:  # before typer listens
        return _CANCELLED, "cancelled"
    except Exception as error:
        if debugging():
            raise
        return 1, f"{type(error).__name__}: {error} (unexpected; WORDBRUSH_DEBUG=1 shows where)"
    return code or 0, "cancelled" if code == _CANCELLED else ""


def _show_help(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help(), end="")


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    """Edit pictures by words."""
    if version:
        print(wordbrush.__version__)
        raise typer.Exit
    _show_help(context)


def _list_models(context: typer.Context) -> None:
    from wordbrush.models import EMBEDDED

    if context.invoked_subcommand is None:
        for name, description in EMBEDDED.items():
            print(f"{name}: {description}")
        print("Any folder, single file or hub id of Stable Diffusion 1, 2 or XL is a model too.")


models_app, train_app = typer.Typer(), typer.Typer()


def _group(
    group: typer.Typer, name: str, help_: str, alone: Callable[[typer.Context], None] = _show_help
) -> None:
    """Add a command with commands of its own; `alone` is what it does without one."""
    app.add_typer(group, name=name, help=help_, callback=alone, invoke_without_command=True)


app.add_typer(editing_app)
app.add_typer(serving_app)
_group(models_app, "models", "List the models, or fetch one.", _list_models)
_group(data_app, "data", "Make and look at training data.")
_group(train_app, "train", "Train a model.")
_group(evaluate_app, "evaluate", "Measure a model.")


@models_app.command("list")
def list_models(context: typer.Context) -> None:
    """List the models that are part of Wordbrush."""
    _list_models(context)


@models_app.command("get")
def get_model(name: Annotated[str, typer.Argument(help="An embedded name, a path, or a hub id.")]) -> None:
    """Fetch a model, so that it works without a network from then on, and print where it is."""
    from wordbrush.models import resolve

    print(resolve(name))


def _trains(name: str, help_: str) -> None:
    """Add `train NAME`; its flags are the fields of the recipe's settings."""

    def build() -> Callable[..., None]:
        from wordbrush.training.commands import command

        return command(name)

    @train_app.command(name, cls=later(build), help=help_)
    def placeholder() -> None: ...


for _name, _help in RECIPES.items():
    _trains(_name, _help)


@train_app.command("assemble")
def assemble_model(
    work: Annotated[Path, typer.Argument(help="The folder that the recipes trained in.")],
    folder: Annotated[Path, typer.Argument(help="The checkpoint to write or renew.")],
) -> None:
    """Put separately trained parts together as one checkpoint in half precision."""
    from wordbrush.training.assemble import assemble

    assemble(work, folder)
    print(folder)


if __name__ == "__main__":
    main()
