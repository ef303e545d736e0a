"""Hides other libraries' logs."""

import contextlib
import logging
from collections.abc import Iterator


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hides the warnings of TFX and TensorFlow, which do not concern the user.

    One of them asks for Keras 2, with which nothing here works.
    """
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
