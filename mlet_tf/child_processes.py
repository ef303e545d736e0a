"""Starting Python child processes that import what their parent does, not what is in the current folder.

`python -m` and `python -c` put the current folder first on the path, so a user's own package `components` or `yaml`
would be imported instead of the installed one.
"""

import contextlib
import os
import sys
from collections.abc import Iterator

_SAFE_PATH = "PYTHONSAFEPATH"


def module_command(module: str, *arguments: str) -> list[str]:
    """The command that runs an installed module in a new process."""
    return [sys.executable, "-P", "-m", module, *arguments]


@contextlib.contextmanager
def safe_path() -> Iterator[None]:
    """The same for child processes that other libraries start in the context, such as Beam's workers."""
    before = os.environ.get(_SAFE_PATH)
    os.environ[_SAFE_PATH] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_SAFE_PATH]
        else:
            os.environ[_SAFE_PATH] = before
