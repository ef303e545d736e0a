"""Child processes of Python import what their parent does, not what lies in the current folder.

`python -m` and `python -c` put the current folder first on the path: there a user's own package `components` or
`yaml` would be imported in the place of the installed one.
"""

import contextlib
import os
import sys
from collections.abc import Iterator

_SAFE_PATH = "PYTHONSAFEPATH"


def module_command(module: str, *arguments: str) -> list[str]:
    """The command that runs an installed module as a process of its own."""
    return [sys.executable, "-P", "-m", module, *arguments]


@contextlib.contextmanager
def safe_path() -> Iterator[None]:
    """The same for the children that other libraries start meanwhile, such as the workers of Beam."""
    before = os.environ.get(_SAFE_PATH)
    os.environ[_SAFE_PATH] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_SAFE_PATH]
        else:
            os.environ[_SAFE_PATH] = before
