"""Checks of the client's arguments before any connection is opened."""

from numbers import Integral, Real

from mlet_tf.errors import InputError

_LARGEST_INT64 = 2**63 - 1
_LONGEST_WAIT = 86_400.0  # A day. Sockets count milliseconds in 32 bits.


def seconds(name: str, value: float, *, zero: bool = False) -> float:
    """A time in seconds, at most a day.

    Args:
        name: The argument's name.
        value: Its value.
        zero: Whether 0 is allowed.

    Raises:
        InputError: It is not a number, or out of range.
    """
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    if not is_number or not 0 <= value <= _LONGEST_WAIT or (value == 0 and not zero):
        low = "from 0" if zero else "above 0,"
        raise InputError(
            f"{name}: expected a number of seconds {low} to {_LONGEST_WAIT:.0f}. Received: {value!r}"
        )
    return float(value)


def whole(name: str, value: int, least: int) -> int:
    """A 64-bit integer of at least `least`.

    Raises:
        InputError: It is something else.
    """
    if not isinstance(value, Integral) or isinstance(value, bool) or not least <= value <= _LARGEST_INT64:
        raise InputError(f"{name}: expected an integer of at least {least}. Received: {value!r}")
    return int(value)


def version_number(value: int | None) -> int | None:
    """The number of a version, or None.

    Raises:
        InputError: It is something else.
    """
    return None if value is None else whole("version", value, 0)


def text(name: str, value: str) -> str:
    """A text that can be sent: not empty, and valid Unicode.

    Raises:
        InputError: It is something else.
    """
    if not isinstance(value, str) or not value or not _is_unicode(value):
        raise InputError(f"{name}: expected a text that is not empty. Received: {value!r}")
    return value


def _is_unicode(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
