"""What commands show of other libraries' logs."""

import contextlib
import logging
from collections.abc import Iterator


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the warnings of TFX and TensorFlow, which have nothing to say to the user here.

    One of them asks for Keras 2, which nothing here works with.
    """
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
