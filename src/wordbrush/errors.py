"""Every error that a user can act on. The command line prints one as a single line."""


class WordbrushError(Exception):
    """Base of all errors raised on purpose; its message says what to do."""


class UsageError(WordbrushError):
    """The request itself makes no sense: an unknown name, a missing field, a setting out of range."""


class ImageError(WordbrushError):
    """A picture or mask that cannot be read or used."""


class ModelError(WordbrushError):
    """A checkpoint that is missing, damaged or of the wrong kind."""


class DeviceError(WordbrushError):
    """A device that this machine does not have."""


class OutputError(WordbrushError):
    """A result that cannot be written."""


class WithheldError(WordbrushError):
    """Results that a check found not safe for work."""

    def __init__(self, check: str, num_unsafe: int, num_results: int) -> None:
        what = "the result" if num_results == 1 else f"{num_unsafe} of {num_results} results"
        super().__init__(f"withheld: {check} finds {what} not safe for work; try other words or another seed")


class MissingExtraError(WordbrushError):
    """Packages that only a part of Wordbrush needs are not installed."""

    def __init__(self, what: str, extra: str) -> None:
        how = f"`make venv`, or pip install -c constraints.txt -e '.[{extra}]' in Wordbrush's folder"
        super().__init__(f"for {what} more packages are needed: {how}")


def one_line(error: BaseException, limit: int = 200) -> str:
    """An exception's message, short and on one line."""
    return " ".join(str(error).split())[:limit] or type(error).__name__
