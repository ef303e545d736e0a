"""JSON text as TF Serving reads it.

Its parser (RapidJSON 1.1) differs from Python's: it takes NaN and Inf, keeps repeated keys, gives the byte offset
of an error, and refuses numbers beyond a double. Bodies that both read alike go through Python's fast parser; all
others through the one here.
"""

import json
import math
import re
from typing import TypeAlias, TypeGuard

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
_LITERALS = {ord("n"): ("null", None), ord("t"): ("true", True), ord("f"): ("false", False)}
# Where Python's parser might accept what the other refuses: huge exponents or digit strings, lone surrogates.
_PARSE_WITH_CARE = re.compile(rb"[eE]\+?[0-9]{3}|[0-9]{300}|\\u[dD]|\x00")
_MAX_EXPONENT = 308
# Digits of a number with a fraction that the other parser keeps.
_MAX_SIGNIFICANT = 17


class Members(list):
    """A JSON object: its (key, value) pairs in order, repeated keys kept."""

    __slots__ = ()

    def find(self, key: str, default: "Json" = None) -> "Json":
        """The first value of `key`."""
        return next((value for name, value in self if name == key), default)

    def has(self, key: str) -> bool:
        """Whether there is such a key."""
        return any(name == key for name, _ in self)


# A parsed value. A number is an int where it was written without fraction and exponent.
Json: TypeAlias = bool | int | float | str | list | Members | None


def parse(body: bytes) -> Json:
    """Parses a request's body; objects become `Members`.

    Bytes that are not UTF-8 stay in strings as surrogates (Python's `surrogateescape`).

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
    return Parser(body).document()


def is_array(value: Json) -> TypeGuard[list["Json"]]:
    """Whether a parsed value is an array."""
    return isinstance(value, list) and not isinstance(value, Members)


def is_number(value: Json) -> TypeGuard[int | float]:
    """Whether a parsed value is a number (a bool is none)."""
    return type(value) in (int, float)


def is_integer(value: Json, low: int, high: int) -> TypeGuard[int]:
    """Whether a parsed value was written as an integer from `low` to `high`; one beyond 64 bits was not."""
    return type(value) is int and low <= value <= high


def type_name(value: Json) -> str:
    """What error texts call the type of a parsed value."""
    if value is None or isinstance(value, bool):
        return {None: "Null", True: "True", False: "False"}[value]
    if isinstance(value, Members):
        return "Object"
    return "Array" if isinstance(value, list) else "String" if isinstance(value, str) else "Number"


class Parser:
    """Reads one document, with the other parser's error offsets.

    Args:
        body: the bytes of the document.
    """

    def __init__(self, body: bytes) -> None:
        # A zero byte is the end of the document to the other parser, too.
        self._text = body + b"\x00"
        self._at = 0
        for byte in _BOM:  # Each byte is skipped independently, even if the others are missing.
            self._at += self._text[self._at] == byte

    def document(self) -> Json:
        """The value of the whole document.

        Raises:
            StatusError: INVALID_ARGUMENT with the reason and the byte offset.
        """
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

    def _consume(self, characters: str) -> bool:
        """Whether all characters follow; those that do are read also where later ones do not."""
        for character in characters:
            if self._text[self._at] != ord(character):
                return False
            self._at += 1
        return True

    def _value(self) -> Json:
        """Reads a value. Without recursion: bodies may be nested deeper than Python's stack."""
        containers: list[list] = []  # The arrays and objects that are open.
        names: list[str] = []  # The names that the open objects gave last.
        while True:
            value, is_open = self._begin(names)
            if is_open and isinstance(value, list):
                containers.append(value)
                continue
            while containers and self._closes(containers[-1], value, names):
                value = containers.pop()
            if not containers:
                return value

    def _begin(self, names: list[str]) -> tuple[Json, bool]:
        """The value that begins here, and whether it is an array or object whose values follow."""
        byte = self._peek()
        if byte not in b"[{":
            return self._scalar(), False
        self._at += 1
        self._skip()
        if byte == ord("["):
            return [], not self._consume("]")
        is_open = not self._consume("}")
        if is_open:
            names.append(self._name())
        return Members(), is_open

    def _closes(self, container: list, value: Json, names: list[str]) -> bool:
        """Adds a value to its container; whether that ends with it."""
        self._skip()
        if isinstance(container, Members):
            container.append((names.pop(), value))
            if self._consume("}"):
                return True
            if not self._consume(","):
                raise self._error("Missing a comma or '}' after an object member.")
            self._skip()
            names.append(self._name())
            return False
        container.append(value)
        if self._consume("]"):
            return True
        if not self._consume(","):
            raise self._error("Missing a comma or ']' after an array element.")
        self._skip()
        return False

    def _name(self) -> str:
        if self._peek() != ord('"'):
            raise self._error("Missing a name for object member.")
        name = self._string()
        self._skip()
        if not self._consume(":"):
            raise self._error("Missing a colon after a name of object member.")
        self._skip()
        return name

    def _scalar(self) -> Json:
        """Reads a value that holds no others."""
        byte = self._peek()
        if byte == ord('"'):
            return self._string()
        if byte in _LITERALS:
            word, value = _LITERALS[byte]
            if not self._consume(word):
                raise self._error("Invalid value.")
            return value
        return self._number()

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
                    raise self._error("Invalid escape character in string.")
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
        if 0xD800 <= point <= 0xDBFF:
            low = self._hex(begin) if self._consume("\\u") else 0
            if not 0xDC00 <= low <= 0xDFFF:
                raise self._error("The surrogate pair in string is invalid.", begin)
            point = 0x10000 + ((point - 0xD800) << 10) + (low - 0xDC00)
        # A lone low surrogate passes, as three bytes that are not UTF-8.
        return chr(point).encode("utf-8", "surrogatepass").decode("utf-8", "surrogateescape")

    def _hex(self, begin: int) -> int:
        digits = self._text[self._at : self._at + 4]
        if not re.fullmatch(rb"[0-9a-fA-F]{4}", digits):
            raise self._error("Incorrect hex digit after \\u escape in string.", begin)
        self._at += 4
        return int(digits, 16)

    def _number(self) -> int | float:
        begin = self._at
        negative = self._consume("-")
        value: int | float = 0
        whole = b""
        if self._peek() in b"NI":
            value = self._not_finite()
        elif self._consume("0"):
            whole = b"0"
        else:
            whole = self._digits("Invalid value.")
        if math.isinf(float(whole or b"0")):
            raise self._error("Number too big to be stored in double.", begin)
        # A fraction or an exponent may also follow Inf, and then replaces it.
        fraction = self._digits("Miss fraction part in number.") if self._consume(".") else None
        exponent = self._exponent()
        if fraction is None and exponent is None:
            if whole and len(whole) < 25:
                value = int(whole)
            elif whole:
                value = float(whole)
        else:
            value = self._double(whole, fraction or b"", exponent or 0, begin)
        return -value if negative else value

    def _digits(self, otherwise: str) -> bytes:
        begin = self._at
        while self._peek() in _DIGITS:
            self._at += 1
        if self._at == begin:
            raise self._error(otherwise)
        return self._text[begin : self._at]

    def _exponent(self) -> int | None:
        if not (self._consume("e") or self._consume("E")):
            return None
        negative = not self._consume("+") and self._consume("-")
        # More digits change nothing, and Python converts only some thousands of them.
        value = min(int(self._digits("Miss exponent in number.").lstrip(b"0")[:9] or b"0"), 10**8)
        return -value if negative else value

    def _double(self, whole: bytes, fraction: bytes, exponent: int, begin: int) -> float:
        """A number with fraction or exponent; the exponent alone decides what is too big, infinity is not."""
        dropped = max(0, len((whole + fraction).lstrip(b"0")) - _MAX_SIGNIFICANT)
        if exponent > _MAX_EXPONENT + max(0, len(fraction) - dropped):
            raise self._error("Number too big to be stored in double.", begin)
        return float(b"%s.%se%d" % (whole or b"0", fraction or b"0", exponent))

    def _not_finite(self) -> float:
        if self._consume("NaN"):
            return math.nan
        if not self._consume("Inf"):
            raise self._error("Invalid value.")
        if self._peek() == ord("i") and not self._consume("inity"):
            raise self._error("Invalid value.")
        return math.inf
