"""Errors that are the caller's to mend; the command prints them as one line, without a traceback."""


class InputError(ValueError):
    """A file, row, column, key or flag is not what was expected.

    The message names the thing at fault, what was received and what was expected.
    """


class GateError(RuntimeError):
    """A check of the pipeline found the data or the model not fit to go on."""


class WorkerLostError(RuntimeError):
    """A process of a training over several went away; started again, all go on from the last checkpoint."""
