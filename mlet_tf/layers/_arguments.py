"""Checks of arguments that several layers take."""

import math
import numbers
from collections.abc import Iterable, Sequence

import numpy as np


def hidden_chain(hidden_dim: int | Sequence[int]) -> tuple[int, ...]:
    """Returns the hidden dimensions as a tuple of positive integers."""
    chain = tuple(hidden_dim) if isinstance(hidden_dim, Iterable) else (hidden_dim,)
    if not chain or not all(is_positive_int(k) for k in chain):
        raise ValueError(
            f"`hidden_dim` should be a positive integer or a sequence of them. Received: {hidden_dim!r}"
        )
    return tuple(int(k) for k in chain)


def is_positive_int(value: object) -> bool:
    """Whether the value is an integer above zero, bool excluded."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and bool(value > 0)


def positive_int(name: str, value: int) -> int:
    """Returns the value, or raises ValueError where it is not an integer above zero."""
    if not is_positive_int(value):
        raise ValueError(f"`{name}` should be a positive integer. Received: {value!r}")
    return int(value)


def positive_float(name: str, value: float) -> float:
    """Returns the value, or raises ValueError where it is not a finite number above zero."""
    if not isinstance(value, numbers.Real) or not 0 < float(value) < math.inf:
        raise ValueError(f"`{name}` should be a finite number above 0. Received: {value!r}")
    return float(value)
