"""Keras files that a user names."""

from __future__ import annotations

import contextlib
import importlib
from typing import TYPE_CHECKING

from mlet_tf.errors import InputError

if TYPE_CHECKING:
    import keras


def load_keras_file(path: str) -> keras.Model:
    """Loads a model.

    Raises:
        InputError: It is none, or has layers that cannot be imported.
    """
    import keras

    with contextlib.suppress(ImportError):  # Keras knows a DLRM once it is imported, which needs TFRS.
        importlib.import_module("mlet_tf.models")
    try:
        return keras.models.load_model(path, compile=False)
    except (ValueError, TypeError, OSError) as error:
        raise InputError(f"{path} cannot be loaded: {str(error).splitlines()[0]}") from None
