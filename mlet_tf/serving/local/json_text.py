"""JSON text as TF Serving reads and writes it.

Its parser (RapidJSON) differs from Python's: it takes NaN and Inf, keeps repeated keys, gives the byte offset
of an error, and refuses numbers beyond a double. Its writer has an indentation of its own. Bodies that
both read alike go through Python's fast parser; all others through the one here.
"""

import contextlib
import json
import math
import re
from typing import Any

import numpy as np

from mlet_tf.serving.local.status import StatusError, invalid

_SPACES = b" \t\r\n"
_DIGITS = b"0123456789"
_BOM = b"\xef\xbb\xbf"
_ESCAPES = {
    ord('"'): '"',
    ord("\\"): "\\",
    ord("/"): "/",
    ord("b"): "\b",
    ord("f"): "\f",
    ord("n"): "\n",
    ord("r"): "\r",
    ord("t"): "\t",
}
# Where Python's parser might accept what the other refuses: huge exponents or digit strings, lone surrogates.
_PARSE_WITH_CARE = re.compile(rb"[eE]\+?[0-9]{3}|[0-9]{300}|\\u[dD]|\x00")
_MAX_DEPTH = 200


class Members(list):
    """A JSON object: its (key, value) pairs in order, repeated keys kept."""

    __slots__ = ()

    def find(self, key: str, default: Any = None) -> Any:
        """The first value of `key`."""
        return next((value for name, value in self if name == key), default)

    def has(self, key: str) -> bool:
        """Whether there is such a key."""
        return any(name == key for name, _ in self)


def parse(body: bytes) -> Any:
    """Parses a request's body; objects become `Members`.

    Raises:
        StatusError: INVALID_ARGUMENT with the reason and the byte offset.
    """
    if not body:
        raise invalid("JSON Parse error: The document is empty")
    if not _PARSE_WITH_CARE.search(body):
        try:
            text = body.decode("utf-8", "surrogateescape").removeprefix("\ufeff")
            return json.loads(text, object_pairs_hook=Members)
        except (ValueError, RecursionError):
            pass
    try:
        return _Parser(body).document()
    except RecursionError:
        raise invalid("JSON Parse error: Nested too deeply.") from None


def is_number(value: Any) -> bool:
    """Whether a parsed value is a number (a bool is none)."""
    return type(value) in (int, float)


def is_integer(value: Any, low: int, high: int) -> bool:
    """Whether a parsed value was written as an integer from `low` to `high`; one beyond 64 bits was not."""
    return type(value) is int and low <= value <= high


def type_name(value: Any) -> str:
    """What error texts call the type of a parsed value."""
    if value is None or isinstance(value, bool):
        return {None: "Null", True: "True", False: "False"}[value]
    if isinstance(value, Members):
        return "Object"
    return {list: "Array", str: "String"}.get(type(value), "Number")


class _Parser:
    """Recursive descent over bytes, with the other parser's error offsets."""

    def __init__(self, body: bytes) -> None:
        # A zero byte is the end of the document to the other parser, too.
        self._text = body + b"\x00"
        self._at = len(_BOM) if body.startswith(_BOM) else 0
        self._depth = 0

    def document(self) -> Any:
        self._skip()
        if self._peek() == 0:
            raise self._error("The document is empty.")
        value = self._value()
        self._skip()
        if self._peek() != 0:
            raise self._error("The document root must not be followed by other values.")
        return value

    def _error(self, words: str, at: int | None = None) -> StatusError:
        return invalid(f"JSON Parse error: {words} at offset: {self._at if at is None else at}")

    def _peek(self) -> int:
        return self._text[self._at]

    def _skip(self) -> None:
        while self._text[self._at] in _SPACES:
            self._at += 1

    def _consume(self, character: str) -> bool:
        if self._text[self._at] == ord(character):
            self._at += 1
            return True
        return False

    def _value(self) -> Any:
        read = {
            ord("{"): lambda: self._nested(self._object),
            ord("["): lambda: self._nested(self._array),
            ord('"'): self._string,
            ord("n"): lambda: self._literal("null", None),
            ord("t"): lambda: self._literal("true", True),
            ord("f"): lambda: self._literal("false", False),
        }.get(self._peek(), self._number)
        return read()

    def _nested(self, read: Any) -> Any:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise RecursionError
        self._at += 1
        self._skip()
        value = read()
        self._depth -= 1
        return value

    def _literal(self, word: str, value: Any) -> Any:
        if not all(self._consume(character) for character in word):
            raise self._error("Invalid value.")
        return value

    def _object(self) -> Members:
        members = Members()
        if self._consume("}"):
            return members
        while True:
            if self._peek() != ord('"'):
                raise self._error("Missing a name for object member.")
            key = self._string()
            self._skip()
            if not self._consume(":"):
                raise self._error("Missing a colon after a name of object member.")
            self._skip()
            members.append((key, self._value()))
            self._skip()
            if self._consume("}"):
                return members
            if not self._consume(","):
                raise self._error("Missing a comma or } after an object member.")
            self._skip()

    def _array(self) -> list:
        items: list[Any] = []
        if self._consume("]"):
            return items
        while True:
            items.append(self._value())
            self._skip()
            if self._consume("]"):
                return items
            if not self._consume(","):
                raise self._error("Missing a comma or ] after an array element.")
            self._skip()

    def _string(self) -> str:
        self._at += 1
        parts = []
        start = self._at
        while True:
            byte = self._peek()
            if byte in b'"\\' or byte < 0x20:
                parts.append(self._text[start : self._at].decode("utf-8", "surrogateescape"))
                if byte == ord('"'):
                    self._at += 1
                    return "".join(parts)
                if byte == 0:
                    raise self._error("Missing a closing quotation mark in string.")
                if byte < 0x20:
                    raise self._error("Invalid encoding in string.")
                parts.append(self._escape())
                start = self._at
            else:
                self._at += 1

    def _escape(self) -> str:
        begin = self._at
        self._at += 1
        byte = self._peek()
        if byte in _ESCAPES:
            self._at += 1
            return _ESCAPES[byte]
        if byte != ord("u"):
            raise self._error("Invalid escape character in string.", begin)
        self._at += 1
        point = self._hex(begin)
        if 0xD800 <= point <= 0xDFFF:
            low = 0
            if point <= 0xDBFF and self._consume("\\") and self._consume("u"):
                low = self._hex(begin)
            if not 0xDC00 <= low <= 0xDFFF:
                raise self._error("The surrogate pair in string is invalid.", begin)
            point = 0x10000 + ((point - 0xD800) << 10) + (low - 0xDC00)
        return chr(point)

    def _hex(self, begin: int) -> int:
        digits = self._text[self._at : self._at + 4]
        if not re.fullmatch(rb"[0-9a-fA-F]{4}", digits):
            raise self._error("Incorrect hex digit after \\u escape in string.", begin)
        self._at += 4
        return int(digits, 16)

    def _number(self) -> int | float:
        begin = self._at
        negative = self._consume("-")
        if self._peek() in b"NI":
            value = self._not_finite()
            return -value if negative else value
        if not self._consume("0"):
            self._digits("Invalid value.")
        whole = True
        if self._consume("."):
            whole = False
            self._digits("Miss fraction part in number.")
        if self._consume("e") or self._consume("E"):
            whole = False
            if not self._consume("-"):
                self._consume("+")
            self._digits("Miss exponent in number.")
        text = self._text[begin : self._at]
        if whole and len(text) < 25:
            return int(text)
        if math.isinf(float(text)):
            raise self._error("Number too big to be stored in double.", begin)
        return float(text)

    def _digits(self, otherwise: str) -> None:
        if self._peek() not in _DIGITS:
            raise self._error(otherwise)
        while self._peek() in _DIGITS:
            self._at += 1

    def _not_finite(self) -> float:
        if self._consume("N"):
            if self._consume("a") and self._consume("N"):
                return math.nan
            raise self._error("Invalid value.")
        self._consume("I")
        if not (self._consume("n") and self._consume("f")):
            raise self._error("Invalid value.")
        if self._peek() == ord("i") and not all(self._consume(character) for character in "inity"):
            raise self._error("Invalid value.")
        return math.inf


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


_SPECIAL = {'"': '\\"', "\\": "\\\\", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
_TO_ESCAPE = re.compile(r'["\\\x00-\x1f]')


def quoted(text: str) -> str:
    """A JSON string; only what must be escaped is."""
    return '"' + _TO_ESCAPE.sub(lambda m: _SPECIAL.get(m[0]) or f"\\u{ord(m[0]):04X}", text) + '"'


class Writer:
    """Indented JSON, 4 spaces a level; arrays on one line while `single_line` is set."""

    def __init__(self) -> None:
        """Starts with an empty text."""
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
    """The writer has no text for NaN and Inf inside a document, and stops there."""


def quote_value(value: Any) -> str:
    """A parsed value as error texts quote it."""
    if type(value) is float or (type(value) is int and not -(2**63) <= value < 2**64):
        number = float(value)
        fits = -3.4028234e38 <= number <= 3.4028234e38
        return decimal(number, np.float32 if fits else np.float64)
    writer = Writer()
    with contextlib.suppress(_CannotWriteError):
        _write(writer, value)
    return writer.text()


def _write(writer: Writer, value: Any) -> None:
    if isinstance(value, Members):
        writer.open("{")
        for key, member in value:
            writer.raw(quoted(key))
            _write(writer, member)
        writer.close()
    elif isinstance(value, list):
        writer.open("[")
        for item in value:
            _write(writer, item)
        writer.close()
    elif isinstance(value, str):
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
