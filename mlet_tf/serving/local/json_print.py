"""JSON text as TF Serving writes it: its indentation, and floats in six digits if these suffice."""

import contextlib
import math
import re
from collections.abc import Iterator

import numpy as np

from mlet_tf.serving.local.json_parse import Json, Members

_SPECIAL = {'"': '\\"', "\\": "\\\\", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
_TO_ESCAPE = re.compile(r'["\\\x00-\x1f]')
_FLOAT32_MAX = float(np.finfo(np.float32).max)
# The text of deeper values grows with the square of the depth.
_MAX_QUOTED_DEPTH = 2000


def decimal(value: float, dtype: type[np.floating] = np.float32) -> str:
    """The text of a float: six significant digits where they read back as the same number, else all.

    Args:
        value: the number.
        dtype: its type: float32 or float64.
    """
    number = float(value)
    if math.isnan(number):
        return "NaN"
    if math.isinf(number):
        return "Infinity" if number > 0 else "-Infinity"
    text = f"{number:.6g}"
    if dtype(text) != dtype(number):
        text = f"{number:.9g}" if dtype is np.float32 else f"{number:.17g}"
    return text if "." in text or "e" in text else text + ".0"


def quoted(text: str) -> str:
    """A JSON string; only what must be escaped is."""
    return '"' + _TO_ESCAPE.sub(lambda m: _SPECIAL.get(m[0]) or f"\\u{ord(m[0]):04X}", text) + '"'


class Writer:
    """Indented JSON, 4 spaces a level; arrays on one line while `single_line` is set."""

    def __init__(self) -> None:
        self._parts: list[str] = []
        # One entry per open level: [is it an array, values so far].
        self._levels: list[list] = []
        self.single_line = False

    def text(self) -> str:
        """What was written."""
        return "".join(self._parts)

    def raw(self, text: str) -> None:
        """Writes a value, or an object's key, that is JSON already."""
        self._prefix()
        self._parts.append(text)

    def open(self, bracket: str) -> None:
        """Starts an array or an object."""
        self._prefix()
        self._parts.append(bracket)
        self._levels.append([bracket == "[", 0])

    def close(self) -> None:
        """Ends the innermost array or object."""
        is_array, count = self._levels.pop()
        if count and not (is_array and self.single_line):
            self._new_line()
        self._parts.append("]" if is_array else "}")

    def _new_line(self) -> None:
        self._parts.append("\n" + "    " * len(self._levels))

    def _prefix(self) -> None:
        if not self._levels:
            return
        level = self._levels[-1]
        is_array, count = level
        if is_array:
            if count:
                self._parts.append(", " if self.single_line else ",")
            if not self.single_line:
                self._new_line()
        elif count % 2:
            self._parts.append(": ")
        else:
            if count:
                self._parts.append(",")
            self._new_line()
        level[1] = count + 1


class _CannotWriteError(Exception):
    """The value goes on, but its text stops here."""


def quote_value(value: Json) -> str:
    """A parsed value as error texts quote it.

    Like TF Serving's, the text ends at NaN and Inf inside an array or object; it also ends at very deep nesting.
    """
    if type(value) is float or (type(value) is int and not -(2**63) <= value < 2**64):
        number = float(value)
        fits = -_FLOAT32_MAX <= number <= _FLOAT32_MAX
        return decimal(number, np.float32 if fits else np.float64)
    writer = Writer()
    with contextlib.suppress(_CannotWriteError):
        _write(writer, value)
    return writer.text()


def _write(writer: Writer, value: Json) -> None:
    """Writes a value. Without recursion: it may be nested deeper than Python's stack."""
    open_values: list[Iterator] = [iter([value])]
    while open_values:
        try:
            item = next(open_values[-1])
        except StopIteration:
            open_values.pop()
            if open_values:
                writer.close()
            continue
        if isinstance(item, tuple):
            name, item = item
            writer.raw(quoted(name))
        if not isinstance(item, list):
            _write_scalar(writer, item)
            continue
        if len(open_values) > _MAX_QUOTED_DEPTH:
            raise _CannotWriteError
        writer.open("{" if isinstance(item, Members) else "[")
        open_values.append(iter(item))


def _write_scalar(writer: Writer, value: bool | int | float | str | None) -> None:
    if isinstance(value, str):
        writer.raw(quoted(value))
    elif value is None or isinstance(value, bool):
        writer.raw({None: "null", True: "true", False: "false"}[value])
    elif type(value) is int and -(2**63) <= value < 2**64:
        writer.raw(str(value))
    elif math.isfinite(value):
        writer.raw(_shortest(float(value)))
    else:
        writer.raw("")
        raise _CannotWriteError


def _shortest(number: float) -> str:
    """The text that the JSON writer itself gives a double."""
    digits, _, exponent = repr(abs(number)).partition("e")
    whole, _, fraction = digits.partition(".")
    point = len(whole) + int(exponent or 0)
    figures = (whole + fraction).lstrip("0")
    point -= len(whole + fraction) - len(figures) if figures else 0
    figures = figures.rstrip("0")
    sign = "-" if math.copysign(1, number) < 0 else ""
    if not figures:
        return f"{sign}0.0"
    if len(figures) <= point <= 21:
        return f"{sign}{figures.ljust(point, '0')}.0"
    if 0 < point <= 21:
        return f"{sign}{figures[:point]}.{figures[point:]}"
    if -6 < point <= 0:
        return f"{sign}0.{'0' * -point}{figures}"
    head = figures[0] + (f".{figures[1:]}" if len(figures) > 1 else "")
    return f"{sign}{head}e{point - 1}"
