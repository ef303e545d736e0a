"""The one display of progress: a bar on a terminal, lines in a log."""

import contextlib
import io

from mlet_tf.progress import ProgressLine


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(stream, *steps):
    """What a line shows of steps out of 4 and of notes, and then where it is broken off."""
    with contextlib.redirect_stderr(stream):
        line = ProgressLine()
        for step in steps:
            line.note(step) if isinstance(step, str) else line.show(step, 4, lambda step=step: f"step {step}")
        line.end()
    return stream.getvalue()


def test_a_log_gets_the_first_and_the_last_line_and_every_note():
    assert shown(io.StringIO(), 1, 2, "note", 3, 4) == "    step 1\nnote\n    step 4\n"


def test_a_note_takes_the_place_of_the_bar_which_is_drawn_again_below():
    bars = [f"\r    [{'#' * n}{'.' * (30 - n)}] step" for n in (15, 22, 30)]
    expected = f"{bars[0]} 2\033[K\r\033[Knote\n{bars[1]} 3\033[K{bars[2]} 4\033[K\n"
    assert shown(Terminal(), 2, "note", 3, 4) == expected


def test_a_bar_that_is_broken_off_ends_its_line():
    assert shown(Terminal(), 1).endswith("step 1\033[K\n")
