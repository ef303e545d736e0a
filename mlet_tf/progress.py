"""Progress of long work on standard error: a bar on a terminal, an occasional line in a log."""

import math
import sys
import time
from collections.abc import Callable

_TERMINAL_SECONDS, _LOG_SECONDS = 0.2, 10.0
_BAR_WIDTH = 30


class ProgressLine:
    """Shows progress at a readable rate.

    Args:
        in_logs: Whether `show` prints anything if standard error is not a terminal.

    Example:
        >>> line = ProgressLine()
        >>> line.note("reading log.tsv")
        >>> for done in range(1, 101):
        ...     line.show(done, 100, lambda: f"{done} of 100 files")
    """

    def __init__(self, in_logs: bool = True) -> None:
        self._in_logs = in_logs
        self._shown = -math.inf
        self._bar_stands = False

    def show(self, done: int, total: int, text: Callable[[], str]) -> None:
        """Shows the progress if the last update was long enough ago, or the work is done.

        Args:
            done: Units of work done.
            total: Units of work in all, at least 1.
            text: Returns the text to show; called only if it is shown.
        """
        now, terminal = time.monotonic(), sys.stderr.isatty()
        if not terminal and not self._in_logs:
            return
        if done < total and now - self._shown < (_TERMINAL_SECONDS if terminal else _LOG_SECONDS):
            return
        self._shown = now
        if not terminal:
            print(f"    {text()}", file=sys.stderr, flush=True)
            return
        bar = _BAR_WIDTH * done // total
        self._bar_stands = done < total
        print(
            f"\r    [{'#' * bar}{'.' * (_BAR_WIDTH - bar)}] {text()}\033[K",
            end="" if self._bar_stands else "\n",
            file=sys.stderr,
            flush=True,
        )

    def note(self, line: str) -> None:
        """Prints a line; the next `show` draws the bar again below it."""
        print(f"\r\033[K{line}" if self._bar_stands else line, file=sys.stderr, flush=True)
        self._bar_stands, self._shown = False, -math.inf if sys.stderr.isatty() else self._shown

    def end(self) -> None:
        """Ends the line of a bar, such as that of interrupted work."""
        if self._bar_stands:
            print(file=sys.stderr)
            self._bar_stands = False
