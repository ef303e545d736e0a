"""The scope in which factorised layers come out collapsed."""

import contextlib
import contextvars
from collections.abc import Iterator

_COLLAPSING = contextvars.ContextVar("mlet_tf_collapsing", default=False)


@contextlib.contextmanager
def collapsing() -> Iterator[None]:
    """Makes constructors of factorised layers give the plain layers that they collapse to, without weights.

    A model which is made anew from its configuration in this scope has no factor left, wherever it makes its
    layers: from nested configurations or in constructors of its own.
    """
    token = _COLLAPSING.set(True)
    try:
        yield
    finally:
        _COLLAPSING.reset(token)


def is_collapsing() -> bool:
    """Whether the scope is open."""
    return _COLLAPSING.get()
