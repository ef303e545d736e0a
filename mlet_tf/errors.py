"""Errors that the caller can fix; the command prints them as one line, without a traceback."""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """A file, row, column, key or flag is not what was expected.

    The message names the thing at fault, what was received and what was expected.
    """


class GateError(RuntimeError):
    """A check of the pipeline rejected the data or the model."""


class WorkerLostError(RuntimeError):
    """A process of a distributed training was lost; started again, all resume from the last checkpoint."""


def reason(error: BaseException) -> str:
    """Returns the message of an error without its number and path, whichever library raised it."""
    return getattr(error, "strerror", None) or getattr(error, "message", None) or str(error)


def nearest(word: str, known: Iterable[str]) -> str:
    """Returns ` Did you mean 'x'?` for the closest of `known`, or an empty string."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""
