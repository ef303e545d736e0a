"""How far long work has come: a bar on a terminal, plain lines in a log."""

import math
import sys
import time
from collections.abc import Callable

_TERMINAL_SECONDS, _LOG_SECONDS = 0.2, 10.0


class ProgressLine:
    """Shows progress, not more often than one can read it."""

    def __init__(self) -> None:
        """Shows nothing yet."""
        self._shown = -math.inf

    def show(self, done: int, total: int, text: Callable[[], str]) -> None:
        """Shows that `done` of `total` is done, if it is time for that or all is done.

        Args:
            done: How much is done.
            total: Of how much.
            text: Gives what to say of it.
        """
        now, terminal = time.monotonic(), sys.stderr.isatty()
        if done < total and now - self._shown < (_TERMINAL_SECONDS if terminal else _LOG_SECONDS):
            return
        self._shown = now
        if not terminal:
            print(f"    {text()}", file=sys.stderr, flush=True)
            return
        bar = 30 * done // total
        end = "" if done < total else "\n"
        print(f"\r    [{'#' * bar}{'.' * (30 - bar)}] {text()}\033[K", end=end, file=sys.stderr)
