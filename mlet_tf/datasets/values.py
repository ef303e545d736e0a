"""Reading single values of a click log from any source; `convert` does the same for columns.

Values that mean the same are one category: `5`, `5.0` (as pandas holds a 5 where the column has a missing
value), `"5"` and `"5.0"` are all the text `5`.
"""

from __future__ import annotations

import decimal
import math
import re
from collections.abc import Collection
from numbers import Integral, Real

CATEGORY = "UTF-8 text without a NUL byte"
# A whole number written as a float, and its replacement; `re`, RE2 and Arrow all accept both.
WHOLE, WHOLE_REWRITE = r"^(?:-(0)|(-?[0-9]+))\.0+$", r"\1\2"
# What Arrow's own conversion of text accepts, so that both ways of parsing agree.
INTEGER = r"^(-?[0-9]{1,100}|0[xX][0-9a-fA-F]{1,16})$"
SPACES = " \t"

_WHOLE_BYTES = re.compile(WHOLE.encode())
_INTEGER_BYTES = re.compile(INTEGER.encode())
_EXACT_FLOAT = 2.0**53
# What holds a text. Database drivers give bytes as the last two.
TEXT_TYPES = (str, bytes, bytearray, memoryview)
Text = str | bytes | bytearray | memoryview
_MISSING_TYPES = ("NAType", "NaTType")  # pandas.NA and pandas.NaT, without importing pandas.


def canonical_text(text: bytes) -> bytes:
    """The text of a category: a whole number written as a float loses its `.0`."""
    # Not `sub`: for `re`, unlike RE2, `$` is also before a line end.
    found = _WHOLE_BYTES.fullmatch(text) if may_hold_whole(text) else None
    return found.expand(WHOLE_REWRITE.encode()) if found else text


def may_hold_whole(data: bytes) -> bool:
    """Whether there may be a whole number written as a float, which is rare."""
    return b"." in data and b".0" in data  # Searching for one byte is many times faster than for two.


def is_missing(value: object, marks: Collection[bytes]) -> bool:
    """Whether a Python, NumPy or pandas value stands for no value.

    Args:
        value: The value.
        marks: Texts that mean "no value", as of `ClickLogSchema.missing_marks`.
    """
    if isinstance(value, TEXT_TYPES):
        text = as_bytes(value)
        return text in marks or canonical_text(text) in marks
    if value is None or type(value).__name__ in _MISSING_TYPES or _is_nan(value):
        return True
    if len(marks) == 1:  # Only the empty text is not a number.
        return False
    try:
        return str(whole_number(value)).encode() in marks
    except (ValueError, TypeError, OverflowError):
        return False


def whole_number(value: object) -> int:
    """Converts a number to an integer.

    Raises:
        ValueError: It is not a number, not whole, or a float too large to be exact.
    """
    kind = _kind(value)
    if kind == "b":
        return int(bool(value))
    if isinstance(value, decimal.Decimal):
        if not value.is_finite() or value != value.to_integral_value() or value.adjusted() > 100:
            raise ValueError(value)
        return int(value)
    if kind not in ("m", "M") and isinstance(value, Integral):
        return int(value)
    number = float(value) if isinstance(value, Real) else math.nan
    if not number.is_integer() or abs(number) >= _EXACT_FLOAT:
        raise ValueError(value)
    return int(number)


def to_integer(value: object) -> int:
    """Converts a value of an integer column.

    Raises:
        ValueError: It is not a 64-bit integer.
    """
    if isinstance(value, TEXT_TYPES):
        return parse_int64(as_bytes(value))
    number = whole_number(value)
    if not -(2**63) <= number < 2**63:
        raise ValueError(value)
    return number


def to_category(value: object) -> bytes:
    """Converts a value of a categorical column to its text.

    Raises:
        ValueError: It is neither text without a NUL byte nor a whole number; booleans are refused too.
    """
    if isinstance(value, TEXT_TYPES):
        text = as_bytes(value)
        if not is_category(text):
            raise ValueError(value)
        return canonical_text(text)
    if isinstance(value, bool) or _kind(value) == "b":
        raise ValueError(value)
    return str(whole_number(value)).encode()


def parse_int64(text: bytes) -> int:
    """Parses a text of an integer column: decimal or hexadecimal, spaces and TABs around it allowed, `260.0` as 260.

    Raises:
        ValueError: It is not a 64-bit integer.
    """
    digits = canonical_text(text.strip(SPACES.encode()))
    if not _INTEGER_BYTES.fullmatch(digits):
        raise ValueError(f"expected an integer, received {text!r}")
    number = int(digits, 16 if digits[:2] in (b"0x", b"0X") else 10)
    if not -(2**63) <= number < 2**63:
        raise ValueError(f"expected an integer of 64 bits, received {text!r}")
    return number


def is_category(text: bytes) -> bool:
    """Whether a text can be a category."""
    return is_utf8(text) and b"\0" not in text


def is_utf8(data: bytes) -> bool:
    """Whether the bytes are UTF-8."""
    if data.isascii():
        return True
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def as_bytes(text: Text) -> bytes:
    """Text as UTF-8; bytes of any type as they are."""
    return text.encode("utf-8", "surrogateescape") if isinstance(text, str) else bytes(text)


def _is_nan(value: object) -> bool:
    if isinstance(value, decimal.Decimal):
        return value.is_nan()
    if _kind(value) in ("m", "M"):
        return str(value) == "NaT"
    return isinstance(value, Real) and not isinstance(value, Integral) and math.isnan(value)


def _kind(value: object) -> str:
    """NumPy's kind of a scalar (`b` boolean, `m` and `M` times), without importing NumPy."""
    return getattr(getattr(value, "dtype", None), "kind", "")
